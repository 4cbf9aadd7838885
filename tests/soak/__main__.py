"""Try random faults at random moments on small two-process runs and on commands, and say what came of them:

    python -m tests.soak [--faults 150] [--minutes 90] [--seed 0] [--only NAME,NAME] [--folder FOLDER]

A chain of faults hits one run, which is resumed after each, until it is complete; then it has to be the undisturbed
run: windows, masks, stages and losses of every step, the trained model, and what MLflow has. Ends with 1 if anything
was lost or hung. Each fault is a line in FOLDER/faults.jsonl.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.soak import commands
from tests.soak.faults import (
    ELASTIC_FAULTS,
    ENDED,
    FAULTS,
    REFUSED,
    SELDOM,
    SERVER_FAULTS,
    WENT_ON,
    Tried,
)
from tests.soak.subject import HangError, LostError, Run, make_corpus
from tests.study.conftest import write_study
from tests.support.mlflow_server import Server
from tests.support.suites import write_suite

CHAIN = 7
"""Faults on one run, at most."""

SHARED_MEMORY = Path("/dev/shm")

SHARE_OF_COMMANDS, SHARE_OF_ELASTIC = 0.15, 0.15
"""Of all faults."""


@dataclass
class Tally:
    """What has come of the faults of a kind."""

    outcomes: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    longest: float = 0.0
    """Seconds from a fault to the end of the launch."""


class Soak:
    """Faults, one after the other.

    Parameters
    ----------
    folder
        Where everything is written.
    seed
        Seed of the choice of faults and moments.
    only
        Kinds to choose from; empty: all.
    """

    def __init__(self, folder, seed, only=()):
        self.folder, self.only = folder, only
        self.random = random.Random(seed)
        self.tallies = defaultdict(Tally)
        self.problems = []
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.environment = {"TMPDIR": str(self.temporary)}
        self.server = Server(folder)
        self.server.start()
        self.can_mount = _can_mount(folder)
        self._undisturbed, self._commands = {}, {}
        self._corpus = make_corpus(folder)

    def count(self):
        """Number of faults tried."""
        return sum(sum(tally.outcomes.values()) for tally in self.tallies.values())

    # ---- chains of faults

    def chain(self, most):
        """Try some faults, at most as many as told, on one new run or command."""
        draw = self.random.random()
        if draw < SHARE_OF_COMMANDS and not self.only:
            self._command_chain(min(most, 3))
        else:
            self._run_chain(most, draw < SHARE_OF_COMMANDS + SHARE_OF_ELASTIC and not self.only)

    def _run_chain(self, most, elastic):
        kind = self.random.choice(["zero2", "ddp"])
        folder = self.folder / f"chain-{self.count()}"
        folder.mkdir()
        with _small_disk(folder / "run", self.can_mount):
            run = self._new_run(folder, kind, elastic, self._reference(kind, elastic))
            if self._try_faults(run, min(most, CHAIN), elastic):
                self._try("the end", run, lambda: self._complete(run), counted=False)
            if run.current:
                run.current.kill()
        shutil.rmtree(folder, ignore_errors=True)

    def _try_faults(self, run, number, elastic):
        """Try faults on a run; returns whether all went well."""
        for _ in range(number):
            if run.is_complete:
                return True
            name, fault = self._choose(elastic)
            if not self._try(name, run, lambda fault=fault: fault(run, self.random)):
                return False
        return True

    def _choose(self, elastic):
        """A fault: its name, and a function of run and random numbers."""
        if elastic:
            return self.random.choice(list(ELASTIC_FAULTS.items()))
        with_server = {
            name: lambda run, random, fault=fault: fault(run, random, self.server)
            for name, fault in SERVER_FAULTS.items()
        }
        known = {name: fault for name, fault in {**FAULTS, **with_server}.items() if self._is_possible(name)}
        chosen = {name: fault for name, fault in known.items() if not self.only or name in self.only}
        weights = [1 if name in SELDOM else 3 for name in chosen]
        return self.random.choices(list(chosen.items()), weights)[0]

    def _is_possible(self, name):
        return name != "disk full" or self.can_mount

    def _complete(self, run):
        """Let a run come to its end, and compare it with the undisturbed one."""
        attempt = run.running()
        code = attempt.wait()
        run.check(attempt)
        if code:
            raise LostError(f"exit code {code} without a fault\n{attempt.output[-3000:]}")
        subprocess.run([sys.executable, "-m", "cmgems", "sync", run.folder / "run"], check=True, capture_output=True)
        run.check_end()
        self._check_leftovers()

    def _check_leftovers(self):
        left = sorted(path.name for path in self.temporary.iterdir())
        left += sorted(map(str, set(SHARED_MEMORY.iterdir()) - self._shared_before))
        if left:
            for path in self.temporary.iterdir():
                shutil.rmtree(path, ignore_errors=True)
            self._say("left behind", ", ".join(left))

    def _command_chain(self, number):
        command = self._command(self.random.choice(["prepare", "prepare", "benchmark", "study"]))
        folder = self.folder / f"{command.name}-{self.count()}"
        for _ in range(number):
            if not self._try(command.name, None, lambda: command.hit(folder, self.random)):
                command.forget()
                return
        self._try(command.name, None, lambda: command.finish(), counted=False)

    # ---- one fault

    def _try(self, name, run, fault, counted=True):
        """Try a fault and note what came of it; returns whether all is well."""
        began = time.monotonic()
        try:
            tried = fault()
        except (LostError, HangError) as problem:
            kind = "lost" if isinstance(problem, LostError) else "hang"
            self.tallies[name].outcomes[kind] += 1
            self.problems.append(f"{name}: {kind}: {problem}")
            self._say(name, f"{kind.upper()}: {problem}")
            return False
        if isinstance(tried, tuple):
            name, tried = f"{name}: {tried[0]}", tried[1]
        if counted and tried is not None:
            self.tallies[name].outcomes[tried.outcome] += 1
            self.tallies[name].longest = max(self.tallies[name].longest, tried.seconds or 0)
        if tried is not None or not counted:
            step = max((attempt.step for attempt in run.attempts), default=0) if run else None
            self._note(name, tried, step, time.monotonic() - began)
        return True

    def _note(self, name, tried, step, seconds):
        outcome = tried.outcome if isinstance(tried, Tried) else "as undisturbed"
        line = {"fault": name, "outcome": outcome, "step": step, "seconds": round(seconds, 1)}
        with (self.folder / "faults.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._say(name, f"{outcome}" + (f", step {step}" if step is not None else "") + f", {seconds:.0f} s")

    def _say(self, name, what):
        print(f"[{self.count()}] {name}: {what}", flush=True)

    # ---- what the faults are tried on

    def _new_run(self, folder, kind, elastic, undisturbed):
        corpus = folder / "corpus"
        shutil.copytree(self._corpus, corpus)
        self._shared_before = set(SHARED_MEMORY.iterdir())
        return Run(folder, corpus, self.server.uri, kind, self.environment, undisturbed, elastic)

    def _reference(self, kind, elastic):
        """The undisturbed run of a launch file; trained once."""
        if (kind, elastic) not in self._undisturbed:
            folder = self.folder / f"undisturbed-{kind}{'-elastic' * elastic}"
            folder.mkdir()
            run = self._new_run(folder, kind, elastic, None)
            attempt = run.running()
            assert attempt.wait() == 0, attempt.output
            self._undisturbed[kind, elastic] = run
        return self._undisturbed[kind, elastic]

    def _command(self, name):
        """A command, whose undisturbed result is known."""
        if name not in self._commands:
            self._commands[name] = command = self._make_command(name)
            command.undisturbed(self.folder / f"undisturbed-{name}")
        return self._commands[name]

    def _make_command(self, name):
        if name == "prepare":
            return commands.prepare(self._large_genome(), self.environment)
        if name == "study":
            write = lambda folder: write_study(folder, self.folder / "genome.fa")  # noqa: E731
            return commands.study(write, self.environment)
        place = self.folder / "suite"
        place.mkdir()
        model, data, suite = write_suite(place)
        return commands.benchmark(model, data, suite, self.environment)

    def _large_genome(self):
        path = self.folder / "large.fa"
        bases = np.frombuffer(b"ACGT", dtype=np.uint8)[np.random.default_rng(2).integers(0, 4, 20_000_000)]
        path.write_bytes(b">a\n" + bases[2_000_000:].tobytes() + b"\n>b\n" + bases[:2_000_000].tobytes() + b"\n")
        return path

    # ---- the summary

    def summary(self, seconds):
        """The table of faults and outcomes."""
        columns = [ENDED, WENT_ON, REFUSED, "lost", "hang"]
        lines = [f"{'fault':<38} {'tries':>6} " + " ".join(f"{c:>14}" for c in columns) + f" {'longest s':>10}"]
        total = defaultdict(int)
        for name, tally in sorted(self.tallies.items()):
            counts = [tally.outcomes.get(c, 0) for c in columns]
            lines.append(self._row(name, counts, tally.longest))
            for column, count in zip(columns, counts, strict=True):
                total[column] += count
        lines.append(self._row("all", [total[c] for c in columns], max(t.longest for t in self.tallies.values())))
        lines.append(f"{self.count()} faults in {seconds / 60:.0f} min")
        return "\n".join(lines)

    def _row(self, name, counts, longest):
        return f"{name:<38} {sum(counts):>6} " + " ".join(f"{c:>14}" for c in counts) + f" {longest:>10.1f}"

    def close(self):
        """End the tracking server."""
        self.server.kill()


def _can_mount(folder):
    """Whether a small disk can be made, for faults of a full one."""
    place = folder / "mount"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, check=False)
    if done.returncode == 0:
        subprocess.run(["umount", place], check=True)
    else:
        print(f"no fault `disk full`: {done.stderr.decode().strip()}")
    return done.returncode == 0


@contextmanager
def _small_disk(folder, can_mount):
    """A disk of 64 MiB in a folder, where that can be made."""
    folder.mkdir()
    if not can_mount:
        yield
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def soak(folder, faults, minutes, seed, only=()):
    """Try faults until there are enough or the time is over; returns the summary, and the problems."""
    began = time.monotonic()
    all_of_them = Soak(folder, seed, only)
    try:
        while all_of_them.count() < faults and time.monotonic() - began < 60 * minutes:
            all_of_them.chain(faults - all_of_them.count())
    finally:
        all_of_them.close()
    return all_of_them.summary(time.monotonic() - began), all_of_them.problems


def main():
    """Read the arguments, and soak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=150, help="number of faults (default: 150)")
    parser.add_argument("--minutes", type=float, default=90, help="no new chain of faults after them (default: 90)")
    parser.add_argument("--seed", type=int, default=0, help="seed of faults and moments (default: 0)")
    parser.add_argument("--only", default="", help="kinds of faults, separated by commas (default: all)")
    parser.add_argument("--folder", type=Path, help="new folder for everything (default: a temporary one)")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    only = tuple(filter(None, arguments.only.split(",")))
    summary, problems = soak(folder, arguments.faults, arguments.minutes, arguments.seed, only)
    print(summary)
    for problem in problems:
        print(problem)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
