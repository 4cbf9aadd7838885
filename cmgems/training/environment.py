"""The first lines of a run: versions, output folder, tracking server, then machines, devices and the kind of launch.

What cannot work ends the run here, with the remedy, before anything is read or computed. The first part needs no other
process; the second one, as soon as all have found each other, also compares what the machines have.
"""

import logging
import os
import platform
from collections.abc import Iterable, Iterator
from importlib import metadata
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from cmgems import __version__
from cmgems.errors import UserError
from cmgems.runtime import process
from cmgems.runtime.files import check_writable
from cmgems.runtime.passwords import hide_password
from cmgems.tracking.client import tracking_problem

logger = logging.getLogger(__name__)

PACKAGES = ("torch", "deepspeed", "accelerate", "transformers", "datasets", "mlflow", "numpy")


def preflight(output: Path, tracking_uri: str, needs_tracking: bool) -> None:
    """Print versions, where the output goes, and whether the tracking server answers; on the first process only.

    Raises
    ------
    UserError
        If nothing can be written to the folder `output`, or MLflow is needed and its address is wrong.
    UnavailableError
        If MLflow is needed and does not answer.
    """
    if process.rank() != 0:
        return
    installed = ", ".join(f"{name} {number}" for name, number in versions().items())
    logger.info(f"cmgems {__version__} ({installed})\noutput: {check_writable('output', output)}")
    problem, shown = tracking_problem(tracking_uri), hide_password(tracking_uri)
    if problem and needs_tracking:
        raise type(problem)(
            f"tracking.uri {shown}: {problem}. A new run has to be made there: start the server, name another "
            "place, or log to a file with --tracking.uri sqlite:///mlflow.db and no server"
        )
    state = f"does not answer ({problem}); metrics are kept in files until it does" if problem else "can be reached"
    logger.info(f"tracking: {shown} {state}")


def versions() -> dict[str, str]:
    """Return versions of Python, of the packages that a run stands on, and of CUDA and NCCL where torch has them."""
    found = {"Python": platform.python_version(), **{name: metadata.distribution(name).version for name in PACKAGES}}
    found["torch"] = torch.__version__  # with the build, such as +cpu
    if torch.version.cuda:
        nccl = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
        found |= {"CUDA": torch.version.cuda, "NCCL": ".".join(map(str, nccl))}
    return found


def environment(state: PartialState) -> dict[str, str]:
    """Return what the numbers of a run depend on beside recipe and data: versions, and the device of this process."""
    return {"cmgems": __version__, **versions(), "device": _device(state)}


def report(state: PartialState, kind: str) -> str:
    """Return machines with their ranks and devices, then the launcher, the `kind` of distribution and the backend;
    collective.

    Raises
    ------
    UserError
        If the processes do not run under the same versions.
    """
    check_all_have(state, {"cmgems": __version__, **versions()}, "the same environment")
    processes = sorted(gather_object([(state.process_index, platform.node(), _device(state))]))
    machines = _machines((node, device) for _, node, device in processes)
    backend = f" over {state.backend}" if state.num_processes > 1 else ""
    return "\n".join([*machines, f"launched by {_launcher()}: {kind}, {state.num_processes} process(es){backend}"])


def check_all_have(state: PartialState, own: dict[str, Any], needed: str) -> None:
    """Raise UserError on all processes, naming what differs, unless they agree in all that they have; collective.

    `needed` says in words what all machines need.
    """
    processes = sorted(gather_object([(state.process_index, platform.node(), own)]), key=itemgetter(0))
    for rank, node, other in processes:
        check_same(processes[0][2], other, f"rank {rank} on {node}", needed)


def check_same(first: dict[str, Any], other: dict[str, Any], where: str, needed: str) -> None:
    """Raise UserError if a process has something else than rank 0."""
    names = [name for name in {**first, **other} if first.get(name) != other.get(name)]
    differing = [f"{name} {other.get(name, '(none)')} instead of {first.get(name, '(none)')}" for name in names]
    if differing:
        raise UserError(f"{where} has {', '.join(differing)}, as rank 0 has: all machines need {needed}")


def _device(state: PartialState) -> str:
    """Return what this process computes on."""
    if state.device.type == "cuda":
        properties = torch.cuda.get_device_properties(state.device)
        return f"{properties.name} ({properties.total_memory / 1e9:.0f} GB)"
    unused = f", {torch.cuda.device_count()} GPU(s) unused" if torch.cuda.is_available() else ""
    return f"{state.device.type} ({torch.get_num_threads()} of {psutil.cpu_count()} cores{unused})"


def _machines(processes: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield a line for each run of neighbouring ranks that are on the same machine with the same kind of device."""
    ranks = 0
    for (node, device), group in groupby(processes):
        number = len(list(group))
        which = f"rank {ranks}" if number == 1 else f"ranks {ranks} to {ranks + number - 1}"
        yield f"{node}: {which} on {device}"
        ranks += number


def _launcher() -> str:
    """Return the program that started this process, and the SLURM job that it is part of."""
    # Not by Accelerate's variables, which it sets in each process that uses it, however that was started.
    try:
        parent = psutil.Process().parent()
        words = {Path(word).name for word in parent.cmdline()} if parent else set()
    except psutil.Error:
        words = set()
    known = {"accelerate": "accelerate launch", "accelerate-launch": "accelerate launch", "torchrun": "torchrun"}
    launcher = next((name for word, name in known.items() if word in words), "python")
    job, restarts = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_RESTART_COUNT", "0")
    if job is None:
        return launcher
    return f"{launcher} in SLURM job {job}" + ("" if restarts == "0" else f", restart {restarts}")
