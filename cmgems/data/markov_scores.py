"""Markov chains as a baseline for masked nucleotides: how well visible neighbours alone predict a hidden base.

A chain of order m gives each base a probability under the m bases beside it. The hidden bases between a hidden one and
its visible neighbours are summed out exactly, by the forward-backward algorithm of hidden Markov models (Rabiner 1989,
Proc. IEEE 77:257) with the last m bases as the state.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cmgems.data.markov import Digits, Floats, Integers, MarkovChains
from cmgems.data.tokenizer import NO_BASE

Reals = NDArray[np.floating[Any]]
Booleans = NDArray[np.bool_]

FLANKS = ("left flank", "right flank", "both flanks")
"""What a prediction sees of the window, in the order of the entries of `score_hidden_bases`."""

_STATES = 1 << 17  # states of the stretches that are computed together
_SMALLEST_SINGLE = 1e-30  # products of single precision above it have lost nothing that counts to underflow
_VISIBLE, _HIDDEN = b"vh"


class Baseline(NamedTuple):
    """How well a chain predicts the hidden bases; nan if there are none."""

    name: str
    """Such as "base composition" or "order 5, both flanks"."""
    bits: float
    """Mean of -log2 of the true base's probability."""
    accuracy: float
    """Share of the hidden bases whose most probable base is the true one."""


def score_hidden_bases(chains: MarkovChains, bases: Digits, hidden: Booleans) -> Floats:
    """Score the chains on the hidden bases of a batch of windows.

    What is visible to the left, to the right or anywhere in the window is known; a non-base and the window's edges
    interrupt it. Where fewer than m bases stand beside a base, it has the probability of the order that they make.

    Parameters
    ----------
    bases
        Integers [B, N], the digits 0..3 of the bases, and `NO_BASE` for padding and unknown ones.
    hidden
        bool [B, N], the bases to be predicted.

    Returns
    -------
    float64 array [order + 1, 3, 2]
        For each order and each of FLANKS two sums over the hidden bases: of -log2 of the true base's probability, and
        of whether the most probable base is the true one (of equally probable ones the first). Order 0 is the base
        composition, whatever the flanks. Add the sums over batches and ranks, and see `summarize_baselines`.

    Raises
    ------
    ValueError
        If the shapes differ, a digit is not in 0..4, or something is hidden that is not a base.
    """
    if bases.ndim != 2 or bases.shape != hidden.shape:
        raise ValueError(f"bases {bases.shape} and hidden {hidden.shape} must have the same shape [B, N]")
    if bases.size and not 0 <= bases.min() <= bases.max() <= NO_BASE:
        raise ValueError(f"bases has digits {bases.min()} to {bases.max()}; they must be in 0..{NO_BASE}")
    if (bases[hidden] == NO_BASE).any():
        raise ValueError(f"hidden covers {(bases[hidden] == NO_BASE).sum()} places without a base")

    sums = np.zeros((chains.order + 1, len(FLANKS), 2))
    for order in range(chains.order + 1):
        forward, backward = _two_precisions(chains.forward, order), _two_precisions(chains.backward, order)
        for stretches in _stretches(bases, hidden, order, right_flank=True):
            sums[order, [0, 2]] += _score_stretches(forward, order, stretches, both=True)
        for stretches in _stretches(bases[:, ::-1], hidden[:, ::-1], order, right_flank=False):
            sums[order, [1]] += _score_stretches(backward, order, stretches, both=False)
    return sums


def summarize_baselines(sums: Floats, hidden_bases: int) -> tuple[Baseline, Baseline]:
    """Return the base composition, and the chain of order 1 or more and the flanks with the fewest bits.

    Parameters
    ----------
    sums
        float64 [order + 1, 3, 2], those of `score_hidden_bases`, added over all batches.
    hidden_bases
        Number of hidden bases in them.
    """
    means = sums / hidden_bases if hidden_bases else np.full_like(sums, np.nan)
    order, flanks = np.unravel_index(means[1:, :, 0].argmin(), means[1:, :, 0].shape)
    return (
        Baseline("base composition", *means[0, 0].tolist()),
        Baseline(f"order {order + 1}, {FLANKS[flanks]}", *means[order + 1, flanks].tolist()),
    )


class _Stretches(NamedTuple):
    """Stretches of windows with hidden bases in the same places."""

    pattern: bytes
    """[T], of _VISIBLE and _HIDDEN; up to m visible bases, the hidden ones, visible ones between and behind them."""
    digits: Integers
    """[n, T]."""


def _stretches(bases: Digits, hidden: Booleans, order: int, right_flank: bool) -> Iterator[_Stretches]:
    """Yield the stretches of all windows, those of a pattern together, a few at a time.

    A stretch continues to the next hidden base if fewer than `order` bases lie between, so that no two stretches of a
    window depend on each other. Around it are `order` visible bases, or as many as there are, unless `right_flank` is
    False: then it ends with a hidden base.
    """
    # The columns of non-bases keep the windows apart in one long text.
    text = np.pad(bases, ((0, 0), (1, 1)), constant_values=NO_BASE).ravel().astype(np.int64)
    place = np.flatnonzero(np.pad(hidden, ((0, 0), (1, 1))))
    if not len(place):
        return
    gaps = np.flatnonzero(text == NO_BASE)
    next_gap = np.searchsorted(gaps, place)
    apart = (np.diff(place) > order) | (np.diff(next_gap) > 0)
    first, last = place[np.append(True, apart)], place[np.append(apart, True)]
    gap = next_gap[np.append(True, apart)]
    start = np.maximum(first - order, gaps[gap - 1] + 1)
    end = np.minimum(last + 1 + (order if right_flank else 0), gaps[gap])

    symbols = np.full(len(text), _VISIBLE, dtype=np.uint8)
    symbols[place] = _HIDDEN
    columns = np.arange((end - start).max())
    spelled = symbols.take(start[:, None] + columns, mode="clip") * (columns < (end - start)[:, None])
    patterns, which = np.unique(spelled.view(f"S{len(columns)}").ravel(), return_inverse=True)
    by_pattern = np.split(start[np.argsort(which, kind="stable")], np.bincount(which).cumsum()[:-1])
    for pattern, starts in zip(patterns.tolist(), by_pattern, strict=True):
        together = max(1, _STATES // _most_states(pattern, order))
        for i in range(0, len(starts), together):
            yield _Stretches(pattern, text[starts[i : i + together, None] + np.arange(len(pattern))])


def _most_states(pattern: bytes, order: int) -> int:
    """Return the largest number of states that a position of the pattern has: 4 for each hidden base in reach."""
    return max(int(4 ** pattern.count(_HIDDEN, max(0, i - order), i)) for i in range(len(pattern) + 1))


class _Step(NamedTuple):
    """One base of n stretches, in each state before it.

    The state is the hidden ones of the last m bases. The farthest of these m, of which the next base knows nothing, is
    an axis of its own: C = 4 if it is hidden, else C = 1. Of the other hidden ones, in R states, the newest is the most
    significant digit.
    """

    weights: Reals
    """[n, C, R], probability of the states under the visible bases before."""
    transitions: Reals
    """[n or 1, C, V, R], probability in each state: of all V = 4 bases if this one is hidden, else of the visible."""


class _Tables(NamedTuple):
    """The tables of one direction up to the order m of the chain in use."""

    by_order: Sequence[Reals]
    all_hidden: Reals
    """[1, 4, 4, 4**(m - 1)], the transitions from m hidden bases: most of the work, and faster for being contiguous."""


def _two_precisions(by_order: Sequence[Floats], order: int) -> tuple[_Tables, _Tables]:
    """Return the tables up to `order` in single and in double precision."""
    farthest_first = by_order[order].reshape(4, -1, 4 if order else 1).transpose(2, 0, 1)[None]
    single, double = (
        _Tables([table.astype(dtype) for table in by_order[: order + 1]], farthest_first.astype(dtype, order="C"))
        for dtype in (np.float32, np.float64)
    )
    return single, double


def _score_stretches(precisions: tuple[_Tables, _Tables], order: int, stretches: _Stretches, both: bool) -> Floats:
    """Score the predictions from before each hidden base and, if `both`, from both sides: sums [1 or 2, 2].

    In single precision, which takes 0.6 of the time, unless something is too improbable for it.
    """
    single, double = precisions
    try:
        with np.errstate(divide="ignore", invalid="ignore"):
            return _score_steps(_filter(single, order, stretches), stretches, both)
    except FloatingPointError:
        return _score_steps(_filter(double, order, stretches), stretches, both)


def _score_steps(steps: list[_Step], stretches: _Stretches, both: bool) -> Floats:
    predictions = [_predict_from_one_side(steps), *([_predict_from_both_sides(steps)] if both else [])]
    return np.array([_score(prediction, stretches) for prediction in predictions])


def _filter(tables: _Tables, order: int, stretches: _Stretches) -> list[_Step]:
    """Run the chain from the first hidden base to the end of the stretches (Rabiner's forward recursion, scaled)."""
    pattern, digits = stretches
    n = len(digits)
    weights: Reals = np.ones((n, 1), dtype=tables.all_hidden.dtype)
    steps = []
    for t in range(pattern.index(_HIDDEN), len(pattern)):
        reach = slice(max(0, t - order), t)
        farthest = 4 if t >= order > 0 and pattern[t - order] == _HIDDEN else 1
        visible = None if pattern[t] == _HIDDEN else digits[:, t]
        transitions = _transitions(tables, pattern[reach], digits[:, reach], farthest, visible)
        split = np.ascontiguousarray(weights.reshape(n, -1, farthest).swapaxes(1, 2))
        steps.append(_Step(split, transitions))
        weights = np.einsum("ncvr,ncr->nvr", transitions, split).reshape(n, -1)
        weights /= weights.sum(axis=1, keepdims=True)
    return steps


def _transitions(tables: _Tables, pattern: bytes, context: Integers, farthest: int, visible: Integers | None) -> Reals:
    """Return probabilities [n or 1, C, V, R] of the next base, or the `visible` one [n], after the context [n, m]."""
    m = len(pattern)
    if visible is None and farthest == 4 and _VISIBLE not in pattern:
        return tables.all_hidden
    known = np.zeros(len(context), dtype=np.int64)
    states = np.zeros(1, dtype=np.int64)
    for i in reversed(range(m)):
        if pattern[i] == _HIDDEN:
            states = np.add.outer(states, np.arange(4) << 2 * i).ravel()
        else:
            known += context[:, i] << 2 * i
    values = np.arange(4)[None] if visible is None else visible[:, None]
    known_and_value = known[:, None] + (values << 2 * m)
    by_farthest = states.reshape(-1, farthest).T
    return tables.by_order[m].ravel()[known_and_value[:, None, :, None] + by_farthest[:, None]]


def _predict_from_one_side(steps: list[_Step]) -> Iterator[Floats]:
    """Yield probabilities [n, 4] of each hidden base, first to last, under the visible ones before it."""
    return (_normalize(transitions, weights) for weights, transitions in steps if transitions.shape[2] == 4)


def _predict_from_both_sides(steps: list[_Step]) -> Iterator[Floats]:
    """Yield probabilities [n, 4] of each hidden base, first to last, under all visible ones (backward recursion)."""
    predictions = []
    after: Reals = np.ones((1, 1), dtype=np.float32)  # [n, V * R], up to a factor, of what is visible behind, by state
    for weights, transitions in reversed(steps):
        _, _, values, states = transitions.shape
        after = np.broadcast_to(after, (len(after), values * states)) if after.size == 1 else after
        following = transitions * after.reshape(-1, 1, values, states)
        if values == 4:
            predictions.append(_normalize(following, weights))
        by_farthest = following.sum(axis=2)
        after = np.stack(list(by_farthest.swapaxes(0, 1)), axis=-1).reshape(len(following), -1)  # a fast swapaxes(1, 2)
        after /= after.max(axis=1, keepdims=True)
    return reversed(predictions)


def _normalize(following: Reals, weights: Reals) -> Floats:
    """Return probabilities [n, 4] of the base: `following` [n or 1, C, 4, R] times `weights` [n, C, R], over states.

    Raises
    ------
    FloatingPointError
        If one is so small in single precision that it may not be exact.
    """
    joint = (following @ weights[:, :, :, None]).sum(axis=(1, 3))
    if joint.dtype == np.float32 and not joint.min() >= _SMALLEST_SINGLE:
        raise FloatingPointError
    return np.asarray(joint / joint.sum(axis=1, keepdims=True, dtype=np.float64))


def _score(predictions: Iterable[Floats], stretches: _Stretches) -> Floats:
    """Return the sums [2] of -log2 of the true base's probability, and of whether it is the most probable base."""
    sums = np.zeros(2)
    places = [t for t, symbol in enumerate(stretches.pattern) if symbol == _HIDDEN]
    for place, probabilities in zip(places, predictions, strict=True):
        truth = stretches.digits[:, place]
        sums[0] -= np.log2(probabilities[np.arange(len(truth)), truth]).sum()
        sums[1] += (probabilities.argmax(axis=1) == truth).sum()
    return sums
