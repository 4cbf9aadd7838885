"""Where a run stands on disk, and which checkpoint it goes on from: rank 0 decides, all ranks follow.

Without the setting `output`, runs stand in runs/NAME/1, runs/NAME/2 and so on.
"""

from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from cmgems.config import PretrainConfig, flatten
from cmgems.errors import UserError
from cmgems.masking.npmi import NpmiTable
from cmgems.sequence.corpus import Corpus
from cmgems.training.checkpoint import RunState, checkpoints, read_state

RUNS = Path("runs")

# What may change when a run goes on: where things are, and how work is divided, which leaves the numbers as they are.
_FREE_GROUPS = ("name", "output", "resume", "corpus", "tracking", "checkpoint", "launch")
_FREE_SETTINGS = (
    "training.micro_batch",
    "evaluation.micro_batch",
    "model.activation_checkpointing",
    "model.init_from",
)


def check_run_folder(config: PretrainConfig) -> None:
    """Raise UserError if `output` and `resume` cannot be followed; reads only, and before any process group exists."""
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


def agree_on_folder(config: PretrainConfig, accelerator: Accelerator) -> tuple[Path, Path | None]:
    """The run's folder, and the checkpoint to go on from if there is one; collective. Raises UserError on rank 0."""
    chosen: list[tuple[Path, Path | None] | None] = [None]
    if accelerator.is_main_process:
        checkpoint = _checkpoint_to_resume(config)
        folder = _run_of(checkpoint) if checkpoint else config.output or _next_folder(config.name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"output {folder} cannot be made: {error}") from None
        chosen = [(folder, checkpoint)]
    broadcast_object_list(chosen)
    assert chosen[0] is not None
    return chosen[0]


def run_name(config: PretrainConfig, folder: Path) -> str:
    """Name in MLflow: the recipe's, with the number of its folder from the second run on."""
    if config.output is not None or folder.name in ("1", config.name):
        return config.name
    return f"{config.name}-{folder.name}"


def run_identity(config: PretrainConfig, corpus: Corpus, table: NpmiTable, launched_as: str) -> dict[str, Any]:
    """What must be the same for a run to go on from a checkpoint: all that has a say in its numbers."""
    settings = {
        name: value
        for name, value in flatten(config).items()
        if name.split(".")[0] not in _FREE_GROUPS and name not in _FREE_SETTINGS
    }
    return {**settings, "corpus": corpus.fingerprint, "npmi": table.fingerprint, "launched as": launched_as}


def read_resumable(checkpoint: Path, identity: dict[str, Any]) -> RunState:
    """State of a checkpoint; UserError naming each point in which the run that wrote it differs from this one."""
    state = read_state(checkpoint)
    then = state.identity
    differences = [
        f"{key}: {then.get(key)} then, {identity.get(key)} now"
        for key in {**then, **identity}
        if then.get(key) != identity.get(key)
    ]
    if differences:
        raise UserError(f"{checkpoint} cannot be resumed by this run:\n  " + "\n  ".join(differences))
    return state


def _checkpoint_to_resume(config: PretrainConfig) -> Path | None:
    """The checkpoint that `resume` asks for: with `auto` the newest of the newest run, if it has one."""
    if config.resume == "never":
        return None
    if config.resume != "auto":
        return Path(config.resume)
    folder = config.output or max(_numbered_folders(config.name), key=_number, default=None)
    found = checkpoints(folder / "checkpoints") if folder else []
    return found[-1] if found else None


def _run_of(checkpoint: Path) -> Path:
    """Folder of the run that a checkpoint belongs to: RUN/checkpoints/step-N."""
    return checkpoint.parent.parent


def _numbered_folders(name: str) -> list[Path]:
    return [folder for folder in (RUNS / name).glob("*") if folder.name.isdecimal()]


def _number(folder: Path) -> int:
    return int(folder.name)


def _next_folder(name: str) -> Path:
    return RUNS / name / str(1 + max(map(_number, _numbered_folders(name)), default=0))
