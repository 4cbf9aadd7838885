"""Real human windows and NPMI tables for the tests of masking."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from cmgems.data.genomes import read_bases
from cmgems.data.tokenizer import count_kmers, encode_batch
from cmgems.masking.npmi import NpmiTable, human_counts, npmi_from_counts


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The tensors are small: on a busy machine, threads cost several times what they save."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def human_table() -> NpmiTable:
    k, counts = human_counts()
    return npmi_from_counts(counts, k)


@pytest.fixture(scope="session")
def chromosome_3(shared_data: Path) -> str:
    """hg19 chr3:42-44M, 2 million nucleotides without an N."""
    return _bases(shared_data / "genomes" / "hg19_chr3_42-44M.fa")


@pytest.fixture(scope="session")
def chromosome_22(shared_data: Path) -> str:
    """hg19 chr22:20-21M, a million nucleotides, a tenth of them N."""
    return _bases(shared_data / "genomes" / "hg19_chr22_20-21M.fa")


@pytest.fixture(scope="session")
def table_of(chromosome_3: str) -> Callable[[int], NpmiTable]:
    """NPMI of the k-mers of the human piece, for any k."""

    def table(k: int) -> NpmiTable:
        return npmi_from_counts(count_kmers([chromosome_3], k), k)

    return table


@pytest.fixture(scope="session")
def mixed_windows(chromosome_3: str, chromosome_22: str) -> Callable[[int], torch.Tensor]:
    """Human windows of many lengths, for any k: tiny ones, some with N inside, repeats (ties), one without a token."""

    def windows(k: int) -> torch.Tensor:
        rng = np.random.default_rng(k)
        tokens = [*range(1, 3 * k), *rng.integers(3 * k, 250, size=12).tolist(), 510]
        sequences = []
        for n in tokens:
            start = int(rng.integers(len(chromosome_3) - 600))
            sequences.append(chromosome_3[start : start + n + k - 1])
        gap = chromosome_22.index("N" * 50)
        sequences += [chromosome_22[gap - before : gap + 40] for before in (1, 8, 30, 200)]
        sequences += [
            sequence[: len(sequence) // 2] + "N" + sequence[len(sequence) // 2 :] for sequence in sequences[::3]
        ]
        sequences += ["A" * 100, "CA" * 60, "GGGTTA" * 50, ""]
        return torch.from_numpy(encode_batch(sequences, k))

    return windows


@pytest.fixture(scope="session")
def full_windows(chromosome_3: str) -> torch.Tensor:
    """2,200 human windows of 510 6-mers, int64 [2200, 512]."""
    starts = range(0, 2200 * 900, 900)
    return torch.from_numpy(encode_batch([chromosome_3[start : start + 515] for start in starts], 6))


def _bases(path: Path) -> str:
    return b"".join(piece.bases for piece in read_bases(str(path))).decode("ascii")
