"""What can be said of a folder before anything is written to it."""

import os
import shutil
from pathlib import Path

from cmgems.errors import UserError


def check_writable(setting: str, folder: Path) -> str:
    """Say where a folder is, or will be, and how much space there is.

    Raises UserError, which begins with `setting`, if nothing can be written to it.
    """
    # os.path, as pathlib raises where a folder above cannot be looked into.
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise UserError(f"{setting} {folder}: {there} is no folder; name another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{setting} {folder}: nothing can be written to {there}; name another folder")
    return f"{folder} can be written, {shutil.disk_usage(there).free / 1e9:,.0f} GB free"
