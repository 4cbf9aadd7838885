"""Unusual and bad inputs, each with what has to come of it: the table that docs/guarantees.md refers to."""
