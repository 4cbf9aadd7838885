"""A suite of two toy tasks, their data, and a model of one layer."""

import yaml

from tests.downstream.models import ours

RECIPE = {"learning_rate": 1e-3, "batch": 8, "steps": 4, "warmup_steps": 1, "evaluate_every": 2}
TASK = {"species": "toy", "kind": "toy", "classes": ["no", "yes"], "length": 40, "group": "toys", "recipe": RECIPE}


def write_suite(folder):
    """Write them into a folder; returns the folders of the model and the data, and the suite's file."""
    model = folder / "run" / "models" / "step-00000100"
    ours(model)
    suite = folder / "toys.yaml"
    tasks = [{"name": name, **TASK} for name in ("one", "two")]
    suite.write_text(yaml.safe_dump({"name": "toys", "source": "toys", "tasks": tasks}))
    for task, word in (("one", "AAAA"), ("two", "CGCG")):
        (folder / "data" / task).mkdir(parents=True)
        for split, rows in (("train", 40), ("dev", 12), ("test", 13)):
            text = "".join(f"{_sequence(i, split, word if i % 2 else '')},{i % 2}\n" for i in range(rows))
            (folder / "data" / task / f"{split}.csv").write_text("sequence,label\n" + text)
    return model, folder / "data", suite


def _sequence(number, split, word):
    """A sequence of 30 nucleotides that differs from row to row and from split to split."""
    digits = f"{number + {'train': 0, 'dev': 100, 'test': 200}[split]:010b}"
    return word + "".join("GT"[int(d)] + "TCA"[i % 3] for i, d in enumerate(digits)) + "GATTACAGAT"[len(word) :]
