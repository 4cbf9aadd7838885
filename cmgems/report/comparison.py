"""Scores of several runs side by side: a column for each model and baseline, means of the same tasks, perplexities."""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from cmgems.downstream.protocols import PROTOCOLS, Protocol
from cmgems.downstream.results import Kind, Result, Score, group_score, read_results, task_scores
from cmgems.downstream.tasks import load_suite, suite_names
from cmgems.errors import UserError
from cmgems.report.published import METRICS, Published, published
from cmgems.tracking.journal import read_contents

_RANDOM: Kind = "random weights"
_KINDS: tuple[Kind, ...] = ("model", _RANDOM, "k-mer regression")


@dataclass(frozen=True)
class Run:
    """A folder of a pretraining run, or of whatever else has results, and what is read there."""

    folder: Path
    label: str
    """As much of the folder's path as distinguishes it from the other runs."""
    results: list[Result]
    perplexities: dict[str, dict[int, float]]
    """Validation perplexity by name of the masking and optimizer step; empty without a journal."""
    unigrams: dict[str, float]
    """Perplexity of the k-mer frequencies alone, by name of the masking."""
    switches: list[int]
    """Optimizer steps after which a new stage began."""

    @property
    def models(self) -> list[Result]:
        """One result of each model, in the order of their steps."""
        first: dict[str, Result] = {}
        for result in self.results:
            if result.kind == "model":
                first.setdefault(result.subject, result)
        return sorted(first.values(), key=lambda result: (result.step is None, result.step or 0, result.subject))


class TaskRow(NamedTuple):
    """What is to be known of a task in a table."""

    name: str
    species: str
    kind: str
    group: str | None
    shots: int | None


@dataclass(frozen=True)
class Column:
    """A model or baseline in a suite."""

    runs: list[str]
    """Labels of the runs it belongs to: one, but for a baseline that several runs share."""
    label: str
    kind: Kind
    step: int | None
    """Optimizer steps of pretraining, if it is a model of which they are known."""
    metric: str
    results: list[Result]

    def score(self, task: str) -> Score | None:
        """Score of a task on its published splits; None without one."""
        return task_scores(self._of(task, resplit=False), self.metric).get(task)

    def resplit_score(self, task: str) -> Score | None:
        """Score of a task that was trained on a part of its published validation split; None without one."""
        return task_scores(self._of(task, resplit=True), self.metric).get(task)

    def mean(self, tasks: Sequence[TaskRow]) -> Score | None:
        """Mean over `tasks`, for each seed that all of them have; None if a task is missing, or there is no such seed.

        Scores of a split that is not the published one do not count.
        """
        return group_score(self.results, [task.name for task in tasks], self.metric)

    def _of(self, task: str, resplit: bool) -> list[Result]:
        return [result for result in self.results if result.task == task and result.resplit == resplit]


@dataclass(frozen=True)
class Comparison:
    """What there is of a suite by a protocol."""

    suite: str
    """Name of the suite with the protocol's suffix, as results have it."""
    protocol: Protocol
    source: str
    """Where the suite comes from; empty if it does not ship with cmgems."""
    metric: str
    tasks: list[TaskRow]
    """All tasks of a suite that ships with cmgems; of another one those with results."""
    models: list[Column]
    baselines: list[Column]
    published: Published | None = field(repr=False)
    """The published scores, if they are of this suite and metric."""

    @property
    def columns(self) -> list[Column]:
        """Models and baselines."""
        return self.models + self.baselines

    @property
    def base(self) -> str:
        """Name of the suite alone."""
        return self.suite.removesuffix(self.protocol.suffix)

    @property
    def is_few_shot(self) -> bool:
        """Whether tasks are small ones with so many training sequences of each class."""
        return any(task.shots is not None for task in self.tasks)

    def baselines_of(self, model: Column) -> list[Column]:
        """Random weights of the run that the model is from."""
        return [baseline for baseline in self.baselines if baseline.kind == _RANDOM and model.runs[0] in baseline.runs]

    def baseline_value(self, model: Column, score: Callable[[Column], Score | None]) -> float | None:
        """Mean over seeds of a score of the run's random weights, of several the highest; None without any."""
        scores = [score(baseline) for baseline in self.baselines_of(model)]
        return max((each.mean for each in scores if each is not None), default=None)

    def task_sets(self, tasks: Sequence[TaskRow]) -> list[list[TaskRow]]:
        """Choices of `tasks` to take means over, most tasks first.

        For each model those that it has scores of, and those that all models with any have in common. Without models
        it goes by the baselines.
        """
        there = [{task for task in tasks if column.score(task.name)} for column in self.models or self.baselines]
        there = [has for has in there if has]
        sets = {frozenset(has) for has in there} | ({frozenset(set.intersection(*there))} if there else set())
        ordered = [[task for task in tasks if task in chosen] for chosen in sets if chosen]
        return sorted(ordered, key=lambda chosen: (-len(chosen), [task.name for task in chosen]))

    def common_tasks(self, tasks: Sequence[TaskRow]) -> list[TaskRow]:
        """Return those of `tasks` that all models have scores of, and that a published table with steps has."""
        table = self.published
        known = table.tasks if table and table.has_steps else [task.name for task in tasks]
        return [task for task in tasks if task.name in known and all(m.score(task.name) for m in self.models)]


def groups_of(tasks: Sequence[TaskRow]) -> dict[str | None, list[TaskRow]]:
    """Return tasks by group, in the order human, others by name, none."""
    groups: defaultdict[str | None, list[TaskRow]] = defaultdict(list)
    for task in tasks:
        groups[task.group].append(task)
    return {group: groups[group] for group in sorted(groups, key=lambda g: (g is None, g != "human", g or ""))}


def kinds_of(tasks: Sequence[TaskRow]) -> dict[str, list[TaskRow]]:
    """Return tasks by species and classification target, in the order of the tasks."""
    kinds: defaultdict[str, list[TaskRow]] = defaultdict(list)
    for group in groups_of(tasks).values():
        for task in group:
            kinds[f"{task.species}, {task.kind}"].append(task)
    return dict(kinds)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read the runs in their order, one that is given twice once.

    Raises
    ------
    UserError
        If one has no results.
    """
    unique = {folder.resolve(): folder for folder in reversed(folders)}
    labels = _labels(list(unique))
    return [_read_run(folder, label) for folder, label in zip(unique.values(), labels, strict=True)][::-1]


def compare(runs: Sequence[Run]) -> list[Comparison]:
    """Put the runs side by side in each suite and by each protocol; suites of few-shot tasks come last."""
    suites = sorted({result.suite for run in runs for result in run.results})
    return sorted((_compare_suite(suite, runs) for suite in suites), key=lambda comparison: comparison.is_few_shot)


def _read_run(folder: Path, label: str) -> Run:
    results = read_results(folder)
    if not results:
        raise UserError(f"{folder}: no results of downstream tasks here; `cmgems benchmark` computes them")
    perplexities: defaultdict[str, dict[int, float]] = defaultdict(dict)
    unigrams: dict[str, float] = {}
    switches: dict[str, int] = {}
    for content in read_contents(folder):
        for name, value in content.get("metrics", {}).items():
            part, _, masking = name.partition("/")
            if part == "ppl" and math.isfinite(value) and not masking.endswith("_composition"):  # a baseline
                perplexities[masking][content["step"]] = value
            if part == "ppl_vs_unigram" and value > 0 and content["step"] in perplexities[masking]:
                unigrams[masking] = perplexities[masking][content["step"]] / value
        tags = content.get("tags", {}).items()
        switches |= {name: int(value) for name, value in tags if re.fullmatch(r"switch\.\d+\.step", name)}
    found = {name: dict(sorted(points.items())) for name, points in perplexities.items() if points}
    return Run(folder, label, results, found, unigrams, sorted(switches.values()))


def _labels(folders: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that differ; never a number alone, as in runs/NAME/1."""
    ends = [[Path(*folder.parts[-n:]) for n in range(1, len(folder.parts) + 1)] for folder in folders]

    def label(number: int) -> str:
        others = [end for other, of_other in enumerate(ends) if other != number for end in of_other]
        good = (end for end in ends[number] if end not in others and not str(end).isdigit())
        return str(next(good, folders[number]))

    return [label(number) for number in range(len(folders))]


def _compare_suite(suite: str, runs: Sequence[Run]) -> Comparison:
    results = [result for run in runs for result in run.results if result.suite == suite]
    protocol = PROTOCOLS[results[0].protocol]
    base = suite.removesuffix(protocol.suffix)
    shipped = load_suite(base) if base in suite_names() else None
    metric = shipped.metric if shipped else results[0].metric
    rows = [TaskRow(t.name, t.species, t.kind, t.group, t.shots) for t in shipped.tasks] if shipped else []
    known = {row.name for row in rows}
    for r in results:
        if r.task not in known:
            rows.append(TaskRow(r.task, r.species, r.task_kind, r.group, r.shots))
            known.add(r.task)
    columns = [column for run in runs for column in _columns(run, suite, metric)]
    baselines = sorted(
        _merge(c for c in columns if c.kind != "model"), key=lambda baseline: _KINDS.index(baseline.kind)
    )
    models = [column for column in columns if column.kind == "model"]
    table = published(suite) if METRICS.get(suite) == metric else None
    return Comparison(suite, protocol, shipped.source if shipped else "", metric, rows, models, baselines, table)


def _columns(run: Run, suite: str, metric: str) -> list[Column]:
    def key(result: Result) -> tuple[int, bool, int, str]:
        return _KINDS.index(result.kind), result.step is None, result.step or 0, result.subject

    mine = sorted((result for result in run.results if result.suite == suite), key=key)
    columns = []
    for _, group in groupby(mine, key=key):
        of_column = list(group)
        first = of_column[0]
        label = f"step {first.step:,}" if first.step is not None else first.subject
        columns.append(Column([run.label], label, first.kind, first.step, metric, of_column))
    return columns


def _merge(baselines: Iterable[Column]) -> list[Column]:
    """Make one column of baselines that runs share: what two have both is of the same identity."""
    merged: list[Column] = []
    for baseline in baselines:
        same = next((other for other in merged if _is_same(other, baseline)), None)
        if same is None:
            merged.append(baseline)
            continue
        there = {(result.task, result.seed) for result in same.results}
        more = [result for result in baseline.results if (result.task, result.seed) not in there]
        both = Column(same.runs + baseline.runs, same.label, same.kind, None, same.metric, same.results + more)
        merged[merged.index(same)] = both
    return merged


def _is_same(one: Column, other: Column) -> bool:
    theirs = {(result.task, result.seed): result.identity for result in other.results}
    shared = [
        (result.identity, theirs[result.task, result.seed])
        for result in one.results
        if (result.task, result.seed) in theirs
    ]
    return one.kind == other.kind and bool(shared) and all(mine == its for mine, its in shared)
