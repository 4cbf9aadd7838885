"""Small tasks and their files."""

import pytest

from cmgems.evaluation.tasks import Task

RECIPE = {"learning_rate": 3e-5, "batch": 32, "epochs": 3, "warmup_steps": 50}


@pytest.fixture
def make_task():
    """Make a task of two classes; any setting can be given."""

    def make(**settings) -> Task:
        given = {"name": "toy", "species": "toy", "kind": "toy", "classes": ["no", "yes"], "length": 100}
        return Task.model_validate(given | {"recipe": RECIPE} | settings)

    return make


@pytest.fixture
def write(tmp_path):
    """Write files below a folder that stands for all data, and return that folder."""

    def write_files(files: dict[str, str]):
        for name, text in files.items():
            path = tmp_path / "data" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode())
        return tmp_path / "data"

    return write_files


@pytest.fixture
def toy_files() -> dict[str, str]:
    """The files of the task `toy`."""
    return {
        "toy/train.csv": "sequence,label\nACGT,0\nCCGT,1\nGGGT,1\n",
        "toy/dev.csv": "sequence,label\nACGA,0\n",
        "toy/test.csv": "sequence,label\nACGC,0\nTTTT,1\n",
    }
