"""Where examples lie on a chromosome: drawn without replacement, in an order that a key determines."""

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Place(NamedTuple):
    """A stretch of a chromosome, of a length that all examples of a task have."""

    left: int
    """Where it begins on the forward strand, from 0."""
    is_reverse: bool
    """Whether it is read on the reverse strand."""


class Chooser:
    """Takes stretches of a chromosome that overlap nothing taken before, and whose sequences are new.

    Parameters
    ----------
    strands
        The forward and the reverse strand, each as it reads.
    length
        Nucleotides of a stretch.
    seen
        Sequences that are not new any more; what is taken is added.
    """

    def __init__(self, strands: tuple[bytes, bytes], length: int, seen: set[str]) -> None:
        self._strands = strands
        self._length = length
        self._seen = seen
        self._is_taken: npt.NDArray[np.bool_] = np.zeros(len(strands[0]), dtype=bool)

    def occupy(self, left: int) -> None:
        """Mark the stretch from `left` on as taken; it may reach beyond the chromosome's ends."""
        self._is_taken[max(left, 0) : max(left + self._length, 0)] = True

    def read_new(self, place: Place) -> str | None:
        """Return a place's sequence, be the place taken or not, and add it to `seen`.

        None if it is there already, has an N, or reaches beyond the chromosome's ends.
        """
        begin = len(self._strands[0]) - place.left - self._length if place.is_reverse else place.left
        sequence = self._strands[place.is_reverse][max(begin, 0) : max(begin + self._length, 0)].decode()
        if len(sequence) < self._length or "N" in sequence or sequence in self._seen:
            return None
        self._seen.add(sequence)
        return sequence

    def take(self, places: Iterable[Place]) -> str | None:
        """Take the first of `places` that is free and new, and return its sequence; None if there is none."""
        for place in places:
            if not self._is_taken[place.left : place.left + self._length].any():
                sequence = self.read_new(place)
                if sequence is not None:
                    self.occupy(place.left)
                    return sequence
        return None


def shuffle(count: int, key: str) -> npt.NDArray[np.int64]:
    """Return the numbers below `count` in an order that depends on `key` alone."""
    return np.argsort(draw_bits(count, key), kind="stable")


def draw_bits(count: int, key: str) -> npt.NDArray[np.uint64]:
    """Return `count` random 64-bit numbers that depend on `key` alone."""
    # The raw bits are the same in every release of NumPy; what Generator makes of them may change.
    philox = np.random.Philox(key=int.from_bytes(blake2b(key.encode(), digest_size=16).digest(), "little"))
    return np.asarray(philox.random_raw(count), dtype=np.uint64)


def find_word(strands: tuple[bytes, bytes], word: bytes, offset: int, length: int, key: str) -> Iterator[Place]:
    """Yield all places of `length` nucleotides on both strands that read `word` from `offset` on, shuffled by `key`."""
    last = len(strands[0]) - length
    forward, backward = (_occurrences(strand[offset : offset + last + len(word)], word) for strand in strands)
    lefts = np.concatenate([forward, last - backward])
    for index in shuffle(len(lefts), key):
        yield Place(int(lefts[index]), bool(index >= len(forward)))


def _occurrences(strand: bytes, word: bytes) -> npt.NDArray[np.int64]:
    """Return all positions where `word` begins, overlapping ones too."""
    letters = np.frombuffer(strand, dtype=np.uint8)
    count = len(letters) - len(word) + 1
    fits = np.all([letters[i : i + count] == letter for i, letter in enumerate(word)], axis=0)
    return np.flatnonzero(fits)
