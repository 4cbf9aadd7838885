"""The masking strategies as plain loops over one window, and the hash as plain integer arithmetic.

Written from their description, to compare the batched code with. A window is given by `score`, the NPMI of each of its
k-mer tokens by column (other columns are absent); the token in column t covers nucleotides t..t+k-1.
"""

import math
from fractions import Fraction

Score = dict[int, float]
Draws = list[int]


def span(score: Score, probability: float, lengths: list[int], centre: Draws, length: Draws) -> set[int]:
    """Each centre masks a span of one of the lengths."""
    masked = set()
    for c in _centres(score, probability, centre):
        size = lengths[length[c] * len(lengths) // 2**32]
        masked |= set(range(c - (size - 1) // 2, c + size // 2 + 1))
    return masked & set(score)


def genemask(score: Score, k: int, probability: float, centre: Draws) -> set[int]:
    """Each centre masks its k tokens; the better half of them also the tokens that hide the best k-mer nearby."""
    centres = _centres(score, probability, centre)
    best = {}
    for c in centres:
        best[c] = c
        for t in _tokens_with(c + k // 2, k):
            if t in score and (
                score[t] > score[best[c]] or (score[t] == score[best[c]] and best[c] != c and t < best[c])
            ):
                best[c] = t
    by_rank = sorted(centres, key=lambda c: (-score[best[c]], c))
    strong = by_rank if len(centres) <= 8 else by_rank[: math.ceil(len(centres) / 2)]

    masked = set()
    for c in centres:
        masked |= set(_tokens_with(c + k // 2, k))
    for c in strong:
        masked |= _tokens_with_any(_nucleotides(best[c], k), k)
    return masked & set(score)


def global_pmi(score: Score, k: int, rate: float) -> set[int]:
    """The tokens that contain a priority nucleotide: k-mers are added from the top while the count gets nearer."""
    if not score:
        return set()
    by_rank = sorted(score, key=lambda t: (-score[t], t))
    budget = rate * len(score)
    if budget < k:
        return set(_tokens_with(by_rank[0] + k // 2, k)) & set(score)

    priority: set[int] = set()
    masked: set[int] = set()
    for t in by_rank:
        more = priority | set(_nucleotides(t, k))
        masks = _tokens_with_any(more, k) & set(score)
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


def hidden_nucleotides(score: Score, masked: set[int], k: int) -> tuple[int, int]:
    """Number of nucleotides all of whose tokens are masked, and of all nucleotides of the tokens."""
    nucleotides = {n for t in score for n in _nucleotides(t, k)}
    return sum(set(_tokens_with(n, k)) & set(score) <= masked for n in nucleotides), len(nucleotides)


def _hash(word: int) -> int:
    word %= 2**32
    word ^= word >> 15
    word = word * 0x2C1B3C6D % 2**32
    word ^= word >> 12
    word = word * 0x297A2D39 % 2**32
    return word ^ (word >> 15)


def _centres(score: Score, probability: float, draws: Draws) -> list[int]:
    return [t for t in sorted(score) if draws[t] < math.floor(Fraction(probability) * 2**32)]


def _nucleotides(token: int, k: int) -> range:
    return range(token, token + k)


def _tokens_with(nucleotide: int, k: int) -> range:
    return range(nucleotide - k + 1, nucleotide + 1)


def _tokens_with_any(nucleotides: set[int] | range, k: int) -> set[int]:
    return {t for n in nucleotides for t in _tokens_with(n, k)}
