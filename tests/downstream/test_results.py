"""A result is in its folder completely or not at all, and its files say the same as each other."""

import csv
from math import sqrt

import numpy as np
import pytest

from cmgems.downstream.results import (
    PREDICTIONS,
    RESULT,
    Result,
    Score,
    group_score,
    read_result,
    read_results,
    result_files,
    result_folder,
    task_scores,
    write_result,
)
from cmgems.downstream.scores import Predictions, confusion, probabilities, score
from cmgems.errors import UserError

EXAMPLE = {
    "suite": "toys",
    "metric": "mcc",
    "task": "toy",
    "species": "toy",
    "task_kind": "toy",
    "classes": ["no", "yes"],
    "group": "toys",
    "shots": None,
    "kind": "model",
    "subject": "step-00000010",
    "model": "runs/a/model",
    "step": 10,
    "seed": 1,
    "resplit": False,
    "metrics": {"mcc": 0.1 + 0.2, "accuracy": 2 / 3},
    "dev_metrics": {"mcc": 0.5},
    "confusion": [[2, 1], [1, 2]],
    "rows": {"train": 9, "dev": 3, "test": 6},
    "integrity": {"task": "toy", "leaked_test_rows": 0},
    "lengths": {"limit": 510, "longest": 95},
    "ambiguous": 0,
    "recipe": {"learning_rate": 3e-5, "steps": 100},
    "best_step": 80,
    "history": [{"step": 20, "loss": 0.6, "learning_rate": 1e-5}, {"step": 40, "dev/mcc": 0.5}],
    "seconds": 1.5,
    "identity": {"data": "abc"},
    "versions": {"torch": "2"},
}


def result(**settings):
    return Result.model_validate(EXAMPLE | settings)


def predictions(rows, classes, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(classes, size=rows)
    return Predictions(labels, probabilities(random.normal(size=(rows, classes)) + 2 * np.eye(classes)[labels]))


def content(folder):
    """Names of what is in a folder, lock files left out."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock") if folder.is_dir() else []


def test_each_task_and_seed_has_a_folder_below_the_run(tmp_path):
    folder = result_folder(tmp_path, "gue", "step-00000010", "mouse/0", 42)
    assert folder == tmp_path / "downstream/gue/step-00000010/mouse/0/seed-42"


def test_files_appear_together(tmp_path):
    folder = tmp_path / "toy" / "seed-1"
    with result_files(folder) as partial:
        (partial / "a").write_text("a")
        (partial / "b").write_text("b")
        assert not folder.exists()
    assert content(folder) == ["a", "b"]
    assert content(folder.parent) == ["seed-1"]


def test_a_new_result_replaces_all_of_the_old_one(tmp_path):
    folder = tmp_path / "seed-1"
    for name in ("old", "new"):
        with result_files(folder) as partial:
            (partial / name).write_text(name)
    assert content(folder) == ["new"]


def test_an_error_leaves_nothing(tmp_path):
    def write_half():
        with result_files(tmp_path / "seed-1") as partial:
            (partial / "a").write_text("a")
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        write_half()
    assert content(tmp_path) == []


def test_an_error_leaves_an_older_result_as_it_was(tmp_path):
    folder = tmp_path / "seed-1"
    with result_files(folder) as partial:
        (partial / "old").write_text("old")
    with pytest.raises(KeyboardInterrupt), result_files(folder) as partial:
        raise KeyboardInterrupt
    assert content(folder) == ["old"]
    assert content(tmp_path) == ["seed-1"]


def test_leftovers_of_a_killed_writer_are_cleared(tmp_path):
    folder = tmp_path / "seed-1"
    killed = tmp_path / ".seed-1.partial" / "checkpoints"
    killed.mkdir(parents=True)
    (killed / "weights").write_text("half")
    with result_files(folder) as partial:
        assert content(partial) == []
        (partial / "a").write_text("a")
    assert content(folder) == ["a"]


def test_two_launches_do_not_write_the_same_result(tmp_path):
    folder = tmp_path / "seed-1"
    with result_files(folder) as partial:
        with pytest.raises(UserError, match="seed-1: another process is at work on it"), result_files(folder):
            pass
        (partial / "a").write_text("a")
    assert content(folder) == ["a"]
    with result_files(folder):
        pass


def test_the_other_processes_of_a_launch_have_the_same_folder_and_leave_it_alone(tmp_path):
    folder = tmp_path / "seed-1"
    with result_files(folder) as partial, result_files(folder, is_main_process=False) as the_same:
        assert the_same == partial
        (the_same / "a").write_text("a")
    assert content(folder) == ["a"]


def test_what_is_written_is_read_again(tmp_path):
    write_result(tmp_path, result(), predictions(6, 2))
    assert read_result(tmp_path) == result()
    assert read_result(tmp_path).score == 0.1 + 0.2


@pytest.mark.parametrize("text", [None, "", '{"suite": "toys"}', "\udcff"], ids=["absent", "empty", "other", "bytes"])
def test_a_result_that_cannot_be_read_is_named(tmp_path, text):
    if text is not None:
        (tmp_path / RESULT).write_text(text, errors="surrogateescape")
    with pytest.raises(UserError, match=f"{RESULT}: not a result that can be read"):
        read_result(tmp_path)


def test_all_results_of_a_run_or_of_a_suite_are_found_but_no_unfinished_ones(tmp_path):
    for suite, task, seed in [("b", "x/y", 1), ("a", "x", 2), ("a", "x", 1)]:
        folder = result_folder(tmp_path, suite, "step-00000010", task, seed)
        with result_files(folder) as partial:
            write_result(partial, result(suite=suite, task=task, seed=seed), predictions(6, 2))
    unfinished = tmp_path / "downstream/a/step-00000010/x/.seed-3.partial"
    unfinished.mkdir()
    write_result(unfinished, result(seed=3), predictions(6, 2))
    assert [(r.suite, r.task, r.seed) for r in read_results(tmp_path)] == [
        ("a", "x", 1),
        ("a", "x", 2),
        ("b", "x/y", 1),
    ]
    assert [r.task for r in read_results(tmp_path, "b")] == ["x/y"]
    assert read_results(tmp_path / "elsewhere") == []


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_the_metrics_can_be_computed_again_from_the_written_predictions(tmp_path, classes):
    made = predictions(200, classes)
    names = [f"class {c}" for c in range(classes)]
    logged = result(classes=names, metrics=score(made), confusion=confusion(made))
    write_result(tmp_path, logged, made)

    rows = list(csv.DictReader((tmp_path / PREDICTIONS).read_text().splitlines()))
    assert [int(row["row"]) for row in rows] == list(range(200))
    shares = [[float(row[f"probability_{c}"]) for c in range(classes)] for row in rows]
    assert shares == made.probabilities.tolist()  # to the last bit
    true, predicted = ([int(row[name]) for row in rows] for name in ("label", "prediction"))
    assert predicted == [max(range(classes), key=row.__getitem__) for row in shares]

    again = metrics_in_plain_python(true, predicted, shares)
    assert sorted(again) == sorted(logged.metrics)
    for name, value in logged.metrics.items():
        assert value == pytest.approx(again[name], abs=1e-12), name
    counted = [
        [sum(pair == (t, p) for pair in zip(true, predicted, strict=True)) for p in range(classes)]
        for t in range(classes)
    ]
    assert logged.confusion == counted


def metrics_in_plain_python(true, predicted, shares):
    classes, rows = range(len(shares[0])), len(true)
    right = [sum(t == p == c for t, p in zip(true, predicted, strict=True)) for c in classes]
    of_true, of_predicted = [true.count(c) for c in classes], [predicted.count(c) for c in classes]
    covariance = sum(right) * rows - sum(t * p for t, p in zip(of_true, of_predicted, strict=True))
    spread = (rows**2 - sum(t * t for t in of_true)) * (rows**2 - sum(p * p for p in of_predicted))

    def area(c):
        """Share of the pairs of a row of the class and another row that are in the right order."""
        inside = [row[c] for row, t in zip(shares, true, strict=True) if t == c]
        outside = [row[c] for row, t in zip(shares, true, strict=True) if t != c]
        return sum((a > b) + (a == b) / 2 for a in inside for b in outside) / (len(inside) * len(outside))

    count = len(classes)
    return {
        "mcc": covariance / sqrt(spread),
        "accuracy": sum(right) / rows,
        "precision": sum(right[c] / of_predicted[c] for c in classes) / count,
        "recall": sum(right[c] / of_true[c] for c in classes) / count,
        "f1": sum(2 * right[c] / (of_true[c] + of_predicted[c]) for c in classes) / count,
        "roc_auc": area(1) if count == 2 else sum(map(area, classes)) / count,
    }


def test_mean_and_standard_deviation_over_seeds_are_those_of_a_sample():
    several = Score([0.5, 0.7, 0.9])
    assert several.mean == pytest.approx(0.7)
    assert several.sd == pytest.approx(sqrt((0.2**2 + 0 + 0.2**2) / 2))
    assert several.percent == "70.00 ± 20.00 (3)"
    assert Score([0.5]).sd is None
    assert Score([0.5]).percent == "50.00 (1)"


def test_scores_of_a_task_are_in_the_order_of_the_seeds():
    results = [
        result(task=task, seed=seed, metrics={"mcc": value})
        for task, seed, value in [("x", 2, 0.2), ("y", 1, 0.5), ("x", 1, 0.1)]
    ]
    assert task_scores(results, "mcc") == {"x": Score([0.1, 0.2]), "y": Score([0.5])}


def test_the_score_of_a_group_is_of_the_seeds_that_all_its_tasks_have():
    values = {("x", 1): 0.1, ("y", 1): 0.3, ("x", 2): 0.5, ("x", 3): 0.5, ("y", 3): 0.9, ("z", 2): 1.0}
    results = [result(task=task, seed=seed, metrics={"mcc": value}) for (task, seed), value in values.items()]
    found = group_score(results, ["x", "y"], "mcc")
    assert found is not None
    assert found.values == pytest.approx([0.2, 0.7])
    assert group_score(results, ["x", "y", "z"], "mcc") is None
    assert group_score(results, [], "mcc") is None


def test_a_result_on_a_divided_dev_split_is_no_part_of_a_group():
    results = [result(task="x", metrics={"mcc": 0.1}), result(task="y", metrics={"mcc": 0.9}, resplit=True)]
    assert group_score(results, ["x"], "mcc") == Score([0.1])
    assert group_score(results, ["x", "y"], "mcc") is None
    assert "not a score of the benchmark" in results[1].summary
