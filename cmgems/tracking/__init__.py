"""MLflow: a run, the journal that stands between it and the training, and a run's pictures."""
