"""Curriculum-masked pretraining of DNA language models (CM-GEMS)."""

__version__ = "0.1.0"
