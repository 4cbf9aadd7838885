"""Runs and experiments in a tracking store, and what goes wrong with it."""

import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import mlflow
from filelock import FileLock
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from sqlalchemy import create_engine
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from cmgems.config.schema import TrackingConfig
from cmgems.errors import CmgemsError, UnavailableError, UserError
from cmgems.runtime.files import check_writable
from cmgems.runtime.passwords import hide_password
from cmgems.tracking.journal import MlflowRunRef, summarize_error

# Seconds for a tracking store to answer when a run begins.
_SECONDS_TO_ANSWER = 10
# Answers that refuse a request without a word against what is in it: credentials, proxies, too many requests.
TRANSIENT_STATUSES = (408, 409, 425, 429, 499)


def tracking_problem(uri: str) -> CmgemsError | None:
    """Return why a tracking store cannot be reached: a UserError where no retry would help, else an UnavailableError;
    None if it can be reached, or if that cannot be checked."""
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
                return UnavailableError(f"HTTP status {answer.status_code}")
        elif uri.startswith(("postgresql", "mysql", "mssql")):
            create_engine(uri).connect().close()
    except (MlflowException, OSError, SQLAlchemyError, ImportError, ValueError, CmgemsError) as error:
        is_users = isinstance(error, UserError | ImportError | ArgumentError | ValueError)
        kind = UserError if is_users and not isinstance(error, OSError) else UnavailableError  # requests mixes them
        return kind(hide_password(summarize_error(error)))
    return None


def place_of_run(settings: TrackingConfig, run_id: str) -> MlflowRunRef:
    """Return where the run is in MLflow; an SQLite file by its full path, so that it is found from other folders
    too."""
    uri, prefix = settings.uri, "sqlite:///"
    if uri.startswith(prefix):
        uri = f"{prefix}{Path(uri.removeprefix(prefix)).resolve()}"
    return MlflowRunRef(uri, settings.experiment, run_id)


def create_run(settings: TrackingConfig, name: str) -> str:
    """Return a new run's id. Without MLflow's notion of an active run, which calls the server when the process ends."""
    with store_errors(settings.uri), _one_at_a_time(settings.uri):
        client = mlflow.MlflowClient(tracking_uri=settings.uri)
        experiment = client.get_experiment_by_name(settings.experiment)
        experiment_id = experiment.experiment_id if experiment else _create_experiment(client, settings)
        return str(client.create_run(experiment_id, run_name=name, tags=resolve_tags()).info.run_id)


@contextmanager
def _one_at_a_time(uri: str) -> Iterator[None]:
    """Keep out other processes: of two that open a new SQLite database at once, MLflow fails in one, as both make its
    tables."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    database = Path(uri.removeprefix("sqlite:///")).absolute()
    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(database.with_name(f".{database.name}.lock")):
        yield


def find_run(settings: TrackingConfig, run_ids: Sequence[str]) -> str | None:
    """Return the first of these runs that a tracking store has, or of which it does not say within seconds that it has
    not."""
    answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            client = mlflow.MlflowClient(tracking_uri=settings.uri)
            answers.put(next((run_id for run_id in run_ids if _has_run(client, run_id)), None))
        except Exception:  # noqa: BLE001  # away or broken in whatever way, which is no reason to fail
            answers.put(run_ids[0])

    # In a thread: clients try again for minutes, whatever their settings.
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
def store_errors(uri: str) -> Iterator[None]:
    """Turn what goes wrong with a tracking store into a UserError where it was refused, or there is no driver for it;
    into an UnavailableError where a retry may succeed."""
    try:
        yield
    except (MlflowException, OSError, SQLAlchemyError, ImportError) as error:
        refused = isinstance(error, MlflowException) and is_refusal(error.get_http_status_code(), TRANSIENT_STATUSES)
        kind = UserError if refused or isinstance(error, ImportError | ArgumentError) else UnavailableError
        raise kind(hide_password(f"tracking.uri {uri}: {error}")) from error


def _artifact_location(uri: str) -> str | None:
    """Beside an SQLite database, so that the two move together; a server knows its own place."""
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts").as_uri()


def is_refusal(status: int, others: tuple[int, ...]) -> bool:
    """Return whether an HTTP status says that a request is wrong; `others` are those that say something else."""
    return 400 <= status < 500 and status not in others
