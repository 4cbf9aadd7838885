"""Random faults at random moments of real runs and commands: nothing is lost, nothing hangs (`make soak`)."""
