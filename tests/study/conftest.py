"""A study that is small enough for tests: yeast-like toy genome, models of one layer, one toy task."""

import pytest
import yaml

STAGES = {"curriculum": {"stages": [{"name": "span", "masking": [{"strategy": "span", "rate": 0.15}]}]}}
GENEMASK = {"curriculum": {"stages": [{"name": "genemask", "masking": [{"strategy": "genemask", "rate": 0.15}]}]}}


@pytest.fixture
def study_file(tmp_path, tiny_genome):
    """The file of a study, in a folder below `tmp_path`, which has its data."""
    return write_study(tmp_path, tiny_genome)


def write_study(tmp_path, tiny_genome):
    """Write a study: two arms that are pretrained, three that are not, two seeds of one; a probe, fine-tuning, bits."""
    recipe = {
        "name": "toy",
        "corpus": {
            "path": str(tmp_path / "corpus"),
            "prepare": {
                "inputs": [str(tiny_genome)],
                "k": 4,
                "window_tokens": 40,
                "min_window_tokens": 40,
                "full_length_share": 1,
                "validation_chromosomes": ["three"],
            },
            "workers": 0,
        },
        "model": {"layers": 1, "hidden": 16, "intermediate": 32, "heads": 2, "dropout": 0.0, "max_positions": 42},
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 2},
        "training": {"steps": 8, "global_batch": 8, "micro_batch": 8, "precision": "fp32"},
        "evaluation": {"every": 4, "windows": 6},
        "checkpoint": {"every": 4, "keep": 1},
        "tracking": {"log_every": 2, "system_metrics": False},
    }
    task = {
        "name": "toy/one",
        "folder": "one",
        "species": "toy",
        "kind": "toy",
        "classes": ["no", "yes"],
        "length": 40,
        "train_rows": 24,
        "recipe": {"learning_rate": 1e-3, "batch": 8, "steps": 4, "warmup_steps": 1, "evaluate_every": 2},
    }
    study = {
        "name": "toy",
        "title": "A toy study",
        "recipe": "recipe.yaml",
        "seeds": 2,
        "axes": {
            "arm": {
                "span": {"title": "Span", "settings": STAGES},
                "genemask": {"title": "GeneMask", "settings": GENEMASK, "seeds": 1},
                "none": {"title": "No pretraining", "model": "untrained", "settings": STAGES, "seeds": 1},
                "random": {"title": "Random weights", "model": "random-weights", "settings": STAGES, "seeds": 1},
                "3-mers": {"title": "3-mers", "model": "3-mers", "settings": STAGES, "seeds": 1},
            }
        },
        "scores": {
            "probe": {
                "title": "Probed",
                "suite": "toys.yaml",
                "data": str(tmp_path / "data"),
                "probe": True,
                "at": [0.5, 1],
            },
            "tuned": {"title": "Fine-tuned", "suite": "toys.yaml", "data": str(tmp_path / "data")},
        },
        "primary": ["probe"],
        "bits": {"gaps": [1, 4], "windows": 6, "at": [0.5, 1]},
        "contrasts": [{"option": "genemask", "against": "span"}],
        "subsets": {"without one": ["toy/two"]},
        "reference": "span",
        "tracking_uri": f"sqlite:///{tmp_path}/mlflow.db",
    }
    folder = tmp_path / "study"
    folder.mkdir()
    for name, content in (
        ("recipe.yaml", recipe),
        ("toys.yaml", {"name": "toys", "source": "toys", "tasks": [task]}),
        ("study.yaml", study),
    ):
        (folder / name).write_text(yaml.safe_dump(content, sort_keys=False))
    (tmp_path / "data/one").mkdir(parents=True)
    for split, rows in (("train", 40), ("dev", 12), ("test", 14)):
        lines = [
            f"{'ACGT' * 3}{'AC' if i % 2 else 'GT'}{'AGCT'[i % 4] * 4}{'ACTG'[i // 4 % 4] * 5},{i % 2}"
            for i in range(rows)
        ]
        (tmp_path / "data/one" / f"{split}.csv").write_text("sequence,label\n" + "\n".join(lines) + "\n")
    return folder / "study.yaml"
