"""Labelled tasks from the yeast genome's own annotation, for machines without any benchmark's data."""
