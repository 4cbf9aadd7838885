"""Fixtures that all rooms share."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from cmgems.data.corpus import load_corpus
from cmgems.data.prepare import prepare_corpus
from cmgems.data.settings import PrepareConfig
from cmgems.downstream.tasks import Task
from cmgems.runtime.logging import configure_logging
from tests.support.container import Image, require_buildah
from tests.support.mlflow_server import Server
from tests.support.slurm_cluster import Cluster, require_slurm

SHARED_DATA = Path(os.environ.get("CMGEMS_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))

LONGEST = (
    "test_demo.py",
    "training/test_exact.py",
    "training/test_launch.py",
    "study/test_study.py",
    "training/test_resume.py",
    "test_readme.py",
    "training/test_faults.py",
    "soak/test_soak.py",
    "training/test_nodes.py",
    "training/test_slurm_tracking.py",
    "test_wheel.py",
)
"""Files that take minutes. They come first, so that no worker has one of them left when the others are done."""

RECIPE = {"learning_rate": 3e-5, "batch": 32, "epochs": 3, "warmup_steps": 50}


def pytest_collection_modifyitems(items):
    """Put the tests of the longest files first."""
    place = {Path(__file__).parent / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real development data: `$CMGEMS_SHARED_DATA`, or `shared/data` beside the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the development data is not at {SHARED_DATA} (set CMGEMS_SHARED_DATA)")
    return SHARED_DATA


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """A SLURM cluster of two nodes."""
    require_slurm()
    with Cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def image(tmp_path_factory):
    """The image of docker/Dockerfile."""
    require_buildah()
    with Image(tmp_path_factory.mktemp("image")) as built:
        yield built


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """An MLflow server, for the tests of a module."""
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session", autouse=True)
def _messages():
    """Show messages as the commands do, also where a test calls a function of theirs."""
    configure_logging()


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


@pytest.fixture
def make_task():
    """Make a task of two classes; any setting can be given."""

    def make(**settings) -> Task:
        given = {"name": "toy", "species": "toy", "kind": "toy", "classes": ["no", "yes"], "length": 100}
        return Task.model_validate(given | {"recipe": RECIPE} | settings)

    return make
