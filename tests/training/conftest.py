"""A small genome, its corpus, and a recipe that trains on it within seconds."""

import mlflow
import pytest
import yaml

from cmgems.config.command_line import load_config
from cmgems.pretrain import pretrain as pretrain_here
from tests.training.launching import forget_accelerator, launch, newest_run

TINY = {
    "name": "tiny",
    "seed": 3,
    "curriculum": {
        "stages": [
            {
                "name": "genemask",
                "masking": [{"strategy": "genemask", "rate": 0.15}],
                "until": {"kind": "step", "at": 7},
            },
            {"name": "global", "masking": [{"strategy": "global_pmi", "rate": 0.15}]},
        ]
    },
    "model": {"layers": 2, "hidden": 32, "intermediate": 64, "heads": 2, "dropout": 0.0, "max_positions": 64},
    "optimizer": {"warmup_steps": 4, "learning_rate": 0.002},
    "training": {"steps": 12, "global_batch": 25, "micro_batch": 8, "precision": "fp32"},
    "evaluation": {"every": 4, "windows": 50, "micro_batch": 20},
    "checkpoint": {"every": 4, "milestones": [8]},
    "tracking": {"log_every": 2, "system_metrics": False},
}


@pytest.fixture(scope="session")
def tiny_recipe(tiny_corpus_path, tmp_path_factory):
    """YAML file of a run of 12 steps that takes seconds."""
    path = tmp_path_factory.mktemp("recipes") / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, "corpus": {"path": str(tiny_corpus_path), "workers": 0}}))
    return path


@pytest.fixture
def pretrain(tiny_recipe, tmp_path):
    """Function that launches the tiny recipe into tmp_path / "run" and returns the finished process."""

    def start(launcher, *overrides, environment=None):
        uri = f"sqlite:///{tmp_path}/mlflow.db"
        arguments = ["--config", str(tiny_recipe), "--tracking.uri", uri, "--output", str(tmp_path / "run"), *overrides]
        mlflow.set_tracking_uri(uri)
        return launch(launcher, *arguments, environment=environment)

    return start


@pytest.fixture(scope="module")
def tracking_uri(tmp_path_factory):
    """An empty tracking store for the tests of a module."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def run(tiny_recipe, tracking_uri, tmp_path):
    """Function that pretrains in this process, with the tiny recipe and overrides, and returns the MLflow run."""

    def start(*overrides):
        recipe = () if "--config" in overrides else ("--config", str(tiny_recipe))
        output = () if "--output" in overrides else ("--output", str(tmp_path / "run"))
        config = load_config([*recipe, *output, "--tracking.uri", tracking_uri, *overrides])
        mlflow.set_tracking_uri(tracking_uri)
        try:
            pretrain_here(config)
        finally:
            forget_accelerator()
        return newest_run()

    return start
