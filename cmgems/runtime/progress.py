"""Progress of long work: a bar on a terminal, plain lines in a job log."""

import sys
import time

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 20


class ProgressLines:
    """How far something of known length is: a bar on a terminal, else a line now and then."""

    def __init__(self, title: str, total: int, unit: str, is_shown: bool = True) -> None:
        self._title, self._total, self._unit, self._is_shown = title, total, unit, is_shown
        self._started = self._last_line = time.monotonic()
        bar = is_shown and sys.stderr.isatty()
        self._bar = tqdm(desc=title, total=total, unit=unit, disable=not bar, leave=False)

    def update(self, done: int) -> None:
        """Show that `done` of all are done."""
        self._bar.update(done - self._bar.n)
        now = time.monotonic()
        if self._is_shown and self._bar.disable and now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            left = (now - self._started) / done * (self._total - done)
            text = f"{self._title}: {self._unit} {done}/{self._total}, about {left / 60:.1f} min left"
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()
