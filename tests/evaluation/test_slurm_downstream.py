"""slurm/finetune.sh and slurm/benchmark.sh under a real SLURM with two nodes, on real tasks."""

import json
import re

import pytest
import yaml
from mlflow import MlflowClient

from cmgems.evaluation.tasks import load_suite
from tests.evaluation.models import ours
from tests.slurm_cluster import ENVIRONMENT, OPTIONS
from tests.training.launching import REPOSITORY

pytestmark = pytest.mark.slow

RECIPE = {"learning_rate": 1e-3, "batch": 8, "steps": 4, "warmup_steps": 1, "evaluate_every": 2}


@pytest.fixture
def place(tmp_path):
    """A folder with a tiny model in a run's folder, and two tasks of GUE with a recipe of four steps."""
    ours(tmp_path / "run" / "models" / "step-00000100")
    tasks = [task.model_dump() for task in load_suite("gue").tasks if task.name in ("tf/0", "mouse/0")]
    suite = {"name": "two", "source": "GUE", "tasks": [{**task, "recipe": RECIPE} for task in tasks]}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(suite))
    return tmp_path


@pytest.fixture
def submit(slurm, place, shared_data):
    """Function that submits one of the scripts; returns the job's number."""

    def begin(script, *arguments, options=()):
        more = ("--data", shared_data / "gue", "--suite", place / "two.yaml", "--output", place / "run")
        tracking = ("--tracking_uri", f"sqlite:///{place}/mlflow.db")
        return slurm.run(
            *("sbatch", "--parsable", *OPTIONS, f"--chdir={REPOSITORY}", f"--output={place}/%A_%a.log", *options),
            *(f"slurm/{script}.sh", *arguments, *more, *tracking),
            cwd=REPOSITORY,
            environment={**ENVIRONMENT, "REPORT_OPTIONS": f"--chdir={place}"},
        )

    return begin


def printed(place):
    return "\n".join(f"==> {path.name}\n{path.read_text()}" for path in sorted(place.glob("*.log")))


def test_an_array_scores_a_suite_and_a_job_after_it_writes_the_report(slurm, place, submit):
    model = place / "run/models/step-00000100"
    array = submit("benchmark", model, "--seeds", "1", "--no-floors", options=("--array=1-2",))
    [log] = slurm.wait_for_files(place, f"slurm-{array}_report.log", seconds=180)
    report = re.search(r"Submitted batch job (\d+)", (place / f"{array}_1.log").read_text())[1]
    assert slurm.wait_for(report, "COMPLETED", "FAILED")["JobState"] == "COMPLETED", printed(place)
    for number, task in enumerate(("mouse/0", "tf/0"), start=1):
        own = (place / f"{array}_{number}.log").read_text()
        assert "1 scores to have, 2 tasks" in own, printed(place)
        [result] = (place / "run/downstream/two/step-00000100").glob(f"{task}/seed-42/result.json")
        assert f"{task}, step-00000100, seed 42: mcc {json.loads(result.read_text())['metrics']['mcc']:.4f}" in own
    assert (place / "run/report/report.html").exists()
    assert log.read_text().strip().endswith("report.html")
    client = MlflowClient(tracking_uri=f"sqlite:///{place}/mlflow.db")
    parent = json.loads((place / "run/downstream/mlflow.json").read_text())["run"]
    assert {"two/mcc/tf/0", "two/mcc/mouse/0"} <= set(client.get_run(parent).data.metrics)
    assert "report/report.html" in {file.path for file in client.list_artifacts(parent, "report")}


def test_one_task_is_one_job(slurm, place, submit):
    job = submit("finetune", "--task", "tf/0", "--model", place / "run/models/step-00000100")
    assert slurm.wait_for(job, "COMPLETED", "FAILED")["JobState"] == "COMPLETED", printed(place)
    assert (place / "run/downstream/two/step-00000100/tf/0/seed-42/result.json").exists()
