"""What is longer than a model can take, and how it is divided so that the model sees all of it."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class LengthSummary:
    """How the lengths of some sequences compare with the longest input of a model."""

    limit: int
    """Longest input, in tokens (special tokens not counted)."""
    sequences: int
    """Number of sequences."""
    longest: int
    """Length of the longest, in tokens."""
    longer: int
    """Number of sequences that are longer than the limit."""
    tokens_beyond: int
    """Tokens beyond the limit, in all sequences: what would be lost if they were cut."""


def summarise(lengths: Sequence[int], limit: int) -> LengthSummary:
    """Compare the lengths of sequences, in tokens of whatever kind, with a limit.

    Examples
    --------
    >>> summarise([100, 510, 994], limit=510)
    LengthSummary(limit=510, sequences=3, longest=994, longer=1, tokens_beyond=484)
    """
    beyond = [length - limit for length in lengths if length > limit]
    return LengthSummary(limit, len(lengths), max(lengths, default=0), len(beyond), sum(beyond))


def spans(length: int, size: int, overlap: int = 0) -> list[tuple[int, int]]:
    """Return as few windows of at most `size` nucleotides as cover a sequence: (first position, that after the last).

    All windows are equally long, and evenly spread to within one nucleotide: there is no short one at the end, of which
    a model would make little. For a sequence of at most `size` nucleotides it is the sequence itself.

    Parameters
    ----------
    length
        Length of the sequence, in nucleotides.
    size
        Length of the longest window, in nucleotides.
    overlap
        Nucleotides that neighbouring windows share, at least. With k-1, every k-mer of the sequence is in a window.

    Examples
    --------
    >>> spans(999, size=515, overlap=5)
    [(0, 515), (484, 999)]
    """
    if size < 1 or not 0 <= overlap < size:
        raise ValueError(f"size is {size} and overlap is {overlap}; overlap must be in 0..size-1")
    if length <= size:
        return [(0, length)]
    count = -(-(length - overlap) // (size - overlap))
    # With as few windows as possible, all at full length, the spaces between their starts are at most size - overlap.
    starts = [i * (length - size) // (count - 1) for i in range(count)]
    return [(start, start + size) for start in starts]


def windows(sequence: str, size: int, overlap: int = 0) -> list[str]:
    """Return the windows of `spans`, as sequences."""
    return [sequence[start:end] for start, end in spans(len(sequence), size, overlap)]
