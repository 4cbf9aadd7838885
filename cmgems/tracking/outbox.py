"""Sends the messages of a journal to MLflow."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import LifecycleStage, Metric, RunTag
from mlflow.exceptions import MlflowException
from requests.exceptions import RequestException

from cmgems.errors import UnavailableError, UserError
from cmgems.runtime.passwords import hide_password
from cmgems.runtime.progress import ProgressLines
from cmgems.tracking.client import TRANSIENT_STATUSES, is_refusal
from cmgems.tracking.journal import JOURNAL, Journal, Message, summarize_error

logger = logging.getLogger(__name__)

# Seconds for a server to answer an upload: it may first put the file into a store of its own.
_UPLOAD_TIMEOUT = 120
# Messages that are looked at together.
_MESSAGES_AT_ONCE = 200
_RETRYABLE_STATUSES = (401, 403, 404, 407, *TRANSIENT_STATUSES)


def sync(folder: Path) -> str:
    """Send what a run that has ended has not sent; return what was done, in words.

    Raises
    ------
    UserError
        If there is no run, or MLflow refuses a message, as of a run that was deleted.
    InUseError
        If it has not ended.
    UnavailableError
        If MLflow does not answer.
    """
    if not (folder / JOURNAL).is_file():
        raise UserError(f"{folder} is not the folder of a run: there is no {JOURNAL} in it")
    journal = Journal(folder)
    try:
        number = journal.count_unsent()
        with ProgressLines(f"sending {folder}", number, "message") as progress:
            for done in accumulate(send(journal)):
                progress.update(done)
    except Exception as error:
        [first] = journal.unsent(1)
        refused = isinstance(error, MlflowException) and is_refusal(error.get_http_status_code(), _RETRYABLE_STATUSES)
        raise (UserError if refused else UnavailableError)(
            hide_password(
                f"{folder}: MLflow at {first.place.uri} does not take {journal.count_unsent()} of {number} messages, "
                f"which stay in {journal.path} ({summarize_error(error)})"
            )
        ) from error
    finally:
        journal.close()
    return f"{folder}: {number} messages sent" if number else f"{folder}: nothing to send"


def send(journal: Journal) -> Iterator[int]:
    """Send the unsent messages of a journal in their order; yields the numbers of those that were sent together."""
    while messages := journal.unsent(_MESSAGES_AT_ONCE):
        for batch in _batches(messages):
            _deliver(batch, journal.folder)
            journal.mark_sent(batch[-1])
            yield len(batch)


def _batches(messages: list[Message]) -> Iterator[list[Message]]:
    """Yield messages that are sent together: metrics and tags of a run; artifacts and statuses are sent one by one.

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
    """Send a batch. Raises what the client raises, unless MLflow refuses something permanently: that is left out."""
    place, content = batch[0].place, batch[0].content
    client = mlflow.MlflowClient(tracking_uri=place.uri)
    if content.get("status") == "RUNNING":
        client.update_run(place.run, status="RUNNING")
    elif "status" in content:
        client.set_terminated(place.run, content["status"], end_time=content["time"])
    elif "artifact" in content:
        path = folder / content["artifact"]
        if path.resolve().is_relative_to(folder.resolve()):
            _upload(client, place.run, path, content["to"])
        else:
            logger.warning(f"{path} is not in the run's folder, and does not become an artifact in MLflow")
    else:
        _log(client, place.run, _points([message.content for message in batch]))


def _points(contents: list[dict[str, Any]]) -> list[Metric | RunTag]:
    """Return the metrics and tags in the contents of messages; of several values of a tag, the last."""
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
        not is_refusal(status, _RETRYABLE_STATUSES)
        or client.get_run(run_id).info.lifecycle_stage != LifecycleStage.ACTIVE
    ):
        raise error


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
