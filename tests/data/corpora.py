"""Small genomes at random, and the corpora made of them."""

from pathlib import Path

import numpy as np

from cmgems.data.prepare import prepare_corpus
from cmgems.data.settings import PrepareConfig


def random_bases(length: int, seed: int) -> str:
    letters = np.frombuffer(b"ACGT", dtype=np.uint8)
    return letters[np.random.default_rng(seed).integers(0, 4, length)].tobytes().decode()


def write_fasta(path: Path, **chromosomes: str) -> str:
    path.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in chromosomes.items()))
    return str(path)


def prepare(output: Path, *inputs: str, **settings) -> dict:
    return prepare_corpus(PrepareConfig(inputs=list(inputs), **settings), output, progress=False)
