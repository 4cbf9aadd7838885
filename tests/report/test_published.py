"""The published table is what the authors published, and its means can be had for any tasks."""

import csv

import pytest

from cmgems.downstream.tasks import load_suite
from cmgems.report.published import SUITE, published

TABLE = published()
MODELS = {model.name: model for model in TABLE.models}


def test_scores_are_those_of_the_published_file(shared_data):
    with (shared_data / "reference" / "cm_gems_published_mcc.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if not row["task"].startswith("mean/")]
    expected = {(name, row["task"]): float(row[name]) for row in rows for name in row if name != "task"}
    assert TABLE.scores == expected
    assert len(expected) == 12 * 27


def test_rows_give_the_stated_means():
    tasks = load_suite(SUITE).tasks
    assert len(TABLE.stated_means) == 2 * 12
    for (name, group), stated in TABLE.stated_means.items():
        mean = TABLE.mean(MODELS[name], [task.name for task in tasks if task.group == group])
        assert mean == pytest.approx(stated, abs=0.01), (name, group)


def test_tasks_are_those_of_gue_with_a_group():
    assert set(TABLE.tasks) == {task.name for task in load_suite(SUITE).tasks if task.group is not None}


def test_means_and_the_best_model_over_some_tasks():
    tasks = ["tf/0", "tf/2"]
    assert TABLE.mean(MODELS["dnabert_cmgems_10k"], tasks) == pytest.approx((66.07 + 57.66) / 2)
    assert TABLE.best(TABLE.of_steps(10_000), tasks) == MODELS["dnabert_genemask_10k"]
    assert TABLE.best(TABLE.of_steps(120_000), tasks) == MODELS["dnabert2_bpe_120k"]


def test_a_task_that_is_not_in_the_table():
    with pytest.raises(KeyError, match="virus/covid"):
        TABLE.mean(TABLE.models[0], ["tf/0", "virus/covid"])
