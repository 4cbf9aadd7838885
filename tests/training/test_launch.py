"""Real processes, started by `accelerate launch`: the same training however it is launched, and no silent fallback."""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from transformers import AutoModelForMaskedLM

from cmgems.errors import UserError
from cmgems.runtime.process import exit_on_error
from cmgems.training.launch import check_devices, launcher_settings
from tests.training.launching import DDP, REPOSITORY, ZERO2, check_golden_losses, config, history, the_run

slow = pytest.mark.slow


@slow
def test_two_processes_with_deepspeed_zero_2_train_as_one(pretrain, tmp_path):
    required = ("--launch.distributed", "deepspeed", "--launch.zero_stage", "2", "--launch.processes", "2")
    finished = pretrain(ZERO2, *required, "--corpus.workers", "2")
    check_golden_losses(finished)
    assert "launched by accelerate launch: deepspeed ZeRO-2, 2 process(es) over gloo" in finished.stdout
    assert "deepspeed ZeRO-2, 2 process(es) (DeepSpeedEngine)" in finished.stdout
    for rank in (0, 1):
        assert f"rank {rank}: stage 'global' masks from step 8 on" in finished.stderr
    assert (tmp_path / "run/models/step-00000012/model.safetensors").exists()


@pytest.mark.parametrize(
    "launches",
    [
        pytest.param([("ddp", 1), ("zero2", 2), ("zero3", 2)], marks=slow),
        pytest.param([("ddp", 1), ("ddp", 2), ("zero3", 1), ("zero3", 2)], marks=pytest.mark.matrix),
    ],
)
def test_every_launch_starts_from_the_same_weights_bit_for_bit(pretrain, tmp_path, launches):
    variant = {"embedding_init": "nucleotides", "position_init": "sinusoidal", "attention_init": "neighbours"}
    settings = [argument for name, value in variant.items() for argument in (f"--model.{name}", value)]
    settings += ["--checkpoint.milestones", "0", "--training.steps", "8", "--optimizer.warmup_steps", "1"]
    digests = {}
    for name, processes in launches:
        output = tmp_path / f"{name}-{processes}"
        finished = pretrain(config(name, processes), *settings, "--output", str(output))
        assert finished.returncode == 0, finished.stderr
        start, end = (output / f"models/step-{step:08d}/model.safetensors" for step in (0, 8))
        digests[output.name] = hashlib.sha256(start.read_bytes()).hexdigest()
        assert start.read_bytes() != end.read_bytes()
    assert len(set(digests.values())) == 1, digests


@pytest.mark.matrix  # one of the launches that test_exact compares is of this kind
def test_two_processes_with_ddp_train_as_one(pretrain):
    finished = pretrain(DDP, "--launch.distributed", "ddp")
    check_golden_losses(finished)
    assert "ddp, 2 process(es) (DistributedDataParallel)" in finished.stdout


@pytest.mark.parametrize(
    "name", [pytest.param("zero0", marks=pytest.mark.matrix), pytest.param("zero3_offload", marks=slow)]
)
def test_two_processes_train_as_one_without_any_partition_and_with_everything_partitioned(pretrain, tmp_path, name):
    finished = pretrain(config(name))
    check_golden_losses(finished)
    with_offload = " with optimizer and param offload" if name == "zero3_offload" else ""
    assert f"deepspeed ZeRO-{name[4]}{with_offload}, 2 process(es) (DeepSpeedEngine)" in finished.stdout
    assert history("train/gradient_norm")[12] > 0
    weights = AutoModelForMaskedLM.from_pretrained(tmp_path / "run/models/step-00000012").state_dict()
    assert weights["bert.encoder.layer.0.attention.self.query.weight"].shape == (32, 32)


@pytest.mark.matrix
@pytest.mark.parametrize("name", ["zero1", "zero2_offload", "zero3"])
def test_two_processes_train_as_one_with_every_other_config(pretrain, name):
    check_golden_losses(pretrain(config(name)))


def test_configs_come_in_pairs_for_one_machine_and_for_many():
    folder = REPOSITORY / "deepspeed_configs"
    one_machine = [path for path in folder.glob("*.yaml") if "multinode" not in path.name]
    assert len(one_machine) == 7
    for path in one_machine:
        one = yaml.safe_load(path.read_text())
        many = yaml.safe_load(path.with_name(f"{path.stem}_multinode.yaml").read_text())
        several = {"num_machines": 2, "same_network": False}
        if path.stem != "ddp":
            file = REPOSITORY / one["deepspeed_config"]["deepspeed_config_file"]
            assert json.loads(file.read_text())["zero_optimization"]["stage"] == int(path.stem[4])
            several["deepspeed_config"] = {**one["deepspeed_config"], "deepspeed_multinode_launcher": "standard"}
        assert many == {**one, **several}


@slow
def test_an_optimizer_in_the_deepspeed_config_is_an_error(pretrain, tmp_path):
    own = {"zero_optimization": {"stage": 2}, "optimizer": {"type": "AdamW", "params": {"lr": 1}}}
    (tmp_path / "own.json").write_text(json.dumps(own))
    finished = pretrain((*ZERO2, "--deepspeed_config_file", str(tmp_path / "own.json")))
    assert finished.returncode != 0
    assert finished.stderr.count("error: the DeepSpeed config has a block 'optimizer'") == 1


@pytest.mark.matrix
@pytest.mark.skipif(not (shutil.which("g++") and shutil.which("ninja")), reason="needs g++ and ninja")
def test_deepspeeds_own_adam_is_compiled_once_past_the_lock_of_a_killed_compilation(pretrain, tmp_path):
    own = {
        "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
        "zero_allow_untested_optimizer": True,
    }
    (tmp_path / "own.json").write_text(json.dumps(own))
    extensions = tmp_path / "extensions"
    (extensions / "cpu_adam").mkdir(parents=True)
    (extensions / "cpu_adam/lock").touch()
    launcher = (*ZERO2, "--deepspeed_config_file", str(tmp_path / "own.json"))
    check_golden_losses(pretrain(launcher, environment={"TORCH_EXTENSIONS_DIR": str(extensions)}))
    assert (extensions / "cpu_adam/cpu_adam.so").exists()
    assert not (extensions / "cpu_adam/lock").exists()


@pytest.mark.parametrize(
    "name",
    [pytest.param("zero2", marks=slow), *(pytest.param(n, marks=pytest.mark.matrix) for n in ("zero0", "zero3"))],
)
def test_deepspeed_in_bf16_exports_the_full_precision_weights(pretrain, tmp_path, name):
    finished = pretrain(config(name), "--training.precision", "bf16")
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
    assert "bf16 is overridden by the recipe's fp32" in finished.stderr


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
    finished = pretrain(("--main_process_port", "0"), environment={"HF_HOME": str(tmp_path / "home")})
    check_golden_losses(finished)
    assert "deepspeed ZeRO-2, 2 process(es)" in finished.stdout
    assert "gradient_accumulation_steps 4 is overridden by the recipe's 2" in finished.stderr


@slow
def test_a_launch_that_turns_deepspeed_off_is_an_error(pretrain):
    finished = pretrain(ZERO2, environment={"ACCELERATE_USE_CPU": "true"})
    assert finished.returncode != 0
    assert finished.stderr.count("error: DeepSpeed was asked for, but Accelerate runs without it") == 1


@slow
def test_a_launcher_that_passes_over_its_config_file_is_an_error(pretrain):
    finished = pretrain((*ZERO2, "--cpu"))
    assert finished.returncode != 0
    assert finished.stderr.count("error: DeepSpeed was asked for, but Accelerate runs without it") == 1


class Process:
    """A process with a command line."""

    def __init__(self, *command):
        self.cmdline = lambda: list(command)


def test_what_the_launcher_was_told_is_read_off_its_command_line(tmp_path):
    (tmp_path / "config.yaml").write_text("distributed_type: DEEPSPEED\nnum_processes: 2\n")
    launcher = ("python3", "/venv/bin/accelerate", "launch", "--config_file", str(tmp_path / "config.yaml"))
    script = ("cmgems/pretrain.py", "--config", "demo")
    assert launcher_settings(Process(*launcher, *script)) == {"distributed_type": "DEEPSPEED", "num_processes": 2}
    assert launcher_settings(Process(*launcher, "--num-processes", "4", *script))["num_processes"] == 4
    assert launcher_settings(Process("python3", "/venv/bin/accelerate", "launch", *script)) == {}
    assert launcher_settings(Process("bash", "launch")) == launcher_settings(None) == {}


@slow
def test_a_loss_that_is_not_finite_ends_both_processes_with_one_message(pretrain):
    finished = pretrain(ZERO2, "--optimizer.learning_rate", "1e30")
    assert finished.returncode != 0
    assert finished.stderr.count("error: the loss is not finite at step") == 1
    assert "hold the training windows [" in finished.stderr
    assert the_run().info.status == "FAILED"


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
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_on_the_cpu_the_memory_of_large_tensors_is_kept_for_those_to_come(tmp_path):
    program = """
import resource, sys, torch
from cmgems.config.command_line import load_config
from cmgems.training.launch import start_accelerator
start_accelerator(load_config(["--corpus.path", "corpus"]))
kept = [torch.ones(24_000_000) for _ in range(6)]
del kept
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    kept = [torch.ones(20_000_000) for _ in range(3)]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 8 * 3 * 80e6 / 4096 / 2, "half of the pages of 24 times 80 MB"


def test_fp16_on_the_cpu_is_refused():
    with pytest.raises(UserError, match="fp16 needs a GPU; on the CPU take"):
        check_devices("fp16", on_gpu=False)


def test_bf16_on_a_gpu_without_it_and_processes_that_would_share_a_gpu_are_refused(monkeypatch):
    # Such GPUs cannot be had for a test.
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "Tesla V100-SXM2-16GB")
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: False)
    check_devices("fp32", on_gpu=True)
    with pytest.raises(UserError, match="a Tesla V100-SXM2-16GB has none; take"):
        check_devices("bf16", on_gpu=True)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"2 processes on a machine with 1 GPU\(s\): each needs one of its own"):
        check_devices("fp32", on_gpu=True)


@pytest.mark.parametrize(("processes", "printed"), [("1", "said\nthe interpreter ends\n"), ("2", "said\n")])
def test_one_of_several_processes_ends_at_once_with_all_it_has_said(processes, printed):
    """Threads of gloo that live on while the interpreter ends can crash it."""
    program = "import atexit; from cmgems.runtime.process import end_process; "
    program += "atexit.register(print, 'the interpreter ends'); print('said'); end_process(75)"
    environment = {**os.environ, "WORLD_SIZE": processes}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (75, printed)


def test_a_mistake_is_told_by_the_first_process_that_finds_it_and_by_no_other(tmp_path, monkeypatch, capsys):
    """The launcher ends the others as soon as one has ended, so rank 0 may never come to say it."""
    said = []
    for rank in ("1", "0"):
        (tmp_path / rank).mkdir()
        monkeypatch.setenv("LOCAL_RANK", rank)
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / rank / "error.json"))
        with pytest.raises(SystemExit), exit_on_error():
            raise UserError("a mistake")
        said.append(capsys.readouterr().err)
    assert said == ["error: a mistake\n", ""]


def test_without_torchs_launcher_the_first_process_tells_a_mistake(monkeypatch, capsys):
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    said = []
    for rank in ("1", "0"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        with pytest.raises(SystemExit), exit_on_error():
            raise UserError("a mistake")
        said.append(capsys.readouterr().err)
    assert said == ["", "error: a mistake\n"]
