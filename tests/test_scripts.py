"""Names of files in batch scripts and the Makefile: whatever is in them, programs get them as they are, and no shell
runs them. SLURM's programs are replaced by some that note their words and run what they are given."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
NAMES = [
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("a b;$(touch PWNED)", "'\"q*\\", "--help", "50%N")),
    *(
        pytest.param(name, marks=pytest.mark.matrix)
        for name in ("a b", "$(touch PWNED)", "`touch PWNED`", ";touch PWNED", '"q"', "'q'", "*", "-x", "a\\b", "ä")
    ),
]

PROGRAM = f"""#!{sys.executable}
import json, os, pathlib, subprocess, sys
name, words = os.path.basename(sys.argv[0]), sys.argv[1:]
with open(os.environ["NOTED"], "a") as file:
    file.write(json.dumps([name, *words]) + "\\n")
if name == "srun":
    while words[0].startswith("-"):
        words.pop(0)
    sys.exit(subprocess.run(words, env={{**os.environ, "SLURM_NODEID": "0"}}).returncode)
if name == "sbatch":
    sys.exit(subprocess.run(["bash"], stdin=sys.stdin).returncode)
if name == "scontrol":
    print("node1")
if name == "accelerate" and "CMGEMS_EXIT_CODES" in os.environ:
    pathlib.Path(os.environ["CMGEMS_EXIT_CODES"], "rank-0").write_text("0\\n")
"""
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NODELIST": "node1",
    "SLURM_NNODES": "1",
    "SLURM_ARRAY_JOB_ID": "7",
    "SLURM_ARRAY_TASK_ID": "1",
    "SLURM_ARRAY_TASK_MIN": "1",
    "SLURM_ARRAY_TASK_MAX": "1",
    "SLURM_ARRAY_TASK_COUNT": "1",
    "ACTIVATE": "",
}


@pytest.fixture
def run(tmp_path):
    """Function that runs a command in a folder `here`; returns the words of each program that was started."""
    programs, here, noted = tmp_path / "programs", tmp_path / "here", tmp_path / "noted"
    for folder in (programs, here):
        folder.mkdir()
    for name in ("srun", "sbatch", "squeue", "scontrol", "scancel", "accelerate", "cmgems"):
        (programs / name).write_text(PROGRAM)
        (programs / name).chmod(0o755)
    (here / "deepspeed_configs").symlink_to(REPOSITORY / "deepspeed_configs")

    def start(*command, **variables):
        environment = {"PATH": f"{programs}:{os.environ['PATH']}", "NOTED": str(noted)}
        with (tmp_path / "log").open("w") as log:  # no pipe, which a `sleep` of the script's would hold open
            finished = subprocess.run(
                command,
                cwd=here,
                env={**os.environ, **SLURM, **variables, **environment},
                stdout=log,
                stderr=log,
                timeout=60,
            )
        assert finished.returncode == 0, (tmp_path / "log").read_text()
        assert not [*tmp_path.rglob("PWNED")]
        return [json.loads(line) for line in noted.read_text().splitlines()]

    return start


def words_of(noted, program):
    """Words of the only call of a program."""
    [words] = [words[1:] for words in noted if words[0] == program]
    return words


@pytest.mark.parametrize("name", NAMES)
def test_a_pretraining_job_passes_names_on_as_they_are(run, tmp_path, name):
    config = f"{name}.yaml"
    (tmp_path / "here" / config).write_text("")
    words = ("bash", REPOSITORY / "slurm/pretrain.sh", name, config, "--corpus.path", name)
    noted = run(*words, OUTPUT=f"{name}/run")
    folder = f"./{name}/run" if name.startswith("-") else f"{name}/run"
    words = words_of(noted, "accelerate")
    assert {f"--config_file={config}", f"--config={name}", f"--output={folder}"} <= {*words}
    assert words[-2:] == ["--corpus.path", name]
    assert (tmp_path / "here" / folder / "logs/7/exit-codes-0/rank-0").is_file()
    [output, *_] = [word for word in words_of(noted, "srun") if word.startswith("--output=")]
    assert output.replace("%%", "").count("%") == 1, "SLURM replaces what follows a % in the names of logs"


@pytest.mark.parametrize("name", NAMES)
def test_a_fine_tuning_job_passes_names_on_as_they_are(run, name):
    words = words_of(run("bash", REPOSITORY / "slurm/finetune.sh", f"--model={name}", "--data", name), "accelerate")
    assert words[-3:] == [f"--model={name}", "--data", name]


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_job_and_its_report_pass_names_on_as_they_are(run, name):
    noted = run("bash", REPOSITORY / "slurm/benchmark.sh", f"{name}/models/step-1", "--data", name)
    report, benchmark = (words[1:] for words in noted if words[0] == "cmgems")
    assert report == ["report", f"./{name}" if name.startswith("-") else name]
    assert benchmark == ["benchmark", f"--model={name}/models/step-1", "--shard", "1/1", "--data", name]


@pytest.mark.parametrize("name", NAMES)
def test_a_studys_job_and_its_report_pass_names_on_as_they_are(run, name):
    report, study = (words[1:] for words in run("bash", REPOSITORY / "slurm/study.sh", name) if words[0] == "cmgems")
    assert [report[-1], study[-1]] == [f"./{name}" if name.startswith("-") else name] * 2


@pytest.mark.parametrize("name", NAMES)
def test_make_demo_passes_the_name_of_a_run_on_as_it_is(run, tmp_path, name):
    environment = tmp_path / "here/.venv"
    shutil.copytree(tmp_path / "programs", environment / "bin")
    (environment / ".installed").touch()
    makefile = (REPOSITORY / "Makefile").read_text().replace("$(VENV)/.installed: pyproject.toml", "nothing:")
    (tmp_path / "here/Makefile").write_text(makefile)
    folder = tmp_path / "here" / name / "models/step-1"
    folder.mkdir(parents=True)
    noted = run("make", "--no-print-directory", "demo", f"RUN={name}")
    assert words_of(noted, "accelerate")[-1] == f"--output={name}"
    benchmarks = [words for words in noted if words[0] == "cmgems"]
    assert [words[-1] for words in benchmarks] == [f"--model={name}/models/step-1"] * 2
