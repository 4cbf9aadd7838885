"""Genome files to read."""

import pytest

from tests.data.corpora import random_bases, write_fasta


@pytest.fixture
def write(tmp_path):
    """Write a file and return its path as the command line gives it."""

    def write_file(content: bytes, name: str = "genome.fa") -> str:
        (tmp_path / name).write_bytes(content)
        return str(tmp_path / name)

    return write_file


@pytest.fixture
def fasta(tmp_path):
    """Four chromosomes of 30,000 random nucleotides."""
    return write_fasta(tmp_path / "genome.fa", **{f"chr{i}": random_bases(30_000, seed=i) for i in range(1, 5)})
