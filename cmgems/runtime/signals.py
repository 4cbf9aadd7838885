"""Signals that ask a program to stop: SIGINT (Ctrl-C), SIGTERM (schedulers, launchers) and SIGUSR1 (a warning ahead of
a time limit).

While the training loop runs, the first signal is only noted: at the end of the step all ranks learn of it, whichever
got it, save a checkpoint and stop. Everywhere else, and at a second SIGINT or SIGTERM, the program stops where it is.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType

from cmgems.errors import Interrupted
from cmgems.runtime.process import started_by_torchrun

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

ECHO = 5.0
"""Seconds in which a second signal counts as the first: schedulers and terminals signal all processes of a job, and
launchers pass it on."""

_MOMENT = 0.1  # seconds

_PR_SET_PDEATHSIG = 1  # of Linux's prctl


RESUME = "start again with --resume auto to continue"
"""What a run that was stopped says about how to continue it."""

SAME_COMMAND = "what is complete is kept; run the same command again"
"""What other commands say."""


@contextmanager
def stopping_on_signals(hint: str = RESUME) -> Iterator[None]:
    """While this lasts, a signal ends the program by the exception `Interrupted`, so that whatever is open gets closed;
    its message ends with the hint."""
    stop = partial(_stop, hint=hint)
    before = {number: signal.signal(number, stop) for number in SIGNALS}
    hook = sys.unraisablehook
    sys.unraisablehook = partial(_deliver_again, stop=stop, hook=hook)
    if started_by_torchrun():
        # A launcher that dies, as of SIGUSR1, leaves its processes running, which would keep their GPUs for ever.
        end_with_parent()
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


def end_with_parent(number: signal.Signals = signal.SIGTERM) -> None:
    """Make the kernel send this process a signal when the one that started it ends, in whatever way; on Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def leave_signals_to_the_parent(worker: int) -> None:
    """Make a loader worker pass over the signals: schedulers send them to all processes of a job, and training, which
    ends its workers by itself, still needs them for its last step. A worker that hangs ends with training, too."""
    end_with_parent(signal.SIGKILL)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _stop(number: int, frame: FrameType | None, hint: str = RESUME) -> None:
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise Interrupted(f"stopped by {signal.Signals(number).name}; {hint}")


def _deliver_again(
    ignored: "sys.UnraisableHookArgs",
    stop: Callable[[int, FrameType | None], None],
    hook: Callable[["sys.UnraisableHookArgs"], None],
) -> None:
    """Where the interpreter has ignored the exception of a signal, which it does in finalizers and while it forks,
    deliver the signal again a moment later."""
    if not isinstance(ignored.exc_value, Interrupted):
        hook(ignored)
        return
    for number in SIGNALS:
        signal.signal(number, stop)
    again = threading.Timer(_MOMENT, os.kill, (os.getpid(), signal.SIGTERM))
    again.daemon = True
    again.start()


class StopRequest:
    """Whether this process has been asked to stop."""

    received: signal.Signals | None = None
    _time = 0.0

    def note(self, number: int, frame: FrameType | None) -> None:
        """Signal handler: take note of the first signal; a SIGINT or SIGTERM some seconds later stops at once."""
        if self.received is None:
            self.received, self._time = signal.Signals(number), time.monotonic()
        elif number != signal.SIGUSR1 and time.monotonic() - self._time > ECHO:
            _stop(number, frame)


@contextmanager
def noting_signals() -> Iterator[StopRequest]:
    """While this lasts, signals do not stop the program: they are noted in what it yields.

    When it ends by an exception, signals are ignored from then on, so that what is open can be closed and the reason
    be said: a launcher sends SIGTERM to all of its processes as soon as the first of them has ended.
    """
    request = StopRequest()
    before = {number: signal.signal(number, request.note) for number in SIGNALS}
    failed = True
    try:
        yield request
        failed = False
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if failed else handler)
