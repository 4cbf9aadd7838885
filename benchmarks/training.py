"""Seconds of optimizer steps of one way to train, in a process of its own:

    python -m benchmarks.training ours|trainer|bare WORK MODEL [--full] [--bf16]

WORK is a folder for corpora. Prints the useful (not padded) tokens a second as JSON.
"""

import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers import train_bare, train_by_trainer
from cmgems.config.command_line import load_config
from cmgems.config.schema import PretrainConfig
from cmgems.data.corpus import load_corpus
from cmgems.data.loader import TrainingRows, Windows
from cmgems.data.order import BatchPlan
from cmgems.data.prepare import prepare_corpus
from cmgems.data.settings import PrepareConfig
from cmgems.data.tokenization import Tokenization
from cmgems.data.tokenizer import build_tokenizer
from cmgems.masking.masker import Masker
from cmgems.model.bert import bert_config, build_model, build_optimizer
from cmgems.pretrain import pretrain
from cmgems.tracking.journal import read_contents
from cmgems.training.setup import open_npmi

K = 6
SIZES = {"logo": (2, 128, 16), "dnabert": (2, 32, 4)}
"""By model: optimizer steps, of which the first is not counted, global batch, micro-batch."""
FULL = {"training.steps": 4, "training.global_batch": 64}
"""Where all windows are of full length: every micro-batch takes as long, so a few of them will do."""


def corpus(work: Path, full: bool) -> Path:
    """Corpus of a random genome: windows as DNABERT's, or all of full length."""
    path = work / ("full" if full else "mixed")
    if not path.exists():
        genome = write_genome(work / "genome.fa", 2_000_000)
        share = 1.0 if full else 0.5
        prepare_corpus(PrepareConfig(inputs=[str(genome)], k=K, full_length_share=share), path, progress=False)
    return path


def write_genome(path: Path, bases: int, chromosomes: int = 4) -> Path:
    """FASTA of random nucleotides, lines of 60."""
    random = np.random.default_rng(0)
    letters = np.frombuffer(b"ACGT", np.uint8)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        for number in range(chromosomes):
            file.write(f">chr{number}\n".encode())
            left = bases // chromosomes
            while left > 0:
                lines = min(left, 6_000_000) // 60
                text = np.full((lines, 61), ord("\n"), np.uint8)
                text[:, :60] = letters[random.integers(0, 4, (lines, 60), np.uint8)]
                file.write(text.tobytes())
                left -= 6_000_000
    return partial.rename(path)


def recipe(model: str, path: Path, options: Sequence[str]) -> PretrainConfig:
    """The published recipe, shortened, without evaluations and checkpoints on the way; options as of the command."""
    full = FULL if "--full" in options else {}
    return load_config(
        arguments(model, path, {"training.precision": "bf16" if "--bf16" in options else "fp32", **full})
    )


def arguments(model: str, path: Path, changed: Mapping[str, object]) -> list[str]:
    """The same in fp32 as a command line, but for the settings that are `changed`."""
    steps, global_batch, micro_batch = SIZES[model]
    settings: dict[str, object] = {
        "corpus.path": path,
        "corpus.workers": 0,
        "training.steps": steps,
        "training.global_batch": global_batch,
        "training.micro_batch": micro_batch,
        "training.precision": "fp32",
        "optimizer.warmup_steps": 1,
        "evaluation.every": 1000,
        "evaluation.windows": 8,
        "checkpoint.every": 1000,
        "checkpoint.milestones": "[]",
        "tracking.log_every": 1,
        "tracking.system_metrics": "false",
    }
    words = [word for name, value in (settings | dict(changed)).items() for word in (f"--{name}", str(value))]
    return ["--config", f"{model}-genemask-15", *words]


def samples(config: PretrainConfig, windows: Windows) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """Epochs and sample ids of each micro-batch of each step."""
    plan = BatchPlan(config.training.global_batch, 1, config.training.micro_batch)
    rows = iter(TrainingRows(plan, windows.lengths, config.seed, 0, 0))
    return [[next(rows) for _ in range(plan.accumulation)] for _ in range(config.training.steps)]


def useful_tokens(windows: Windows, steps: list[list[tuple[np.ndarray, np.ndarray]]]) -> int:
    """k-mers in steps."""
    ids = np.concatenate([ids for step in steps for _, ids in step])
    return int((windows.lengths[ids[ids >= 0]] - K + 1).sum())


def ours(config: PretrainConfig, work: Path) -> list[float]:
    """Seconds of each optimizer step but the first, as `accelerate launch cmgems/pretrain.py` takes them."""
    output = work / f"run-{time.time_ns()}"
    uri = f"sqlite:///{work}/mlflow.db"
    pretrain(config.model_copy(update={"output": output, "tracking": config.tracking.model_copy(update={"uri": uri})}))
    times = step_times(output)
    shutil.rmtree(output)
    return [later - earlier for earlier, later in pairwise(times)]


def step_times(folder: Path) -> list[float]:
    """When each optimizer step of a run that logs all of them was done, in seconds since the epoch."""
    return [step["time"] / 1000 for step in logged_steps(folder)]


def logged_steps(folder: Path) -> list[dict[str, Any]]:
    """What such a run's journal says of each optimizer step."""
    return [content for content in read_contents(folder) if "train/loss" in content.get("metrics", {})]


def trainer(config: PretrainConfig, windows: Windows, steps: list[list[tuple[np.ndarray, np.ndarray]]]) -> list[float]:
    """P1 on the same windows, in the order of the corpus' stream, not by length."""
    ids = np.concatenate([np.sort(np.concatenate([ids[ids >= 0] for _, ids in step])) for step in steps])
    bert = bert_config(config.model, Tokenization(K))
    return train_by_trainer(
        windows.split[ids.tolist()]["sequence"],
        build_tokenizer(K, config.model.max_positions),
        bert,
        config.training.global_batch,
        config.training.micro_batch,
        config.training.precision == "bf16",
    )


def bare(config: PretrainConfig, windows: Windows, steps: list[list[tuple[np.ndarray, np.ndarray]]]) -> list[float]:
    """L on the same windows, masked beforehand."""
    masker = Masker(open_npmi(config.npmi, load_corpus(config.corpus.path)), config.curriculum.corruption, config.seed)
    masking = config.curriculum.stages[0].masking
    batches = [
        [masker(batch.ids, batch.epoch, batch.sample_id, masking) for batch in (windows[rows] for rows in step)]
        for step in steps
    ]
    model = build_model(config.model, Tokenization(K), config.seed)
    return train_bare(model, build_optimizer(model, config.optimizer), batches, config.training.precision == "bf16")


def main(kind: str, work: Path, model: str, *options: str) -> None:
    """Measure one way once."""
    path = corpus(work, "--full" in options)
    config = recipe(model, path, options)
    windows = Windows(load_corpus(path).train, Tokenization(K), config.model.max_positions)
    steps = samples(config, windows)
    torch.manual_seed(0)
    seconds = {
        "ours": lambda: ours(config, work),
        "trainer": lambda: trainer(config, windows, steps),
        "bare": lambda: bare(config, windows, steps),
    }[kind]()
    assert len(seconds) == config.training.steps - 1
    print(json.dumps({"tokens_per_second": useful_tokens(windows, steps[1:]) / sum(seconds)}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
