"""How a command ends early: what a user can put right, signals that ask a run to stop, processes that are lost."""

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

USER_ERROR_EXIT_CODE = 2
LOST_PROCESS_EXIT_CODE = 1
UNAVAILABLE_EXIT_CODE = 69  # EX_UNAVAILABLE of sysexits.h
INCOMPLETE_EXIT_CODE = 1  # some parts of what was asked for failed, and the others are done
INTERRUPTED_EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again later


class UserError(Exception):
    """Wrong input or setting. The message names the setting, file or row, and says what to do."""

    exit_code = USER_ERROR_EXIT_CODE

    def __init__(self, message: str, every_process: bool = False) -> None:
        """`every_process`: each process that raises it prints it; otherwise one of a machine speaks for all."""
        super().__init__(message)
        self.every_process = every_process


class UnavailableError(UserError):
    """A server or storage that is needed does not answer: nothing is wrong with the settings, maybe, and later it may
    go."""

    exit_code = UNAVAILABLE_EXIT_CODE


class Interrupted(Exception):  # noqa: N818  # not an error: the run was asked to stop
    """A signal asked the run to stop. The message says where its state is."""


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turn a UserError into one message on standard error and its exit code, mostly 2; Interrupted into one and 75.

    A process that lost another one, which ended or went silent, says so, and has exit code 1.
    """
    try:
        yield
    except UserError as error:
        _say(f"error: {error}", error.every_process)
        note_exit_code(error.exit_code)
        end_process(error.exit_code)
    except Interrupted as interruption:
        _say(str(interruption))
        note_exit_code(INTERRUPTED_EXIT_CODE)
        end_process(INTERRUPTED_EXIT_CODE)
    except RuntimeError as error:
        if not _is_about_other_processes(error):
            raise
        _say(
            f"error: rank {os.environ.get('RANK')} has lost another process: that one ended, and has printed why; or "
            f"it did not answer within launch.timeout; or the network is not set up for them to meet: {error}",
            every_process=True,
        )
        end_process(LOST_PROCESS_EXIT_CODE)


def end_process(code: int) -> NoReturn:
    """End this process with an exit code; one of several at once, without the interpreter's own end.

    A thread of gloo may be about to let go of the last tensors, and needs the interpreter for that, which ends such
    threads in a way that C++ takes for a crash: a run that has reached its last step would count as failed (SIGABRT,
    "terminate called without an active exception"; pytorch/pytorch#179291). Destroying the groups does not help as
    long as DDP or DeepSpeed hold them.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
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
        with suppress(OSError), (Path(folder) / f"rank-{os.environ.get('RANK', '0')}").open("x") as file:
            file.write(f"{code}\n")


def _is_about_other_processes(error: RuntimeError) -> bool:
    """Whether an operation of several processes failed: torch has a class for some of these errors only."""
    return type(error).__module__.startswith("torch.distributed") or any(
        name in str(error) for name in ("gloo", "NCCL", "DistBackendError")
    )


def _say(message: str, every_process: bool = False) -> None:
    """Print on standard error, by default on one process a machine: on the first that has it to say, since the launcher
    ends all others as soon as one has ended."""
    if every_process or _is_first_to_say(message):
        print(message, file=sys.stderr, flush=True)


def _is_first_to_say(message: str) -> bool:
    """Whether no other process of this launcher has said it; without torch's launcher, the first process speaks."""
    is_first_process = os.environ.get("LOCAL_RANK", "0") == "0"
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
