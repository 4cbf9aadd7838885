"""Filesystem checks, and writing of files and folders that are complete or absent.

Both are written beside their place, as `.NAME.TOKEN.partial`, and renamed once all of it is there.
"""

import fcntl
import glob
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cmgems.errors import UserError


def check_writable(setting: str, folder: Path) -> str:
    """Say where a folder is, or will be, and how much space there is.

    Raises
    ------
    UserError
        , which begins with `setting`, if nothing can be written to it.
    """
    # os.path, as pathlib raises where a folder above cannot be looked into.
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise UserError(f"{setting} {folder}: {there} is no folder; name another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{setting} {folder}: nothing can be written to {there}; name another folder")
    return f"{folder} can be written, {shutil.disk_usage(there).free / 1e9:,.0f} GB free"


@contextmanager
def atomic_file(path: Path, private: bool = False) -> Iterator[Path]:
    """Yield a path to write a file to, which replaces `path` at the end; after an exception it is removed.

    `private`: nobody but its owner can read it; otherwise the umask decides.
    """
    partial = partial_path(path)
    try:
        if private:
            partial.touch(mode=0o600, exist_ok=False)
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path, replace: bool = False) -> Iterator[Path]:
    """Yield a new folder to fill, which becomes `folder` at the end; after an exception it is removed.

    With `replace` an existing folder is replaced, and the new one is on the disk before that.
    Raises OSError if it cannot be written; without `replace` also if `folder` exists and is not empty.
    """
    partial = partial_path(folder)
    try:
        partial.mkdir(parents=True)
        with _locked(partial):
            yield partial
            if replace:
                put_in_place(partial, folder)
            else:
                partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def apply_umask(folder: Path) -> None:
    """Give the files in a folder the permissions of new ones: safetensors lets nobody but the owner read its own."""
    new = partial_path(folder / "new")
    new.touch()
    for path in folder.iterdir():
        if path.is_file():
            shutil.copymode(new, path)
    new.unlink()


def partial_path(path: Path, token: str | None = None) -> Path:
    """Return where a file or folder is written before it is complete; `token` identifies the writer."""
    return path.with_name(f".{path.name}.{token or new_token()}.partial")


def new_token() -> str:
    """Return a token that no other writer has."""
    return uuid.uuid4().hex[:12]


def remove_leftovers(parent: Path, name: str = "*") -> None:
    """Remove incomplete files and folders of a process that was killed, of one name or of any. Only where no other
    process writes."""
    for leftover in parent.glob("*.partial" if name == "*" else f".{glob.escape(name)}.*.partial"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def remove_abandoned(folder: Path) -> None:
    """Remove what killed processes have left of a folder that they wrote with `atomic_folder`. What a living process of
    this machine is writing stays; so does everything on file systems without locks of folders, such as NFS."""
    for leftover in folder.parent.glob(f".{glob.escape(folder.name)}.*.partial"):
        with suppress(OSError), _locked(leftover, wait=False):
            shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def _locked(folder: Path, wait: bool = True) -> Iterator[None]:
    """Hold a lock on a folder, which the system releases when the process ends in whatever way.

    Where the file system has none it goes on without, or raises OSError if it is not to wait.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if not wait:
                raise
        yield
    finally:
        os.close(descriptor)


def put_in_place(partial: Path, folder: Path) -> None:
    """Rename a complete folder to its final name, replacing an existing one; it is on the disk before that."""
    for path in (*partial.rglob("*"), partial):
        flush_to_disk(path)
    if folder.exists():
        remove_folder(folder)
    partial.rename(folder)
    flush_to_disk(folder.parent)


def remove_folder(folder: Path) -> None:
    """Remove a folder that must not look complete while half of it is removed."""
    shutil.rmtree(folder.rename(partial_path(folder, "removed")))


def flush_to_disk(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # not every file system can flush a folder
            raise
    finally:
        os.close(descriptor)
