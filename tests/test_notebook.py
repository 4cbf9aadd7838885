"""The notebook of docs/notebooks, with a pretraining of a few steps."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "docs/notebooks/from-genome-to-classifier.ipynb"
SHORT = """cmgems.train(
    "demo",
    training={"steps": 12},
    evaluation={"every": 4, "windows": 8},
    optimizer={"warmup_steps": 2},
    curriculum={
        "stages": [
            {
                "name": "genemask",
                "masking": [{"strategy": "genemask", "rate": 0.15}],
                "until": {"kind": "step", "at": 6},
            },
            {"name": "global", "masking": [{"strategy": "global_pmi", "rate": 0.15}]},
        ]
    },
)"""


@pytest.mark.slow
def test_every_cell_runs(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    [training] = [cell for cell in notebook.cells if 'cmgems.train("demo")' in cell.source]
    training.source = training.source.replace('cmgems.train("demo")', SHORT)
    [scoring] = [cell for cell in notebook.cells if "seeds=1)" in cell.source]
    scoring.source = scoring.source.replace("seeds=1)", "seeds=1, baselines=False)")
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    pictures = [
        output for cell in notebook.cells for output in cell.get("outputs", ()) if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 3
    assert (tmp_path / "runs/demo/1/models").is_dir()


def test_it_is_kept_with_its_pictures():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert not any(output.output_type == "error" for output in outputs)
