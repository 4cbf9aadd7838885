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
import queue
import shlex
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock
from tqdm import tqdm

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # compute nodes often have no way out
# By default a call to a server that is away takes minutes; the journal's sender tries again anyway.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER", "false")  # a server in maintenance may say an hour

import mlflow
import mlflow.data
from mlflow.entities import DatasetInput, InputTag, LifecycleStage, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from requests.exceptions import RequestException
from sqlalchemy import create_engine
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from cmgems.config.schema import PretrainConfig, TrackingConfig, flatten
from cmgems.curriculum.controller import Switch
from cmgems.data.corpus import Corpus
from cmgems.errors import CmgemsError, Interrupted, UnavailableError, UserError
from cmgems.runtime.files import atomic_file, check_writable
from cmgems.runtime.logging import hide_password
from cmgems.tracking.journal import JOURNAL, Journal, Message, MlflowRunRef, Sender, summarize_error
from cmgems.tracking.plots import draw_validation

logger = logging.getLogger(__name__)

logging.getLogger("mlflow").setLevel(logging.WARNING)
# What these say at each failed attempt, with tracebacks, the sender says once.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)

# Of the way a run was started rather than of the run itself: a resumed run may differ in them.
_NOT_PARAMETERS = ("resume", "output")

# Seconds that a run which was interrupted or failed waits for MLflow: the job it runs in may soon be killed.
_SECONDS_WHEN_STOPPED = 5

# Seconds for a server to answer an upload: it may first put the file into a store of its own.
_UPLOAD_TIMEOUT = 120

# Seconds for a tracking store to answer when a run begins.
_SECONDS_TO_ANSWER = 10

# Messages that are looked at together.
_MESSAGES_AT_ONCE = 200

# Answers that refuse a request without a word against what is in it: credentials, proxies, too many requests.
_LATER = (408, 409, 425, 429, 499)
_RETRYABLE_STATUSES = (401, 403, 404, 407, *_LATER)


class Tracker:
    """What a run tells MLflow, on rank 0; on the other ranks, without a journal, it does nothing."""

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
        """Whether the journal has this point from before the run was resumed; asked once a point."""
        last, points = self._repeated.get(name, (-1, 0))
        if step == last and points:
            self._repeated[name] = (last, points - 1)
            return True
        return step < last


def _last_points(journal: Journal, run_id: str | None) -> dict[str, tuple[int, int]]:
    """Last step in the journal for each metric of a run, and the number of points there."""
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

    Raises UserError if a new run cannot be made in MLflow, or if another process has the folder; nothing else that
    MLflow does comes through.
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
    sender = Sender(journal, place.uri, _send)
    sender.start()
    status = "FAILED"
    try:
        if run.continues is None:
            _describe(config, corpus, place)
        else:
            tracker.status("RUNNING")
        with _system_metrics(config.tracking, tracker):
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


def sync(folder: Path) -> str:
    """Send what a run that is over has not sent, and say what was done.

    Raises UserError if there is no run, if it is going on, or if MLflow does not take all.
    """
    if not (folder / JOURNAL).is_file():
        raise UserError(f"{folder} is not the folder of a run: there is no {JOURNAL} in it")
    journal = Journal(folder)
    try:
        number = journal.count_unsent()
        with tqdm(total=number, desc=f"sending {folder}", unit="message", disable=None) as bar:
            for sent in _send(journal):
                bar.update(sent)
    except Exception as error:
        [first] = journal.unsent(1)
        raise UserError(
            hide_password(
                f"{folder}: MLflow at {first.place.uri} does not take {journal.count_unsent()} of {number} messages, "
                f"which stay in {journal.path} ({summarize_error(error)})"
            )
        ) from error
    finally:
        journal.close()
    return f"{folder}: {number} messages sent" if number else f"{folder}: nothing to send"


def tracking_problem(uri: str) -> str | None:
    """Why a tracking store cannot be reached; None if it can, or if that is not to be known beforehand."""
    try:
        if uri.startswith("sqlite:///"):
            folder = Path(uri.removeprefix("sqlite:///")).absolute().parent
            check_writable("tracking.uri", folder)  # MLflow makes it
        elif uri.startswith(("http://", "https://")):
            # By MLflow's own client, which knows its variables for certificates and passwords.
            answer = http_request(
                *(get_default_host_creds(uri), "/health", "GET"),
                max_retries=0,
                timeout=_SECONDS_TO_ANSWER,
                raise_on_status=False,
            )
            if answer.status_code >= 500:  # others may be from a server that wants a password
                return f"HTTP status {answer.status_code}"
        elif uri.startswith(("postgresql", "mysql", "mssql")):
            create_engine(uri).connect().close()
    except (MlflowException, OSError, SQLAlchemyError, ImportError, ValueError, CmgemsError) as error:
        return hide_password(summarize_error(error))
    return None


def place_of_run(settings: TrackingConfig, run_id: str) -> MlflowRunRef:
    """Where the run is in MLflow; an SQLite file by its full path, so that it is found from other folders too."""
    uri, prefix = settings.uri, "sqlite:///"
    if uri.startswith(prefix):
        uri = f"{prefix}{Path(uri.removeprefix(prefix)).resolve()}"
    return MlflowRunRef(uri, settings.experiment, run_id)


def create_run(settings: TrackingConfig, name: str) -> str:
    """A new run's id. Without MLflow's notion of an active run, which calls the server when the process ends."""
    with _user_error(settings.uri):
        client = mlflow.MlflowClient(tracking_uri=settings.uri)
        experiment = client.get_experiment_by_name(settings.experiment)
        experiment_id = experiment.experiment_id if experiment else _create_experiment(client, settings)
        return str(client.create_run(experiment_id, run_name=name, tags=resolve_tags()).info.run_id)


def _resume_run(config: PretrainConfig, name: str, corpus: Corpus, journal: Journal, run_id: str) -> MlflowRunRef:
    """Where a run goes on that was `run_id` when its checkpoint was saved; the journal then sends there.

    Where it has been sent to last, if the store has that run or does not answer; in a store that has none of its runs,
    a new one, which gets all that the journal has.
    """
    newest = journal.place.run if journal.place else run_id
    found = _find_run(config.tracking, [newest, run_id])
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


def _find_run(settings: TrackingConfig, run_ids: Sequence[str]) -> str | None:
    """The first of these runs that a tracking store has, or of which it does not say within seconds that it has not."""
    answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            client = mlflow.MlflowClient(tracking_uri=settings.uri)
            answers.put(next((run_id for run_id in run_ids if _has_run(client, run_id)), None))
        except Exception:  # noqa: BLE001  # away or broken in whatever way, which is no reason not to go on
            answers.put(run_ids[0])

    # In a thread: clients try again for minutes, whatever they are told.
    threading.Thread(target=ask, name="tracking-start", daemon=True).start()
    try:
        return answers.get(timeout=_SECONDS_TO_ANSWER)
    except queue.Empty:
        return run_ids[0]


def _has_run(client: mlflow.MlflowClient, run_id: str) -> bool:
    """Raises what the client raises, but where it answers that there is no such run."""
    try:
        client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            return False
        raise
    return True


def _create_experiment(client: mlflow.MlflowClient, settings: TrackingConfig) -> str:
    return str(
        client.create_experiment(
            settings.experiment,
            artifact_location=_artifact_location(settings.uri),
            # The UI otherwise guesses from the runs, and shows training runs as evaluations of a language model.
            tags={"mlflow.experimentKind": "custom_model_development"},
        )
    )


@contextmanager
def _user_error(uri: str) -> Iterator[None]:
    """Turn what goes wrong with a tracking store into a UserError where it was refused, or there is no driver for it;
    into an UnavailableError where it may go another time."""
    try:
        yield
    except (MlflowException, OSError, SQLAlchemyError, ImportError) as error:
        refused = isinstance(error, MlflowException) and _is_refusal(error.get_http_status_code(), _LATER)
        kind = UserError if refused or isinstance(error, ImportError | ArgumentError) else UnavailableError
        raise kind(hide_password(f"tracking.uri {uri}: {error}")) from error


def _artifact_location(uri: str) -> str | None:
    """Beside an SQLite database, so that the two move together; a server knows its own place."""
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts").as_uri()


def _describe(config: PretrainConfig, corpus: Corpus, place: MlflowRunRef) -> None:
    """Parameters, settings and data of a new run. Raises UserError if MLflow does not take them."""
    parameters = {k: v for k, v in flatten(config).items() if k not in _NOT_PARAMETERS}
    inputs = [_dataset_input(corpus, context) for context in ("training", "validation")]
    with _user_error(place.uri):
        client = mlflow.MlflowClient(tracking_uri=place.uri)
        client.log_batch(place.run, params=[Param(k, str(v)) for k, v in parameters.items()], synchronous=True)
        client.log_text(place.run, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), "config.yaml")
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


class _SystemMetrics(SystemMetricsMonitor):  # type: ignore[misc]  # MLflow is not typed
    """MLflow's monitor of the machine, for the journal: its own asks the server at each sample whether the run goes on,
    and stops for good when there is no answer."""

    def __init__(self, tracker: Tracker) -> None:
        # It makes a client of this address, which is not used: that of a database would be connected to at once.
        super().__init__(tracker.run_id, tracking_uri="http://unused")
        self._tracker = tracker

    def monitor(self) -> None:
        """Sample and log until the end."""
        while not self._shutdown_event.is_set():
            for _ in range(self.samples_before_logging):
                self.collect_metrics()
                if self._shutdown_event.wait(self.sampling_interval):
                    return
            self.publish_metrics(self.aggregate_metrics())

    def publish_metrics(self, metrics: Mapping[str, float]) -> None:
        """Put means over the samples into the journal."""
        prefix = self._metrics_prefix + (f"{self.node_id}/" if self.node_id else "")
        self._tracker.system_metrics({prefix + name: value for name, value in metrics.items()})
        for monitor in self.monitors:
            monitor.clear_metrics()

    def finish(self) -> None:
        """Stop."""
        self._shutdown_event.set()
        if self._process is not None:
            self._process.join()


@contextmanager
def _system_metrics(settings: TrackingConfig, tracker: Tracker) -> Iterator[None]:
    if not settings.system_metrics:
        yield
        return
    monitor = _SystemMetrics(tracker)
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()


def _send(journal: Journal) -> Iterator[int]:
    """Send the unsent messages of a journal in their order; yields the numbers of those that were sent together."""
    while messages := journal.unsent(_MESSAGES_AT_ONCE):
        for batch in _batches(messages):
            _deliver(batch, journal.folder)
            journal.mark_sent(batch[-1])
            yield len(batch)


def _batches(messages: list[Message]) -> Iterator[list[Message]]:
    """Messages that are sent together: metrics and tags of a run; artifacts and statuses are sent one by one.

    Of several messages about the same artifact only the last keeps its content: the file is the newest anyway.
    """
    newest = {(m.place.run, m.content["artifact"]): m.end for m in messages if "artifact" in m.content}
    messages = [
        m if newest.get((m.place.run, m.content.get("artifact")), m.end) == m.end else replace(m, content={})
        for m in messages
    ]
    alone = ("artifact", "status")
    for _, batch in groupby(messages, key=lambda m: (m.place.run, any(k in m.content for k in alone) and m.end)):
        yield list(batch)


def _deliver(batch: list[Message], folder: Path) -> None:
    """Send a batch. Raises what the client raises, unless MLflow refuses something for good: that is left out."""
    place, content = batch[0].place, batch[0].content
    client = mlflow.MlflowClient(tracking_uri=place.uri)
    if content.get("status") == "RUNNING":
        client.update_run(place.run, status="RUNNING")
    elif "status" in content:
        client.set_terminated(place.run, content["status"], end_time=content["time"])
    elif "artifact" in content:
        _upload(client, place.run, folder / content["artifact"], content["to"])
    else:
        _log(client, place.run, _points([message.content for message in batch]))


def _points(contents: list[dict[str, Any]]) -> list[Metric | RunTag]:
    """Metrics and tags in the contents of messages; of several values of a tag, the last."""
    metrics = [
        Metric(name, value, content["time"], content["step"])
        for content in contents
        for name, value in content.get("metrics", {}).items()
    ]
    tags = {name: value for content in contents for name, value in content.get("tags", {}).items()}
    return metrics + [RunTag(name, value) for name, value in tags.items()]


def _log(client: mlflow.MlflowClient, run_id: str, points: list[Metric | RunTag]) -> None:
    """Log metrics and tags. MLflow takes all or none of them: a half at a time, those it refuses are found."""
    try:
        client.log_batch(
            run_id,
            metrics=[point for point in points if isinstance(point, Metric)],
            tags=[point for point in points if isinstance(point, RunTag)],
            synchronous=True,
        )
    except MlflowException as error:
        _raise_unless_refused(error, client, run_id)
        if len(points) == 1:
            [point] = points
            logger.warning(
                f"MLflow refuses {point.key} = {point.value}, which stays in the journal alone "
                f"({summarize_error(error)})"
            )
            return
        _log(client, run_id, points[: len(points) // 2])
        _log(client, run_id, points[len(points) // 2 :])


def _upload(client: mlflow.MlflowClient, run_id: str, path: Path, to: str | None) -> None:
    """Keep a file, or what is in a folder, as an artifact."""
    if not path.exists():
        logger.warning(f"{path} is gone, and does not become an artifact in MLflow")
        return
    try:
        with _upload_timeout():
            (client.log_artifacts if path.is_dir() else client.log_artifact)(run_id, str(path), to)
    except (MlflowException, RequestException) as error:
        _raise_unless_refused(error, client, run_id)
        logger.warning(f"MLflow refuses the artifact {path}, which stays there alone ({summarize_error(error)})")


def _raise_unless_refused(error: MlflowException | RequestException, client: mlflow.MlflowClient, run_id: str) -> None:
    """Raise an error, unless a server that is well, and has the run, will never take what was sent."""
    if isinstance(error, MlflowException):
        status = error.get_http_status_code()
    else:
        status = 500 if error.response is None else error.response.status_code
    if (
        not _is_refusal(status, _RETRYABLE_STATUSES)
        or client.get_run(run_id).info.lifecycle_stage != LifecycleStage.ACTIVE
    ):
        raise error


def _is_refusal(status: int, others: tuple[int, ...]) -> bool:
    """Whether an HTTP status says that a request is wrong; `others` are those that say something else."""
    return 400 <= status < 500 and status not in others


@contextmanager
def _upload_timeout() -> Iterator[None]:
    """Give MLflow's HTTP client, which looks here at each request, more time."""
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    usual = os.environ[name]
    os.environ[name] = str(max(int(usual), _UPLOAD_TIMEOUT))
    try:
        yield
    finally:
        os.environ[name] = usual
