"""Times of several ways to do the same thing, taken in turns, so that what else the machine does hits all of them."""

import gc
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

REPOSITORY = Path(__file__).parents[1]
CORES = len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Rates:
    """What was measured, one value a round: mostly units of work a second."""

    rounds: list[float]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.rounds)

    def ratio(self, other: "Rates") -> "Rates":
        """How many times as fast as another, round by round."""
        return Rates([mine / theirs for mine, theirs in zip(self.rounds, other.rounds, strict=True)])

    def show(self, unit: str = "") -> str:
        """Median and range."""
        median, low, high = (_three_digits(value) for value in (self.median, min(self.rounds), max(self.rounds)))
        return f"{median}{unit} ({low} to {high})"


def in_turns(ways: dict[str, Callable[[], float]], rounds: int) -> dict[str, Rates]:
    """Rates by name; each way does its work once a round, and returns units a second."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            gc.collect()
            found[name].append(run())
    return {name: Rates(values) for name, values in found.items()}


def in_rounds(measure: Callable[[], dict[str, float]], rounds: int) -> dict[str, Rates]:
    """Values by name, where one measurement a round gives all of them."""
    found = [measure() for _ in range(rounds)]
    return {name: Rates([values[name] for values in found]) for name in found[0]}


def run(command: list[str], **environment: str) -> str:
    """Standard output of a command at the top of the repository; ends the program if it fails."""
    finished = subprocess.run(
        command, cwd=REPOSITORY, env={**os.environ, **environment}, capture_output=True, text=True
    )
    if finished.returncode:
        sys.exit(f"{' '.join(command)}:\n{finished.stderr}")
    return finished.stdout


def repeated(work: Callable[[], object], units: float, seconds: float = 0.5) -> Callable[[], float]:
    """A way for `in_turns`: `work`, which does `units` of work, again and again for a while; its best rate.

    The best and not the mean: of something that takes milliseconds the rest is what the machine did in between.
    """

    def run() -> float:
        best, end = float("inf"), time.perf_counter() + seconds
        while True:
            started = time.perf_counter()
            work()
            finished = time.perf_counter()
            best = min(best, finished - started)
            if finished > end:
                return units / best

    return run


@dataclass(frozen=True)
class Cost:
    """What a command takes."""

    seconds: float
    """Time on the processor, the start of Python and its imports left out."""
    gigabytes: float
    """Peak of the resident memory, with the imports."""
    own_gigabytes: float
    """The same without pages of files that are mapped into memory, which the system can take back at any time."""


def cost(*arguments: str) -> Cost:
    """What `cmgems ARGUMENTS` takes, in a process of its own (on Linux). Ends with its message where it fails."""
    return Cost(**json.loads(run([sys.executable, "-c", _COMMAND, *arguments]).splitlines()[-1]))


# Not ru_maxrss: a process inherits the peak of the one that starts it.
_COMMAND = """
import json, re, resource, sys, threading, time
from pathlib import Path
from cmgems.cli import main

def own():
    resident, shared = map(int, Path("/proc/self/statm").read_text().split()[1:3])
    return (resident - shared) * resource.getpagesize() / 1e9

def watch():
    while not ended.wait(0.02):
        peaks.append(own())

peaks, ended = [own()], threading.Event()
threading.Thread(target=watch, daemon=True).start()
started = time.process_time()
main(sys.argv[1:])
seconds = time.process_time() - started
ended.set()
resident = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024 / 1e9
print(json.dumps({"seconds": seconds, "gigabytes": resident, "own_gigabytes": max(peaks)}))
"""


def machine() -> dict[str, str | int]:
    """What the numbers are of."""
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {"processor": model[1] if model else "unknown", "cores": CORES, "torch": torch.__version__}


def _three_digits(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:.3g} M"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
