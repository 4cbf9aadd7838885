"""Every command in the README and the docs does what it says."""

import gzip
import os
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from cmgems.config.recipes import recipe_names

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text()
DOCS = sorted((REPOSITORY / "docs").glob("*.md"))

TRAINING = (REPOSITORY / "docs" / "training.md").read_text()
DOWNSTREAM = (REPOSITORY / "docs" / "downstream.md").read_text()

RUN_ELSEWHERE = {
    "make demo": "test_demo.py",
    "make test": ".ci/run",
    "python3 -m venv .venv && . .venv/bin/activate": "the Makefile",
    "pip install -e .": "the Makefile",
}

SHRUNK = (
    "--training.steps 3 --training.global_batch 4 --training.precision fp32 --optimizer.warmup_steps 1 "
    "--evaluation.every 1 --evaluation.windows 4 --tracking.log_every 1 --model.hidden 32 --model.intermediate 32"
)


def commands(text):
    """Commands in the bash blocks, comments and continuations taken out."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            command = " ".join(line.split("    #")[0].split())
            if command:
                found.append(command)
    return found


def commands_run_here():
    return [command for command in commands(README) if command not in RUN_ELSEWHERE]


def test_every_command_is_run_by_a_test():
    assert [shlex.split(command)[:2] for command in commands_run_here()] == [
        ["cmgems", "prepare"],
        ["cmgems", "npmi"],
        ["accelerate", "launch"],
        ["mlflow", "ui"],
        ["cmgems", "benchmark"],
        ["cmgems", "report"],
    ]
    assert set(commands_run_here()[-2:]) <= set(commands(DOWNSTREAM))
    assert set(RUN_ELSEWHERE) <= set(commands(README))


def test_make_targets_that_the_readme_names_exist():
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in set(re.findall(r"`make (\w+)`", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_readme_lists_every_recipe():
    listed = set(re.findall(r"`((?:dnabert|logo|codonbert|calm|rnabert|codons|nucleotides)-[\w-]+)`", README))
    assert listed == set(recipe_names()) - {"demo"}


def test_the_launch_configs_that_are_named_exist():
    for page in (REPOSITORY / "README.md", *DOCS):
        for name in re.findall(r"deepspeed_configs/[\w.]+\.(?:yaml|json)", page.read_text()):
            assert (REPOSITORY / name).exists(), name


@pytest.mark.parametrize("page", [REPOSITORY / "README.md", *DOCS], ids=lambda path: path.name)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with a genome, and the entry scripts as in a checkout."""
    folder = tmp_path_factory.mktemp("workplace")
    random = np.random.default_rng(5)
    with gzip.open(folder / "genome.fa.gz", "wt") as file:
        for name in ("chr21", "chr22"):
            file.write(
                f">{name}\n{''.join(random.choice(list('ACGTN'), 20_000, p=[0.25, 0.25, 0.25, 0.249, 0.001]))}\n"
            )
    for name in ("cmgems", "deepspeed_configs"):
        (folder / name).symlink_to(REPOSITORY / name)
    (folder / "data").mkdir()
    return folder


def run(command, folder):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    finished = subprocess.run(
        command, shell=True, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=300
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.mark.slow
def test_the_commands_for_a_genome_of_ones_own(workplace):
    prepare, npmi, launch, ui, *_ = commands_run_here()
    assert "6-mers" in run(prepare, workplace)
    assert "NPMI of 4,096 6-mers" in run(npmi, workplace)
    assert "mlflow ui" in run(f"{launch} {SHRUNK}", workplace)
    twin = next(command for command in commands(TRAINING) if "+nucleotides" in command)
    assert "bits per hidden base" in run(f"{twin} {SHRUNK}", workplace)
    check_ui(ui, workplace)
    [code] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    run(f"{sys.executable} -c '{code.replace('step-00010000', 'step-00000003')}'", workplace)
    check_downstream(workplace)


def check_downstream(folder):
    """The commands for downstream tasks, with the model that was trained, and a few rows as data."""
    rows = "sequence,label\n" + "".join(f"{'ACGT' * 5}{'TA'[i % 2] * 5}{'ACGT' * 5},{i % 2}\n" for i in range(4))
    for task in ("tf/0", "tf/1"):
        (folder / "GUE" / task).mkdir(parents=True)
        for split in ("train", "dev", "test"):
            (folder / "GUE" / task / f"{split}.csv").write_text(rows)
    finetune, benchmark, report, probe, tuned, pooled, values, probed_values = (
        command.replace("step-00010000", "step-00000003") for command in commands(DOWNSTREAM)
    )
    assert "tf/0, step-00000003, seed 42, scored: mcc" in run(finetune, folder)
    output = run(f"{benchmark} --seeds 1 --no-baselines", folder)
    assert re.search(r"\[1/2\] tf/0, step-00000003, seed 42: mcc -?\d\.\d{4} \(there already\)", output)
    assert "[2/2] tf/1, step-00000003, seed 42: mcc " in output
    for command, suite in ((probe, "gue-probe"), (tuned, "gue-tuned"), (pooled, "gue-pooled")):
        assert f"suite {suite}: 2 scores to compute" in run(f"{command} --seeds 1 --no-baselines", folder)
        assert len(list((folder / "runs/logo-cm-gems-15/1/downstream" / suite).rglob("result.json"))) == 2
    check_values(values, probed_values, folder)
    assert run(report, folder).strip() == "runs/logo-cm-gems-15/1/report/report.html"
    page = (folder / "runs/logo-cm-gems-15/1/report/report.html").read_text()
    assert "tf/0" in page
    assert "Suite gue, probed" in page


def check_values(values, probed_values, folder):
    """The commands for measured values, on one task of a few rows."""
    splits = ("train", "val", "test")
    rows = [f"{'ACGU' * (10 + i)}{'GA'[i % 2] * 9},{i / 7},{split}" for i in range(12) for split in splits]
    (folder / "codon").mkdir()
    (folder / "codon/mRFP_Expression.csv").write_text("\n".join(["Sequence,Value,Split", *rows]) + "\n")
    for command, suite in ((values, "codon"), (f"{probed_values} --tasks mRFP", "codon-probe")):
        run(f"{command} --seeds 1", folder)
        results = list((folder / "runs/logo-cm-gems-15/1/downstream" / suite).rglob("result.json"))
        assert any("codon-regression" in str(path) for path in results)
        assert any("step-00000003" in str(path) for path in results)


def check_ui(command, folder):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = str(Path(sys.executable).parent / "mlflow")
    server = subprocess.Popen([program, *shlex.split(command)[1:], "--port", str(port)], cwd=folder)
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                    assert answer.status == 200
                    return
            except OSError:
                assert time.monotonic() < deadline, "the MLflow UI did not come up"
                time.sleep(1)
    finally:
        server.terminate()
        server.wait()


@pytest.mark.slow
def test_the_second_ranking_of_the_readme_needs_no_genome(tmp_path):
    command = "cmgems npmi --counts human --method published --output human.csv"
    assert command in README
    run(command, tmp_path)
    assert (tmp_path / "human.csv").read_text().splitlines()[1].startswith("CCTCCC,")


def test_help_is_as_the_readme_says():
    finished = subprocess.run(
        [sys.executable, "cmgems/pretrain.py", "--help"], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert finished.returncode == 0
    assert "--training.steps" in finished.stdout
