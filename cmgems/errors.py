"""The one exception for what a user can put right: it ends a command with its message and exit code 2."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

USER_ERROR_EXIT_CODE = 2


class UserError(Exception):
    """Wrong input or setting. The message names the setting, file or row, and says what to do."""


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turn a UserError into one message on standard error, once a machine, and exit code 2."""
    try:
        yield
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(USER_ERROR_EXIT_CODE)
