"""Clusters of similar sequences, and folds that keep each of them together.

Genes of one family have much in common, also in what is measured of them: where one is trained on and another tested,
a score says how well the family was remembered. Two sequences are similar if their sets of k-mers have a Jaccard index
of at least 0.03 (k = 10). With independent substitutions that is about 75 % identity of the bases: 2J / (1 + J) of the
k-mers of one are in the other, and as many are left unchanged, identity^k. By chance it does not occur: of the six
million pairs of E. coli's genes with their codons shuffled, none is above 0.017. (Sequences below some 200 nucleotides
are also similar by a single long word that they share.) A cluster is what is connected by similar pairs (single
linkage). All pairs are compared, none is sampled.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components

from cmgems.data.markov import words_at_places
from cmgems.data.tokenizer import sequence_digits

K = 10
"""Length of the k-mers that two sequences are compared by."""

SIMILARITY = 0.03
"""Jaccard index from which on two sequences are similar."""

_AT_ONCE = 500  # sequences that are compared with all others


def clusters_of(sequences: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the cluster [rows] of each sequence, numbered in the order of their first rows.

    Equal sequences are in one cluster; of those that are shorter than a k-mer, only these.

    Examples
    --------
    >>> clusters_of(["ACGTACGGTTCA", "TTTTCCGCGATTA", "ACGTACGGTTCAG", "TTA"]).tolist()
    [0, 1, 0, 2]
    """
    words = _words_by_sequence(sequences)
    sizes = np.diff(words.indptr)
    first, second = [], []
    by_word = words.T.tocsr()
    for start in range(0, len(sequences), _AT_ONCE):
        shared = (words[start : start + _AT_ONCE] @ by_word).tocoo()
        rows, columns = shared.row + start, shared.col
        similar = shared.data >= SIMILARITY * (sizes[rows] + sizes[columns] - shared.data)
        first.append(rows[similar])
        second.append(columns[similar])
    pairs = np.concatenate(first), np.concatenate(second)
    graph = coo_matrix((np.ones(len(pairs[0]), dtype=bool), pairs), shape=(len(sequences), len(sequences)))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)


def _words_by_sequence(sequences: Sequence[str]) -> csr_matrix:
    """Return which words occur in which sequence, 1 or 0, int32 [sequences, words].

    Each sequence itself counts as one of its words, so that equal ones are similar whatever their length. Words with
    anything but A, C, G, T (U) in them are left out.
    """
    numbers: dict[str, int] = {}
    found = []
    for sequence in sequences:
        whole = 4**K + 1 + numbers.setdefault(sequence, len(numbers))
        words = np.unique(words_at_places(sequence_digits(sequence), K))
        found.append(np.append(words[words < 4**K], whole).astype(np.int64))
    ends = np.cumsum([0, *map(len, found)])
    columns = np.concatenate(found) if found else np.zeros(0, dtype=np.int64)
    ones = np.ones(len(columns), dtype=np.int32)
    return csr_matrix((ones, columns, ends), shape=(len(sequences), 4**K + 1 + len(numbers)))


def families_of(sequences: Mapping[str, bytes]) -> dict[str, int]:
    """Return the cluster of each of some sequences by their names."""
    clusters = clusters_of([sequence.decode("ascii") for sequence in sequences.values()]) if sequences else ()
    return dict(zip(sequences, map(int, clusters), strict=True))


@lru_cache(maxsize=4)  # the tasks of a table's folds follow one another
def folds_of(sequences: tuple[str, ...], folds: int) -> list[int]:
    """Return the fold of each sequence, in 0..folds-1, the same for all sequences of a cluster.

    Clusters go into the fold that has the fewest rows so far, large ones first, equally large ones in an order that a
    hash of their sequences gives: which sequences share a fold does not depend on the order of the rows.
    """
    clusters = clusters_of(sequences)
    keys: dict[int, bytes] = {}
    for cluster, sequence in zip(clusters.tolist(), sequences, strict=True):
        key = blake2b(sequence.encode(), digest_size=16).digest()
        keys[cluster] = min(key, keys.get(cluster, key))
    sizes = np.bincount(clusters)
    fold_of, filled = np.zeros(len(sizes), dtype=np.int64), np.zeros(folds, dtype=np.int64)
    for cluster in sorted(keys, key=lambda cluster: (-sizes[cluster], keys[cluster])):
        fold_of[cluster] = filled.argmin()
        filled[fold_of[cluster]] += sizes[cluster]
    return [int(fold) for fold in fold_of[clusters]]
