"""Masking stages: what ends one, who decides, how all learn of it."""
