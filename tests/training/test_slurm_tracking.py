"""A run under a real SLURM, from pretraining to report, tracked by an MLflow server that stands on a real PostgreSQL,
and that two nodes reach over the network."""

import json
import random
import re
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import SHARED_DATA
from tests.support.mlflow_server import Server
from tests.support.postgresql import Database, require_postgresql
from tests.support.slurm_cluster import ENVIRONMENT, NODES, OPTIONS
from tests.training.golden import GOLDEN_LOSSES
from tests.training.launching import REPOSITORY, logged
from tests.training.slurm_job import Job

pytestmark = pytest.mark.slow

# Their recipe counts epochs, of which few rows make few steps.
TASKS = ("tf/0", "tf/1")


@pytest.fixture(scope="module")
def database():
    """A running PostgreSQL."""
    require_postgresql()
    with Database() as database:
        yield database


@pytest.fixture(scope="module")
def server(slurm, database, tmp_path_factory):
    """An MLflow server on the controller's machine, which the nodes reach over their network."""
    folder = tmp_path_factory.mktemp("server")
    server = Server(folder, database.uri, NODES["ctl"], slurm.inside("ctl"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="module")
def gue(tmp_path_factory):
    """The first rows of two tasks of GUE; where the development data is not at hand, random rows in their place."""
    folder = tmp_path_factory.mktemp("gue")
    for task in TASKS:
        (folder / task).mkdir(parents=True)
        for split in ("train", "dev", "test"):
            real = SHARED_DATA / "gue" / task / f"{split}.csv"
            rows = real.read_text().splitlines()[1:] if real.exists() else _random_rows(f"{task}/{split}")
            (folder / task / f"{split}.csv").write_text("\n".join(["sequence,label", *rows[:200], ""]))
    return folder


def _random_rows(seed):
    draw = random.Random(seed)
    return [f"{''.join(draw.choices('ACGT', k=101))},{number % 2}" for number in range(200)]


@dataclass
class Scenario:
    """A pretraining, and what came after it."""

    pretraining: Job
    seen: list[int]
    """How many losses of the pretraining were in the database while it went on."""
    array: str = ""
    """Number of the array of jobs that scored its last model."""
    logs: Path = field(default_factory=Path)
    """Folder of what those have printed."""

    @property
    def folder(self):
        """The run's folder."""
        return self.pretraining.folder

    @property
    def run(self):
        """The pretraining's run in MLflow."""
        [place] = [json.loads(line) for line in (self.folder / "tracking.jsonl").open() if '"uri"' in line]
        return place["run"]


@pytest.fixture(scope="module")
def scenario(slurm, server, database, gue, tiny_recipe, tmp_path_factory):
    """A pretraining on both nodes, then two jobs at once that score its last model, then the job of the report."""
    folder = tmp_path_factory.mktemp("scenario")
    expected = ("--launch.distributed", "deepspeed", "--launch.zero_stage", "2", "--launch.processes", "2")
    pretraining = Job(slurm, tiny_recipe, folder, server.uri, expected, (), {})
    try:
        done = Scenario(pretraining, _watch(pretraining, database), logs=folder)
        pretraining.end()
        done.array = _score(slurm, done, gue)
    finally:
        slurm.run("scancel", "--user=root")
    return done


def _watch(pretraining, database):
    """The numbers of losses that the database was seen to have until the run in it had ended."""
    seen: list[int] = []
    end = time.monotonic() + 180
    while (status := _status(database)) != "FINISHED":
        assert status in (None, "RUNNING"), f"{status}\n{pretraining.everything()}"
        assert time.monotonic() < end, f"{status}\n{pretraining.everything()}"
        [[losses]] = database.query("SELECT count(*) FROM metrics WHERE key = 'train/loss'")
        if losses not in seen:
            seen.append(losses)
        time.sleep(0.01)
    return seen


def _status(database):
    return next((status for [status] in database.query("SELECT status FROM runs")), None)


def _score(slurm, done, gue):
    """Score the last model by an array of two jobs, and wait for the report that it submits; the array's number."""
    model = max((done.folder / "models").glob("step-*"))
    array = slurm.run(
        *("sbatch", "--parsable", *OPTIONS, f"--chdir={REPOSITORY}", f"--output={done.logs}/%A_%a.log", "--array=1-2"),
        *("slurm/benchmark.sh", model, "--data", gue, "--tasks", ",".join(TASKS), "--seeds", "1", "--no-baselines"),
        cwd=REPOSITORY,
        environment={**ENVIRONMENT, "REPORT_OPTIONS": f"--chdir={done.logs}"},
    )
    slurm.wait_for_files(done.logs, f"slurm-{array}_report.log")
    report = re.search(r"Submitted batch job (\d+)", (done.logs / f"{array}_1.log").read_text())[1]
    assert slurm.wait_for(report, "COMPLETED", "FAILED")["JobState"] == "COMPLETED", _printed(done.logs)
    return array


def _printed(folder):
    return "\n".join(f"==> {path.name}\n{path.read_text()}" for path in sorted(folder.glob("*.log")))


def tags_of(database, run):
    """Tags of a run, by name."""
    return dict(database.query("SELECT key, value FROM tags WHERE run_uuid = %s", run))


def test_a_job_on_two_nodes_trains_as_one(slurm, scenario):
    job = scenario.pretraining
    state = slurm.job(job.number)
    assert (state["NodeList"], state["Restarts"]) == ("node[1-2]", "0")
    for rank, node in enumerate(("node1", "node2")):
        assert f"\n{node}: rank {rank} on cpu" in job.node_log("node1")
        assert f"in SLURM job {job.number}: deepspeed ZeRO-2, 2 process(es) over gloo" in job.node_log(node)
        assert f"rank {rank}: stage 'global' masks from step 8 on" in job.node_log(node)
    assert "done: the training has reached its last step" in job.log.read_text()


def test_losses_are_in_postgresql_while_the_job_runs_and_each_is_there_once(scenario, database):
    assert scenario.seen == sorted(scenario.seen)
    assert len(set(scenario.seen) - {0}) > 1
    losses = database.query(
        "SELECT step, value FROM metrics WHERE run_uuid = %s AND key = 'train/loss' ORDER BY step", scenario.run
    )
    assert [step for step, _ in losses] == sorted(GOLDEN_LOSSES)
    assert dict(losses) == pytest.approx(GOLDEN_LOSSES, rel=1e-4)
    assert dict(losses) == logged(scenario.folder, "train/loss")


def test_all_that_the_journal_holds_is_in_postgresql(scenario, database):
    journal = scenario.folder / "tracking.jsonl"
    assert int((scenario.folder / "tracking.sent").read_text()) == journal.stat().st_size
    messages = [json.loads(line) for line in journal.read_text().splitlines()]
    points = {(name, line["step"]) for line in messages for name in line.get("metrics", ())}
    rows = database.query("SELECT key, step FROM metrics WHERE run_uuid = %s AND key NOT LIKE 'gue/%%'", scenario.run)
    assert sorted(rows) == sorted(points)
    tags = tags_of(database, scenario.run)
    assert tags["switch.1"] == "genemask to global after step 7"
    assert tags["switch.1.step"] == "7"


def test_an_array_on_both_nodes_scores_the_suite(slurm, scenario):
    assert {slurm.job(f"{scenario.array}_{number}")["NodeList"] for number in (1, 2)} == {"node1", "node2"}
    for number, task in enumerate(TASKS, start=1):
        own = (scenario.logs / f"{scenario.array}_{number}.log").read_text()
        assert "1 scores to compute, 2 tasks" in own
        [result] = (scenario.folder / "downstream/gue/step-00000012").glob(f"{task}/seed-42/result.json")
        assert f"{task}, step-00000012, seed 42: mcc {json.loads(result.read_text())['metrics']['mcc']:.4f}" in own


def test_scores_are_children_of_the_pretraining_in_postgresql(scenario, database):
    runs = dict(database.query("SELECT run_uuid, status FROM runs WHERE lifecycle_stage = 'active'"))
    children = {tags_of(database, run)["task"]: run for run in runs if run != scenario.run}
    assert sorted(children) == sorted(TASKS)
    assert len(runs) == 3
    assert set(runs.values()) == {"FINISHED"}
    for task, child in children.items():
        assert tags_of(database, child)["mlflow.parentRunId"] == scenario.run
        [[score]] = database.query("SELECT value FROM metrics WHERE run_uuid = %s AND key = 'test/mcc'", child)
        means = database.query(
            "SELECT step, value FROM metrics WHERE run_uuid = %s AND key = %s", scenario.run, f"gue/mcc/{task}"
        )
        assert means == [(12, score)]
        losses = database.query("SELECT step FROM metrics WHERE run_uuid = %s AND key = 'train/loss'", child)
        assert losses
        assert len(set(losses)) == len(losses)


def test_both_nodes_have_written_over_the_network(scenario, server):
    log = (server.folder / "server.log").read_text()
    wrote = re.findall(r'([0-9.]+):\d+ - "POST /api/2.0/mlflow/runs/log-batch HTTP/1.1" 200', log)
    assert set(wrote) == {NODES["node1"], NODES["node2"]}


def test_the_report_comes_back_from_the_server(slurm, scenario, server, tmp_path):
    assert (scenario.logs / f"slurm-{scenario.array}_report.log").read_text().strip().endswith("report.html")
    slurm.run(
        *(sys.executable, "-m", "mlflow", "artifacts", "download", "--run-id", scenario.run),
        *("--artifact-path", "report/report.html", "--dst-path", tmp_path),
        environment={"MLFLOW_TRACKING_URI": server.uri},
    )
    [fetched] = tmp_path.rglob("report.html")
    assert fetched.read_bytes() == (scenario.folder / "report/report.html").read_bytes()
