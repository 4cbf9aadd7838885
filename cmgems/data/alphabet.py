"""Letters of sequences."""

AMBIGUITY_CODES = "RYSWKMBDHVX"
"""IUPAC's codes for one of several nucleotides, upper case, without N, which stands for any."""
