"""Fast local storage, by default in memory, that checkpoints pass through on their way to the run's folder."""

import os
import platform
import shutil
import stat
import tempfile
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

MEMORY = Path("/dev/shm")
# With the machine's name: where several share a folder, locks may hold on one of them only.
_OF_ALL = f"cmgems-staging-{os.getuid()}-"
_PREFIX = f"{_OF_ALL}{platform.node()}-"


class StagingFolder:
    """A folder of this process's own: the one that is configured, or memory where it has room, or beside `parent`.

    A process that is killed leaves its folder behind: the next one removes every folder whose lock nobody holds.
    """

    def __init__(self, configured: Path | None, parent: Path, needed_bytes: int) -> None:
        """`needed_bytes`: what the checkpoints of all processes on this machine may take, at most."""
        base = configured or _memory_with_room(needed_bytes) or parent
        base.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(base)
        name = Path(tempfile.mktemp(prefix=_PREFIX, dir=base))
        self._lock = FileLock(_lock_file(name))
        self._lock.acquire()
        self.path = name
        self.path.mkdir(mode=0o700)  # in memory, which all users of the machine share

    def new(self) -> Path:
        """Return an empty folder."""
        return Path(tempfile.mkdtemp(dir=self.path))

    def remove(self) -> None:
        """Free the storage."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.release()
        _lock_file(self.path).unlink(missing_ok=True)


def remove_all(parent: Path) -> None:
    """Free the staging folders of all machines beside checkpoints; only for a process that holds the run's folder."""
    for left in parent.glob(_OF_ALL + "*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def _memory_with_room(needed_bytes: int) -> Path | None:
    """Return the file system in memory, if a checkpoint takes less than half of what is free there, and of free
    memory."""
    if not MEMORY.is_dir():
        return None
    free = min(shutil.disk_usage(MEMORY).free, psutil.virtual_memory().available)
    return MEMORY if free > 2 * needed_bytes else None


def _lock_file(folder: Path) -> Path:
    return folder.with_name(folder.name + ".lock")


def _remove_abandoned(base: Path) -> None:
    for folder in base.glob(_PREFIX + "*"):
        if not _is_own_folder(folder):
            continue
        lock = FileLock(_lock_file(folder), blocking=False)
        try:
            with lock:
                shutil.rmtree(folder, ignore_errors=True)
            _lock_file(folder).unlink(missing_ok=True)
        except (Timeout, OSError):
            continue  # its process is alive, or the file is another user's


def _is_own_folder(path: Path) -> bool:
    """Return whether this user has made it: in memory others can make folders, and links, of any name."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
