"""Launches of tests/training/driver.py, the entry script with a recording around it, and what they have recorded."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

from tests.training.launching import ENVIRONMENT, REPOSITORY, logged

SECONDS = 300
"""Longest time for a launch."""


@dataclass(frozen=True)
class Launch:
    """What a launch has left."""

    code: int
    output: str
    trace: Path

    @property
    def end(self):
        """The last lines it printed, for the message of a test that fails."""
        return f"exit code {self.code}\n{self.output[-4000:]}"

    @property
    def folder(self):
        """Where the run is."""
        return self.trace.parent

    @property
    def killed_by(self):
        """The fault that killed it."""
        path = self.trace / "killed"
        return path.read_text() if path.exists() else None

    def ranks(self):
        """For each rank its records, by step."""
        return [
            {record["step"]: record for record in map(json.loads, complete_lines(path))}
            for path in sorted(self.trace.glob("rank-*.jsonl"))
        ]

    def rows(self):
        """For each step the global batch: (epoch, sample id, digest) by slot."""
        return {
            step: [
                row
                for micro_step in zip(*(rank["micro_batches"] for rank in ranks), strict=True)
                for micro_batch in micro_step
                for row in micro_batch
            ]
            for step, ranks in by_step(self.ranks())
        }

    def losses(self):
        """For each step the mean over the masked tokens of the global batch."""
        return {
            step: sum(float.fromhex(rank["loss"]) for rank in ranks) / sum(rank["masked_tokens"] for rank in ranks)
            for step, ranks in by_step(self.ranks())
        }

    def perplexities(self):
        """For each evaluation the perplexity under the stage's masking, which may trigger a switch."""
        return logged(self.folder / "run", "ppl/stage")


def by_step(ranks):
    """Steps that all ranks have recorded, each with their records."""
    for step in ranks[0]:
        if all(step in rank for rank in ranks):
            yield step, [rank[step] for rank in ranks]


def complete_lines(path):
    """Lines of a file whose writer may have been killed."""
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def launch(folder, recipe, kind, processes, *settings, fault="", workers=0):
    """Launch a run in `folder`, where launches before it may have left the run; waits for its end."""
    trace, process = start(folder, recipe, kind, processes, *settings, workers=workers, environment={"FAULT": fault})
    try:
        code = process.wait(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        for each in (*psutil.Process(process.pid).children(recursive=True), process):
            each.kill()
        code = f"none after {SECONDS} s"
    return Launch(code, (trace / "output").read_text(), trace)


def start(folder, recipe, kind, processes, *settings, workers=0, environment=None):
    """Start a run in `folder`, in a process group of its own, as a terminal does. Returns the folder of its records,
    and the launcher's process."""
    trace = folder / f"trace-{1 + len(list(folder.glob('trace-*')))}"
    trace.mkdir()
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    program = ["tests/training/driver.py", "--config", f"{folder}/recipe.yaml", "--output", f"{folder}/run"]
    program += ["--corpus.workers", str(workers)]
    if "uri" not in recipe["tracking"]:
        program += ["--tracking.uri", f"sqlite:///{folder}/mlflow.db"]
    with (trace / "output").open("w") as output:
        process = subprocess.Popen(
            [*launcher(kind, processes), *program, *required(kind, processes), *settings],
            cwd=REPOSITORY,
            env=ENVIRONMENT | {"TRACE": str(trace)} | (environment or {}),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    return trace, process


def launcher(kind, processes):
    """What starts the program: Accelerate's launcher, but for a plain process."""
    if kind == "plain":
        return [sys.executable]
    config = ("--config_file", f"deepspeed_configs/{kind}.yaml", "--num_processes", str(processes))
    return [str(Path(sys.executable).with_name("accelerate")), "launch", *config, "--main_process_port", "0"]


def required(kind, processes):
    """Settings by which the run makes sure that it is launched as it should be."""
    settings = ["--launch.processes", str(processes)]
    if kind.startswith("zero"):
        return [*settings, "--launch.distributed", "deepspeed", "--launch.zero_stage", kind.removeprefix("zero")]
    return [*settings, "--launch.distributed", {"plain": "none"}.get(kind, kind)]
