"""Starting real processes by `accelerate launch`, as a user does, and reading what they recorded."""

import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState

from tests.training.golden import GOLDEN_LOSSES

REPOSITORY = Path(__file__).parents[2]
ACCELERATE = str(Path(sys.executable).with_name("accelerate"))
# Two processes on the CPU, also where there is a GPU, which they could not share.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def config(name, processes=2):
    """Arguments of `accelerate launch` for a file in deepspeed_configs/, and a port that is free."""
    return (
        *("--config_file", f"deepspeed_configs/{name}.yaml"),
        *("--num_processes", str(processes), "--main_process_port", "0"),
    )


ZERO2 = config("zero2")
DDP = config("ddp")


def command(launcher, *arguments):
    """The command line of a launch of the entry script."""
    return [ACCELERATE, "launch", *launcher, "cmgems/pretrain.py", *arguments]


def launch(launcher, *arguments, environment=None):
    """Run the entry script from the top of the repository; returns the finished process."""
    return subprocess.run(
        command(launcher, *arguments),
        cwd=REPOSITORY,
        env={**ENVIRONMENT, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=300,
    )


def forget_accelerator():
    """Accelerate keeps its state for the whole process; each run in one process starts as a new one would."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def the_run():
    """The only run in the tracking store."""
    [run] = mlflow.search_runs(search_all_experiments=True, output_format="list")
    return run


def newest_run():
    """The run in the tracking store that was started last."""
    [run] = mlflow.search_runs(
        search_all_experiments=True, max_results=1, order_by=["start_time DESC"], output_format="list"
    )
    return run


def history_of(run, metric):
    """Values of a metric of a run, by step."""
    return {point.step: point.value for point in mlflow.MlflowClient().get_metric_history(run.info.run_id, metric)}


def history(metric):
    """Values of a metric of the only run, by step."""
    return history_of(the_run(), metric)


def logged(folder, metric):
    """Values of a metric in the journal of a run's folder, by step."""
    lines = [json.loads(line) for line in (folder / "tracking.jsonl").read_text().splitlines()]
    return {line["step"]: line["metrics"][metric] for line in lines if metric in line.get("metrics", {})}


def check_golden_losses(finished):
    """The launch succeeded, with the losses of every other launch of the tiny recipe."""
    assert finished.returncode == 0, finished.stderr
    assert history("train/loss") == pytest.approx(GOLDEN_LOSSES, rel=1e-4)
