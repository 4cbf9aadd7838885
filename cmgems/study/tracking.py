"""A study in MLflow: one experiment, in which all runs are nested in one run of the study.

Everything is taken from the study's results, after they are complete: what MLflow does not take then is sent the next
time, and nothing is there twice.
"""

import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME

from cmgems.config.schema import TrackingConfig
from cmgems.downstream.publish import TRACKING_ERRORS
from cmgems.runtime.files import atomic_file
from cmgems.runtime.passwords import has_password
from cmgems.study.analysis import mean_score
from cmgems.study.records import Record
from cmgems.study.settings import Study
from cmgems.tracking.client import create_run, find_run, place_of_run
from cmgems.tracking.journal import MlflowRunRef, find_place, summarize_error

logger = logging.getLogger(__name__)

_RUN = "mlflow.json"
_SENT = ".sent"
_CONTEXT = "MLFLOW_RUN_CONTEXT"
"""MLflow's variable with tags, in JSON, that new runs get."""
_AT_ONCE = 500


class StudyRun:
    """The run of a study, which the runs of its arms and seeds are nested in."""

    def __init__(self, study: Study) -> None:
        """Find the run, or make it; runs that this process and those that it starts make are nested in it.

        Raises
        ------
        CmgemsError
            If it cannot be made.
        """
        self.study = study
        self._settings = TrackingConfig(uri=study.config.tracking_uri, experiment=study.experiment)
        self.place = self._find_or_make(study.work / _RUN, study.config.name)
        os.environ[_CONTEXT] = json.dumps({MLFLOW_PARENT_RUN_ID: self.place.run})

    def publish(self, name: str, record: Record) -> None:
        """Bring the results of an arm and seed to its run, unless they are there."""
        folder = self.study.work / name
        sent = self.study.work / f"{name}{_SENT}"
        digest = record.digest()
        if sent.is_file() and sent.read_text() == digest:
            return
        try:
            place = find_place(folder) or self._find_or_make(self.study.work / f"{name}.{_RUN}", name, nested=True)
            client = MlflowClient(tracking_uri=place.uri)
            client.set_tag(place.run, MLFLOW_PARENT_RUN_ID, self.place.run)
            client.set_tag(place.run, MLFLOW_RUN_NAME, name)
            client.set_tag(place.run, "arm", record.arm)
            _log(client, place.run, self._scores(record), [])
            if find_place(folder) is None:  # no pretraining on this machine has logged it, nor ended the run
                _log(client, place.run, _history(record), _parameters(record))
                client.set_terminated(place.run)
        except TRACKING_ERRORS as error:
            logger.warning(
                f"{name}: its scores are not in MLflow, the same command sends them: {summarize_error(error)}"
            )
        else:
            with atomic_file(sent) as partial:
                partial.write_text(digest)

    def finish(self, files: Sequence[Path]) -> None:
        """Keep files as artifacts of the study's run, and end it."""
        try:
            client = MlflowClient(tracking_uri=self.place.uri)
            for file in files:
                client.log_artifact(self.place.run, str(file))
            client.set_terminated(self.place.run)
        except TRACKING_ERRORS as error:
            logger.warning(f"the study's run in MLflow is not complete: {summarize_error(error)}")

    def _scores(self, record: Record) -> list[tuple[int, str, float]]:
        """Return step, name and value of what the record adds to what pretraining logs."""
        found = [(step, f"bits/{name}", value) for step, own in record.bits.items() for name, value in own.items()]
        for score, steps in record.scores.items():
            for step, entries in steps.items():
                metric = next(iter(entries.values())).metric
                found += [(step, f"{score}/{metric}/{task}", entry.value) for task, entry in entries.items()]
                mean = sum(entry.value for entry in entries.values()) / len(entries)
                found.append((step, f"{score}/mean_{metric}", mean))
        for step in sorted({step for score in self.study.config.primary for step in record.scores.get(score, {})}):
            value = mean_score(record, self.study.config.primary, step)
            if value is not None:
                found.append((step, "primary/mean", value))
        return found

    def _find_or_make(self, file: Path, name: str, nested: bool = False) -> MlflowRunRef:
        """Return the run that a file names, if MLflow has it, or a new one."""
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_name(f".{file.name}.lock")):
            if file.is_file():
                place = MlflowRunRef(**json.loads(file.read_text()))
                if place.uri == place_of_run(self._settings, "").uri and find_run(self._settings, [place.run]):
                    return place
            if not nested:
                os.environ.pop(_CONTEXT, None)
            place = place_of_run(self._settings, create_run(self._settings, name))
            with atomic_file(file, private=has_password(place.uri)) as partial:
                partial.write_text(json.dumps(asdict(place)) + "\n")
            return place


def publish_study_report(study: Study, files: Sequence[Path]) -> None:
    """Keep the files of a study's page as the artifact `report` of its run, if it has one."""
    file = study.work / _RUN
    if not file.is_file():
        return
    place = MlflowRunRef(**json.loads(file.read_text()))
    try:
        client = MlflowClient(tracking_uri=place.uri)
        for path in files:
            client.log_artifact(place.run, str(path), "report")
    except TRACKING_ERRORS as error:
        logger.warning(f"the page is not in MLflow: {summarize_error(error)}")


def _parameters(record: Record) -> list[Param]:
    settings = {**record.settings, "seed": record.seed, "arm": record.arm}
    return [Param(name, str(value)) for name, value in settings.items()]


def _history(record: Record) -> list[tuple[int, str, float]]:
    """Return what pretraining has logged, for a run that is made of a record alone."""
    if record.pretraining is None:
        return []
    steps = record.pretraining.validation["step"]
    return [
        (int(step or 0), name, value)
        for name, values in record.pretraining.validation.items()
        if name != "step"
        for step, value in zip(steps, values, strict=True)
        if value is not None
    ]


def _log(client: MlflowClient, run: str, values: Sequence[tuple[int, str, float]], parameters: Sequence[Param]) -> None:
    """Log what the run does not have."""
    found = client.get_run(run).data
    now = time.time_ns() // 1_000_000
    new = []
    for name in sorted({name for _, name, _ in values}):
        there = (
            {point.step: point.value for point in client.get_metric_history(run, name)} if name in found.metrics else {}
        )
        new += [
            Metric(name, value, now, step) for step, own, value in values if own == name and there.get(step) != value
        ]
    for start in range(0, len(new), _AT_ONCE):
        client.log_batch(run, metrics=new[start : start + _AT_ONCE], synchronous=True)
    left = [parameter for parameter in parameters if parameter.key not in found.params]
    for start in range(0, len(left), 100):
        client.log_batch(run, params=left[start : start + 100], synchronous=True)
