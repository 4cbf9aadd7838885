"""Whole runs: how soon they start and go on, and what deciding, sharing and saving take of their time.

    accelerate launch ... -m benchmarks.runs FOLDER SETTINGS

is a run as by cmgems/pretrain.py that writes into FOLDER how long each rank's steps and decisions took, in seconds.
"""

import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.measure import run
from benchmarks.training import K, arguments, corpus, samples, step_times, useful_tokens
from cmgems.config.command_line import load_config
from cmgems.data.corpus import load_corpus
from cmgems.data.loader import TrainingRows, Windows, make_loader
from cmgems.data.order import BatchPlan, training_samples
from cmgems.data.tokenization import Tokenization
from cmgems.pretrain import pretrain
from cmgems.training import trainer

SCRIPT = "cmgems/pretrain.py"
TINY = {
    "model.layers": 1,
    "model.hidden": 64,
    "model.intermediate": 64,
    "model.heads": 2,
    "training.global_batch": 4,
    "training.micro_batch": 2,
}
"""A model and a batch whose steps take next to nothing."""
MOST_STARTED = {"training.steps": 2, "corpus.workers": 2, "tracking.system_metrics": "true"}
"""A run of two steps with all the helpers of a usual one."""

WINDOWS = 4
"""Global batch of the run with a checkpoint."""
PUBLISHED_WINDOWS = 250
"""The published global batch."""
PUBLISHED_CADENCE = 500
"""Steps from evaluation to evaluation, after which a decision falls, in the published recipes."""


def launcher(config: str, processes: int) -> list[str]:
    """`accelerate launch` with a file of deepspeed_configs/ and a port that is free."""
    accelerate = str(Path(sys.executable).with_name("accelerate"))
    options = ["--config_file", f"deepspeed_configs/{config}.yaml", "--num_processes", str(processes)]
    return [accelerate, "launch", *options, "--main_process_port", "0"]


def started_run(work: Path, command: list[str], **environment: str) -> tuple[float, list[float]]:
    """When a run was started, and when each of its steps was done, in seconds since the epoch."""
    output = work / f"run-{time.time_ns()}"
    started = time.time()
    run([*command, "--tracking.uri", f"sqlite:///{work}/mlflow.db", "--output", str(output)], **environment)
    times = step_times(output)
    shutil.rmtree(output)
    return started, times


def one_thread() -> dict[str, str]:
    """Environment of two processes of one thread each; they cannot share one GPU."""
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if torch.cuda.device_count() < 2 else {}
    return {"OMP_NUM_THREADS": "1", **hidden}


def starting(work: Path) -> dict[str, Callable[[], float]]:
    """Seconds from the command to the end of the first step, beyond those that a process takes to import torch,
    transformers and deepspeed, which are measured first in each round.

    `accelerate launch` imports torch for itself before it starts the process that trains. The MLflow file is there
    already, but for the first run ever in `work`.
    """
    settings = arguments("logo", corpus(work, False), {**TINY, **MOST_STARTED})
    imports: list[float] = []

    def importing() -> float:
        started = time.time()
        run([sys.executable, "-c", "import torch, transformers, deepspeed"])
        imports.append(time.time() - started)
        return imports[-1]

    def beyond(*command: str) -> Callable[[], float]:
        def way() -> float:
            started, steps = started_run(work, [*command, SCRIPT, *settings])
            return steps[0] - started - imports[-1]

        return way

    return {
        "imports alone": importing,
        "python, beyond imports": beyond(sys.executable),
        "accelerate launch, beyond imports": beyond(*launcher("ddp", 1)),
    }


def resuming(work: Path) -> dict[str, float]:
    """Batches that the loader reads before the first one of the step that a run goes on from, and seconds until that
    one is there."""
    windows = Windows(load_corpus(corpus(work, False)).train, Tokenization(K), 512)
    assert len(windows.lengths)  # read when a run starts, wherever it starts
    before, seconds = {}, {}
    for step in (0, 10, 100_000):
        started = time.perf_counter()
        before[step] = batches_before(windows, step)
        seconds[step] = time.perf_counter() - started
    reads = {f"read before it, from step {step:,}": float(before[step]) for step in (10, 100_000)}
    return reads | {f"time, from step {step:,}": value for step, value in seconds.items()}


def batches_before(windows: Windows, step: int) -> int:
    """Micro-batches that a loader reads from `step` on before one that belongs to this step."""
    plan, seed = BatchPlan(PUBLISHED_WINDOWS, 1, 32), 42
    epoch, sample_id = training_samples(step, plan.global_batch, len(windows.lengths), seed)
    own = set(zip(epoch.tolist(), sample_id.tolist(), strict=True))
    loader = make_loader(windows, TrainingRows(plan, windows.lengths, seed, 0, step), 0, 1, False)
    read = 0
    for batch in loader:
        if own.issuperset(zip(batch.epoch.tolist(), batch.sample_id.tolist(), strict=True)):
            break
        read += 1
    return read


def deciding(work: Path, changes: int = 12) -> dict[str, float]:
    """Milliseconds that two processes take for a decision after an evaluation, half of which change the stage, and
    their share of the training time without evaluations, in percent.

    The share with the published recipes' cadence is of that many steps of the same tiny model, which is more than it
    would be of steps of a published one.
    """
    folder = work / f"decisions-{time.time_ns()}"
    folder.mkdir()
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump({"extends": "_logo.yaml", "name": "deciding", "curriculum": {"stages": stages(changes)}})
    )
    settings = arguments(
        "logo", corpus(work, False), {**TINY, "training.steps": 2 * changes + 2, "evaluation.every": 1}
    )
    settings[:2] = ["--config", str(recipe)]
    output = ["--tracking.uri", f"sqlite:///{work}/mlflow.db", "--output", str(folder / "run")]
    run([*launcher("ddp", 2), "-m", "benchmarks.runs", str(folder), *settings, *output], **one_thread())
    ranks = [json.loads(path.read_text()) for path in folder.glob("rank-*.json")]
    shutil.rmtree(folder)
    slowest = max(ranks, key=lambda rank: sum(rank["decisions"]))
    decision, decisions = statistics.mean(slowest["decisions"]), sum(slowest["decisions"])
    cadence = PUBLISHED_CADENCE * statistics.median(slowest["steps"])
    return {
        "a decision": 1000 * decision,
        "share, every 500 steps": 100 * decision / (cadence + decision),
        "share, after every step": 100 * decisions / (sum(slowest["steps"]) + decisions),
    }


def stages(changes: int) -> list[dict[str, Any]]:
    """Stages that each end at their second evaluation, whatever the perplexity, and a last one."""
    maskings = [[{"strategy": name, "rate": 0.15}] for name in ("genemask", "global_pmi")]
    until = {"kind": "perplexity_drop", "below": 1e9}
    going = [{"name": f"stage {i}", "masking": maskings[i % 2], "until": until} for i in range(changes)]
    return [*going, {"name": "last", "masking": maskings[changes % 2]}]


class TimedTrainer(trainer.Trainer):
    """A trainer that notes the seconds of its steps, and of its decisions from when all ranks are there."""

    seconds: dict[str, list[float]] = {"steps": [], "decisions": []}

    def _train_step(self, *arguments: Any) -> bool:
        started = time.perf_counter()
        stop = super()._train_step(*arguments)
        self.seconds["steps"].append(time.perf_counter() - started)
        return stop

    def _advance_curriculum(self, *arguments: Any) -> None:
        self.accelerator.wait_for_everyone()
        started = time.perf_counter()
        super()._advance_curriculum(*arguments)
        self.seconds["decisions"].append(time.perf_counter() - started)

    def train(self) -> None:
        """Train, and write down the seconds."""
        super().train()
        path = self.run.folder.parent / f"rank-{self.accelerator.process_index}.json"
        path.write_text(json.dumps(self.seconds))


def sharing(work: Path) -> dict[str, Callable[[], float]]:
    """Useful tokens a second of two processes of one thread each that divide LOGO's optimizer among them, and that
    do not. The first steps, which take their memory from the system, do not count."""
    path, uncounted = corpus(work, False), 8
    sizes = {"training.steps": 2 * uncounted, "training.global_batch": 64, "training.micro_batch": 16}
    settings = arguments("logo", path, sizes)
    config = load_config(settings)
    windows = Windows(load_corpus(path).train, Tokenization(K), config.model.max_positions)
    tokens = useful_tokens(windows, samples(config, windows)[uncounted:])

    def way(kind: str) -> Callable[[], float]:
        def train() -> float:
            _, times = started_run(work, [*launcher(kind, 2), SCRIPT, *settings], **one_thread())
            return tokens / (times[-1] - times[uncounted - 1])

        return train

    return {"ZeRO-2": way("zero2"), "DDP": way("ddp")}


def checkpointing(work: Path, steps: int = 8) -> dict[str, float]:
    """How much longer than the steps before it those after a checkpoint take, altogether: in seconds, in steps, and in
    steps of the published batch at the same rate. All windows are of the same length."""
    batch = {"training.global_batch": WINDOWS, "training.micro_batch": WINDOWS}
    saving = {"training.steps": steps, "checkpoint.every": steps // 2}
    settings = arguments("dnabert", corpus(work, True), {**batch, **saving})
    _, times = started_run(work, [sys.executable, SCRIPT, *settings])
    seconds = [later - earlier for earlier, later in pairwise(times)]
    before, after = seconds[: steps // 2 - 1], seconds[steps // 2 - 1 :]
    step = statistics.median(before)
    stall = sum(after) - len(after) * step
    return {
        "time": stall,
        "in steps of 250 windows": stall / (step * PUBLISHED_WINDOWS / WINDOWS),
        f"in steps of {WINDOWS} windows": stall / step,
    }


if __name__ == "__main__":
    trainer.Trainer = TimedTrainer  # type: ignore[misc]
    pretrain(load_config(sys.argv[2:]))
