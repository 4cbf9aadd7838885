"""The training loop, and what it stands on: launch, validation, checkpoints, run folder."""
