"""Small tasks and their files."""

import pytest

from cmgems.downstream.results import Result
from tests.conftest import RECIPE


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


@pytest.fixture
def make_result():
    """Make a result of the model `step-00000100` with an MCC; any field can be given."""

    def make(mcc=0.5, **fields) -> Result:
        kind = fields.get("kind", "model")
        names = {"model": "step-00000100", "random weights": "random-weights", "k-mer regression": "4-mer-regression"}
        given = {
            "suite": "toy",
            "metric": "mcc",
            "task": "one",
            "species": "toy",
            "task_kind": "toy",
            "classes": ["no", "yes"],
            "group": None,
            "shots": None,
            "kind": kind,
            "subject": names[kind],
            "model": "runs/toy/1/models/step-00000100",
            "step": 100 if kind == "model" else None,
            "seed": 42,
            "resplit": False,
            "metrics": {"mcc": mcc, "accuracy": 0.75},
            "dev_metrics": {"mcc": 0.4},
            "confusion": [[2, 1], [0, 1]],
            "rows": {"train": 3, "dev": 1, "test": 4},
            "integrity": {},
            "lengths": {},
            "ambiguous": 0,
            "recipe": RECIPE,
            "best_step": 8,
            "history": [{"step": 4, "loss": 0.7, "learning_rate": 1e-5}, {"step": 8, "dev/mcc": 0.4}],
            "seconds": 2,
            "identity": {"model": "abc"},
            "versions": {},
        }
        return Result.model_validate(given | fields)

    return make
