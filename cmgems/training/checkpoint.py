"""Checkpoints to resume from, and models to use: folders that exist completely or not at all.

A checkpoint is first put into fast local storage, which is all that training waits for; a thread takes it from there to
its place, with a digest of every file, by which damage is noticed before anything is loaded.
"""

import concurrent.futures
import errno
import hashlib
import json
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from cmgems.config.schema import CheckpointConfig
from cmgems.errors import UnavailableError, UserError
from cmgems.runtime.files import (
    atomic_file,
    flush_to_disk,
    new_token,
    partial_path,
    put_in_place,
    remove_folder,
    remove_leftovers,
)
from cmgems.training.staging import StagingFolder
from cmgems.training.staging import remove_all as remove_staging_folders
from cmgems.training.weights import save_weights, state_bytes

logger = logging.getLogger(__name__)

STATE_FILE = "cmgems.json"
MANIFEST = "manifest.json"
_ERROR = "error"
_TORCH_WRITER = "inline_container"
"""In the message of the RuntimeError by which torch.save says that it cannot write."""
_PERMANENT_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
_SECONDS_BETWEEN_ANSWERS = 0.5


def step_folder(parent: Path, step: int) -> Path:
    """Return the folder of a checkpoint or an exported model; names sort by step."""
    return parent / f"step-{step:08d}"


def checkpoint_step(folder: Path) -> int:
    """Optimizer steps done when the checkpoint in `folder` was saved."""
    return int(folder.name.removeprefix("step-"))


@dataclass(frozen=True, slots=True)
class RunState:
    """What a checkpoint holds beside the weights and the optimizer; JSON values."""

    identity: dict[str, Any]
    """What a run that resumes from it must have in common with the one that wrote it."""
    processes: int
    """Number of processes that the weights and the optimizer's state are divided over."""
    micro_batch: int
    """Windows that a process computed at once."""
    mlflow_run: str | None
    """Id of the MLflow run to continue."""
    progress: dict[str, Any]
    """Steps, time and operations so far, and all evaluations."""
    curriculum: dict[str, Any]
    """State of the curriculum controller."""
    environment: dict[str, str] = field(default_factory=dict)
    """Versions and device of the run that wrote it."""


class CheckpointWriter:
    """Saves the checkpoints of a run: `save` returns as soon as the state is in the staging folder."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: Any,
        optimizer: Any,
        parent: Path,
        config: CheckpointConfig,
        timeout: float,
    ) -> None:
        """`timeout`: seconds that rank 0 waits for the others to write their part; storage gets twice as many."""
        self.accelerator, self.model, self.optimizer = accelerator, model, optimizer
        self.parent, self.config, self.timeout = parent, config, timeout
        if accelerator.is_main_process:
            remove_staging_folders(parent)
        # In the names of what is being written: a process that a run before has left behind may still write, too.
        [self._token] = broadcast_object_list([new_token()])
        self._staging = StagingFolder(config.staging, parent, state_bytes(model))
        if self._staging.path.parent == parent:
            logger.info(f"/dev/shm lacks room for checkpoints: training waits until they are written to {parent}")
        self._pending: Future[None] | None = None

    def save(self, step: int, state: RunState) -> None:
        """Save model, optimizer and run state; collective. Waits for the checkpoint before, if that is not yet done.

        Raises
        ------
        UserError
            If there is no room, or no right to write.
        UnavailableError
            If writing fails for another reason.
        """
        self.wait()
        folder = step_folder(self.parent, step)
        partial = partial_path(folder, self._token)
        if self.accelerator.is_main_process:
            remove_leftovers(self.parent)
            try:
                partial.mkdir(parents=True)
            except OSError as error:
                raise self._failure(error, _is_permanent(error)) from error
        self.accelerator.wait_for_everyone()
        with self._named_failures():
            staged = self._staging.new()
            save_weights(self.accelerator, self.model, self.optimizer, staged)
            if self.accelerator.is_main_process:
                _write_json(staged / STATE_FILE, asdict(state))
        self._pending = _in_background(self._move, staged, partial, folder)

    def wait(self) -> None:
        """Return when the last checkpoint is complete; collective.

        The processes keep exchanging how far they are, so that one that dies is noticed.

        Raises
        ------
        UserError
            If a process could not write it.
        """
        deadline = time.monotonic() + 2 * self.timeout  # rank 0 may have waited once for the parts of the others
        while self._pending is not None:
            finished, _ = concurrent.futures.wait([self._pending], timeout=_SECONDS_BETWEEN_ANSWERS)
            error = self._pending.exception() if finished else None
            if not finished and time.monotonic() > deadline:
                error = TimeoutError("the storage does not answer")
            own = [not finished, error is not None, _is_permanent(error)]
            counts = torch.tensor(own, dtype=torch.int64, device=self.accelerator.device)
            waiting, failed, permanent = self.accelerator.reduce(counts, "sum").tolist()
            if failed:
                if permanent:
                    remove_leftovers(self.parent)  # what takes the room is of no use
                raise self._failure(error, bool(permanent))
            if not waiting:
                self._pending = None

    def _failure(self, error: BaseException | None, permanent: bool) -> BaseException:
        """Return what to raise where this process could not write its part; where `error` is None, another one could
        not.

        `permanent` says that somebody has to do something before it can.
        """
        if error is not None and not isinstance(error, OSError):
            return error
        why = error or "another process could not write its part, and says why"
        kind = UserError if permanent else UnavailableError
        return kind(f"a checkpoint cannot be written to {self.parent}: {why}", every_process=error is not None)

    @contextmanager
    def _named_failures(self) -> Iterator[None]:
        """Turn what goes wrong in the staging folder into a UserError that names it."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and _TORCH_WRITER not in str(error):
                raise
            raise UserError(
                f"a checkpoint cannot be written to {self._staging.path.parent}, which it passes through: "
                f"{str(error).splitlines()[0]}\ncheckpoint.staging names another folder",
                every_process=True,
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Free the staging folder. After a failure the last checkpoint gets a moment, if all of its parts are there."""
        if self._pending is not None:
            with suppress(Exception):  # what went wrong was raised by `wait`, or does not matter any more
                self._pending.result(timeout=5)
        self._staging.remove()

    def _move(self, staged: Path, partial: Path, folder: Path) -> None:
        """Take this rank's files to their place; rank 0 then waits for the others and completes the checkpoint."""
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        try:
            digests = _move_files(staged, partial)
        except OSError as error:
            if rank > 0:
                _write_json(partial / _rank_manifest(rank), {_ERROR: str(error)})
            raise
        if rank > 0:
            _write_json(partial / _rank_manifest(rank), digests)
            return
        deadline = time.monotonic() + self.timeout
        for other in range(1, processes):
            digests |= _collect(partial / _rank_manifest(other), deadline)
        _write_json(partial / MANIFEST, dict(sorted(digests.items())))
        put_in_place(partial, folder)
        self._drop_old()

    def _drop_old(self) -> None:
        """Remove all but the newest checkpoints and the milestones."""
        for folder in checkpoints(self.parent)[: -self.config.keep]:
            if checkpoint_step(folder) not in self.config.milestones:
                try:
                    remove_folder(folder)
                except OSError as error:  # on some file systems because somebody reads it; training can continue
                    logger.warning(f"{folder} cannot be removed: {error}")


def read_state(folder: Path) -> RunState:
    """Return the run state that a checkpoint was saved with.

    Raises
    ------
    UserError
        If the folder is no checkpoint.
    """
    try:
        state = RunState(**json.loads((folder / STATE_FILE).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder} is not a checkpoint: {error}") from None
    # Older checkpoints know the wall-clock time only.
    state.progress.setdefault("device_seconds", state.progress["seconds"] * state.processes)
    return state


def checkpoints(parent: Path) -> list[Path]:
    """Complete checkpoints in a folder, oldest first."""
    return sorted(path.parent for path in parent.glob(f"step-*[0-9]/{MANIFEST}"))


def exported_models(run: Path) -> list[Path]:
    """Models that a run has exported, in the order of their steps."""
    return sorted(path.parent for path in (run / "models").glob("step-*[0-9]/config.json"))


def find_corruption(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint: a file that is missing, or not as it was written. None: all is well."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        for name, digest in manifest.items():
            if not (folder / name).resolve().is_relative_to(folder.resolve()):
                return f"{name} is not in its folder"
            if _digest(folder / name) != digest:
                return f"{name} is not what was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).relative_to(folder)} is missing"
    except (OSError, ValueError, AttributeError) as error:
        return f"it cannot be read: {error}"
    return None


def write_manifest(folder: Path) -> None:
    """Note the digests of all files in a folder, for `find_corruption` to compare with."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    _write_json(folder / MANIFEST, {str(path.relative_to(folder)): _digest(path) for path in files})


def _is_permanent(error: BaseException | None) -> bool:
    """Return whether an error while writing will recur: no room, or no right to write."""
    return isinstance(error, OSError) and error.errno in _PERMANENT_ERRNOS


def _in_background(function: Callable[..., None], *arguments: Any) -> Future[None]:
    """Run a function in a thread that does not keep the program from ending, as those of an executor do."""
    future: Future[None] = Future()

    def run() -> None:
        try:
            function(*arguments)
            future.set_result(None)
        except Exception as error:  # noqa: BLE001  # raised again where the result is asked for
            future.set_exception(error)

    threading.Thread(target=run, name="checkpoint", daemon=True).start()
    return future


def _move_files(source: Path, target: Path) -> dict[str, str]:
    """Move all files of a folder into another; returns their digests, by path inside the folder."""
    digests = {}
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        name = path.relative_to(source)
        digests[str(name)] = _digest(path)
        for folder in [*reversed(name.parents)][1:]:  # not the target itself: another run has removed it if it is gone
            (target / folder).mkdir(exist_ok=True)
        shutil.move(path, target / name)
        flush_to_disk(target / name)
    shutil.rmtree(source)
    return digests


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _rank_manifest(rank: int) -> str:
    """Name of the file by which a rank says that its part is there."""
    return f"rank-{rank:05d}.json"


def _collect(path: Path, deadline: float) -> dict[str, str]:
    """Digests that another rank has written; waits until they are there, and removes their file.

    Through the file system, since a collective of this thread would cross those of the training. Raises OSError if
    that rank could not write its part, or has not at the deadline.
    """
    # Listing a folder makes network file systems look again, asking for a file does not.
    while path not in path.parent.iterdir():
        if time.monotonic() > deadline:
            raise OSError(f"the part of another rank is not there: {path.name}")
        time.sleep(0.02)
    digests: dict[str, str] = json.loads(path.read_text())
    if _ERROR in digests:
        raise OSError(f"{path.stem}: {digests[_ERROR]}")
    path.unlink()
    return digests


def _write_json(path: Path, values: Any) -> None:
    """Write a JSON file that is complete as soon as it is there."""
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(values, indent=1))
