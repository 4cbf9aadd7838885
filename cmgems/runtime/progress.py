"""Progress of long work: a bar on a terminal, plain lines in a job log."""

import sys
import time
from typing import Self

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 20.0


class ProgressLines:
    """How much is done: a bar on a terminal, else a line now and then; on standard error."""

    def __init__(
        self, title: str, total: int | None, unit: str, *, is_shown: bool = True, first: int = 0, leave: bool = False
    ) -> None:
        """Start to show.

        Parameters
        ----------
        title
            What is done.
        total
            Number of units, None where it is not known.
        unit
            Name of one unit.
        is_shown
            False on processes that show nothing.
        first
            Number of units that were done before.
        leave
            Whether the bar stays after the end.
        """
        self._title, self._total, self._unit, self._is_shown, self._first = title, total, unit, is_shown, first
        self._started = self._last_line = time.monotonic()
        is_bar = is_shown and sys.stderr.isatty()
        self._bar = tqdm(
            desc=title, total=total, initial=first, unit=unit, unit_scale=True, disable=not is_bar, leave=leave
        )

    def update(self, done: int, status: str = "") -> None:
        """Show that `done` units of all are done, and a status in words."""
        self._bar.set_postfix_str(status, refresh=False)
        self._bar.update(done - self._bar.n)
        now = time.monotonic()
        if self._is_shown and self._bar.disable and now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            self.write(self._line(done, status, now - self._started))

    def _line(self, done: int, status: str, seconds: float) -> str:
        words = [f"{self._title}: {done:,}{f' of {self._total:,}' if self._total else ''} {self._unit}s"]
        if status:
            words.append(status)
        if self._total and self._first < done < self._total:
            left = seconds / (done - self._first) * (self._total - done)
            words.append(f"about {left / 60:.1f} min left")
        return ", ".join(words)

    def write(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
