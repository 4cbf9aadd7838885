"""The run that faults are tried on: its launches, what they have recorded, and whether that is the undisturbed run."""

import hashlib
import json
import math
import re
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import mlflow
import numpy as np
import psutil

from cmgems.data.prepare import prepare_corpus
from cmgems.data.settings import PrepareConfig
from cmgems.tracking.journal import find_place
from cmgems.training.checkpoint import checkpoint_step, checkpoints
from tests.training.recording import Launch, start

STEPS = 160
RECIPE = {
    "name": "soak",
    "seed": 11,
    "curriculum": {
        "stages": [
            {
                "name": "genemask",
                "masking": [{"strategy": "genemask", "rate": 0.15}],
                "until": {"kind": "perplexity_drop", "below": 1},
            },
            {"name": "global", "masking": [{"strategy": "global_pmi", "rate": 0.15}]},
        ]
    },
    "model": {"layers": 2, "hidden": 32, "intermediate": 384, "heads": 8, "dropout": 0.1, "max_positions": 64},
    "optimizer": {"learning_rate": 2e-3, "warmup_steps": 4},
    "training": {"steps": STEPS, "global_batch": 25, "micro_batch": 7, "precision": "fp32"},
    "evaluation": {"every": 5, "windows": 50, "micro_batch": 25},
    "checkpoint": {"every": 5, "keep": 2, "milestones": []},
    "launch": {"timeout": 20},
}
_FIRST, _SECOND = RECIPE["curriculum"]["stages"]
ELASTIC = RECIPE | {
    "model": {**RECIPE["model"], "dropout": 0.0},
    "curriculum": {"stages": [{**_FIRST, "until": {"kind": "step", "at": 40}}, _SECOND]},
}
"""Without dropout, whose units depend on the rank, and with a switch that does not depend on rounding."""

WORKERS = 1
"""Loader workers of a rank."""
TRACEBACK = re.compile(r"Traceback \(most recent call last\):\n  File \"(?!.*/bin/accelerate\")")
"""A traceback other than the launcher's own, with which it ends whenever a process of it has failed."""
LONGEST = 150.0
"""Seconds after which a launch that should have ended, or a step that should have come, counts as hanging. Twice what a
silent rank takes to be noticed: the time-out, half a minute of the launcher, and the start of a launch."""


class LostError(Exception):
    """Something is not as it is without the fault."""


class HangError(Exception):
    """Something that should have happened has not."""


@dataclass
class Attempt:
    """A launch of the run."""

    trace: Path
    launcher: subprocess.Popen
    processes: int
    family: list[psutil.Process] = field(default_factory=list)
    """All processes of the launch that were seen."""

    @property
    def output(self):
        """What it has printed."""
        return (self.trace / "output").read_text(errors="replace")

    @property
    def alive(self):
        """Whether the launcher runs."""
        return self.launcher.poll() is None

    @property
    def step(self):
        """The last step that rank 0 has recorded; 0 if none."""
        path = self.trace / "rank-0.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return next((json.loads(line)["step"] for line in reversed(lines) if line.endswith("\n")), 0)

    @property
    def recorded(self):
        """What its ranks have recorded."""
        return Launch(0, "", self.trace)

    @property
    def steps(self):
        """The steps that rank 0 has recorded."""
        return self.recorded.ranks()[0].keys() if (self.trace / "rank-0.jsonl").exists() else ()

    def look(self):
        """Take note of the processes there are."""
        if self.alive:
            known = set(self.family)
            self.family += [
                each for each in psutil.Process(self.launcher.pid).children(recursive=True) if each not in known
            ]

    def rank(self, number):
        """The process of a rank; None as long as there is none."""
        self.look()
        for process in self.family:
            try:
                if process.environ().get("RANK") == str(number) and process.ppid() == self.launcher.pid:
                    return process
            except psutil.Error:
                continue
        return None

    def worker(self, number):
        """A loader worker of a rank; None as long as there is none."""
        rank = self.rank(number)
        try:
            found = [child for child in rank.children() if child.cmdline() == rank.cmdline()] if rank else []
        except psutil.Error:
            return None
        self.look()
        return found[0] if found else None

    def reach(self, step):
        """Return whether a step was reached before the launch ended."""
        end = time.monotonic() + LONGEST
        while self.step < step:
            if not self.alive:
                return False
            if time.monotonic() > end:
                raise HangError(f"no step {step} within {LONGEST:.0f} s, but {self.step}\n{self.output[-2000:]}")
            self.look()
            time.sleep(0.02)
        return True

    def wait(self):
        """Wait for the end of all its processes; returns the exit code of the launcher."""
        end = time.monotonic() + LONGEST
        while self.alive or any(self._still_there()):
            if time.monotonic() > end:
                left = [self.launcher, *self._still_there()] if self.alive else self._still_there()
                raise HangError(f"after {LONGEST:.0f} s there is still {left}\n{self.output[-2000:]}")
            self.look()
            time.sleep(0.02)
        return self.launcher.returncode

    def _still_there(self):
        alive = [each for each in self.family if each.is_running()]
        return [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]

    def kill(self):
        """End all its processes at once."""
        self.look()
        for process in (self.launcher, *self.family):
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.launcher.wait()


class Run:
    """A run in a folder of its own, launched again and again until it is complete.

    Parameters
    ----------
    folder
        New folder.
    corpus
        Its corpus, a copy that may be damaged.
    uri
        Where it logs to.
    kind
        Launch file: zero2 or ddp.
    environment
        Variables of its processes.
    undisturbed
        The same run, to which nothing has happened; None for that one itself.
    elastic
        Whether the number of its processes changes: it has no dropout then, and losses are equal up to rounding.
    """

    def __init__(self, folder, corpus, uri, kind, environment, undisturbed=None, elastic=False):
        self.folder, self.corpus, self.kind, self.environment = folder, corpus, kind, environment
        self.undisturbed, self.uri, self.elastic, self.processes = undisturbed, uri, elastic, 2
        self.recipe = (ELASTIC if elastic else RECIPE) | {
            "corpus": {"path": str(corpus)},
            "tracking": {"log_every": 1, "system_metrics": False, "uri": uri, "experiment": "soak"},
        }
        self.attempts: list[Attempt] = []

    @property
    def current(self):
        """The launch that is at work; None if there is none."""
        return self.attempts[-1] if self.attempts and self.attempts[-1].alive else None

    @property
    def is_complete(self):
        """Whether the run has reached its end, in a launch that ended well."""
        last = self.attempts[-1] if self.attempts else None
        return last is not None and not last.alive and last.launcher.returncode == 0

    def start(self, *settings, environment=None):
        """Launch the run, or resume it."""
        trace, launcher = start(
            self.folder,
            self.recipe,
            self.kind,
            self.processes,
            *("--resume", "auto"),
            *settings,
            workers=WORKERS,
            environment=self.environment | {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "10"} | (environment or {}),
        )
        return Attempt(trace, launcher, self.processes)

    def running(self):
        """The launch that is at work, a new one if there is none."""
        if self.current is None:
            self.attempts.append(self.start())
        return self.current

    def stop(self):
        """End the launch that is at work, if any, by a signal to its launcher."""
        if attempt := self.current:
            attempt.launcher.terminate()
            attempt.wait()
            self.check(attempt)

    def checkpoints(self):
        """Its complete checkpoints, oldest first."""
        return checkpoints(self.folder / "run/checkpoints")

    def state(self):
        """Digests of its checkpoints' files, by path."""
        files = [path for folder in self.checkpoints() for path in sorted(folder.rglob("*")) if path.is_file()]
        return {str(path.relative_to(self.folder)): digest(path) for path in files}

    def check(self, attempt):
        """Raise LostError if a launch that has ended trained otherwise than the undisturbed run, if it printed a
        traceback, or if it names a checkpoint that is not there."""
        check_output(attempt.output)
        if self.undisturbed:
            (self._check_rounded if self.elastic else self._check_exact)(attempt.recorded)
        for line in attempt.output.splitlines():
            if line.startswith("stopped by a signal after step "):
                step = int(line.split("step ")[1].split(";")[0])
                if step not in map(checkpoint_step, self.checkpoints()):
                    raise LostError(f"{line}\nbut the checkpoints are {self.checkpoints()}")

    def _check_exact(self, recorded):
        """Windows, masks, stages, losses and norms of all steps, to the last bit."""
        expected = self.undisturbed.recorded.ranks()
        for rank, records in enumerate(recorded.ranks()):
            for step, record in records.items():
                if record != expected[rank][step]:
                    raise LostError(f"rank {rank}, step {step}: {record} instead of {expected[rank][step]}")

    def _check_rounded(self, recorded):
        """Windows, masks and stages of all steps, and losses up to rounding."""
        if not recorded.ranks():
            return
        rows, losses = self.undisturbed.recorded.rows(), self.undisturbed.recorded.losses()
        stages = self.undisturbed.recorded.ranks()[0]
        for step, found in recorded.rows().items():
            if found != rows[step]:
                raise LostError(f"step {step} has other windows or masks")
            if recorded.ranks()[0][step]["stage"] != stages[step]["stage"]:
                raise LostError(f"step {step} is in another stage")
        for step, loss in recorded.losses().items():
            if abs(loss / losses[step] - 1) > 1e-4:
                raise LostError(f"step {step}: loss {loss} instead of {losses[step]}")

    @property
    def recorded(self):
        """What its first launch has recorded."""
        return self.attempts[0].recorded

    @property
    def switch(self):
        """The last step of its first stage."""
        records = self.recorded.ranks()[0]
        return max(step for step, record in records.items() if record["stage"] == "genemask")

    @property
    def model(self):
        """The file of the trained model."""
        return self.folder / f"run/models/step-{STEPS:08d}/model.safetensors"

    def check_end(self):
        """Raise LostError if the complete run is another than the undisturbed one: its model, its steps, or what MLflow
        has of it."""
        if not self.elastic and digest(self.model) != digest(self.undisturbed.model):
            raise LostError(f"{self.model} is another model than {self.undisturbed.model}")
        steps = {step for attempt in self.attempts for step in attempt.steps}
        if missing := set(range(1, STEPS + 1)) - steps:
            raise LostError(f"steps {sorted(missing)} are in no launch")
        found, expected = self.logged(), self.undisturbed.logged()
        keys = found.keys() | expected.keys()
        different = [key for key in keys if not self._equal(found.get(key), expected.get(key))]
        if different:
            raise LostError(f"in MLflow {len(different)} values differ: {sorted(different)[:5]}")

    def _equal(self, found, expected):
        if found is None or expected is None or not self.elastic:
            return found == expected
        # A step that was trained again by another number of processes has another value beside the first.
        return all(any(math.isclose(value, other, rel_tol=1e-3) for other in expected) for value in found)

    def logged(self):
        """What MLflow has of the run: a set of values by metric and step."""
        client = mlflow.MlflowClient(self.uri)
        values = {}
        for metric in ("train/loss", "ppl/stage", "curriculum/stage", "masking/masked_share"):
            for point in client.get_metric_history(self.mlflow_run(), metric):
                values.setdefault((metric, point.step), set()).add(point.value)
        return values

    def mlflow_run(self):
        """The id of its run in MLflow; None as long as it has none."""
        place = find_place(self.folder / "run")
        return place.run if place else None


def check_output(output):
    """Raise LostError if a program has printed a traceback, unless Ctrl-C ended it before it began."""
    found = TRACEBACK.search(output)
    if found and not ("KeyboardInterrupt" in output and "cmgems 0" not in output):
        raise LostError(f"a traceback:\n{output[-4000:]}")


def digest(path):
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_corpus(folder):
    """Make a corpus of words that repeat, so that there is something to learn; returns its folder."""
    draw = np.random.default_rng(0)
    words = ["".join(draw.choice(list("ACGT"), 12)) for _ in range(20)]
    genome = folder / "genome.fa"
    with genome.open("w") as file:
        for name, length in (("one", 2000), ("two", 1500), ("three", 300)):
            file.write(f">{name}\n{''.join(draw.choice(words, length))}\n")
    config = PrepareConfig(inputs=[str(genome)], k=4, window_tokens=40, validation_chromosomes=["three"])
    prepare_corpus(config, folder / "corpus", progress=False)
    return folder / "corpus"
