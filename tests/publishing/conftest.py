"""A run that has ended, and what it is published with."""

import shutil

import pytest
import yaml

from cmgems.cli import main
from cmgems.config.command_line import load_config
from cmgems.pretrain import pretrain
from tests.report.test_page import GUE, write_scores
from tests.training.conftest import TINY
from tests.training.launching import forget_accelerator


@pytest.fixture(scope="session")
def train(tmp_path_factory):
    """Function that pretrains in this process by the tiny recipe with other settings, and returns the run's folder."""

    def start(settings, *overrides, folder=None):
        place = tmp_path_factory.mktemp("trained")
        (place / "recipe.yaml").write_text(yaml.safe_dump({**TINY, **settings}))
        output = folder or place / "run"
        uri = f"sqlite:///{output.parent}/mlflow.db"
        arguments = ["--config", str(place / "recipe.yaml"), "--output", str(output), "--tracking.uri", uri]
        try:
            pretrain(load_config([*arguments, *overrides]))
        finally:
            forget_accelerator()
        return output

    return start


@pytest.fixture(scope="session")
def trained(train, tiny_corpus_path):
    """Folder of a run of 12 steps that has exported the models of steps 8 and 12; it is only read."""
    return train({"corpus": {"path": str(tiny_corpus_path), "workers": 0}})


@pytest.fixture
def scored(trained, tmp_path):
    """A copy of the run with downstream scores of its last model, of its baselines, and of another model."""
    run = tmp_path / "scored"
    shutil.copytree(trained, run)
    for subject, scores in {
        "step-00000012": [0.71, 0.73, 0.72],
        "step-00000008": [0.11, 0.12],
        "random-weights": [0.41, 0.43, 0.45],
        "kmer-regression": [0.5],
    }.items():
        write_scores(run, GUE["tf/0"], scores, subject=subject)
    write_scores(run, GUE["tf/1"], [0.2, 0.3], subject="step-00000012")
    write_scores(run, GUE["tf/1"], [0.4, 0.3], subject="random-weights")
    return run


@pytest.fixture
def publish(tmp_path):
    """Function that publishes a run to a new folder, as the command does, and returns the folder."""

    def to_folder(run, *options):
        folder = tmp_path / "published"
        main(["publish", str(run), "--to", str(folder), *options])
        return folder

    return to_folder
