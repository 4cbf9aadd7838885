"""The run in MLflow: parameters, metrics, stage switches, artifacts. Rank 0 alone talks to it.

Metrics are grouped by the part of their name before the slash; the MLflow UI shows a section of charts for each, in
alphabetical order: `curriculum`, `masking`, `ppl` (validation perplexity), `ppl_vs_unigram`, `train`, `usage`. Charts
that compare runs show the first dozen letters of a name: hence `ppl`.
"""

import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # compute nodes often have no way out
os.environ.setdefault("MPLBACKEND", "Agg")

import matplotlib.pyplot as plt
import mlflow
import mlflow.data

from cmgems.config import PretrainConfig, flatten
from cmgems.curriculum.controller import Switch
from cmgems.errors import UserError
from cmgems.sequence.corpus import Corpus

logging.getLogger("mlflow").setLevel(logging.WARNING)

# Of the way a run was started rather than of the run itself: a resumed run may differ in them.
_NOT_PARAMETERS = ("resume", "output")


class Tracker:
    """An MLflow run on rank 0; on the other ranks it does nothing."""

    def __init__(self, run_id: str | None) -> None:
        self.run_id = run_id

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log metrics after `step` optimizer steps."""
        if self.run_id:
            mlflow.log_metrics(dict(values), step=step)

    def tags(self, values: Mapping[str, Any]) -> None:
        """Set tags of the run."""
        if self.run_id:
            mlflow.set_tags(dict(values))

    def switch(self, number: int, switch: Switch) -> None:
        """Tag the run with its `number`-th change of stage (from 1) and the perplexities that caused it."""
        self.tags(
            {
                f"switch.{number}": f"{switch.from_stage} to {switch.to_stage} after step {switch.step}",
                f"switch.{number}.step": switch.step,
                f"switch.{number}.perplexities": ", ".join(f"{p:.2f}" for p in switch.perplexities) or "none",
            }
        )

    def note(self, text: str) -> None:
        """Show a text on the run's first page."""
        self.tags({"mlflow.note.content": text})

    def perplexity_curve(
        self, evaluations: Sequence[Mapping[str, Any]], switches: Sequence[Switch], unigram_perplexity: float
    ) -> None:
        """Draw the validation perplexities so far, with the switches marked, and keep the picture as an artifact."""
        if self.run_id:
            figure = draw_perplexities(evaluations, switches, unigram_perplexity)
            mlflow.log_figure(figure, "perplexity.png")
            plt.close(figure)

    def model(self, folder: Path) -> None:
        """Keep an exported model as the artifact `model`."""
        if self.run_id:
            mlflow.log_artifacts(str(folder), "model")


@contextmanager
def open_run(
    config: PretrainConfig, name: str, corpus: Corpus, run_id: str | None, is_main_process: bool
) -> Iterator[Tracker]:
    """A new MLflow run of this name, or the one of `run_id` continued; it ends FINISHED, or FAILED on any exception.

    Raises UserError if the tracking store cannot be reached.
    """
    if not is_main_process:
        yield Tracker(None)
        return
    run = _start(config, name, run_id)
    status = "FAILED"
    try:
        if run_id is None:
            _describe(config, corpus)
        yield Tracker(run.info.run_id)
        status = "FINISHED"
    finally:
        mlflow.end_run(status)


def _start(config: PretrainConfig, name: str, run_id: str | None) -> Any:
    settings = config.tracking
    try:
        mlflow.set_tracking_uri(settings.uri)
        if mlflow.get_experiment_by_name(settings.experiment) is None:
            mlflow.create_experiment(
                settings.experiment,
                artifact_location=_artifact_location(settings.uri),
                # The UI otherwise guesses from the runs, and shows training runs as evaluations of a language model.
                tags={"mlflow.experimentKind": "custom_model_development"},
            )
        mlflow.set_experiment(settings.experiment)
        return mlflow.start_run(
            run_id=run_id, run_name=None if run_id else name, log_system_metrics=settings.system_metrics
        )
    except mlflow.exceptions.MlflowException as error:
        raise UserError(f"tracking.uri {settings.uri}: {error}") from error


def _artifact_location(uri: str) -> str | None:
    """Beside an SQLite database, so that the two move together; a server knows its own place."""
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts").as_uri()


def _describe(config: PretrainConfig, corpus: Corpus) -> None:
    parameters = {k: v for k, v in flatten(config).items() if k not in _NOT_PARAMETERS}
    mlflow.log_params(parameters)
    mlflow.log_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), "config.yaml")
    for context, split in (("training", corpus.train), ("validation", corpus.validation)):
        dataset = mlflow.data.from_huggingface(
            split, path=str(corpus.path), name=f"{corpus.path.name}-{context}", digest=corpus.fingerprint[:32]
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Hint: Inferred schema contains integer column")
            mlflow.log_input(dataset, context=context)


def draw_perplexities(
    evaluations: Sequence[Mapping[str, Any]], switches: Sequence[Switch], unigram_perplexity: float
) -> Any:
    """Figure of validation perplexity against steps, one line a masking; each evaluation has `step` and `perplexity`
    (by masking)."""
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for name in evaluations[0]["perplexity"] if evaluations else ():
        if name != "stage":
            axes.plot(*_curve(evaluations, name), marker="o", label=name)
    for number, (_, stage) in enumerate(groupby(evaluations, key=lambda evaluation: evaluation["stage"])):
        label = "current stage" if number == 0 else None
        axes.plot(*_curve(list(stage), "stage"), color="black", linewidth=5, alpha=0.25, label=label)
    axes.axhline(unigram_perplexity, color="grey", linestyle=":", label="k-mer frequencies alone")
    for switch in switches:
        axes.axvline(switch.step, color="tab:red", linestyle="--")
        label = f" {switch.to_stage} from here"
        axes.annotate(label, (switch.step, 0.9), xycoords=("data", "axes fraction"), color="tab:red", va="top")
    axes.set(xlabel="optimizer step", ylabel="validation perplexity", yscale="log", xlim=(0, None))
    axes.legend()
    return figure


def _curve(evaluations: Sequence[Mapping[str, Any]], masking: str) -> tuple[list[int], list[float]]:
    """Steps and perplexities under one masking."""
    return [e["step"] for e in evaluations], [e["perplexity"][masking] for e in evaluations]
