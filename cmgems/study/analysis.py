"""The numbers of a study, from its records: means, paired differences, ranks, and how sure they are.

Nothing here is random but the bootstrap, whose seed is fixed: the same records give the same numbers.

References
----------
Sellam et al., The MultiBERTs: BERT Reproductions for Robustness Analysis, ICLR 2022 (arXiv:2106.16163): the bootstrap
over seeds and test rows together.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from cmgems.study.records import Entry, Record, unpack_rows

RESAMPLES = 2000
"""Resamples of the bootstrap."""

INTERVAL = 0.95
"""Share of the resamples that an interval holds."""

DETECTABLE = 2.8
"""Standard errors of a difference that is found with a probability of 80 % at a level of 5 % (1.96 + 0.84)."""

_SEED = 20_231

Floats = npt.NDArray[np.float64]


def mean_score(record: Record, scores: Sequence[str], step: int, without: Sequence[str] = ()) -> float | None:
    """Return the mean over all tasks of some scores at a step; None if one of the scores is not there."""
    found = [record.scores.get(name, {}).get(step) for name in scores]
    values = [entry.value for own in found if own for task, entry in own.items() if task not in without]
    return sum(values) / len(values) if values and all(found) else None


def last_step(record: Record) -> int:
    """Return the optimizer steps of the whole pretraining; 0 without one."""
    return record.pretraining.steps if record.pretraining else 0


@dataclass(frozen=True)
class Difference:
    """A paired difference of two arms in an endpoint: the one minus the other."""

    option: str
    against: str
    seeds: list[int]
    """Seeds that both have."""
    by_seed: list[float]
    """Difference of each."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end."""
    error: float
    """Standard deviation of the bootstrap's differences."""
    by_task: dict[str, float]
    """Mean difference of each task."""

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return float(np.mean(self.by_seed))

    @property
    def detectable(self) -> float:
        """Smallest difference that would have been found with a probability of 80 %."""
        return DETECTABLE * self.error

    @property
    def p(self) -> float:
        """Of a two-sided sign test over the seeds."""
        return sign_test(self.by_seed)

    @property
    def wins(self) -> int:
        """Tasks whose mean difference is above zero."""
        return sum(value > 0 for value in self.by_task.values())


def sign_test(values: Iterable[float]) -> float:
    """Return the two-sided p value of a sign test; values of zero do not count.

    Examples
    --------
    >>> sign_test([0.1, 0.2, 0.1, 0.3, 0.1, 0.2])
    0.03125
    >>> sign_test([0.1, -0.2, 0.1])
    1.0
    """
    signs = [value > 0 for value in values if value]
    fewer = min(sum(signs), len(signs) - sum(signs))
    tail = sum(math.comb(len(signs), number) for number in range(fewer + 1)) / 2 ** len(signs)
    return float(min(1.0, 2 * tail))


def metric_of_counts(counts: Floats, metric: str) -> Floats:
    """Return MCC or accuracy [...] of confusion matrices [..., true class, predicted class]; MCC is 0 where a row or
    column has all of the cases (Gorodkin 2004, "Comparing two K-category assignments by a K-category correlation
    coefficient")."""
    total = counts.sum(axis=(-2, -1))
    right = np.trace(counts, axis1=-2, axis2=-1)
    if metric == "accuracy":
        return np.asarray(right / total)
    true, predicted = counts.sum(axis=-1), counts.sum(axis=-2)
    covariance = right * total - (true * predicted).sum(axis=-1)
    spread = (total**2 - (true**2).sum(axis=-1)) * (total**2 - (predicted**2).sum(axis=-1))
    found: Floats = np.divide(covariance, np.sqrt(spread), out=np.zeros_like(covariance), where=spread > 0)
    return found


class Bootstrap:
    """Resamples the test rows of each task, the same for all arms and seeds, and the seeds."""

    def __init__(self, resamples: int = RESAMPLES) -> None:
        self.resamples = resamples
        self._weights: dict[tuple[str, int], Floats] = {}

    def scores(self, task: str, entry: Entry) -> Floats:
        """Return a model's metric [1 + resamples] of a task: on its rows as they are, then on resampled ones."""
        assert entry.outcomes is not None
        outcomes = unpack_rows(entry.outcomes).astype(np.int64)
        hits = np.zeros((len(outcomes), entry.classes**2))
        hits[np.arange(len(outcomes)), outcomes] = 1
        counts = np.concatenate([hits.sum(axis=0)[None], self._resampled(task, len(outcomes)) @ hits])
        return metric_of_counts(counts.reshape(-1, entry.classes, entry.classes), entry.metric)

    def seeds(self, number: int) -> npt.NDArray[np.int64]:
        """Return which of so many seeds are drawn [resamples, number]."""
        return np.random.RandomState(_SEED).randint(number, size=(self.resamples, number))

    def _resampled(self, task: str, rows: int) -> Floats:
        """Return how often each row is drawn [resamples, rows]; of one task always the same."""
        if (task, rows) not in self._weights:
            draw = np.random.RandomState([_SEED, *task.encode()])
            drawn = draw.randint(rows, size=(self.resamples, rows))
            offset = np.arange(self.resamples)[:, None] * rows
            counts = np.bincount((drawn + offset).ravel(), minlength=self.resamples * rows)
            self._weights = {(task, rows): counts.reshape(self.resamples, rows).astype(np.float64)}  # one at a time
        return self._weights[task, rows]


@dataclass(frozen=True)
class Endpoint:
    """What is compared: the mean over all tasks of some scores of the final models."""

    records: Sequence[Record]
    scores: Sequence[str]

    @cached_property
    def by_arm(self) -> dict[str, dict[int, dict[str, Entry]]]:
        """Entries by arm, seed and task, of what has all of the scores."""
        found: dict[str, dict[int, dict[str, Entry]]] = {}
        for record in self.records:
            own = [record.scores.get(name, {}).get(last_step(record)) for name in self.scores]
            if own and all(own):
                entries = {task: entry for each in own if each for task, entry in each.items()}
                found.setdefault(record.arm, {})[record.seed] = entries
        return found

    @cached_property
    def tasks(self) -> list[str]:
        """All tasks, in the order of the suites."""
        return list(dict.fromkeys(task for seeds in self.by_arm.values() for own in seeds.values() for task in own))

    def means(self, arm: str, without: Sequence[str] = ()) -> list[float]:
        """Return an arm's mean over the tasks, for each seed."""
        return [
            float(np.mean([entry.value for task, entry in entries.items() if task not in without]))
            for _, entries in sorted(self.by_arm.get(arm, {}).items())
        ]

    def task_means(self, arm: str) -> dict[str, float]:
        """Return an arm's mean over the seeds, for each task."""
        seeds = self.by_arm.get(arm, {}).values()
        return {task: float(np.mean([entries[task].value for entries in seeds])) for task in self.tasks if seeds}

    def ranks(self, arms: Sequence[str]) -> dict[str, float]:
        """Return the average rank of arms over the tasks, 1 for the best; of equal ones the mean of their ranks."""
        means = {arm: self.task_means(arm) for arm in arms if arm in self.by_arm}
        ranks: dict[str, list[float]] = {arm: [] for arm in means}
        for task in self.tasks:
            for arm in means:
                better = sum(other[task] > means[arm][task] for other in means.values())
                equal = sum(other[task] == means[arm][task] for other in means.values())
                ranks[arm].append(better + (equal + 1) / 2)
        return {arm: float(np.mean(found)) for arm, found in ranks.items()}

    def resampled(self, arms: Iterable[str], bootstrap: Bootstrap) -> dict[tuple[str, int, str], Floats]:
        """Return `Bootstrap.scores` by arm, seed and task."""
        cells = [(arm, seed) for arm in arms for seed in self.by_arm.get(arm, {})]
        return {
            (arm, seed, task): bootstrap.scores(task, self.by_arm[arm][seed][task])
            for task in self.tasks  # task by task, as the draw of each is kept once
            for arm, seed in cells
        }


def difference(
    endpoint: Endpoint,
    option: str,
    against: str,
    resampled: Mapping[tuple[str, int, str], Floats],
    bootstrap: Bootstrap,
    without: Sequence[str] = (),
) -> Difference | None:
    """Return the paired difference of two arms; None unless they have a seed in common.

    Parameters
    ----------
    endpoint
        What is compared.
    option, against
        The arms.
    resampled
        `Endpoint.resampled` of both arms.
    bootstrap
        That which `resampled` is of.
    without
        Tasks that are left out.
    """
    seeds = sorted(endpoint.by_arm.get(option, {}).keys() & endpoint.by_arm.get(against, {}).keys())
    tasks = [task for task in endpoint.tasks if task not in without]
    if not seeds or not tasks:
        return None
    # [seeds, tasks, 1 + resamples]
    found = np.array([[resampled[option, s, t] - resampled[against, s, t] for t in tasks] for s in seeds])
    of_seeds = found.mean(axis=1)
    drawn = bootstrap.seeds(len(seeds))
    samples = of_seeds[drawn, np.arange(1, bootstrap.resamples + 1)[:, None]].mean(axis=1)
    tail = 50 * (1 - INTERVAL)
    low, high = np.percentile(samples, [tail, 100 - tail])
    by_task = dict(zip(tasks, found[:, :, 0].mean(axis=0).tolist(), strict=True))
    by_seed = of_seeds[:, 0].tolist()
    return Difference(option, against, seeds, by_seed, float(low), float(high), float(samples.std(ddof=1)), by_task)


def share_to_reach(shares: Sequence[float], values: Sequence[float], target: float) -> float | None:
    """Return the share of the pretraining after which a score first reaches a target, on straight lines between the
    shares at which it is known; None if it does not.

    Examples
    --------
    >>> share_to_reach([0.25, 0.5, 1.0], [0.1, 0.3, 0.4], 0.2)
    0.375
    """
    if not values or values[0] >= target:
        return shares[0] if values else None
    for (before, low), (after, high) in zip(
        zip(shares, values, strict=True), zip(shares[1:], values[1:], strict=True), strict=False
    ):
        if high >= target:
            return before + (after - before) * (target - low) / (high - low)
    return None
