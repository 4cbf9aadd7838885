"""Which window stands where: data order as a pure function of (seed, position), without arrays or saved state.

An epoch's order is a keyed permutation of 0..n-1, computed for each index by itself: a balanced Feistel network over
the next even power of two, walking its cycle until the value falls below n (Black and Rogaway, "Ciphers with
Arbitrary Finite Domains", CT-RSA 2002). Starting at step 100,000 costs what starting at step 0 costs.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]

_ROUNDS = 6
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: keeps seed and epoch from trading places
_LOW32 = np.uint64(0xFFFFFFFF)


def permute(index: Int64, size: int, seed: int, epoch: Int64) -> Int64:
    """Permute indices by the keyed order of an epoch.

    Parameters
    ----------
    index
        int64 [n], each in 0..size-1.
    size
        Number of items.
    seed
        Seed of all orders.
    epoch
        int64 [n], the epoch of each index.

    Returns
    -------
    int64 array [n]
        Where each index stands in the order of its epoch; in 0..size-1, and different for different indices.
    """
    half_bits = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    keys = _mix(_mix(np.full(len(index), seed, np.uint64) + _GOLDEN) + epoch.astype(np.uint64) + _GOLDEN)
    result = index.astype(np.uint64)
    pending = np.arange(len(result))
    while len(pending):
        result[pending] = _feistel(result[pending], half_bits, keys[pending])
        pending = pending[result[pending] >= size]
    return result.astype(np.int64)


def _feistel(value: npt.NDArray[np.uint64], half_bits: int, key: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    mask, shift = np.uint64((1 << half_bits) - 1), np.uint64(half_bits)
    left, right = value >> shift, value & mask
    for round_ in range(_ROUNDS):
        left, right = right, left ^ (_mix(right ^ _mix(key + np.uint64(round_))) & mask)
    return (left << shift) | right


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014), cut to 32 bits; unsigned arrays wrap."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))) & _LOW32


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """How a global batch of `global_batch` windows is laid over processes and micro-batches.

    Micro-step a of rank r takes the slots from (a * processes + r) * micro_batch on; slots past the global batch are
    empty rows, which carry no loss. The windows stand in the slots from the longest to the shortest.
    """

    global_batch: int
    """Windows of an optimizer step."""
    processes: int
    """Number of ranks."""
    largest_micro_batch: int
    """Windows of a micro-batch on one rank, at most."""

    @property
    def accumulation(self) -> int:
        """Micro-steps an optimizer step."""
        return -(-self.global_batch // (self.processes * self.largest_micro_batch))

    @property
    def micro_batch(self) -> int:
        """Rows of a micro-batch: as few as the number of micro-steps allows."""
        return -(-self.global_batch // (self.processes * self.accumulation))

    def slots(self, micro_step: int, rank: int) -> Int64:
        """Return the places of a micro-batch in the global batch, int64 [micro_batch]; -1 where a row is empty."""
        start = (micro_step * self.processes + rank) * self.micro_batch
        slots = np.arange(start, start + self.micro_batch)
        return np.where(slots < self.global_batch, slots, -1)


def training_samples(step: int, global_batch: int, size: int, seed: int) -> tuple[Int64, Int64]:
    """Return the epochs and the sample ids of the windows of an optimizer step.

    The stream of windows runs on over the epochs: every window comes once an epoch, and a global batch may hold the
    end of one epoch and the start of the next.

    Parameters
    ----------
    step
        The step, from 0.
    global_batch
        Windows of a step.
    size
        Windows of the split.
    seed
        Seed of the order.

    Returns
    -------
    int64 array [global_batch]
        Epoch of each window, from 0.
    int64 array [global_batch]
        Row of each window in its split.
    """
    position = step * global_batch + np.arange(global_batch)
    epoch = position // size
    return epoch, permute(position % size, size, seed, epoch)


def validation_samples(windows: int, size: int, seed: int) -> Int64:
    """Return the sample ids of the validation windows, int64 [windows], out of `size`; the same at every evaluation."""
    return permute(np.arange(windows), size, seed, np.zeros(windows, np.int64))


def longest_first(samples: Int64, lengths: npt.NDArray[np.integer[Any]]) -> Int64:
    """Return the order of windows from the longest to the shortest: those of a micro-batch then need little padding.

    Parameters
    ----------
    samples
        int64 [n], the windows' rows in the split.
    lengths
        Integers [windows], those of all windows of the split.

    Returns
    -------
    int64 array [n]
        Indices into `samples`; windows of the same length stay in their order.
    """
    return np.argsort(-lengths[samples], kind="stable")


def in_slots(values: Int64, slots: Int64) -> Int64:
    """Return the `values` int64 [n] of the windows in `slots` int64 [B], as int64 [B]; -1 in the empty ones."""
    return np.where(slots >= 0, values[slots], -1)
