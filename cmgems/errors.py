"""How a command ends early: what a user can put right, and signals that ask a run to stop."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

USER_ERROR_EXIT_CODE = 2
INTERRUPTED_EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again later


class UserError(Exception):
    """Wrong input or setting. The message names the setting, file or row, and says what to do."""

    every_process = False
    """Whether each process has a message of its own; otherwise one speaks for all."""


class Interrupted(Exception):  # noqa: N818  # not an error: the run was asked to stop
    """A signal asked the run to stop. The message says where its state is."""


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turn a UserError into one message on standard error, once a machine, and exit code 2; of Interrupted, and 75."""
    try:
        yield
    except UserError as error:
        _say(f"error: {error}", error.every_process)
        sys.exit(USER_ERROR_EXIT_CODE)
    except Interrupted as interruption:
        _say(str(interruption))
        sys.exit(INTERRUPTED_EXIT_CODE)


def _say(message: str, every_process: bool = False) -> None:
    """Print on standard error, by default on one process a machine."""
    if every_process or os.environ.get("LOCAL_RANK", "0") == "0":
        print(message, file=sys.stderr, flush=True)
