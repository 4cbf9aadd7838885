"""The model, the data pipeline, the loop and its checkpoints."""
