"""The probability with which a token is a centre, worked out from the share of tokens that is to be masked."""

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from cmgems.data.tokenization import Tokenization
from cmgems.masking.counters import threshold

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ALL_STRONG = 8
"""GeneMask: up to this number of centres in a window, all of them hide their best k-mer; of more, the better half."""
LONGEST_SOLVED = 1024
"""GeneMask: longer windows, in tokens, take the probability of this length, beyond which it hardly changes."""

_BISECTIONS = 40


@cache
def span_centre_probability(rate: float, lengths: tuple[int, ...]) -> float:
    """Return the probability that masks the share `rate` of a long window's tokens with spans of these lengths, drawn
    uniformly.

    A token stays unmasked if no token near it is a centre that reaches it: 1 - rate = product over the distances of (1
    - p * share of the lengths that reach so far). With one length this is p = 1 - (1 - rate)^(1 / length).
    """
    return float(_solve(_span_masked_share(lengths), rate, size=1)[0])


@cache
def genemask_thresholds(rate: float, tokens: Tokenization, device: torch.device) -> torch.Tensor:
    """`threshold` of GeneMask's centre probability by the window's length in tokens, int64 [LONGEST_SOLVED + 1]."""
    probabilities = genemask_centre_probabilities(rate, tokens)
    return torch.tensor([threshold(p) for p in probabilities.tolist()], device=device)


def genemask_centre_probabilities(rate: float, tokens: Tokenization) -> Floats:
    """Return the probability that masks the share `rate` by GeneMask, by the window's length in tokens, [LONGEST_SOLVED
    + 1].

    The number n of centres is binomial. A weak centre masks the tokens around it (k of overlapping k-mers); a strong
    one those that hide its best word (2k - 1), which is taken to be any of the words near with equal probability. So
    each centre masks a given token with a probability that depends on the token's distance from the ends alone, and a
    token stays unmasked if all n miss it. Centres are taken as independent and NPMI is not looked at. Of real windows
    of 510 tokens the share comes within 0.005 of the rate up to a rate of 0.5, and 0.01 above it at 0.8 to 0.9.
    """
    lengths = np.arange(1, LONGEST_SOLVED + 1)
    masked_share = _genemask_masked_share(lengths, np.arange(_most_centres(rate, tokens) + 1), tokens)
    return np.concatenate([[0.0], _solve(masked_share, rate, size=len(lengths))])


def span_masked_share(probability: float, lengths: tuple[int, ...]) -> float:
    """Share of a long window's tokens that span masks with a centre probability: `span_centre_probability` reversed."""
    return float(_span_masked_share(lengths)(np.array([probability]))[0])


def genemask_masked_share(probability: float, tokens: Tokenization, length: int) -> float:
    """Share of the tokens of a window of `length` that GeneMask masks with a centre probability, as estimated for
    `genemask_centre_probabilities`."""
    length = min(length, LONGEST_SOLVED)
    masked_share = _genemask_masked_share(np.array([length]), np.arange(length + 1), tokens)
    return float(masked_share(np.array([probability]))[0])


def _span_masked_share(lengths: tuple[int, ...]) -> Callable[[Floats], Floats]:
    """Function from span's centre probabilities to the shares that they mask."""
    spans = np.array(lengths)
    distances = np.arange(-spans.max(), spans.max() + 1)[:, None]  # from a centre to a token
    reach = ((-distances <= (spans - 1) // 2) & (distances <= spans // 2)).mean(axis=1)

    def masked_share(p: Floats) -> Floats:
        unmasked: Floats = np.prod(1 - p[:, None] * reach, axis=1)
        return 1 - unmasked

    return masked_share


def _genemask_masked_share(lengths: Ints, n: Ints, tokens: Tokenization) -> Callable[[Floats], Floats]:
    """Function from GeneMask's centre probabilities, one for each of `lengths`, to the shares that they mask; `n` are
    the numbers of centres that are looked at."""
    unmasked_by = np.stack([_unmasked_share(int(length), n, tokens) for length in lengths])  # [lengths, n]
    log_ways = _log_binomials(lengths, n)

    def masked_share(p: Floats) -> Floats:
        log_chance = log_ways + n * np.log(p)[:, None] + (lengths[:, None] - n) * np.log1p(-p)[:, None]
        unmasked: Floats = (np.exp(log_chance) * unmasked_by).sum(axis=1)
        return 1 - unmasked

    return masked_share


def _unmasked_share(length: int, n: Ints, tokens: Tokenization) -> Floats:
    """Return the expected share of the tokens of a window that n centres leave unmasked, for each n; [number of n]."""
    # Tokens far from both ends are all alike: a shorter window, its middle token counted as often as needed, will do.
    distinct = min(length, 3 * (len(tokens.hiding) + 1))
    alike = np.ones(distinct)
    alike[distinct // 2] += length - distinct

    weak, strong = _centres_that_mask(distinct, tokens)
    strong_share = np.where(n <= ALL_STRONG, 1, (n + 1) // 2 / np.maximum(n, 1))[:, None]
    maskers = strong_share * strong + (1 - strong_share) * weak  # [n, token]: the tokens that would mask it
    unmasked = (1 - maskers / length) ** n[:, None] if tokens.overlaps else _chance_of_none(length, maskers, n)
    share: Floats = unmasked @ alike / length
    return share


def _chance_of_none(length: int, maskers: Floats, n: Ints) -> Floats:
    """Return the probability that none of n different tokens of a window is among some, [n, token].

    Where tokens do not overlap a centre masks few of them, and that the centres are different counts.
    """

    def log_factorial(x: Floats) -> Floats:
        return torch.lgamma(torch.from_numpy(np.maximum(x, 0) + 1)).numpy()

    left, chosen = length - maskers, n[:, None].astype(float)
    log_ways = log_factorial(left) - log_factorial(left - chosen)
    of_all = log_factorial(np.array([float(length)])) - log_factorial(length - chosen)
    chance: Floats = np.where(left < chosen, 0, np.exp(log_ways - of_all))
    return chance


@cache
def _centres_that_mask(length: int, tokens: Tokenization) -> tuple[Floats, Floats]:
    """For each token of a window, the number of tokens that would mask it as a weak and as a strong centre; [length].

    The second number is an expectation over the place of the strong centre's best word.
    """
    distance = np.arange(length)[:, None] - np.arange(length)  # from the column's token to the row's
    around, near, hidden_by = (_is_in(distance, reach) for reach in (tokens.around, tokens.near, tokens.hiding))
    best = near / np.maximum(near.sum(axis=0), 1)  # [best word, centre]
    return around.sum(axis=1).astype(float), np.maximum(hidden_by @ best, around).sum(axis=1)


def _is_in(distance: Ints, reach: range) -> NDArray[np.bool_]:
    return (distance >= reach[0]) & (distance <= reach[-1])


def _most_centres(rate: float, tokens: Tokenization) -> int:
    """Return a number of centres that no window up to LONGEST_SOLVED exceeds, but for a probability below 1e-12."""
    p = 1 - (1 - rate) ** (2 / tokens.token_blocks)  # enough even if each centre masked half of its tokens only
    mean = LONGEST_SOLVED * p
    return min(LONGEST_SOLVED, int(mean + 8 * (mean * (1 - p)) ** 0.5) + 8)


def _log_binomials(lengths: Ints, n: Ints) -> Floats:
    """ln of the number of ways to choose n of so many tokens, -inf where there are none; [lengths, n]."""
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, max(lengths[-1], n[-1]) + 1)))])
    rest = lengths[:, None] - n
    log_ways = log_factorial[lengths][:, None] - log_factorial[n] - log_factorial[np.maximum(rest, 0)]
    return np.where(rest >= 0, log_ways, -np.inf)


def _solve(masked_share: Callable[[Floats], Floats], rate: float, size: int) -> Floats:
    """`size` probabilities, each such that its entry of masked_share is the rate, by bisection."""
    low, high = np.zeros(size), np.ones(size)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        too_low = masked_share(middle) < rate
        low, high = np.where(too_low, middle, low), np.where(too_low, high, middle)
    return high
