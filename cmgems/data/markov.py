"""Markov chains of nucleotides: how probable each base is beside the bases before it, or behind it.

Bases are digits, as in `cmgems.data.tokenizer`: 0..3 for A, T, C, G and `NO_BASE` for anything else. How well a chain
predicts hidden bases is in `cmgems.data.markov_scores`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmgems.data.tokenizer import NO_BASE, digit_batches

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Digits = NDArray[np.integer[Any]]

LARGEST_ORDER = 8

_PRIOR_WEIGHT = 64.0  # occurrences
_COUNT_BLOCK = 1 << 20  # words counted together, several times as many as there are different ones


@dataclass(frozen=True)
class MarkovChains:
    """Smoothed Markov chains of orders 0 to `order`, in both directions of reading.

    Entry [x, c] of a chain's table of order m, float64 [4, 4**m], is the probability of base x beside the context c: m
    digits in base 4, of which the nearest base is the most significant one.
    """

    forward: tuple[Floats, ...]
    """Tables by order; the context is what stands to the left."""
    backward: tuple[Floats, ...]
    """Tables by order; the context is what stands to the right."""

    @property
    def order(self) -> int:
        """The largest order."""
        return len(self.forward) - 1


def fit_chains(sequences: Iterable[str], order: int = LARGEST_ORDER) -> MarkovChains:
    """Fit chains of all orders up to `order` to `sequences`, with interpolated Dirichlet smoothing.

    P_m(x | c) = (n(c, x) + a P_{m-1}(x | c')) / (n(c) + a), where n counts, c' is the context c without its farthest
    base, and P_0 has one count more than counted for each base: the predictive distribution of the hierarchical
    Dirichlet language model (MacKay & Peto 1995, Natural Language Engineering 1:289), applied order by order. The prior
    weighs as much as a = 64 occurrences of the context: nothing in a large genome, and in a few million bases enough to
    keep the high orders from overfitting. There, less is worse: with a = 4, order 8 needs 1.5 % more bits for unseen
    human DNA.

    All counts are marginals of those of the (order + 1)-mers. The words at the ends of a sequence are thus left out of
    the lower orders, and so are sequences of at most `order` bases. A word with anything but A, C, G, T is not counted.

    Parameters
    ----------
    sequences
        Sequences of nucleotides in upper or lower case; U counts as T.
    order
        The largest order, 1..8.

    Raises
    ------
    ValueError
        If `order` is not in 1..8.
    """
    if not 1 <= order <= LARGEST_ORDER:
        raise ValueError(f"order is {order}; it must be in 1..{LARGEST_ORDER}")
    counts = _count_words(sequences, order + 1).reshape((4,) * (order + 1))
    return MarkovChains(forward=_smooth(counts.transpose()), backward=_smooth(counts))


def _count_words(sequences: Iterable[str], length: int) -> Integers:
    """Count the words of `length` bases, int64 [4**length]; the first base is the most significant digit."""
    counts = np.zeros(4**length + 1, dtype=np.int64)  # the last entry is for words that contain a non-base
    for text in digit_batches(sequences):
        digits = np.frombuffer(text, dtype=np.uint8)
        for start in range(0, len(digits) - length + 1, _COUNT_BLOCK):
            words = words_at_places(digits[start : start + _COUNT_BLOCK + length - 1], length)
            counts += np.bincount(words, minlength=len(counts))
    return counts[:-1]


def words_at_places(digits: NDArray[np.uint8], length: int) -> Digits:
    """Return the word that begins at each place, as a number; 4**length if it contains a non-base."""
    word: Digits = digits.astype(np.uint32)
    size = 1
    for bit in f"{length:b}"[1:]:
        word, size = (word[:-size] << 2 * size) + word[size:], 2 * size
        if bit == "1":
            word, size = (word[:-1] << 2) + digits[size:], size + 1
    invalid = np.flatnonzero(digits == NO_BASE)
    if len(invalid):
        containing = (invalid[:, None] - np.arange(length)).ravel()
        word[containing[(containing >= 0) & (containing < len(word))]] = 4**length
    return word


def _smooth(counts: Integers) -> tuple[Floats, ...]:
    """Return tables of all orders from counts, [4] * (order + 1): of a base, and of its context, nearest base first."""
    tables: list[Floats] = []
    for order in range(counts.ndim):
        n = counts.reshape(4, 4**order, -1).sum(axis=2)
        if order == 0:
            tables.append((n + 1) / (n + 1).sum())
        else:
            shorter = tables[-1].repeat(4, axis=1)
            tables.append((n + _PRIOR_WEIGHT * shorter) / (n.sum(axis=0) + _PRIOR_WEIGHT))
    return tuple(tables)
