"""Random bits as a pure function of (seed, stream, epoch, sample id, column): no state to save, move or reproduce.

A resumed run, another number of processes and another number of loader workers all see the same bits. They come from a
32-bit hash in integer arithmetic, and are compared with integer thresholds, so that they are equal bit for bit on every
device.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch

WORD = 2**32 - 1
"""All values are 32-bit words, held in int64, or in NumPy's uint32."""
_STEP = 0x9E3779B9  # 2^32 / golden ratio: moves the hash away from its fixed point at 0
_STARTS = (
    0x243F6A88,
    0x05A308D3,
)  # two words of pi: a row's key has 64 bits, too many for two rows of a run to share one

Words = Any
"""An int, an int64 tensor or a uint32 array."""


class Stream(IntEnum):
    """What a draw is for. Each purpose has its own stream, so that one draw is never used twice."""

    CENTRE = 0
    """Is the token a centre? (span, genemask)"""
    LENGTH = 1
    """The length of a centre's span (span with `lengths`)."""
    GUMBEL = 2
    """Noise on the ranking (global_pmi with `temperature`)."""
    MIXTURE = 3
    """Which strategy of a mix masks the window."""
    CORRUPTION = 4
    """[MASK], a random k-mer, or the token itself?"""
    REPLACEMENT = 5
    """Which random k-mer."""


@dataclass(frozen=True)
class Counters:
    """The random bits of a batch of windows; rows are independent of each other and of the batch they stand in."""

    seed: int
    epoch: torch.Tensor
    """int64 [B]."""
    sample_id: torch.Tensor
    """int64 [B], -1 (an empty row) or 0 to 2^62."""

    def bits(self, stream: Stream, columns: int) -> torch.Tensor:
        """Uniform random words, int64 [B, columns], 0 to 2^32 - 1. A further column changes none of those before."""
        low, high = self._keys[:, stream]
        column = _words(torch.arange(columns, device=self.sample_id.device))
        return _tensor(_hash(column, low[:, None], high[:, None]))

    def bits_at(self, streams: Sequence[Stream], row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        """Return those of `bits` in some places, for several streams at once, int64 [streams, M]; rows (of this batch)
        are int64 [M], columns int64 [streams, M]."""
        low, high = self._keys[:, list(streams)]
        return _tensor(_hash(_words(column), _take(low, row), _take(high, row)))

    @cached_property
    def _keys(self) -> Words:
        """Two words a row for each stream [2, streams, B]: with so few rows, stream by stream would take as many times
        as long."""
        key = torch.stack([self.epoch, self.sample_id, self.sample_id >> 32])
        return _fold(_starts(self.seed, key.device), _words(key))


def threshold(probability: float) -> int:
    """Return the word below which a draw counts as a success: bits < threshold(p) with probability p, to 2^-32."""
    return int(probability * 2**32)


@cache
def _starts(seed: int, device: torch.device) -> Words:
    """Return what the keys of a run's streams begin with [2, streams, 1]."""
    starts = [[[_fold(start, [seed & WORD, int(stream)])] for stream in Stream] for start in _STARTS]
    return _words(torch.tensor(starts, device=device))


def _words(values: torch.Tensor) -> Words:
    """Return the lowest 32 bits of int64: on the CPU as words of 32 bits, which torch cannot multiply, in less time."""
    return values.numpy().astype(np.uint32) if values.device.type == "cpu" else values & WORD


def _take(words: Words, row: torch.Tensor) -> Words:
    """Words of rows [streams, B] for each of some rows, [streams, M]."""
    return words.take(row.numpy(), axis=1) if isinstance(words, np.ndarray) else words.index_select(1, row)


def _tensor(words: Words) -> torch.Tensor:
    """Words as int64."""
    return torch.from_numpy(words.astype(np.int64)) if isinstance(words, np.ndarray) else words


def _hash(column: Words, low: Words, high: Words) -> Words:
    """Return one word for each column, from the two words of its row."""
    return _mix(_wrapped(_mix(column ^ low) + high))


def _fold(word: Words, parts: Iterable[Words]) -> Words:
    """Hash the parts, one after the other, into the word."""
    for part in parts:
        word = _mix(_wrapped(word + (part + _STEP)))
    return word


def _mix(word: Words) -> Words:
    """Return a permutation of the 32-bit words in which each input bit flips each output bit half of the time.

    The two multipliers are below 2^31, so that a product fits into int64. Multipliers and shifts: C. Wellons,
    "Prospecting for hash functions" (2018), public domain.
    """
    word = word ^ (word >> 15)
    word = _wrapped(word * 0x2C1B3C6D)
    word = word ^ (word >> 12)
    word = _wrapped(word * 0x297A2D39)
    return word ^ (word >> 15)


def _wrapped(word: Words) -> Words:
    """Return the lowest 32 bits; NumPy's words have no others."""
    return word if isinstance(word, np.ndarray) else word & WORD
