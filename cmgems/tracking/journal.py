"""What a run logs to MLflow, in files of the run's folder: nothing waits for a server, and nothing is lost.

- `tracking.jsonl`, the journal: one JSON object a line. A line with `run`, `uri` and `experiment` says where the lines
  after it belong, and with `instead_of`, the id of a run before it, that run's lines too; the others are the messages,
  in the order in which they are to be sent. Only its owner can read it where the URI has a password.
- `tracking.sent`: how many bytes of the journal MLflow has.
- `tracking.lock`: held by the one process that writes and sends.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cmgems.errors import InUseError, UserError
from cmgems.runtime.files import atomic_file
from cmgems.runtime.passwords import has_password, hide_password

logger = logging.getLogger(__name__)

JOURNAL = "tracking.jsonl"
SENT = "tracking.sent"
LOCK = "tracking.lock"
NEWLINE = b"\n"

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 30.0


def summarize_error(error: Exception) -> str:
    """Return first line of an error, its middle left out: clients nest several errors in one message, the cause
    last. Without a password, which would not be known any more where half of it is left out."""
    text = (hide_password(str(error)).splitlines() or [""])[0] or type(error).__name__
    return text if len(text) <= 210 else f"{text[:100]} ... {text[-100:]}"


@dataclass(frozen=True, slots=True)
class MlflowRunRef:
    """Where messages belong."""

    uri: str
    """Tracking URI."""
    experiment: str
    """Name of the experiment."""
    run: str
    """Id of the MLflow run."""


@dataclass(frozen=True, slots=True)
class Message:
    """A line of the journal."""

    place: MlflowRunRef
    content: dict[str, Any]
    end: int
    """Bytes of the journal up to the end of the line."""


def read_contents(folder: Path) -> list[dict[str, Any]]:
    """Return the contents of all messages of a run's folder, also while it runs; empty where there is no journal.

    Takes no lock and writes nothing.

    Raises
    ------
    UserError
        If there is a journal and it cannot be read.
    """
    path = folder / JOURNAL
    try:
        return [content for _, content in _lines(path, 0) if "run" not in content] if path.exists() else []
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _lines(path: Path, start: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """End and content of each complete line of a journal from a byte on."""
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            if not line.endswith(NEWLINE):
                return  # still being written
            start += len(line)
            try:
                yield start, json.loads(line)
            except ValueError:
                continue  # cut short by a crash: it was never whole


def find_place(folder: Path) -> MlflowRunRef | None:
    """Return where the newest part of a folder's journal belongs, whether or not its run has ended; None without a
    journal."""
    path, place = folder / JOURNAL, None
    for _, content in _lines(path, 0) if path.exists() else ():
        if "run" in content:
            place = _place(content)
    return place


def _place(content: dict[str, Any]) -> MlflowRunRef:
    return MlflowRunRef(content["uri"], content["experiment"], content["run"])


def lock_run_folder(folder: Path, patience: float = 0) -> FileLock:
    """Take the folder of a run for this process, after `patience` seconds at most; `release` gives it back.

    Raises
    ------
    InUseError
        If another process has it.
    UserError
        If the folder cannot be written to.
    """
    lock = FileLock(folder / LOCK, thread_local=False)
    try:
        with suppress(Timeout):
            return lock.acquire(timeout=0).lock
        if patience:
            logger.warning(f"{folder} is in use: waiting up to {patience:.0f} s for its run to end")
        return lock.acquire(timeout=patience, poll_interval=0.5).lock
    except Timeout:
        raise InUseError(f"{folder} is in use: its run has not ended, and sends to MLflow by itself") from None
    except OSError as error:
        raise UserError(f"{folder} cannot be written to: {error}") from None


class Journal:
    """The journal of a run's folder, in the hands of this process until `close`.

    Raises InUseError where another process has it, UserError where the folder cannot be written to.
    """

    def __init__(self, folder: Path, lock: FileLock | None = None) -> None:
        """`lock`: what `lock_run_folder` has given, if this process has the folder already."""
        self.folder, self.path = folder, folder / JOURNAL
        self.news = threading.Event()  # set by each new message
        self._writing = threading.Lock()
        self._unwritten = bytearray()
        self._full = False
        self._lock = (
            lock_run_folder(folder) if lock is None else lock.acquire().lock
        )  # taken twice, to be released twice
        try:
            self._file = self.path.open("ab", buffering=0)
        except OSError as error:
            self._lock.release()
            raise UserError(f"{folder} cannot be written to: {error}") from None
        self._end_torn_line()
        self._places: dict[str, MlflowRunRef] = {}
        self._current: str | None = None
        self._sent, self._sent_run = self._find_sent()

    @property
    def place(self) -> MlflowRunRef | None:
        """Where the last message belongs; None in a new journal."""
        return None if self._current is None else self._places[self._current]

    def begin(self, place: MlflowRunRef, replaces_run: str | None = None) -> None:
        """Say where the messages from now on belong, and all of the run `replaces_run`, which are then sent again."""
        if replaces_run is not None:
            self._go_back(replaces_run)
        if replaces_run is not None or (self._current, self._places.get(place.run)) != (place.run, place):
            content = asdict(place) | ({"instead_of": replaces_run} if replaces_run else {})
            if has_password(place.uri):  # without it `cmgems sync` could not send
                self.path.chmod(0o600)
            self.append(content)
            self._note_place(content)

    def append(self, content: dict[str, Any]) -> None:
        """Add a message; it is in the file when this returns, or where that is full, as soon as there is room."""
        with self._writing:
            self._unwritten += json.dumps(content).encode() + NEWLINE
            self._write()
        self.news.set()

    def messages(self) -> Iterator[Message]:
        """Yield all messages, sent or not."""
        return self._read(0, None)

    def unsent(self, limit: int) -> list[Message]:
        """Return the first messages, `limit` at most, of those that are not marked as sent."""
        return list(islice(self._read(self._sent, self._sent_run), limit))

    def count_unsent(self) -> int:
        """Return the number of messages that are not marked as sent."""
        return sum(1 for _ in self._read(self._sent, self._sent_run))

    def mark_sent(self, message: Message) -> None:
        """Note that the messages up to this one are sent."""
        self._note_sent(message.end, message.place.run)

    def _note_sent(self, end: int, run: str | None) -> None:
        self._sent, self._sent_run = end, run
        try:
            with atomic_file(self.folder / SENT) as partial:
                partial.write_text(f"{end}\n")
        except OSError:  # on a full disk; without a note all is sent twice, which changes nothing in MLflow
            with suppress(OSError):
                (self.folder / SENT).unlink(missing_ok=True)

    def _go_back(self, run: str) -> None:
        """Take the messages of a run, and what comes after its first one, for unsent."""
        for end, content in _lines(self.path, 0):
            if end > self._sent:
                return
            if "run" in content and self._places[content["run"]].run == run:
                self._note_sent(end, content["run"])
                return

    def _note_place(self, content: dict[str, Any]) -> None:
        """A run can have moved to another server, or into another run: its newest place counts, for what is still
        unsent too."""
        place = _place(content)
        before = (place.run, content.get("instead_of"))
        self._places |= {run: place for run, known in self._places.items() if known.run in before}
        self._places[place.run] = place
        self._current = place.run

    def close(self) -> None:
        """Leave the journal to others."""
        with self._writing:
            self._write()
            if self._unwritten:
                logger.warning(
                    f"{self._unwritten.count(NEWLINE)} messages for MLflow could not be kept in {self.path}: lost"
                )
            self._file.close()
        self._lock.release()

    def _write(self) -> None:
        """Write what is unwritten, as far as it goes: a full disk must not end a training."""
        try:
            while self._unwritten:
                del self._unwritten[: self._file.write(self._unwritten)]
            self._full = False
        except OSError as error:
            if not self._full:
                logger.warning(
                    f"{self.path} cannot be written to: training continues, metrics are kept in memory ({error})"
                )
            self._full = True

    def _end_torn_line(self) -> None:
        """End a line that a crash cut short, so that the next one is not added to it."""
        if self._file.tell():
            with self.path.open("rb") as file:
                file.seek(-1, os.SEEK_END)
                if file.read() != NEWLINE:
                    self._unwritten += NEWLINE
                    self._write()

    def _find_sent(self) -> tuple[int, str | None]:
        """Return the bytes that are sent, at the end of a line, and the run whose messages stand there; notes all
        places."""
        try:
            noted = int((self.folder / SENT).read_text())
        except (OSError, ValueError):
            noted = 0  # if that is too little, messages are sent twice, which changes nothing in MLflow
        sent: tuple[int, str | None] = (0, None)
        for end, content in _lines(self.path, 0):
            if "run" in content:
                self._note_place(content)
            if end <= noted:
                sent = end, self._current
        return sent

    def _read(self, start: int, run: str | None) -> Iterator[Message]:
        """Yield messages from a byte on, which is in the part of this run."""
        for end, content in _lines(self.path, start):
            if "run" in content:
                run = content["run"]
            elif run is not None:
                yield Message(self._places[run], content, end)


class Sender(threading.Thread):
    """Sends a journal's messages as they come; while that fails, tries again and again. Ends after `finish`.

    `send` is a function that sends a journal's unsent messages, marks them, and yields their numbers on the way. The
    journal is closed when the thread ends, not before: no other process sends meanwhile.
    """

    def __init__(self, journal: Journal, uri: str, send: Callable[[Journal], Iterator[int]]) -> None:
        super().__init__(name="tracking", daemon=True)
        self._journal, self._uri, self._send = journal, uri, send
        self._ending, self._stop_now = threading.Event(), threading.Event()
        self._last_success = time.monotonic()
        self._away = False
        self._sent_late = 0

    def run(self) -> None:
        """Send until all is sent after `finish` was called, or until it has waited long enough."""
        pause = FIRST_PAUSE
        while not self._stop_now.is_set():
            ending = self._ending.is_set()
            self._journal.news.clear()
            if self._send_rest(ending):
                pause = FIRST_PAUSE
                if ending:
                    break
                self._journal.news.wait()
            elif ending:
                self._stop_now.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                # The end of the run cuts the pause short.
                pause = FIRST_PAUSE if self._ending.wait(pause) else min(2 * pause, LONGEST_PAUSE)
        self._journal.close()

    def finish(self, patience: float, at_most: float | None = None) -> None:
        """Wait until all is sent: `patience` seconds without anything getting through, and `at_most` altogether."""
        began = self._last_success = time.monotonic()
        self._ending.set()
        self._journal.news.set()
        while self.is_alive():
            end = self._last_success + patience
            left = (end if at_most is None else min(end, began + at_most)) - time.monotonic()
            if left <= 0:
                break
            self.join(min(left, 1))
        self._stop_now.set()

    def _send_rest(self, ending: bool) -> bool:
        """Return whether all that there is could be sent."""
        try:
            for number in self._send(self._journal):
                self._last_success = time.monotonic()
                self._sent_late += number
                if self._stop_now.is_set():
                    return False
        except Exception as error:  # noqa: BLE001  # clients let all kinds through, and this thread must outlive them
            if not self._away and not self._stop_now.is_set():
                meanwhile = "waiting for it" if ending else "training continues"
                logger.warning(
                    f"MLflow at {self._uri} does not answer: {meanwhile}, metrics are kept in "
                    f"{self._journal.path} ({summarize_error(error)})"
                )
                self._away, self._sent_late = True, 0
            return False
        if self._away:
            logger.warning(f"MLflow at {self._uri} answers again: {self._sent_late} messages that were kept are sent")
            self._away = False
        return True
