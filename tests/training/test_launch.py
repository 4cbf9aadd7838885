"""Real processes, started by `accelerate launch`: the same training however it is launched, and no silent fallback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import psutil
import pytest
import torch
from transformers import AutoModelForMaskedLM

from tests.training.golden import GOLDEN_LOSSES

REPOSITORY = Path(__file__).parents[2]
ACCELERATE = str(Path(sys.executable).with_name("accelerate"))
ZERO2 = ("--config_file", "deepspeed_configs/zero2.yaml", "--num_processes", "2")
DDP = ("--config_file", "deepspeed_configs/ddp.yaml", "--num_processes", "2")

slow = pytest.mark.slow


def launch(launcher, *arguments, environment=None):
    """Run the entry script as a user does, from the top of the repository."""
    return subprocess.run(
        [ACCELERATE, "launch", *launcher, "cmgems/pretrain.py", *arguments],
        cwd=REPOSITORY,
        # Two processes on the CPU, also where there is a GPU, which they could not share.
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **(environment or {})},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def pretrain(tiny_recipe, tmp_path):
    """Function that launches the tiny recipe and returns its finished process, output folder and tracking URI."""

    def start(launcher, *overrides, environment=None):
        uri = f"sqlite:///{tmp_path}/mlflow.db"
        arguments = ["--config", str(tiny_recipe), "--tracking.uri", uri, "--output", str(tmp_path / "run"), *overrides]
        mlflow.set_tracking_uri(uri)
        return launch(launcher, *arguments, environment=environment)

    return start


def history(metric):
    [run] = mlflow.search_runs(search_all_experiments=True, output_format="list")
    points = mlflow.MlflowClient().get_metric_history(run.info.run_id, metric)
    return {point.step: point.value for point in points}


def check_golden_losses(finished):
    assert finished.returncode == 0, finished.stderr
    assert history("train/loss") == pytest.approx(GOLDEN_LOSSES, rel=1e-4)


@slow
def test_two_processes_with_deepspeed_zero_2_train_as_one(pretrain, tmp_path):
    required = ("--launch.distributed", "deepspeed", "--launch.zero_stage", "2", "--launch.processes", "2")
    finished = pretrain(ZERO2, *required, "--corpus.workers", "2")
    check_golden_losses(finished)
    assert "deepspeed ZeRO-2, 2 process(es) (DeepSpeedEngine)" in finished.stdout
    for rank in (0, 1):
        assert f"rank {rank}: stage 'global' masks from step 8 on" in finished.stderr
    assert (tmp_path / "run/models/step-00000012/model.safetensors").exists()


@slow
def test_two_processes_with_ddp_train_as_one(pretrain):
    finished = pretrain(DDP, "--launch.distributed", "ddp")
    check_golden_losses(finished)
    assert "ddp, 2 process(es) (DistributedDataParallel)" in finished.stdout


@slow
def test_deepspeed_resumes_where_it_was_killed(pretrain, tmp_path):
    finished = pretrain(ZERO2)
    check_golden_losses(finished)
    losses = history("train/loss")
    # As after a kill -9 between the checkpoints of steps 8 and 12.
    for folder in ("checkpoints/step-00000012", "models/step-00000012"):
        (tmp_path / "run" / folder).rename(tmp_path / folder.replace("/", "-"))
    resumed = pretrain(ZERO2, "--resume", "auto")
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed after step 8" in resumed.stdout
    again = history("train/loss")
    assert {step: again[step] for step in (10, 12)} == {step: losses[step] for step in (10, 12)}


@slow
def test_deepspeed_in_bf16_exports_the_full_precision_weights(pretrain, tmp_path):
    finished = pretrain(ZERO2, "--training.precision", "bf16")
    assert finished.returncode == 0, finished.stderr
    losses = history("train/loss")
    assert losses[12] < losses[2]
    folder = tmp_path / "run/models/step-00000012"
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    weights = AutoModelForMaskedLM.from_pretrained(folder).state_dict()
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())
    # Not the rounded copies that the computation uses: these would come back from bf16 as they went in.
    query = weights["bert.encoder.layer.0.attention.self.query.weight"]
    assert not torch.equal(query.bfloat16().float(), query)


@slow
def test_the_recipe_decides_on_the_precision(pretrain, tmp_path):
    (tmp_path / "bf16.json").write_text(json.dumps({"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}}))
    launcher = (*ZERO2, "--deepspeed_config_file", str(tmp_path / "bf16.json"))
    finished = pretrain(launcher)
    check_golden_losses(finished)
    assert "bf16 gives way to the recipe's fp32" in finished.stdout


OWN_DEFAULTS = """
compute_environment: LOCAL_MACHINE
distributed_type: DEEPSPEED
deepspeed_config:
  zero_stage: 2
  gradient_accumulation_steps: 4
  gradient_clipping: 3.0
  offload_optimizer_device: none
  offload_param_device: none
  zero3_init_flag: false
mixed_precision: bf16
num_machines: 1
num_processes: 2
machine_rank: 0
rdzv_backend: static
same_network: true
use_cpu: false
"""


@slow
def test_a_users_own_default_config_of_accelerate_does_not_change_the_training(pretrain, tmp_path):
    config = tmp_path / "home/accelerate/default_config.yaml"
    config.parent.mkdir(parents=True)
    config.write_text(OWN_DEFAULTS)
    finished = pretrain((), environment={"HF_HOME": str(tmp_path / "home")})
    check_golden_losses(finished)
    assert "deepspeed ZeRO-2, 2 process(es)" in finished.stdout
    assert "gradient_accumulation_steps 4 gives way to the recipe's 2" in finished.stdout


@pytest.mark.matrix
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("micro_batch", [3, 8, 25])
@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("config", ["zero2", "ddp"])
def test_every_launch_trains_the_same(pretrain, config, processes, micro_batch, workers):
    launcher = ("--config_file", f"deepspeed_configs/{config}.yaml", "--num_processes", str(processes))
    settings = ("--training.micro_batch", str(micro_batch), "--corpus.workers", str(workers))
    check_golden_losses(pretrain(launcher, *settings, "--launch.processes", str(processes)))


@slow
def test_a_launch_that_turns_deepspeed_off_is_an_error(pretrain):
    finished = pretrain(ZERO2, environment={"ACCELERATE_USE_CPU": "true"})
    assert finished.returncode != 0
    assert finished.stderr.count("error: DeepSpeed was asked for, but Accelerate runs without it") == 1


@slow
def test_a_launch_that_passes_over_its_config_file_is_an_error_where_the_recipe_says_what_it_needs(pretrain):
    finished = pretrain((*ZERO2, "--cpu"), "--launch.distributed", "deepspeed")
    assert finished.returncode != 0
    assert "error: launch.distributed asks for deepspeed, but this run was launched with none" in finished.stderr


@slow
def test_a_loss_that_is_not_finite_ends_both_processes_with_one_message(pretrain):
    finished = pretrain(ZERO2, "--optimizer.learning_rate", "1e30")
    assert finished.returncode != 0
    assert finished.stderr.count("error: the loss is not finite at step") == 1
    assert "hold the training windows [" in finished.stderr
    [run] = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert run.info.status == "FAILED"


@slow
def test_a_mistake_ends_the_program_with_exit_code_2_before_any_process_group(tiny_recipe):
    program = [sys.executable, "cmgems/pretrain.py", "--config", str(tiny_recipe), "--training.stpes", "3"]
    finished = subprocess.run(program, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert finished.returncode == 2
    assert finished.stderr == "error: --training.stpes: unknown setting (did you mean --training.steps?)\n"


@slow
def test_a_mistake_is_reported_once_by_two_processes(pretrain):
    finished = pretrain(ZERO2, "--training.stpes", "3")
    assert finished.returncode != 0
    assert finished.stderr.count("error: --training.stpes: unknown setting") == 1


@slow
def test_a_dead_rank_ends_the_run_which_is_marked_failed(tiny_recipe, tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    settings = ("--tracking.uri", uri, "--output", str(tmp_path / "run"), "--training.steps", "100000")
    command = [ACCELERATE, "launch", *ZERO2, "cmgems/pretrain.py", "--config", str(tiny_recipe), *settings]
    process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith("step 8 "):
            [rank_1] = [p for p in psutil.Process(process.pid).children(recursive=True) if is_rank_1(p)]
            rank_1.kill()
            break
    process.communicate(timeout=60)
    assert process.returncode != 0
    mlflow.set_tracking_uri(uri)
    [run] = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert run.info.status == "FAILED"


def is_rank_1(process):
    return process.environ().get("RANK") == "1" and "pretrain.py" in " ".join(process.cmdline())
