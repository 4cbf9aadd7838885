"""Studies: a grid of pretraining runs with their scores, resumable, and its analysis."""
