"""Normalised pointwise mutual information (NPMI) of k-mers: how much a k-mer is a unit of its own.

    PMI(w)  = min over the segmentations s of w into two or more pieces of  ln p(w) - sum over x in s of ln p(x)
    NPMI(w) = PMI(w) * ln f(w) / (ln f(w) + ln c)

with f the count of w. PMI over segmentations: Levine et al., PMI-Masking (2021); the normalisation by f and c, and the
table that method `published` gives back: Roy et al., GeneMask (2023).

Some of the NPMI of two codons is about which amino acids follow one another. Method `synonymous` compares a pair with
how often it would occur if its amino acids were as they are and each codon were chosen by itself:

    PMI(uv) = ln p(uv) - ln p(aa(u) aa(v)) - ln p(u | aa(u)) - ln p(v | aa(v))

which is the codon pair score of Coleman et al., Science 320:1784 (2008).
"""

import csv
import hashlib
import math
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from cmgems.data.genetic_code import CODON, synonyms
from cmgems.data.kmer_tables import kmers, read_counts, read_kmer_rows, require_all
from cmgems.data.tokenization import LONGEST_WORD, SHORTEST_WORD
from cmgems.data.tokenizer import SPECIAL_TOKENS
from cmgems.errors import UserError
from cmgems.runtime.files import atomic_file

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]
Method = Literal["all", "published", "synonymous"]
"""How PMI is computed; `synonymous` for pairs of codons only."""

MIN_COUNT = 2
"""A k-mer counted less often than this has no usable NPMI (ln 1 = 0) and gets the lowest rank."""


@dataclass(frozen=True, eq=False)
class NpmiTable:
    """PMI and NPMI of all 4^k k-mers, in the order of their token ids (the first k-mer at index 0)."""

    k: int
    counts: Counts
    """Occurrences, int64 [4^k]."""
    pmi: Floats
    """PMI in nats, float64 [4^k]; -inf for a k-mer that was not counted at all."""
    npmi: Floats
    """NPMI in nats, float64 [4^k]; -inf for a k-mer counted less than twice."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of k and of the NPMI values: equal for tables that rank all k-mers equally, value for value."""
        return hashlib.sha256(bytes([self.k]) + self.npmi.astype("<f8").tobytes()).hexdigest()

    def best(self, number: int) -> list[str]:
        """Return the `number` (0 or more) k-mers of the highest NPMI, highest first; equal ones by token id."""
        names = kmers(self.k)
        return [names[i] for i in _highest_first(self)[:number]]

    def by_token_id(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """Return NPMI indexed by token id, float32 [5 + 4^k], with -inf for the special tokens."""
        values = np.concatenate([np.full(len(SPECIAL_TOKENS), -np.inf), self.npmi])
        return torch.from_numpy(values.astype(np.float32)).to(device)


def npmi_from_counts(
    counts: Counts, k: int, method: Method = "all", c: float = 101, stride: int = 1, genetic_code: int = 1
) -> NpmiTable:
    """Compute PMI and NPMI of all k-mers from their counts.

    Parameters
    ----------
    counts
        int64 [4^k], occurrences in the order of the token ids.
    k
        Length of the k-mers, 2..8.
    method
        `all`: the minimum over all 2^(k-1) - 1 segmentations. `published`: the arithmetic behind GeneMask's table, with
        pieces of at most two nucleotides, and every probability halved (so that each further piece adds ln 2).
        `synonymous`: pairs of codons (k = 6, stride = 3) against the choice among synonyms.
    c
        Constant of the normalisation, in occurrences.
    stride
        Nucleotides between places where words can begin. Words of several strides are segmented there only (a pair of
        codons into its two codons), those of one anywhere.
    genetic_code
        NCBI's number of the code that tells which codons are synonyms (`synonymous` only).

    Raises
    ------
    UserError
        If no k-mer was counted, or the method is `synonymous` and the words are not pairs of codons.
    ValueError
        If k is out of range, or `counts` has another shape.
    """
    if not SHORTEST_WORD <= k <= LONGEST_WORD:
        raise ValueError(f"k is {k}; NPMI is defined here for k from {SHORTEST_WORD} to {LONGEST_WORD}")
    if counts.shape != (4**k,):
        raise ValueError(f"counts has shape {counts.shape}; for k = {k} it must be ({4**k},)")
    if not counts.any():
        raise UserError(f"all {4**k} {k}-mers have count 0: there is nothing to compute NPMI from")
    with np.errstate(divide="ignore", invalid="ignore"):  # k-mers that were not counted are set at the end
        if method == "synonymous":
            pmi = _against_synonyms(counts, k, stride, genetic_code)
        else:
            pmi = _against_segmentations(counts, k, stride, method)
        npmi = pmi * np.log(counts) / (np.log(counts) + math.log(c))
    pmi = np.where(counts > 0, pmi, -np.inf)
    npmi = np.where(counts >= MIN_COUNT, npmi, -np.inf)
    return NpmiTable(k=k, counts=counts, pmi=pmi, npmi=npmi)


def _against_synonyms(counts: Counts, k: int, stride: int, genetic_code: int) -> Floats:
    """Return PMI of pairs of codons given their amino acids, [4^6]."""
    if (k, stride) != (2 * CODON, CODON):
        raise UserError(f"npmi.method synonymous is for words of two codons, not of {k} nucleotides at every {stride}")
    same = synonyms(genetic_code).astype(float)
    pairs = counts.reshape(len(same), -1) / counts.sum()
    codons = (pairs.sum(axis=0) + pairs.sum(axis=1)) / 2
    among_synonyms = codons / (same @ codons)
    expected = (same @ pairs @ same) * among_synonyms[:, None] * among_synonyms
    return np.asarray(np.log(pairs / expected).ravel())


def _against_segmentations(counts: Counts, k: int, stride: int, method: Method) -> Floats:
    """Return PMI over the segmentations, [4^k]."""
    unit = stride if k > stride else 1  # of the pieces, in nucleotides
    units = k // unit
    longest_piece = units - 1 if method == "all" else min(2, units - 1)
    factor = 1.0 if method == "all" else 0.5

    shares = _shares_by_length(counts, units, letters=4**unit)
    log_p = {length: np.log(factor * share) for length, share in shares.items()}
    return np.asarray(log_p[units] - _best_segmentation(log_p, units, longest_piece))


def _shares_by_length(counts: Counts, k: int, letters: int) -> dict[int, Floats]:
    """Return probabilities of all pieces of 1 to k letters, each [letters^length]: marginals of the counts of words of
    k letters, which are nucleotides or codons.

    A piece is counted at each of its places in a word and the counts are averaged. Over a long genome every place
    gives the same marginal but for the ends of the sequences; the average alone is above zero for each piece of each
    counted word.
    """
    cube = counts.reshape((letters,) * k) / counts.sum()
    marginals: dict[int, Floats] = {}
    for length in range(1, k + 1):
        starts = range(k - length + 1)
        others = [tuple(axis for axis in range(k) if not start <= axis < start + length) for start in starts]
        marginals[length] = np.mean([cube.sum(axis=axes).ravel() for axes in others], axis=0)
    return marginals


def _best_segmentation(log_p: dict[int, Floats], k: int, longest_piece: int) -> Floats:
    """Return the largest sum of ln p over each k-mer's segmentations into pieces of at most `longest_piece`, [4^k].

    Dynamic programming over prefixes, for all of them at once: the ids of the words `prefix + piece` are an outer sum
    of the prefix's and the piece's. The whole k-mer is no segmentation, since longest_piece < k.
    """
    best = [np.zeros(1)]
    for end in range(1, k + 1):
        pieces = range(1, min(end, longest_piece) + 1)
        best.append(np.max([np.add.outer(best[end - m], log_p[m]).ravel() for m in pieces], axis=0))
    return best[k]


def human_counts() -> tuple[int, Counts]:
    """Return k = 6 and the counts of the 6-mers in the human reference, int64 [4^6], as behind GeneMask's table."""
    with resources.as_file(resources.files("cmgems.masking") / "human_6mer_counts.csv") as path:
        return read_counts(path)


def read_npmi(path: Path) -> NpmiTable:
    """Return the table that `write_npmi` wrote, value for value.

    Raises
    ------
    UserError
        If the file cannot be read, is not such a table, or lacks a k-mer; the message names the file, and the line
        where there is one.
    """
    k, rows = read_kmer_rows(path, ["count", "pmi", "npmi"])
    require_all(path, k, rows)
    in_order = [rows[index] for index in range(4**k)]
    return NpmiTable(
        k=k,
        counts=np.array([row.count("count") for row in in_order], dtype=np.int64),
        pmi=np.array([row.value("pmi") for row in in_order]),
        npmi=np.array([row.value("npmi") for row in in_order]),
    )


def write_npmi(table: NpmiTable, path: Path) -> None:
    """Write `kmer,count,pmi,npmi`, highest NPMI first; the file exists completely or not at all.

    Raises
    ------
    UserError
        If the file cannot be written; the message names it.
    """
    try:
        if path.is_dir():
            raise UserError(f"{path}: this is a folder; name a file to write the table to")
        if not path.parent.is_dir():
            raise UserError(f"{path}: there is no folder {path.parent}")
        _write_rows(table, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error})") from error


def _write_rows(table: NpmiTable, path: Path) -> None:
    names = kmers(table.k)
    with atomic_file(path) as partial, partial.open("w", newline="", encoding="ascii") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["kmer", "count", "pmi", "npmi"])
        for i in _highest_first(table):
            writer.writerow([names[i], table.counts[i], repr(float(table.pmi[i])), repr(float(table.npmi[i]))])


def _highest_first(table: NpmiTable) -> NDArray[np.intp]:
    """Return indices of the k-mers, highest NPMI first, [4^k]; equal ones in the order of their token ids."""
    return np.argsort(-table.npmi, kind="stable")
