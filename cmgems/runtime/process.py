"""This process among those of its launch: its rank, which process reports an error, and how it ends."""

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from cmgems.errors import CmgemsError, Interrupted
from cmgems.runtime.passwords import hide_password

LOST_PROCESS_EXIT_CODE = 1


def rank() -> int:
    """Return the number of this process among all processes of the launch; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Return the number of this process among those of its machine; 0 without a launcher."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """Return the number of processes of the launch, over all machines; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """Return the number of processes of the launch on this machine; 1 without a launcher."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_launched() -> bool:
    """Return whether a launcher of several processes, such as torchrun, started this process."""
    return "RANK" in os.environ


def started_by_torchrun() -> bool:
    """Return whether torch's launcher, which `accelerate launch` uses too, started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


@contextmanager
def exit_on_error() -> Iterator[None]:
    """End the process with one message on standard error, and the exit code of the error or interruption.

    A process that lost another one or a loader worker, which ended or did not answer, reports that, with exit code 1.
    All other exceptions pass through: they are bugs.
    """
    try:
        yield
    except CmgemsError as error:
        _report(f"error: {error}", error.every_process)
        note_exit_code(error.exit_code)
        end_process(error.exit_code)
    except Interrupted as interruption:
        _report(str(interruption))
        note_exit_code(interruption.exit_code)
        end_process(interruption.exit_code)
    except RuntimeError as error:
        lost = _lost_process(error)
        if lost is None:
            raise
        _report(f"error: rank {rank()} {lost}: {error}", every_process=True)
        end_process(LOST_PROCESS_EXIT_CODE)


def end_process(code: int) -> NoReturn:
    """End this process with an exit code; one of several at once, without the interpreter's own end.

    A thread of gloo may be about to release the last tensors, and needs the interpreter for that, which ends such
    threads in a way that C++ takes for a crash: a run that has reached its last step would count as failed (SIGABRT,
    "terminate called without an active exception"; pytorch/pytorch#179291). Destroying the groups does not help as
    long as DDP or DeepSpeed hold them.
    """
    if world_size() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def note_exit_code(code: int) -> None:
    """Write the exit code of this process into a file `rank-R` of the folder that CMGEMS_EXIT_CODES names, once.

    Launchers end with 1 whatever their processes ended with. A batch script that has to know whether to start a run
    again looks there: 0 and 2 say no, all others yes; without a file the process was lost.
    """
    if folder := os.environ.get("CMGEMS_EXIT_CODES"):
        with suppress(OSError), (Path(folder) / f"rank-{rank()}").open("x") as file:
            file.write(f"{code}\n")


def _lost_process(error: RuntimeError) -> str | None:
    """Return which process an error says to be lost, and why that may be; None if it says something else.

    Torch has a class for some of these errors only.
    """
    message = str(error)
    if message.startswith("DataLoader worker"):
        return "has lost a loader worker; the machine may be short of memory: try fewer corpus.workers"
    if message.startswith("DataLoader timed out"):
        return "got no windows within launch.timeout: a loader worker, or the storage of the corpus, does not answer"
    between_processes = ("gloo", "NCCL", "DistBackendError")
    if type(error).__module__.startswith("torch.distributed") or any(name in message for name in between_processes):
        return (
            "has lost another process: that one ended, and has printed why; or it did not answer within "
            "launch.timeout; or the network is not set up for them to meet"
        )
    return None


def _report(message: str, every_process: bool = False) -> None:
    """Print on standard error, by default on one process per machine: on the first that has this message, since the
    launcher ends all others as soon as one has ended."""
    if every_process or _is_first_to_report(message):
        print(hide_password(message), file=sys.stderr, flush=True)


def _is_first_to_report(message: str) -> bool:
    """Return whether no other process of this launcher has reported it; without torch's launcher, the first process
    does."""
    is_first_process = local_rank() == 0
    own_file = os.environ.get("TORCHELASTIC_ERROR_FILE")  # in a folder of this process, in one of the launch
    if not own_file:
        return is_first_process
    digest = hashlib.sha256(message.encode()).hexdigest()[:16]
    try:
        (Path(own_file).parent.parent / f"said-{digest}").touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        return is_first_process
    return True
