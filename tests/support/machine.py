"""What a test needs of the machine: programs beside Python, and root."""

import os
import shutil
from collections.abc import Iterable

import pytest


def require(programs: Iterable[str], install: str, root: bool = False) -> None:
    """Skip, or fail where CI is set, on a machine that lacks one of the programs, or where they need root.

    `install` is the command that brings the programs.
    """
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        reason = f"no {', '.join(missing)} here: {install}"
    elif root and os.geteuid() != 0:
        reason = f"{', '.join(programs)} need root"
    else:
        return
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
