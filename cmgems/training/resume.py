"""Going on from a checkpoint: by a run of the same settings, on any number of processes."""

import json
import logging
import subprocess
import sys
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from cmgems.curriculum.controller import Controller
from cmgems.data.order import BatchPlan
from cmgems.errors import UserError
from cmgems.runtime.files import atomic_folder, remove_leftovers
from cmgems.tracking.run import RunToTrack
from cmgems.training.checkpoint import (
    RunState,
    checkpoint_step,
    find_corruption,
    read_state,
    write_manifest,
)
from cmgems.training.engine import Engine
from cmgems.training.launch import on_main_process, zero_stage
from cmgems.training.plain_weights import is_refusal, plain_weights_only, refusal
from cmgems.training.progress import Progress
from cmgems.training.run_folder import Run
from cmgems.training.weights import DEEPSPEED_TAG, load_weights

logger = logging.getLogger(__name__)

UNIVERSAL = "universal"
"""Folder inside a checkpoint that holds it in DeepSpeed's universal format, once it was needed."""

# What cannot change, whatever is allowed: the weights and the optimizer's state would not fit.
_FIXED = ("launched as", "model.layers", "model.hidden", "model.intermediate", "model.heads", "model.max_positions")


@dataclass(frozen=True, slots=True)
class Resumption:
    """A checkpoint that a run resumes from."""

    checkpoint: Path
    state: RunState
    changes: list[str]
    """What is different in this run from the one that wrote it, as was allowed, or in what it runs on."""
    weights: Path
    """Where model and optimizer are loaded from: the checkpoint itself, or its universal format."""

    @property
    def universal(self) -> bool:
        """Whether the universal format is loaded."""
        return self.weights != self.checkpoint

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self.state.progress["step"])

    def is_exact(self, plan: BatchPlan) -> bool:
        """Return whether the run, its work now divided so, repeats bit for bit the steps that it does again."""
        return not self.differences(plan)

    def differences(self, plan: BatchPlan) -> list[str]:
        """Return what is not as it was."""
        pairs = {
            "processes": (self.state.processes, plan.processes),
            "micro-batch": (self.state.micro_batch, plan.micro_batch),
        }
        return [
            *self.changes,
            *(f"{name}: {then} then, {now} now" for name, (then, now) in pairs.items() if then != now),
        ]

    def load_into(self, run: Run, engine: Engine, controller: Controller) -> None:
        """Load model, optimizer, progress and curriculum; collective."""
        load_weights(engine.accelerator, engine.model, engine.optimizer, self.weights)
        controller.load_state_dict(self.state.curriculum)
        run.progress = Progress(**self.state.progress)

    def describe(self, plan: BatchPlan) -> str:
        """Return the lines for the log."""
        return "\n  ".join([f"resumed after step {self.step} from {self.checkpoint}", *self.differences(plan)])

    def tags(self, plan: BatchPlan) -> dict[str, str]:
        """Return the same for MLflow: a tag for each resumption that changed something."""
        differences = self.differences(plan)
        return {f"resumed.{self.step}": "; ".join(differences)} if differences else {}


def open_checkpoint(run: Run, accelerator: Accelerator, allowed: list[str]) -> Resumption | None:
    """Open the checkpoint that a run resumes from, if there is one; collective.

    The run's identity must be as it was, but for the settings in `allowed`; its environment may be another. Raises
    UserError naming what must not differ and does.
    """
    if run.checkpoint is None:
        return None
    state, changes = _read(run.checkpoint, run.identity, allowed)
    changes += [
        f"{name}: {then} then, {run.environment[name]} now"
        for name, then in state.environment.items()
        if run.environment.get(name, then) != then
    ]
    return Resumption(run.checkpoint, state, changes, _folder_to_load(accelerator, run.checkpoint, state.processes))


def _read(checkpoint: Path, identity: dict[str, Any], allowed: list[str]) -> tuple[RunState, list[str]]:
    """State of a checkpoint, and the points in which the run that wrote it differs from this one.

    Raises
    ------
    UserError
        Naming them, unless each is in `allowed`, by its own name or by its group's.
    """
    state = read_state(checkpoint)
    then = state.identity
    keys = [key for key in {**then, **identity} if _differs(key, then, identity)]
    differences = {key: f"{key}: {then.get(key)} then, {identity.get(key)} now" for key in keys}
    refused = [key for key in keys if key in _FIXED or not _is_allowed(key, allowed)]
    if refused:
        remedy = "" if set(refused) & set(_FIXED) else f"\nIf that is meant: --allow_changed '{json.dumps(refused)}'"
        reasons = "\n  ".join(differences[key] for key in refused)
        raise UserError(f"{checkpoint} cannot be resumed by this run:\n  {reasons}{remedy}")
    return state, list(differences.values())


def _differs(key: str, then: dict[str, Any], now: dict[str, Any]) -> bool:
    """Return whether a setting has changed; one that a release added or removed has not, as long as it is off."""
    if key in then and key in now:
        return bool(then[key] != now[key])
    return bool(then.get(key) or now.get(key))


def _is_allowed(key: str, allowed: list[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in allowed)


def run_to_track(run: Run, resumed: Resumption | None, plan: BatchPlan) -> RunToTrack:
    """Return what MLflow has to know of a run."""
    if resumed is None:
        return RunToTrack(run.name, run.folder, run.lock)
    return RunToTrack(run.name, run.folder, run.lock, resumed.state.mlflow_run, resumed.is_exact(plan))


def archive_newer_checkpoints(checkpoint: Path) -> None:
    """Move the checkpoints of later steps out of the way of the run that resumes from this one; for one process.

    They are damaged, or of a course that was given up, and would otherwise count as the newest. Only for a process
    that holds the run's folder: another one that is still running may be writing them.
    """
    aside = checkpoint.parent / "set-aside"
    for later in checkpoint.parent.glob("step-*[0-9]"):
        if checkpoint_step(later) > checkpoint_step(checkpoint):
            aside.mkdir(exist_ok=True)
            free = next(n for n in count(1) if not (aside / f"{later.name}-{n}").exists())
            later.rename(aside / f"{later.name}-{free}")
            logger.info(f"{later} is of a later step than the one resumed from: moved to {aside}")


def _folder_to_load(accelerator: Accelerator, checkpoint: Path, processes: int) -> Path:
    """Return the checkpoint, or its universal format if `processes` others wrote it and its parts do not fit;
    collective.

    Only ZeRO divides a checkpoint into parts. A conversion that is there is used again if it is as it was written.
    """
    if not zero_stage(accelerator) or processes == accelerator.num_processes:
        return checkpoint
    folder = checkpoint / UNIVERSAL

    def convert() -> None:
        if find_corruption(folder) is None:
            return
        logger.info(f"converting {checkpoint}, of {processes} process(es), for any number of them")
        remove_leftovers(checkpoint)
        with atomic_folder(folder, replace=True) as partial:
            _convert(checkpoint / DEEPSPEED_TAG, partial / DEEPSPEED_TAG)
            write_manifest(partial)

    on_main_process(accelerator, convert)
    return folder


def _convert(source: Path, target: Path) -> None:
    command = [sys.executable, "-m", "cmgems.training.universal", "--inject_missing_state"]
    with plain_weights_only(source, with_deepspeed=True):  # the processes that it starts inherit this
        finished = subprocess.run(
            [*command, "--input_folder", str(source), "--output_folder", str(target)], capture_output=True, text=True
        )
    if finished.returncode and is_refusal(finished.stderr):
        raise refusal(source, finished.stderr)
    if finished.returncode:
        raise UserError(
            f"{source} cannot be converted by DeepSpeed for another number of processes:\n{finished.stderr}"
        )
