"""Scores of models on tasks, in files: one folder for each task and seed, which is there completely or not at all.

Below the folder of a pretraining run: `downstream/SUITE/SUBJECT/TASK/seed-SEED/`, where the subject is one of the run's
models (`step-00010000`) or a baseline: the same architecture with random weights, or a classifier that is no language
model. Unless it is plain fine-tuning, the protocol adds a suffix to the suite's name: `gue-probe`. In the folder are
`result.json`, `predictions.csv` and a picture, `confusion.png` or `values.png`.
"""

import csv
import logging
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock, Timeout
from pydantic import ValidationError

from cmgems.downstream.protocols import ProtocolName
from cmgems.downstream.scores import Estimates, Predictions
from cmgems.errors import UserError
from cmgems.runtime.files import atomic_file
from cmgems.settings import Settings

logger = logging.getLogger(__name__)

DOWNSTREAM = "downstream"
RESULT = "result.json"
PREDICTIONS = "predictions.csv"

Kind = Literal["model", "random weights", "k-mer regression"]


class Choice(Settings):
    """A setting that is chosen among several values, never by the test split."""

    setting: str
    """Its name."""
    value: float
    """The chosen value."""
    by: str
    """What it is chosen by."""
    scores: dict[float, float | None]
    """The suite's metric for each value, in the order in which they were tried; None: a training with it diverged."""


class Result(Settings):
    """What came of one task and seed."""

    suite: str
    """Name of the suite, with its protocol's suffix."""
    protocol: ProtocolName = "fine-tuning"
    """How the model is scored (`cmgems.downstream.protocols`)."""
    metric: str
    """The suite's main metric: a name in `metrics`."""
    task: str
    """Name of the task."""
    species: str
    """Where the sequences come from."""
    task_kind: str
    """Classification target, or kind of value."""
    classes: list[str]
    """Names of the classes, in the order of their labels; empty: there is a value instead."""
    value: str | None = None
    """Name of the value that is predicted, with its unit; None: there are classes."""
    group: str | None
    """Group of tasks whose mean the score enters."""
    shots: int | None
    """Training sequences of each class, in a few-shot task."""
    kind: Kind
    """A language model, or which baseline."""
    subject: str
    """Name of what is scored, and of its folder: `step-00010000`, `random-weights`."""
    model: str
    """Model as it was named: a folder, or a name on the Hugging Face hub."""
    step: int | None
    """Optimizer steps that the model was pretrained for; None: not known, or a baseline."""
    seed: int
    """Seed of the classifier's new weights, of the order of the rows, and of dropout; of a probe: of the bootstrap."""
    resplit: bool
    """Whether train and dev are parts of the published dev split: then the score is not one of the benchmark."""
    metrics: dict[str, float]
    """Metrics of the test split, by name: `mcc`, `accuracy`, `f1`, `precision`, `recall` and mostly `roc_auc`;
    of a value `spearman`, `pearson`, `r2` and `rmse`."""
    dev_metrics: dict[str, float]
    """The same of the validation split; empty without one."""
    confusion: list[list[int]]
    """Rows of the test split by true class (outer list) and predicted class; empty for a value."""
    rows: dict[str, int]
    """Rows of each split."""
    integrity: dict[str, Any]
    """Sequences that occur more than once (`cmgems.downstream.integrity.Integrity`)."""
    lengths: dict[str, int]
    """How long the sequences are for the model (`cmgems.downstream.inputs.LengthSummary`); empty for a regression."""
    ambiguous: int
    """Nucleotides that are N here, and another IUPAC code in the data."""
    recipe: dict[str, Any]
    """How the model was fine-tuned; empty if it was not."""
    choice: Choice | None = None
    """The learning rate or the penalty that the validation split chose; None: there was nothing to choose."""
    probe: dict[str, Any] = {}
    """What is known of the regression of a probe, or of a value on k-mers (`cmgems.downstream.probing.Fit`); empty
    without one."""
    best_step: int | None
    """Optimizer step of the fine-tuning whose weights were scored; None: no steps."""
    history: list[dict[str, float]]
    """Fine-tuning: `step` with `loss` and `learning_rate`, or with `dev/mcc` and other metrics of the validation."""
    seconds: float
    """Wall-clock time, in seconds."""
    identity: dict[str, str]
    """What determines the numbers, by name: a result whose identity is another is computed again."""
    versions: dict[str, str]
    """Versions of the libraries."""

    @property
    def score(self) -> float:
        """The main metric."""
        return self.metrics[self.metric]

    @property
    def picture(self) -> str:
        """Name of the file with the result's picture."""
        return "confusion.png" if self.value is None else "values.png"

    @property
    def summary(self) -> str:
        """All metrics of the test split, in a line."""
        marked = " (resplit: not a score of the benchmark)" if self.resplit else ""
        return ", ".join(f"{name} {value:.4f}" for name, value in self.metrics.items()) + marked


def result_folder(run: Path, suite: str, subject: str, task: str, seed: int) -> Path:
    """Return the folder of a task and seed below the folder of a run."""
    return run / DOWNSTREAM / suite / subject / task / f"seed-{seed}"


@contextmanager
def result_files(folder: Path, is_main_process: bool = True) -> Iterator[Path]:
    """Give a folder to write a result's files into, which takes its place when all is written, and is gone otherwise.

    All processes of a launch have the same folder; one of them, the main one, makes and removes it.

    Raises
    ------
    UserError
        If another launch is at work on the same result.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    if not is_main_process:
        yield partial
        return
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(f"{folder}: another process is at work on it") from None
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error}") from error
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of one that was killed
        partial.mkdir()
        yield partial
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        lock.release()


def write_result(folder: Path, result: Result, predictions: Predictions | Estimates) -> None:
    """Write `result.json`, and the predictions for the test split with all digits of their probabilities or values."""
    with (folder / PREDICTIONS).open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows(_value_rows(predictions) if isinstance(predictions, Estimates) else _class_rows(predictions))
    (folder / RESULT).write_text(result.model_dump_json(indent=1) + "\n")


def _value_rows(estimates: Estimates) -> Iterator[list[Any]]:
    yield ["row", "value", "prediction"]
    pairs = zip(estimates.values.tolist(), estimates.predicted.tolist(), strict=True)
    yield from ([row, *map(repr, pair)] for row, pair in enumerate(pairs))


def _class_rows(predictions: Predictions) -> Iterator[list[Any]]:
    classes = predictions.probabilities.shape[1]
    yield ["row", "label", "prediction", *(f"probability_{c}" for c in range(classes))]
    columns = predictions.labels.tolist(), predictions.predicted.tolist(), predictions.probabilities.tolist()
    for row, (label, predicted, shares) in enumerate(zip(*columns, strict=True)):
        yield [row, label, predicted, *map(repr, shares)]


def read_result(folder: Path) -> Result:
    """Read what `write_result` wrote.

    Raises
    ------
    UserError
        If it is not there, or cannot be read.
    """
    path = folder / RESULT
    try:
        return Result.model_validate_json(path.read_text())
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise UserError(f"{path}: not a result that can be read: {error}") from error


def rewrite_result(folder: Path, result: Result) -> None:
    """Put a result in the place of the one in a folder, whose other files stay."""
    with atomic_file(folder / RESULT) as partial:
        partial.write_text(result.model_dump_json(indent=1) + "\n")


def read_results(run: Path, suite: str = "") -> list[Result]:
    """Return the results below the folder of a run, those of one suite or of all, sorted by their places.

    Of a subject and task only those count that have the identity of the newest: seeds of other data, weights or recipes
    do not make a mean together. The others, and those that cannot be read, are named on standard error.
    """
    found: list[tuple[Path, float, Result]] = []
    for folder in sorted(_result_folders(run / DOWNSTREAM / suite)):
        try:
            found.append((folder, (folder / RESULT).stat().st_mtime, read_result(folder)))
        except (UserError, OSError) as error:
            logger.warning(f"left out: {error}")
    newest: dict[tuple[str, str, str], dict[str, str]] = {}
    for _, _, result in sorted(found, key=lambda entry: entry[1]):
        newest[result.suite, result.subject, result.task] = result.identity
    current = []
    for folder, _, result in found:
        if result.identity == newest[result.suite, result.subject, result.task]:
            current.append(result)
        else:
            logger.warning(f"left out, it is of other data, weights or settings than newer seeds of its task: {folder}")
    return current


def _result_folders(top: Path) -> Iterator[Path]:
    """Yield folders with a result; those that other processes write and remove meanwhile are passed over."""
    for folder, inside, files in os.walk(top):
        if RESULT in files:
            yield Path(folder)
        inside[:] = [] if RESULT in files else [name for name in inside if not name.startswith(".")]


@dataclass(frozen=True)
class Score:
    """A metric over seeds."""

    values: list[float]
    """One for each seed, in the order of the seeds."""

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return float(np.mean(self.values))

    @property
    def sd(self) -> float | None:
        """Standard deviation over the seeds, that of a sample (n-1); None with a single one."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None

    @property
    def percent(self) -> str:
        """Mean and standard deviation x 100, with the number of seeds: `71.44 ± 0.82 (3)`."""
        spread = "" if self.sd is None else f" ± {100 * self.sd:.2f}"
        return f"{100 * self.mean:.2f}{spread} ({len(self.values)})"


def task_scores(results: Iterable[Result], metric: str) -> dict[str, Score]:
    """Return the scores of each task. `results` are those of one suite and subject."""
    by_task: dict[str, dict[int, float]] = {}
    for result in results:
        by_task.setdefault(result.task, {})[result.seed] = result.metrics.get(metric, math.nan)
    return {task: Score([values[seed] for seed in sorted(values)]) for task, values in by_task.items()}


def group_score(results: Sequence[Result], tasks: Sequence[str], metric: str) -> Score | None:
    """Mean over `tasks` for each seed that all of them have; None if there is no such seed.

    `results` are those of one suite and subject; a result on a training split that was not the published one does not
    count.
    """
    values = {(r.task, r.seed): r.metrics.get(metric, math.nan) for r in results if not r.resplit}
    seeds = sorted({seed for _, seed in values})
    complete = [seed for seed in seeds if tasks and all((task, seed) in values for task in tasks)]
    return Score([float(np.mean([values[task, seed] for task in tasks])) for seed in complete]) if complete else None
