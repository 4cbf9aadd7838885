"""A suite of tasks, over several seeds, for one model and its baselines.

Scores that are there already are skipped; one that fails does not keep the others back.
"""

import logging
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from accelerate import PartialState

from cmgems.downstream.data import TaskData, read_task
from cmgems.downstream.experiment import find_or_compute
from cmgems.downstream.features import FeatureReader
from cmgems.downstream.results import Result, read_results, task_scores
from cmgems.downstream.settings import BenchmarkConfig, ScoringConfig
from cmgems.downstream.setup import Scoring, open_scoring
from cmgems.downstream.subjects import (
    Candidate,
    codon_regression,
    forest,
    kmer_regression,
    random_weights,
    untrained_start,
)
from cmgems.downstream.tasks import Suite, Task
from cmgems.errors import CmgemsError, IncompleteError, UserError
from cmgems.runtime.process import world_size
from cmgems.tracking.journal import summarize_error
from cmgems.training import environment

logger = logging.getLogger(__name__)


def benchmark(config: BenchmarkConfig) -> list[Result]:
    """Score a model on a suite, print a table, and return the results.

    Raises
    ------
    UserError
        If there is no such suite, task or model.
    IncompleteError
        If some scores could not be computed; the others are in the table.
    """
    if world_size() > 1:
        raise UserError("cmgems benchmark is one process; several share the work by --shard, each on a GPU of its own")
    scoring = open_scoring(config, config.tasks)
    scoring.preflight()
    suite, tasks, folder = scoring.suite, scoring.tasks, scoring.folder
    if (config.codons or config.forest) and not suite.is_of_values:
        raise UserError(f"--codons and --forest are for tasks with a value, and those of {suite.name} have classes")
    logger.info(environment.report(PartialState(), "none"))
    subjects = [scoring.model, *(_baselines(scoring.model, config) if config.baselines else ())]
    units = [Unit(task, *unit) for task in tasks for unit in _units(subjects, config)]
    first, every = map(int, config.shard.split("/"))
    mine = list(islice(units, first - 1, None, every))
    logger.info(f"suite {suite.name}: {len(mine)} scores to compute, {len(tasks)} tasks; results in {folder}")
    try:
        return score_units(scoring, mine)
    finally:
        print("\n" + table(suite, tasks, read_results(folder, suite.name)), flush=True)


@dataclass(frozen=True)
class Unit:
    """One score to compute."""

    task: Task
    subject: Candidate
    seed: int


def score_units(scoring: Scoring, units: Sequence[Unit], is_published: bool = True) -> list[Result]:
    """Compute those of the scores that are not there, and return all; a line in the log for each.

    Unless `is_published` is False, they are brought to MLflow.

    Raises
    ------
    IncompleteError
        If some could not be computed; the others are there.
    """
    folder, metric, results = scoring.folder, scoring.suite.metric, list[Result]()
    publisher, reader, features = scoring.publisher(), _Reader(scoring.config), FeatureReader(scoring.compute)
    failures: dict[str, list[str]] = {}  # what was failed, by the reason
    for number, unit in enumerate(units, start=1):
        experiment = scoring.experiment(unit.task, unit.subject, unit.seed)
        try:
            data = reader.read(unit.task)
            result, is_new = find_or_compute(experiment, data, experiment.folder(folder), features=features)
        except CmgemsError as error:
            problem = str(error)
        except Exception as error:  # noqa: BLE001  # out of memory, say: the other tasks are still scored
            traceback.print_exc()
            problem = f"{type(error).__name__}: {summarize_error(error)}"
        else:
            if is_published:
                publisher.publish(result)
            results.append(result)
            took = f"{result.seconds / 60:.1f} min" if is_new else "there already"
            marked = ", resplit" if result.resplit else ""
            shown = f"{metric} {result.score:.4f} ({took}{marked})"
            logger.info(f"[{number}/{len(units)}] {experiment.title}: {shown}")
            continue
        failures.setdefault(problem, []).append(experiment.title)
        logger.error(f"[{number}/{len(units)}] {experiment.title} failed: {problem}")
    if is_published:
        publisher.finish()
    if failures:
        lines = [f"{problem}\n    {'; '.join(titles)}" for problem, titles in failures.items()]
        count = sum(map(len, failures.values()))
        raise IncompleteError(f"{count} of {len(units)} failed:\n  " + "\n  ".join(lines))
    return results


def _baselines(subject: Candidate, config: BenchmarkConfig) -> Iterator[Candidate]:
    """Yield what the model has to beat, as far as there is it."""
    start = untrained_start(subject)
    if start is not None:
        yield start
    yield random_weights(subject.source)
    regressions = [kmer_regression(subject.source, k) for k in config.kmers]
    regressions += [codon_regression(subject.source)] if config.codons else []
    yield from regressions
    yield from (forest(regression) for regression in regressions if config.forest)


def _units(subjects: list[Candidate], config: BenchmarkConfig) -> Iterator[tuple[Candidate, int]]:
    """Subjects and seeds of a task; a regression has no use for several seeds, unless these are bootstraps, or draw a
    random forest."""
    for subject in subjects:
        has_seeds = config.probe or subject.kind != "k-mer regression" or subject.forest
        for seed in range(config.first_seed, config.first_seed + (config.seeds if has_seeds else 1)):
            yield subject, seed


class _Reader:
    """Reads the data of tasks, one at a time: the seeds of a task follow one another."""

    def __init__(self, config: ScoringConfig) -> None:
        self._config = config
        self._last: TaskData | None = None

    def read(self, task: Task) -> TaskData:
        """Return the data of a task."""
        if self._last is None or self._last.task.name != task.name:
            self._last = read_task(task, self._config.data, self._config.resplit)
        return self._last


def table(suite: Suite, tasks: list[Task], results: list[Result]) -> str:
    """Return the means and standard deviations over the seeds of each task and subject, x 100 as they are published, in
    text."""
    subjects = sorted({(r.kind != "model", r.kind == "k-mer regression", r.subject) for r in results})
    names = [name for *_, name in subjects]
    lines = [["task", *names]]
    for task in tasks:
        cells = []
        for name in names:
            own = [r for r in results if r.subject == name and r.task == task.name]
            score = task_scores(own, suite.metric).get(task.name)
            cells.append("-" if score is None else score.percent + (" resplit" if any(r.resplit for r in own) else ""))
        lines.append([task.name, *cells])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    title = f"{suite.metric} x 100 of the test split: mean ± standard deviation (seeds)"
    return "\n".join([title, *("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)])
