"""Downstream tasks: what they are, their data, and what is known about it."""
