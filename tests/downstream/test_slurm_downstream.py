"""slurm/finetune.sh under a real SLURM, on a real task. slurm/benchmark.sh: tests/training/test_slurm_tracking.py."""

import pytest
import yaml

from cmgems.downstream.tasks import load_suite
from tests.downstream.models import ours
from tests.support.slurm_cluster import ENVIRONMENT, OPTIONS
from tests.training.launching import REPOSITORY

pytestmark = pytest.mark.slow

RECIPE = {"learning_rate": 1e-3, "batch": 8, "steps": 4, "warmup_steps": 1, "evaluate_every": 2}


def test_one_task_is_one_job(slurm, shared_data, tmp_path):
    model = ours(tmp_path / "run/models/step-00000100")
    [task] = [task.model_dump() for task in load_suite("gue").tasks if task.name == "tf/0"]
    suite = tmp_path / "one.yaml"
    suite.write_text(yaml.safe_dump({"name": "one", "source": "GUE", "tasks": [{**task, "recipe": RECIPE}]}))
    job = slurm.run(
        *("sbatch", "--parsable", *OPTIONS, f"--chdir={REPOSITORY}", f"--output={tmp_path}/job.log"),
        *("slurm/finetune.sh", "--task", "tf/0", "--data", shared_data / "gue", "--suite", suite, "--model", model),
        *("--output", tmp_path / "run", "--tracking_uri", f"sqlite:///{tmp_path}/mlflow.db"),
        cwd=REPOSITORY,
        environment=ENVIRONMENT,
    )
    done = slurm.wait_for(job, "COMPLETED", "FAILED")
    assert done["JobState"] == "COMPLETED", (tmp_path / "job.log").read_text()
    assert (tmp_path / "run/downstream/one/step-00000100/tf/0/seed-42/result.json").exists()
