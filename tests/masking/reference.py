"""The masking strategies as plain loops over one window, and the hash as plain integer arithmetic.

Written from their description, to compare the batched code with. A window is given by the columns of its tokens, and by
`score`, the NPMI of the words that begin there (none where a word is not whole); the token in column t covers
nucleotides t * stride..t * stride + k - 1, the word there t * stride..t * stride + word - 1.
"""

import math
from fractions import Fraction
from typing import NamedTuple

Score = dict[int, float]
Draws = list[int]


class Shape(NamedTuple):
    """Lengths in nucleotides."""

    k: int
    stride: int
    word: int

    def nucleotides(self, column: int) -> range:
        """Those of the token in a column."""
        return range(column * self.stride, column * self.stride + self.k)

    def in_word(self, column: int) -> range:
        """Those of the word that begins in a column."""
        return range(column * self.stride, column * self.stride + self.word)

    def tokens_with(self, nucleotide: int) -> list[int]:
        """Columns of the tokens that contain a nucleotide, those before the window included."""
        about = nucleotide // self.stride
        return [t for t in range(about - self.k, about + 1) if nucleotide in self.nucleotides(t)]

    def words_with(self, nucleotide: int) -> list[int]:
        """Columns of the words that contain a nucleotide."""
        about = nucleotide // self.stride
        return [t for t in range(about - self.word, about + 1) if nucleotide in self.in_word(t)]

    def tokens_with_any(self, nucleotides: set[int] | range) -> set[int]:
        """Columns of the tokens that contain one of the nucleotides."""
        return {t for n in nucleotides for t in self.tokens_with(n)}

    def shared(self, centre: int) -> int:
        """The first nucleotide that all tokens around a centre share."""
        return (centre + self.k // self.stride // 2) * self.stride


def overlapping(k: int) -> Shape:
    """Overlapping k-mers, which are words at the same time."""
    return Shape(k, 1, k)


def span(tokens: set[int], probability: float, lengths: list[int], centre: Draws, length: Draws) -> set[int]:
    """Each centre masks a span of one of the lengths."""
    masked = set()
    for c in _centres(tokens, probability, centre):
        size = lengths[length[c] * len(lengths) // 2**32]
        masked |= set(range(c - (size - 1) // 2, c + size // 2 + 1))
    return masked & tokens


def genemask(tokens: set[int], score: Score, shape: Shape, probability: float, centre: Draws) -> set[int]:
    """Each centre masks the tokens that share a nucleotide; the better half of them also those that hide the best word
    with that nucleotide."""
    centres = _centres(tokens, probability, centre)
    best: dict[int, int] = {}
    for c in centres:
        near = [t for t in shape.words_with(shape.shared(c)) if t in score]
        if near:
            best[c] = max(near, key=lambda t: (score[t], t == c, -t))
    by_rank = sorted(centres, key=lambda c: (-score[best[c]] if c in best else math.inf, c))
    strong = by_rank if len(centres) <= 8 else by_rank[: math.ceil(len(centres) / 2)]

    masked = set()
    for c in centres:
        masked |= set(shape.tokens_with(shape.shared(c)))
    for c in strong:
        if c in best:
            masked |= shape.tokens_with_any(shape.in_word(best[c]))
    return masked & tokens


def global_pmi(tokens: set[int], score: Score, shape: Shape, rate: float) -> set[int]:
    """The tokens that contain a priority nucleotide: words are added from the top while the count gets nearer."""
    if not score:
        return set()
    by_rank = sorted(score, key=lambda t: (-score[t], t))
    budget = rate * len(tokens)
    hiding_one = shape.tokens_with_any(shape.in_word(10_000))
    if budget < (len(hiding_one) + 1) / 2:
        middle = (by_rank[0] + shape.word // shape.stride // 2) * shape.stride
        return set(shape.tokens_with(middle)) & tokens

    priority: set[int] = set()
    masked: set[int] = set()
    for t in by_rank:
        more = priority | set(shape.in_word(t))
        masks = shape.tokens_with_any(more) & tokens
        if len(masks) > len(masked) and abs(len(masks) - budget) >= abs(len(masked) - budget):
            break
        priority, masked = more, masks
    return masked


def gumbel(draw: int) -> float:
    """Standard Gumbel noise by inversion."""
    return -math.log(-math.log((draw + 0.5) / 2**32))


def random_word(seed: int, stream: int, epoch: int, sample_id: int, column: int) -> int:
    """The random bits of `cmgems.masking.counters`, with Python's unbounded integers."""
    parts = [seed % 2**32, stream, epoch % 2**32, sample_id % 2**32, (sample_id >> 32) % 2**32]
    low, high = 0x243F6A88, 0x05A308D3
    for part in parts:
        low, high = (_hash(word + part + 0x9E3779B9) for word in (low, high))
    return _hash(_hash(column ^ low) + high)


def hidden_nucleotides(tokens: set[int], masked: set[int], shape: Shape) -> tuple[int, int]:
    """Number of nucleotides all of whose tokens are masked, and of all nucleotides of the tokens."""
    nucleotides = {n for t in tokens for n in shape.nucleotides(t)}
    return sum(set(shape.tokens_with(n)) & tokens <= masked for n in nucleotides), len(nucleotides)


def _hash(word: int) -> int:
    word %= 2**32
    word ^= word >> 15
    word = word * 0x2C1B3C6D % 2**32
    word ^= word >> 12
    word = word * 0x297A2D39 % 2**32
    return word ^ (word >> 15)


def _centres(tokens: set[int], probability: float, draws: Draws) -> list[int]:
    return [t for t in sorted(tokens) if draws[t] < math.floor(Fraction(probability) * 2**32)]
