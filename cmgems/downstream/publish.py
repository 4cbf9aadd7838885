"""Downstream scores in MLflow: each result is a child of its model's pretraining run, and their means over the seeds
stand on that run, at the step of the model.

All is taken from the files of the results, after they are complete. What MLflow did not take is found there, and sent
the next time; nothing is there twice.
"""

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunStatus, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from requests.exceptions import RequestException
from sqlalchemy.exc import SQLAlchemyError

from cmgems.config.schema import TrackingConfig
from cmgems.downstream.results import (
    DOWNSTREAM,
    PREDICTIONS,
    RESULT,
    Result,
    Score,
    group_score,
    read_results,
    result_folder,
    task_scores,
)
from cmgems.downstream.settings import ScoringConfig
from cmgems.downstream.tasks import Suite
from cmgems.errors import CmgemsError
from cmgems.runtime.files import atomic_file
from cmgems.runtime.passwords import has_password
from cmgems.tracking.client import create_run, place_of_run
from cmgems.tracking.journal import MlflowRunRef, find_place, summarize_error

logger = logging.getLogger(__name__)

RECORD = "mlflow.json"
"""File in a result's folder: the run that it is in MLflow."""

TRACKING_ERRORS = (MlflowException, RequestException, SQLAlchemyError, OSError, CmgemsError)
"""What can go wrong with a tracking store."""

KEY = "cmgems.result"
"""Tag of a child run: which result it is."""

_METRICS_AT_ONCE = 1000  # MLflow takes no more

_SUFFIXES = {"model": "", "random weights": "_random", "k-mer regression": "_kmers"}

_FOUR_MERS = "4-mer-regression"
"""Subject whose metrics are the `_kmers`; those of other k have it in their names."""


@dataclass
class Publisher:
    """Brings results to MLflow as they come; where it does not answer, it is left alone until the end."""

    config: ScoringConfig
    suite: Suite
    folder: Path
    _parent: MlflowRunRef | None = None
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
            logger.warning(
                f"MLflow does not have all scores, the files in {self.folder} do: {self._problem}\n"
                "  the same command, given again when it answers, sends what is missing and computes nothing twice; "
                "--tracking_uri names another place"
            )

    def _try(self, means: bool = False) -> None:
        try:
            if self._parent is None:
                self._parent = find_parent(
                    self.folder, self.config.tracking_uri, self.config.experiment, self.folder.resolve().name
                )
            while self._left:
                result = self._left[0]
                place = result_folder(self.folder, result.suite, result.subject, result.task, result.seed)
                publish_result(place, result, self._parent)
                self._left.pop(0)
            if means:
                with _one_at_a_time(self.folder):  # shards that end together see each other's points
                    publish_means(self.suite, read_results(self.folder, self.suite.name), self._parent)
        except TRACKING_ERRORS as error:
            self._problem = summarize_error(error)


def find_parent(run: Path, uri: str | None, experiment: str, name: str) -> MlflowRunRef:
    """Return the MLflow run that the results below the folder `run` belong to.

    That is the run of the pretraining, if there was one in the folder. Without one, or where `uri` names another place
    than that run's, it is a run named `name`, which is made once.

    Raises
    ------
    UserError
        If MLflow does not answer.
    """
    tracking = TrackingConfig(uri=uri or TrackingConfig().uri, experiment=experiment)
    wanted = place_of_run(tracking, "").uri if uri else None
    record = run / DOWNSTREAM / RECORD
    with _one_at_a_time(run):
        for known in _known_parents(run):
            if wanted in (None, known.uri):
                return known
        made = place_of_run(tracking, create_run(tracking, name))
        _write_json(record, asdict(made))
        return made


def _one_at_a_time(run: Path) -> FileLock:
    """Lock of what the shards of a suite do to the run that their results belong to."""
    folder = run / DOWNSTREAM
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f".{RECORD}.lock")


def tracking_uri(run: Path, uri: str | None) -> str:
    """Return where results below the folder `run` go to, if the setting names `uri` or nothing."""
    return uri or next((place.uri for place in _known_parents(run)), TrackingConfig().uri)


def _known_parents(run: Path) -> list[MlflowRunRef]:
    """Return the run of the pretraining, and the one that was made for want of it, as far as there are any."""
    record = run / DOWNSTREAM / RECORD
    made_here = MlflowRunRef(**json.loads(record.read_text())) if record.is_file() else None
    return [place for place in (find_place(run), made_here) if place is not None]


def publish_result(folder: Path, result: Result, parent: MlflowRunRef) -> str:
    """Make a result's child run, unless it is there already; return its id."""
    record = folder / RECORD
    wanted = {"uri": parent.uri, "parent": parent.run}
    if record.is_file():
        found = json.loads(record.read_text())
        if {name: found.get(name) for name in wanted} == wanted:
            return str(found["run"])
    client = MlflowClient(tracking_uri=parent.uri)
    run_id = _finished_child(client, result, parent) or _create_child(client, folder, result, parent)
    _write_json(record, {**wanted, "run": run_id})
    return run_id


def _finished_child(client: MlflowClient, result: Result, parent: MlflowRunRef) -> str | None:
    """Return the child run of this result, if it is whole; what is left of others in its place is deleted."""
    experiment = client.get_run(parent.run).info.experiment_id
    same = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent.run}' AND tags.`{KEY}` = '{_key(result)}'"
    for run in client.search_runs([experiment], same):
        if run.info.status == "FINISHED" and run.data.tags.get("cmgems.identity") == _identity(result):
            return str(run.info.run_id)
        client.delete_run(run.info.run_id)
    return None


def _create_child(client: MlflowClient, folder: Path, result: Result, parent: MlflowRunRef) -> str:
    ended = round((folder / RESULT).stat().st_mtime * 1000)
    began = ended - round(result.seconds * 1000)
    tags = {
        MLFLOW_PARENT_RUN_ID: parent.run,
        KEY: _key(result),
        "cmgems.identity": _identity(result),
        "suite": result.suite,
        "protocol": result.protocol,
        "task": result.task,
        "subject": result.subject,
        "kind": result.kind,
        "resplit": result.resplit,
    }
    run = client.create_run(
        client.get_run(parent.run).info.experiment_id,
        start_time=began,
        run_name=_key(result),
        tags={name: str(value) for name, value in tags.items()},
    )
    run_id = str(run.info.run_id)
    parameters = {"model": result.model, "pretraining_steps": result.step, "seed": result.seed, **result.recipe}
    if result.choice:
        parameters[result.choice.setting] = result.choice.value
    client.log_batch(run_id, params=[Param(name, str(value)) for name, value in parameters.items()], synchronous=True)
    metrics = list(_child_metrics(result, began, ended))
    for start in range(0, len(metrics), _METRICS_AT_ONCE):
        client.log_batch(run_id, metrics=metrics[start : start + _METRICS_AT_ONCE], synchronous=True)
    for name in (RESULT, PREDICTIONS, result.picture):
        client.log_artifact(run_id, str(folder / name))
    client.set_terminated(run_id, RunStatus.to_string(RunStatus.FINISHED), end_time=ended)
    return run_id


def _child_metrics(result: Result, began: int, ended: int) -> Iterator[Metric]:
    """Yield the fine-tuning's history and the final scores, as MLflow takes them."""
    last = max((int(entry["step"]) for entry in result.history), default=0)
    for entry in result.history:
        step = int(entry["step"])
        moment = began + round((ended - began) * step / last)
        for name, value in entry.items():
            if name != "step":
                yield Metric(name if "/" in name else f"train/{name}", value, moment, step)
    for name, value in result.metrics.items():
        yield Metric(f"test/{name}", value, ended, result.best_step or 0)


def publish_means(suite: Suite, results: Sequence[Result], parent: MlflowRunRef) -> None:
    """Log means and standard deviations over seeds to the parent, at the steps of its models; those that are new."""
    client = MlflowClient(tracking_uri=parent.uri)
    run = client.get_run(parent.run)
    now = time.time_ns() // 1_000_000
    new = []
    for (name, step), value in sorted(suite_metrics(suite, results).items()):
        points = client.get_metric_history(parent.run, name) if name in run.data.metrics else []
        before = [point.value for point in points if point.step == step]
        if not before or before[-1] != value:
            new.append(Metric(name, value, now, step))
    client.log_batch(
        parent.run, tags=[RunTag(f"downstream.{suite.name}", _coverage(suite, results))], metrics=new, synchronous=True
    )


def publish_report(run: Path, files: Sequence[Path]) -> None:
    """Keep the files of a report as the artifact `report` of the MLflow run that the results in `run` belong to."""
    parents = _known_parents(run)
    if not parents:
        return
    parent = parents[-1]
    try:
        client = MlflowClient(tracking_uri=parent.uri)
        for path in files:
            client.log_artifact(parent.run, str(path), "report")
    except TRACKING_ERRORS as error:
        logger.warning(f"the report is not in MLflow: {summarize_error(error)}")


def suite_metrics(suite: Suite, results: Sequence[Result]) -> dict[tuple[str, int], float]:
    """Return the metrics of a suite for the pretraining run, by name and step: of its models, and of its baselines at
    their steps.

    `gue/mcc/TASK` is the mean over the seeds, `gue/mcc_sd/TASK` their standard deviation; `_random` and `_kmers` are
    the baselines. `gue/mean_mcc_GROUP` is there once all tasks of the group are. A task on a training split of another
    making is `gue/resplit_mcc/TASK`, and enters no mean.
    """
    groups: dict[str, list[str]] = {}
    for task in suite.tasks:
        if task.group:
            groups.setdefault(task.group, []).append(task.name)
    metrics: dict[tuple[str, int], float] = {}
    models = {(r.subject, r.step or 0) for r in results if r.kind == "model"}
    steps = {subject: [step] for subject, step in models}
    for subject in sorted({r.subject for r in results}):
        own = [r for r in results if r.subject == subject]
        alone = sum(step == (own[0].step or 0) for _, step in models) == 1
        suffix = _SUFFIXES[own[0].kind]
        if (own[0].kind == "model" and not alone) or (own[0].kind == "k-mer regression" and subject != _FOUR_MERS):
            suffix = f"_{subject}"
        scores = _named_scores(suite, own, groups, suffix)
        for step in steps.get(subject) or sorted(step for _, step in models):
            metrics |= {(name, step): value for name, value in scores.items()}
    return metrics


def _named_scores(
    suite: Suite, results: Sequence[Result], groups: Mapping[str, list[str]], suffix: str
) -> dict[str, float]:
    """Return the metrics of one subject, without steps."""
    named: dict[str, Score] = {}
    for resplit, prefix in ((False, ""), (True, "resplit_")):
        scores = task_scores([r for r in results if r.resplit == resplit], suite.metric)
        named |= {f"{suite.name}/{prefix}{suite.metric}%s/{task}": score for task, score in scores.items()}
    for group, tasks in groups.items():
        if mean := group_score(results, tasks, suite.metric):
            named[f"{suite.name}/mean_{suite.metric}_{group}%s"] = mean
    values = {name % suffix: score.mean for name, score in named.items()}
    return values | {name % f"{suffix}_sd": score.sd for name, score in named.items() if score.sd is not None}


def _coverage(suite: Suite, results: Sequence[Result]) -> str:
    """Return how much of a suite is there."""
    done = {r.task for r in results if r.kind == "model"}
    resplit = sorted({r.task for r in results if r.resplit})
    text = f"{len(done)} of {len(suite.tasks)} tasks"
    return f"{text}; resplit, in no mean: {', '.join(resplit)}" if resplit else text


def _key(result: Result) -> str:
    return f"{result.suite} {result.subject} {result.task} seed {result.seed}"


def _identity(result: Result) -> str:
    return json.dumps(result.identity, sort_keys=True)


def _write_json(path: Path, values: Mapping[str, str]) -> None:
    text = json.dumps(values) + "\n"
    with atomic_file(path, private=has_password(text)) as partial:
        partial.write_text(text)
