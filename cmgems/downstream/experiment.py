"""One task, one seed, one model or baseline: from the data to a result in its folder, by one of the protocols."""

import json
import logging
import shutil
import time
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from cmgems.downstream.classifier import load_classifier
from cmgems.downstream.confusion import draw_result
from cmgems.downstream.data import TaskData
from cmgems.downstream.features import FeatureReader, Features
from cmgems.downstream.finetuning import ComputeConfig, Outcome, fine_tune
from cmgems.downstream.inputs import Rows, summarise_lengths
from cmgems.downstream.integrity import check_integrity
from cmgems.downstream.objectives import CLASSIFICATION, ValueRegression, value_regression
from cmgems.downstream.pooling import MeanPooledClassifier
from cmgems.downstream.probing import PENALTIES, Probe, probe
from cmgems.downstream.probing import PROCEDURE as PROBE_PROCEDURE
from cmgems.downstream.protocols import PROBE, Protocol
from cmgems.downstream.regression import regression
from cmgems.downstream.results import (
    RESULT,
    Choice,
    Result,
    read_result,
    result_files,
    result_folder,
    rewrite_result,
    write_result,
)
from cmgems.downstream.ridge import FOREST, RIDGE, fit_forest, fit_ridge
from cmgems.downstream.scores import Estimates, Predictions, best_value, confusion, score
from cmgems.downstream.subjects import Candidate
from cmgems.downstream.tasks import Suite, Task
from cmgems.errors import DivergedError, UserError
from cmgems.inference.encoder import Encoder
from cmgems.inference.source import digest, load_encoder
from cmgems.runtime.files import apply_umask

logger = logging.getLogger(__name__)

PROCEDURE = "1"
"""Raised when the same data, model and recipe are to give other numbers than before: results are computed again."""

_LIBRARIES = ("cmgems", "torch", "transformers", "accelerate", "scikit-learn", "numpy")


@dataclass(frozen=True)
class Experiment:
    """One task, one seed, one subject."""

    suite: Suite
    task: Task
    subject: Candidate
    seed: int
    compute: ComputeConfig
    protocol: Protocol

    @property
    def title(self) -> str:
        """What progress and errors call it."""
        return f"{self.task.name}, {self.subject.name}, seed {self.seed}"

    def folder(self, run: Path) -> Path:
        """Return the folder of the result, below the folder of a run."""
        return result_folder(run, self.suite.name, self.subject.name, self.task.name, self.seed)

    def identity(self, data: TaskData) -> dict[str, str]:
        """Return all that determines the numbers, by name; but for rounding, and for the processes' part in dropout."""
        identity = {"procedure": PROCEDURE, "data": _data_digest(data), "classes": str(len(self.task.classes))}
        is_probe, recipe = self.protocol is PROBE, self.task.recipe
        is_kmers, of_value = self.subject.kind == "k-mer regression", self.task.value is not None
        if of_value and (is_probe or is_kmers):
            identity |= {"regression": FOREST if self.subject.forest else f"{RIDGE}, chosen by {self.suite.metric}"}
        elif is_probe:
            identity |= {"probe": f"{PROBE_PROCEDURE}, C of {PENALTIES}"}
        if is_probe or len(recipe.learning_rates) > 1:
            identity |= {"chosen by": self.suite.metric}
        if is_kmers:
            counted = "codons" if self.subject.codons else f"{self.subject.k}-mers"
            return identity | {"model": f"TF-IDF of {counted}" if of_value else counted}
        if not is_probe:
            identity |= {"recipe": json.dumps(recipe.described(), sort_keys=True)}
        return identity | {
            "model": digest(self.subject.source),
            "precision": self.compute.precision,
            "max_tokens": str(self.subject.source.max_tokens),
        }

    def description(self) -> dict[str, Any]:
        """Return what a result says about its suite, task and subject that does not determine the numbers."""
        task = self.task
        return {
            "protocol": self.protocol.name,
            "metric": self.suite.metric,
            "species": task.species,
            "task_kind": task.kind,
            "classes": task.classes,
            "value": task.value,
            "group": task.group,
            "shots": task.shots,
            "step": self.subject.step,
        }


def find_or_compute(
    experiment: Experiment,
    data: TaskData,
    folder: Path,
    keep_model: bool = False,
    features: FeatureReader | None = None,
) -> tuple[Result, bool]:
    """Return the result in `folder`, and whether it had to be computed; collective.

    `keep_model` and `features` are those of `run`; a result without its model, which is to be kept, is computed again.
    """
    found = [existing_result(experiment, data, folder)]
    if keep_model and not (folder / "model").is_dir():
        found = [None]
    broadcast_object_list(found)  # one process decides for all
    if found[0] is not None:
        return found[0], False
    return run(experiment, data, folder, keep_model, features), True


def existing_result(experiment: Experiment, data: TaskData, folder: Path) -> Result | None:
    """Return the result in a folder, if there is one of the same data, recipe and model; what it says of them is
    brought up to date.

    Raises
    ------
    UserError
        If there is one of another model in its place.
    """
    if not (folder / RESULT).is_file():
        return None
    try:
        result = read_result(folder)
    except UserError as error:
        logger.warning(f"computed again: {error}")
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


@dataclass(frozen=True)
class _Scored:
    """What came of an experiment."""

    test: Predictions | Estimates
    dev: Predictions | Estimates | None
    seconds: float
    lengths: dict[str, int] = field(default_factory=dict)
    outcome: Outcome | None = None
    choice: Choice | None = None
    probe: dict[str, Any] = field(default_factory=dict)


def run(
    experiment: Experiment,
    data: TaskData,
    folder: Path,
    keep_model: bool = False,
    features: FeatureReader | None = None,
) -> Result:
    """Compute a result, and write it into `folder`; collective.

    `keep_model` writes the fine-tuned classifier and its tokenizer there too, in a folder `model`. `features` keeps
    what the next probe of the same model and task needs again.

    Raises
    ------
    UserError
        If another launch computes it, the folder is not shared, or the data or the model cannot be used.
    """
    state = PartialState()
    with result_files(folder, state.is_main_process) as partial:
        state.wait_for_everyone()
        if not partial.is_dir():
            raise UserError(f"{folder.parent} is not shared by all machines of the launch", every_process=True)
        if experiment.protocol is PROBE:
            scored = _probe(experiment, data, features or FeatureReader(experiment.compute))
        elif experiment.subject.kind == "k-mer regression" and data.task.value is not None:
            scored = _run_value_regression(experiment, data, features or FeatureReader(experiment.compute))
        elif experiment.subject.kind == "k-mer regression":
            scored = _run_regression(data, experiment.subject)
        else:
            scored = _fine_tune(experiment, data, partial, keep_model)
        result = _result(experiment, data, scored)
        if state.is_main_process:
            write_result(partial, result, scored.test)
            draw_result(result, scored.test, partial)
    state.wait_for_everyone()
    return result


def _run_regression(data: TaskData, subject: Candidate) -> _Scored:
    began = time.monotonic()
    assert subject.k is not None
    test = regression(data.train, data.test, len(data.task.classes), subject.k)
    return _Scored(test, None, time.monotonic() - began)


def _run_value_regression(experiment: Experiment, data: TaskData, reader: FeatureReader) -> _Scored:
    began, subject = time.monotonic(), experiment.subject
    assert subject.k is not None
    features = reader.of_tfidf(data, subject.k, subject.codons)
    found = _fit_values(experiment, data, features, resampled=False)
    return _Scored(found.test, found.dev, time.monotonic() - began, choice=found.choice, probe=asdict(found.fit))


def _fit_values(experiment: Experiment, data: TaskData, features: Features, resampled: bool) -> Probe:
    if experiment.subject.forest:
        return fit_forest(features.splits, data, experiment.seed, resampled)
    return fit_ridge(features.splits, data, experiment.suite.metric, experiment.seed, resampled)


def _probe(experiment: Experiment, data: TaskData, reader: FeatureReader) -> _Scored:
    began, subject, of_value = time.monotonic(), experiment.subject, data.task.value is not None
    if subject.kind == "k-mer regression":
        assert subject.k is not None
        features = reader.of_tfidf(data, subject.k, subject.codons) if of_value else reader.of_kmers(data, subject.k)
    else:
        features = reader.of_model(subject.source, data, experiment.seed, experiment.title)
    if of_value:
        found = _fit_values(experiment, data, features, resampled=True)
    else:
        found = probe(features.splits, data, experiment.suite.metric, experiment.seed)
    known = {"layers": features.layers, **asdict(found.fit)}
    return _Scored(found.test, found.dev, time.monotonic() - began, features.lengths, choice=found.choice, probe=known)


def _fine_tune(experiment: Experiment, data: TaskData, partial: Path, keep_model: bool) -> _Scored:
    """Fine-tune with each of the recipe's learning rates; what scores highest on the validation split counts."""
    state, encoder, recipe = PartialState(), load_encoder(experiment.subject.source), experiment.task.recipe
    rows = {name: Rows(split, encoder) for name, split in data.splits.items()}
    rates, metric, scores = recipe.learning_rates, experiment.suite.metric, dict[float, float | None]()
    objective = CLASSIFICATION if data.task.value is None else value_regression(data.train.labels)
    best, seconds = None, 0.0
    for rate in rates:
        title = experiment.title + f", learning rate {rate:g}" * (len(rates) > 1)
        model = load_classifier(experiment.subject.source, data.task.outputs, recipe.dropout, experiment.seed)
        if recipe.pooling == "mean":
            model = MeanPooledClassifier(model, encoder, experiment.subject.source.model)
        meanwhile = partial / f"checkpoints-{rate:g}"
        try:
            outcome = fine_tune(
                *(model, encoder, rows, recipe.model_copy(update={"learning_rate": rate})),
                *(experiment.compute, experiment.seed, meanwhile, title),
                objective=objective,
            )
        except DivergedError:
            if rate == rates[-1] and best is None:
                raise
            scores[rate] = None
            logger.info(f"{title}: it diverged")
            continue
        finally:
            if state.is_main_process:
                shutil.rmtree(meanwhile, ignore_errors=True)
        seconds += outcome.seconds
        if len(rates) > 1:
            assert outcome.dev
            scores[rate] = score(outcome.dev)[metric]
            logger.info(f"{title}: {metric} {scores[rate]:.4f} on dev")
        if best is None or best_value(scores) == rate:
            best = outcome
            if keep_model and state.is_main_process:
                if isinstance(objective, ValueRegression):
                    model.config.update({"value_mean": objective.mean, "value_deviation": objective.deviation})
                _save_model(model, encoder, partial / "model")
    assert best
    choice = Choice(setting="learning_rate", value=best_value(scores), by="dev", scores=scores) if scores else None
    lengths = asdict(summarise_lengths(list(rows.values()), encoder.limit))
    return _Scored(best.test, best.dev, seconds, lengths, best, choice)


def _save_model(model: Any, encoder: Encoder, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)
    apply_umask(folder)


def _result(experiment: Experiment, data: TaskData, scored: _Scored) -> Result:
    task, subject, outcome = data.task, experiment.subject, scored.outcome
    return Result(
        suite=experiment.suite.name,
        task=task.name,
        kind=subject.kind,
        subject=subject.name,
        model=subject.source.model,
        seed=experiment.seed,
        resplit=data.resplit,
        metrics=score(scored.test),
        dev_metrics=score(scored.dev) if scored.dev else {},
        confusion=confusion(scored.test) if isinstance(scored.test, Predictions) else [],
        rows={name: len(split) for name, split in data.splits.items()},
        integrity=asdict(check_integrity(data)),
        lengths=scored.lengths,
        ambiguous=sum(sum(split.ambiguous) for split in data.splits.values()),
        recipe=task.recipe.described() if outcome else {},
        choice=scored.choice,
        probe=scored.probe,
        best_step=outcome.best_step if outcome else None,
        history=outcome.history if outcome else [],
        seconds=scored.seconds,
        identity=experiment.identity(data),
        **experiment.description(),
        versions={name: version(name) for name in _LIBRARIES},
    )


def _data_digest(data: TaskData) -> str:
    """Return the fingerprint of all sequences and labels, and of which split they are in."""
    total = sha256(b"resplit" if data.resplit else b"")
    for name, split in data.splits.items():
        total.update(f"{name} {len(split)}\n".encode())
        total.update("\n".join(split.sequences).encode())
        total.update(split.labels.tobytes())
    return total.hexdigest()
