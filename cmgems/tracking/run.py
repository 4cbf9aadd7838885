"""The run in MLflow: parameters, metrics, stage switches, artifacts. Rank 0 alone talks to it.

Only the start of a new run waits for MLflow. From then on all goes into the journal in the run's folder
(`cmgems.tracking.journal`), and a thread sends it from there: a server that is away, slow or broken does not disturb
training. What is unsent at the end is sent by `cmgems sync`, or when the run is resumed. A message can be sent twice,
after a crash or a time-out; its metrics have the same time stamps then, by which MLflow knows them as the same.

Metrics are grouped by the part of their name before the slash; the MLflow UI shows a section of charts for each, in
alphabetical order: `bases_right` and `bits` (of hidden bases), `curriculum`, `masking`, `ppl` (validation perplexity),
`ppl_vs_unigram`, `train`, `usage`. Charts that compare runs show the first dozen letters of a name: hence `ppl`.
"""

import logging
import os
import shlex
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import mlflow.data
import yaml
from filelock import FileLock
from mlflow.entities import DatasetInput, InputTag, Param

from cmgems.config.schema import PretrainConfig, flatten
from cmgems.curriculum.controller import Switch
from cmgems.data.corpus import Corpus
from cmgems.errors import CmgemsError, Interrupted
from cmgems.runtime.files import atomic_file
from cmgems.runtime.passwords import hide_password
from cmgems.tracking.client import create_run, find_run, place_of_run, store_errors
from cmgems.tracking.journal import Journal, MlflowRunRef, Sender
from cmgems.tracking.outbox import send
from cmgems.tracking.plots import draw_validation
from cmgems.tracking.system_metrics import sample_system_metrics

logger = logging.getLogger(__name__)

# Of the way a run was started rather than of the run itself: a resumed run may differ in them.
_NOT_PARAMETERS = ("resume", "output")

# Seconds that a run which was interrupted or failed waits for MLflow: the job it runs in may soon be killed.
_SECONDS_WHEN_STOPPED = 5


class Tracker:
    """What a run logs to MLflow, on rank 0; on the other ranks, without a journal, it does nothing."""

    def __init__(self, run_id: str | None = None, journal: Journal | None = None, again: bool = False) -> None:
        """`again`: the run trains steps again exactly, whose metrics are in the journal: they are left out."""
        self.run_id = run_id
        self._journal = journal
        last = _last_points(journal, run_id) if journal else {}
        self._step = max((step for step, _ in last.values()), default=0)
        self._repeated = last if again else {}

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log metrics after `step` optimizer steps."""
        if self._journal:
            self._step = step
            new = {name: float(value) for name, value in values.items() if not self._is_repeated(name, step)}
            if new:
                self._journal.append({"time": _now(), "step": step, "metrics": new})

    def system_metrics(self, values: Mapping[str, float]) -> None:
        """Log metrics of the machine, at the last step known."""
        if self._journal:
            self._journal.append({"time": _now(), "step": self._step, "metrics": dict(values)})

    def tags(self, values: Mapping[str, Any]) -> None:
        """Set tags of the run."""
        if self._journal:
            self._journal.append({"tags": {name: str(value) for name, value in values.items()}})

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

    def validation_picture(
        self,
        evaluations: Sequence[Mapping[str, Any]],
        switches: Sequence[Switch],
        unigram_perplexity: float,
        baselines: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """Draw the validation of the run so far, with the switches marked: `perplexity.png`, also an artifact."""
        if self._journal:
            path = self._journal.folder / "perplexity.png"
            figure = draw_validation(evaluations, switches, unigram_perplexity, baselines)
            try:
                with atomic_file(path) as partial:
                    figure.savefig(partial, format="png")
            except OSError as error:
                logger.warning(f"{path} cannot be drawn: {error}")
            else:
                self._artifact(path)

    def model(self, folder: Path) -> None:
        """Keep an exported model as the artifact `model`."""
        self._artifact(folder, "model")

    def status(self, status: str) -> None:
        """Set the run's status in MLflow: RUNNING, FINISHED, FAILED or KILLED."""
        if self._journal:
            self._journal.append({"time": _now(), "status": status})

    def _artifact(self, path: Path, to: str | None = None) -> None:
        """Keep a file, or what is in a folder, as an artifact; named from the run's folder, which may be moved."""
        if self._journal:
            self._journal.append({"artifact": os.path.relpath(path, self._journal.folder), "to": to})

    def _is_repeated(self, name: str, step: int) -> bool:
        """Return whether the journal has this point from before the run was resumed; asked once a point."""
        last, points = self._repeated.get(name, (-1, 0))
        if step == last and points:
            self._repeated[name] = (last, points - 1)
            return True
        return step < last


def _last_points(journal: Journal, run_id: str | None) -> dict[str, tuple[int, int]]:
    """Return last step in the journal for each metric of a run, and the number of points there."""
    last: dict[str, tuple[int, int]] = {}
    for message in journal.messages():
        if message.place.run == run_id:
            for name in message.content.get("metrics", ()):
                step = message.content["step"]
                before, points = last.get(name, (step, 0))
                last[name] = (step, points + 1 if step == before else 1)
    return last


def _now() -> int:
    """Milliseconds, as in MLflow."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class RunToTrack:
    """What MLflow has to know of a run before it begins."""

    name: str
    folder: Path
    """The run's folder, which gets the journal."""
    lock: FileLock | None = None
    """That of `journal.lock_run_folder` for the folder, if this process has it already."""
    continues: str | None = None
    """Id of the MLflow run that is continued."""
    repeats_exactly: bool = True
    """Whether the steps that a continued run trains again come out as before: their metrics are not logged twice."""


@contextmanager
def open_run(config: PretrainConfig, corpus: Corpus, run: RunToTrack, is_main_process: bool) -> Iterator[Tracker]:
    """Start a new MLflow run, or continue one.

    It ends FINISHED, KILLED when it was interrupted, or FAILED on any other exception. A store that answers and does
    not have the run to be continued gets a new one with all that the journal has.

    Raises
    ------
    UserError
        If MLflow refuses a new run; nothing else that MLflow does comes through.
    UnavailableError
        If MLflow does not answer when a new run is to be made.
    InUseError
        If another process has the folder.
    """
    if not is_main_process:
        yield Tracker()
        return
    journal = Journal(run.folder, run.lock)
    try:
        if run.continues is None:
            place = place_of_run(config.tracking, create_run(config.tracking, run.name))
            journal.begin(place)
        else:
            place = _resume_run(config, run.name, corpus, journal, run.continues)
        tracker = Tracker(place.run, journal, again=run.continues is not None and run.repeats_exactly)
    except BaseException:
        journal.close()
        raise
    sender = Sender(journal, place.uri, send)
    sender.start()
    status = "FAILED"
    try:
        if run.continues is None:
            _describe(config, corpus, place)
        else:
            tracker.status("RUNNING")
        with sample_system_metrics(config.tracking, tracker.run_id, tracker.system_metrics):
            yield tracker
        status = "FINISHED"
    except Interrupted:
        status = "KILLED"
        raise
    finally:
        tracker.status(status)
        patience = config.tracking.patience
        sender.finish(patience, None if status == "FINISHED" else min(patience, _SECONDS_WHEN_STOPPED))
        if left := journal.count_unsent():
            command = f"cmgems sync {shlex.quote(str(run.folder))}"
            logger.warning(
                f"{left} messages for MLflow at {place.uri} are not sent yet; when it answers again: {command}"
            )


def _resume_run(config: PretrainConfig, name: str, corpus: Corpus, journal: Journal, run_id: str) -> MlflowRunRef:
    """Return where a run continues that was `run_id` when its checkpoint was saved; the journal then sends there.

    Where it has been sent to last, if the store has that run or does not answer; in a store that has none of its runs,
    a new one, which gets all that the journal has.
    """
    newest = journal.place.run if journal.place else run_id
    found = find_run(config.tracking, [newest, run_id])
    if found is None:
        uri = hide_password(config.tracking.uri)
        try:
            found = create_run(config.tracking, name)
            _describe(config, corpus, place_of_run(config.tracking, found))
            logger.warning(
                f"MLflow at {uri} does not have the run {newest}: a new one, {found}, gets all that it has logged"
            )
        except CmgemsError as error:
            logger.warning(
                f"MLflow at {uri} does not have the run {newest}, and takes no new one: training continues ({error})"
            )
            found = newest
    place = place_of_run(config.tracking, found)
    journal.begin(place, replaces_run=newest if found != newest else None)
    return place


def _describe(config: PretrainConfig, corpus: Corpus, place: MlflowRunRef) -> None:
    """Parameters, settings and data of a new run.

    Raises
    ------
    UserError
        If MLflow does not take them.
    """
    parameters = {k: hide_password(str(v)) for k, v in flatten(config).items() if k not in _NOT_PARAMETERS}
    settings = hide_password(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    inputs = [_dataset_input(corpus, context) for context in ("training", "validation")]
    with store_errors(place.uri):
        client = mlflow.MlflowClient(tracking_uri=place.uri)
        client.log_batch(place.run, params=[Param(k, v) for k, v in parameters.items()], synchronous=True)
        client.log_text(place.run, settings, "config.yaml")
        client.log_inputs(place.run, inputs)


def _dataset_input(corpus: Corpus, context: str) -> DatasetInput:
    dataset = mlflow.data.from_huggingface(
        corpus.train if context == "training" else corpus.validation,
        path=str(corpus.path),
        name=f"{corpus.path.name}-{context}",
        digest=corpus.fingerprint[:32],
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Hint: Inferred schema contains integer column")
        return DatasetInput(dataset._to_mlflow_entity(), [InputTag("mlflow.data.context", context)])
