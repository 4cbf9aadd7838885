"""The same for commands that work on for a while: `cmgems prepare`, `benchmark` and `study`."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.soak.faults import ENDED, WENT_ON, Tried
from tests.soak.subject import LONGEST, HangError, LostError, check_output, digest
from tests.training.launching import ENVIRONMENT, REPOSITORY

STOPPED = 75
"""Exit code of a command that a signal has stopped."""


@dataclass
class Command:
    """A command, and what it leaves.

    `fresh` makes the folder that it works in, and returns its arguments; `result` reads what it has made there.
    """

    name: str
    fresh: Callable[[Path], list[str]]
    result: Callable[[Path], Any]
    environment: dict
    expected: object = None
    seconds: float = 0.0
    """How long it takes undisturbed."""
    _folder: Path | None = None
    _arguments: list = field(default_factory=list)

    def undisturbed(self, folder):
        """Run it once, and keep its result to compare with."""
        began = time.monotonic()
        arguments = self.fresh(folder)
        done = self._run(arguments)
        assert done.returncode == 0, done.stderr
        self.seconds, self.expected = time.monotonic() - began, self.result(folder)

    def hit(self, folder, random):
        """Start it, or start it again where it was ended; end it at a random moment, unless it ends first."""
        if self._folder is None:
            self._folder, self._arguments = folder, self.fresh(folder)
        how = random.choice(["kill -9", "kill -9 of all processes", "SIGTERM", "Ctrl-C"])
        output = self._folder.with_name(self._folder.name + ".output")
        with output.open("w") as file:
            process = subprocess.Popen(
                self._command(self._arguments),
                cwd=REPOSITORY,
                env=self._variables(),
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        family = _wait(process, random.uniform(0.3, self.seconds))
        was_alive = process.poll() is None
        _end(process, family, how)
        began = time.monotonic()
        _wait_for_all(process, family)
        took = time.monotonic() - began
        self._check(output.read_text(), process.returncode, was_alive and how in ("SIGTERM", "Ctrl-C"))
        if process.returncode:
            return how, Tried(ENDED, took)
        self.check_end()
        return how, Tried(WENT_ON)

    def finish(self):
        """Run it to its end, and compare its result."""
        if self._folder is None:
            return
        done = self._run(self._arguments)
        if done.returncode and not self._was_complete(done):
            self.forget()
            raise LostError(f"exit code {done.returncode} at the end\n{done.stderr[-3000:]}")
        self.check_end()

    def _was_complete(self, done):
        """Whether the last signal came when all was done, but for the end of the process."""
        return "corpus: exists already" in done.stderr

    def forget(self):
        """Begin anew with the next fault."""
        self._folder = None

    def check_end(self):
        """Raise LostError unless the result is that of the undisturbed command, and nothing else is left."""
        folder, self._folder = self._folder, None
        if (found := self.result(folder)) != self.expected:
            raise LostError(f"another result: {found} instead of {self.expected}")
        if left := [*folder.rglob("*.partial")]:
            raise LostError(f"left behind: {left}")
        shutil.rmtree(folder)

    def _check(self, output, code, was_signalled):
        check_output(output)
        if was_signalled and code not in (0, STOPPED, -signal.SIGTERM, -signal.SIGINT):
            raise LostError(f"exit code {code} at a signal\n{output[-3000:]}")

    def _run(self, arguments):
        command, variables = self._command(arguments), self._variables()
        return subprocess.run(command, cwd=REPOSITORY, env=variables, capture_output=True, text=True, check=False)

    def _command(self, arguments):
        return [sys.executable, "-m", "cmgems", self.name, *arguments]

    def _variables(self):
        return ENVIRONMENT | self.environment


def _wait(process, seconds):
    """Wait for some seconds or the end of a process; returns the processes below it."""
    family, end = set(), time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        family |= set(psutil.Process(process.pid).children(recursive=True))
        time.sleep(0.05)
    return family


def _end(process, family, how):
    if process.poll() is not None:
        return
    with suppress(psutil.NoSuchProcess):
        family |= set(psutil.Process(process.pid).children(recursive=True))
    if how == "SIGTERM":
        process.terminate()
    elif how == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.kill()
        for each in family if how == "kill -9 of all processes" else ():
            with suppress(psutil.NoSuchProcess):
                each.kill()


def _wait_for_all(process, family):
    end = time.monotonic() + LONGEST
    while process.poll() is None or any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in family):
        if time.monotonic() > end:
            raise HangError(f"after {LONGEST:.0f} s there is still {process} or one of {family}")
        time.sleep(0.05)


def _entries(scores):
    """The entries of a record's scores, by their path."""
    for name, value in scores.items():
        if isinstance(value, dict) and "value" not in value:
            yield from ((f"{name}/{below}", entry) for below, entry in _entries(value))
        else:
            yield name, value


def prepare(genome, environment):
    """`cmgems prepare` of a genome."""

    def fresh(folder):
        folder.mkdir()
        return [str(genome), "--output", str(folder / "corpus"), "--validation_chromosomes", "b"]

    def result(folder):
        files = {str(path.relative_to(folder)): digest(path) for path in folder.rglob("*") if path.is_file()}
        return {name: value for name, value in files.items() if not name.endswith(".json")}

    return Command("prepare", fresh, result, environment)


def benchmark(model, data, suite, environment):
    """`cmgems benchmark` of a model on a suite."""

    def fresh(folder):
        folder.mkdir()
        return [
            *("--suite", str(suite), "--data", str(data), "--model", str(model), "--output", str(folder / "run")),
            *("--seeds", "2", "--tracking_uri", f"sqlite:///{folder}/mlflow.db"),
        ]

    def result(folder):
        found = {}
        for path in sorted((folder / "run").rglob("result.json")):
            content = json.loads(path.read_text())
            found[str(path.relative_to(folder))] = {
                key: content[key] for key in ("metrics", "dev_metrics", "confusion")
            }
        return found

    return Command("benchmark", fresh, result, environment)


def study(write, environment):
    """`cmgems study` with two workers; `write` writes it into a folder and returns its file."""

    def fresh(folder):
        folder.mkdir()
        return [str(write(folder)), "--workers", "2"]

    def result(folder):
        found = {}
        for path in sorted((folder / "study/results").glob("*.json")):
            content = json.loads(path.read_text())
            entries = dict(_entries(content["scores"]))
            scores = {name: {k: v for k, v in entry.items() if k != "seconds"} for name, entry in entries.items()}
            found[path.name] = [scores, content["bits"]]
        return found

    return Command("study", fresh, result, environment)
