"""Letters of sequences."""

from typing import Literal

BASES = "ATCG"
"""Nucleotides in the order of the vocabulary."""

Alphabet = Literal["dna", "rna"]
"""Whether a vocabulary is written with T or with U."""

AMBIGUITY_CODES = "RYSWKMBDHVX"
"""IUPAC's codes for one of several nucleotides, upper case, without N, which stands for any."""
