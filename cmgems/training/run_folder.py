"""Where a run stands on disk, and which checkpoint it resumes from: rank 0 decides, all ranks follow.

Without the setting `output`, runs stand in runs/NAME/1, runs/NAME/2 and so on.
"""

import logging
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from filelock import FileLock

from cmgems.config.schema import INITIAL_WEIGHTS, PretrainConfig, flatten
from cmgems.errors import UserError
from cmgems.runtime import process
from cmgems.tracking.journal import lock_run_folder
from cmgems.training.checkpoint import checkpoints, find_corruption, read_state
from cmgems.training.environment import environment
from cmgems.training.launch import launched_as, on_main_process
from cmgems.training.progress import Progress
from cmgems.training.setup import TrainingData

logger = logging.getLogger(__name__)

RUNS = Path("runs")
_SECONDS_TO_APPEAR = 30
"""Until a network file system shows on one machine what another one has made."""

_SECONDS_TO_END = 120
"""Until a run that has lost its other processes, or got a signal, has left its folder."""

# What may change when a run is resumed: where things are, and how work is divided; the numbers stay as they are.
_FREE_GROUPS = ("name", "output", "resume", "allow_changed", "corpus", "tracking", "checkpoint", "launch")
_FREE_SETTINGS = (
    "training.micro_batch",
    "evaluation.micro_batch",
    "model.activation_checkpointing",
    "model.init_from",
    "npmi.table",  # its fingerprint counts
    # The weights are those of the checkpoint.
    *(f"model.{name}" for choice, scales in INITIAL_WEIGHTS.items() for name in (choice, *scales)),
)

# What a machine may have of its own: where its copies are, how it reads them, and what only rank 0 follows.
_OF_A_MACHINE = ("corpus.", "npmi.table", "model.init_from", "checkpoint.staging", "tracking.uri", "output", "resume")


@dataclass
class Run:
    """A run, by its folder, and how far it is."""

    name: str
    """Its name in MLflow."""
    folder: Path
    checkpoint: Path | None
    """The checkpoint to resume from, if there is one."""
    lock: FileLock | None
    """The lock of the folder, on rank 0."""
    identity: dict[str, Any]
    """What a resumed run must have in common with this one."""
    environment: dict[str, str]
    """What this one runs on, which may be another thing then."""
    progress: Progress = field(default_factory=Progress)


def output_folder(config: PretrainConfig) -> Path:
    """Return the folder of the run, or that of all runs of its name."""
    return config.output or RUNS / config.name


def check_run_folder(config: PretrainConfig) -> None:
    """Raise UserError if `output` and `resume` cannot be followed; reads only, and before any process group exists.

    On rank 0 alone: it makes the folder a moment later, maybe before another rank comes here.
    """
    if process.rank() != 0:
        return
    if config.resume == "never" and config.output is not None and config.output.exists():
        raise UserError(
            f"output {config.output} exists already: name another folder, or continue its run with --resume auto"
        )
    if config.resume not in ("never", "auto"):
        read_state(Path(config.resume))
        if config.output not in (None, _run_of(Path(config.resume))):
            raise UserError(
                f"output {config.output} is not the folder of the checkpoint that resume names: leave it out"
            )


@contextmanager
def open_run_folder(config: PretrainConfig, accelerator: Accelerator, data: TrainingData) -> Iterator[Run]:
    """Open the run's folder, with the checkpoint to resume from if there is one; collective.

    Rank 0 has the folder locked while this lasts; the run that had it before may be about to end, as one on a machine
    that has lost its network.

    Raises
    ------
    UserError
        If the folder cannot be made, is not shared by all machines, or no checkpoint to resume from is sound.
    InUseError
        If another process has the folder.
    """
    lock = None

    def choose() -> tuple[Path, Path | None]:
        nonlocal lock
        folder = _folder(config)
        lock = lock_run_folder(folder, patience=min(_SECONDS_TO_END, config.launch.timeout / 2))
        return folder, _checkpoint_to_resume(config, folder)

    try:
        folder, checkpoint = on_main_process(accelerator, choose)
        _check_shared(folder, accelerator)
        identity = run_identity(config, data, launched_as(accelerator))
        yield Run(run_name(config, folder), folder, checkpoint, lock, identity, environment(accelerator.state))
    finally:
        if lock is not None:
            lock.release()


def _check_shared(folder: Path, accelerator: Accelerator) -> None:
    """Raise UserError on all processes unless each of them sees the folder that rank 0 has made."""
    mark = folder / ".shared"
    if accelerator.is_main_process:
        mark.touch()
    accelerator.wait_for_everyone()
    machines = gather_object([] if _appears(mark) else [platform.node()])
    if accelerator.is_main_process:
        mark.unlink()
    if machines:
        raise UserError(
            f"output {folder.resolve()}, made by rank 0, is not there for {len(machines)} process(es) on "
            f"{', '.join(sorted(set(machines)))}: it has to be on a file system that all machines share"
        )


def _appears(path: Path) -> bool:
    """Return whether a file that another machine has made is there; network file systems can take a while to show
    it."""
    end = time.monotonic() + _SECONDS_TO_APPEAR
    while path not in _listed(path.parent):
        if time.monotonic() > end:
            return False
        time.sleep(0.5)
        _listed(path.parent.parent)
    return True


def _listed(folder: Path) -> list[Path]:
    """Return what is in a folder; listing it makes network file systems look again, asking for a file does not."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def run_name(config: PretrainConfig, folder: Path) -> str:
    """Name in MLflow: the recipe's, with the number of its folder from the second run on."""
    if config.output is not None or folder.name in ("1", config.name):
        return config.name
    return f"{config.name}-{folder.name}"


def shared_settings(config: PretrainConfig, data: TrainingData) -> dict[str, Any]:
    """Return what all processes of a run must have: each machine reads its own recipe, and maybe its own copy of the
    corpus.

    Another corpus or NPMI table would go into the same model unseen; another interval would leave a process waiting.
    """
    settings = {name: value for name, value in flatten(config).items() if not name.startswith(_OF_A_MACHINE)}
    return {**settings, **data.fingerprints}


def run_identity(config: PretrainConfig, data: TrainingData, distribution: str) -> dict[str, Any]:
    """Return what must be the same for a run to resume from a checkpoint: all that determines its numbers."""
    settings = {
        name: value
        for name, value in flatten(config).items()
        if name.split(".")[0] not in _FREE_GROUPS and name not in _FREE_SETTINGS
    }
    return {**settings, **data.fingerprints, "launched as": distribution}


def _folder(config: PretrainConfig) -> Path:
    """Return the folder of the run that `resume` asks for, or of a new one.

    Raises
    ------
    UserError
        If it cannot be made.
    """
    if config.resume not in ("never", "auto"):
        return _run_of(Path(config.resume))
    folder, found = _newest_run(config) if config.resume == "auto" else (None, [])
    return folder if folder and found else _make_folder(config)


def _checkpoint_to_resume(config: PretrainConfig, folder: Path) -> Path | None:
    """Return the checkpoint that `resume` asks for: with `auto` the newest sound one in the run's folder, if it has
    any.

    Raises
    ------
    UserError
        If the one that is named, or all of those that there are, are damaged.
    """
    if config.resume == "never":
        return None
    if config.resume != "auto":
        named = Path(config.resume)
        if problem := find_corruption(named):
            raise UserError(f"resume {named}: the checkpoint is damaged: {problem}")
        return named
    found = checkpoints(folder / "checkpoints")
    for checkpoint in reversed(found):
        problem = find_corruption(checkpoint)
        if problem is None:
            return checkpoint
        logger.warning(f"{checkpoint} is damaged and passed over: {problem}")
    if found:
        raise UserError(f"resume auto: no checkpoint of {folder} is sound; start a new run with --resume never")
    return None


def is_new_run(config: PretrainConfig) -> bool:
    """Return whether there is no checkpoint to resume from; reads only, and on rank 0 alone: a network file system may
    report to another machine for a while that there is no folder."""
    if process.rank() != 0:
        return False
    return config.resume == "never" or (config.resume == "auto" and not _newest_run(config)[1])


def _newest_run(config: PretrainConfig) -> tuple[Path | None, list[Path]]:
    """Return the folder of the run that `resume: auto` continues, and its checkpoints, oldest first."""
    folder = config.output or max(_numbered_folders(config.name), key=_number, default=None)
    return folder, checkpoints(folder / "checkpoints") if folder else []


def _run_of(checkpoint: Path) -> Path:
    """Return the folder of the run that a checkpoint belongs to: RUN/checkpoints/step-N."""
    return checkpoint.parent.parent


def _numbered_folders(name: str) -> list[Path]:
    return [folder for folder in (RUNS / name).glob("*") if folder.name.isdecimal()]


def _number(folder: Path) -> int:
    return int(folder.name)


def _make_folder(config: PretrainConfig) -> Path:
    """Return the folder of a new run.

    Raises
    ------
    UserError
        If it cannot be made.
    """
    folder = config.output or _next_folder(config.name)
    try:
        while True:
            try:
                folder.mkdir(parents=True, exist_ok=config.output is not None)
                return folder
            except FileExistsError:
                if config.output is not None:
                    raise
                folder = _next_folder(config.name)  # another run that starts at this moment has taken it
    except OSError as error:
        raise UserError(f"output {folder} cannot be made: {error}") from None


def _next_folder(name: str) -> Path:
    return RUNS / name / str(1 + max(map(_number, _numbered_folders(name)), default=0))
