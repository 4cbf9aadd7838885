"""A small genome, its corpus, and a recipe that trains on it within seconds."""

import mlflow
import numpy as np
import pytest
import torch
import yaml

from cmgems.config.command_line import load_config
from cmgems.config.schema import PrepareConfig
from cmgems.data.corpus import load_corpus, prepare_corpus
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


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Small matrices: two threads on shared cores are slower than one."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_genome(tmp_path_factory):
    """FASTA of three chromosomes drawn from a few repeated words, so that there is something to learn."""
    random = np.random.default_rng(0)
    words = ["".join(random.choice(list("ACGT"), 12)) for _ in range(20)]
    path = tmp_path_factory.mktemp("genome") / "tiny.fa"
    with path.open("w") as file:
        for name, length in (("one", 2000), ("two", 1500), ("three", 300)):
            file.write(f">{name}\n{''.join(random.choice(words, length))}\n")
    return path


@pytest.fixture(scope="session")
def tiny_corpus_path(tiny_genome, tmp_path_factory):
    """Corpus of 4-mers with windows of at most 40 tokens."""
    path = tmp_path_factory.mktemp("corpora") / "tiny"
    prepare_corpus(
        PrepareConfig(inputs=[str(tiny_genome)], k=4, window_tokens=40, validation_chromosomes=["three"]),
        path,
        progress=False,
    )
    return path


@pytest.fixture(scope="session")
def tiny_corpus(tiny_corpus_path):
    """The same, opened."""
    return load_corpus(tiny_corpus_path)


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
