"""Scores in MLflow, in a real database."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
from mlflow import MlflowClient

from cmgems.config.schema import TrackingConfig
from cmgems.downstream.publish import (
    Publisher,
    find_parent,
    publish_means,
    publish_report,
    publish_result,
    suite_metrics,
)
from cmgems.downstream.results import result_files, result_folder, write_result
from cmgems.downstream.scores import Predictions
from cmgems.downstream.settings import ScoringConfig
from cmgems.downstream.tasks import Suite
from cmgems.tracking.journal import Journal, MlflowRunRef

PREDICTIONS = Predictions(np.array([0, 0, 0, 1]), np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6]]))


@pytest.fixture(scope="module")
def tracking(tmp_path_factory):
    return TrackingConfig(uri=f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db", experiment="scores")


@pytest.fixture
def client(tracking):
    return MlflowClient(tracking_uri=tracking.uri)


@pytest.fixture
def parent(tracking, tmp_path):
    return find_parent(tmp_path, tracking.uri, tracking.experiment, "toy")


@pytest.fixture
def write_one(tmp_path):
    """Write a result's files, and return their folder."""

    def write(result):
        folder = result_folder(tmp_path, result.suite, result.subject, result.task, result.seed)
        with result_files(folder) as partial:
            write_result(partial, result, PREDICTIONS)
            (partial / "confusion.png").write_bytes(b"picture")
        return folder

    return write


@pytest.fixture
def suite(make_task):
    tasks = [make_task(name=name, group="human") for name in ("one", "two")] + [make_task(name="three")]
    return Suite(name="toy", source="toy", tasks=tasks)


def children(client, parent):
    experiment = client.get_run(parent.run).info.experiment_id
    return client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent.run}'")


def test_a_result_is_a_child_with_its_scores_history_settings_and_files(client, parent, write_one, make_result):
    run_id = publish_result(write_one(make_result()), make_result(), parent)
    [child] = children(client, parent)
    assert (child.info.run_id, child.info.status) == (run_id, "FINISHED")
    assert child.info.run_name == "toy step-00000100 one seed 42"
    assert child.info.end_time - child.info.start_time == 2000
    assert child.data.metrics["test/mcc"] == 0.5
    assert [(point.step, point.value) for point in client.get_metric_history(run_id, "dev/mcc")] == [(8, 0.4)]
    assert [(point.step, point.value) for point in client.get_metric_history(run_id, "train/loss")] == [(4, 0.7)]
    assert child.data.params["learning_rate"] == "3e-05"
    assert child.data.params["pretraining_steps"] == "100"
    assert (child.data.tags["task"], child.data.tags["kind"], child.data.tags["resplit"]) == ("one", "model", "False")
    files = {file.path for file in client.list_artifacts(run_id)}
    assert files == {"result.json", "predictions.csv", "confusion.png"}


def test_a_long_history_is_sent_in_parts(client, parent, write_one, make_result):
    history = [{"step": step, "loss": 1 / step, "learning_rate": 1e-5} for step in range(1, 1201)]
    run_id = publish_result(write_one(make_result(history=history)), make_result(history=history), parent)
    assert len(client.get_metric_history(run_id, "train/loss")) == 1200


def test_what_is_there_is_not_sent_again(client, parent, write_one, make_result):
    folder = write_one(make_result())
    run_id = publish_result(folder, make_result(), parent)
    assert publish_result(folder, make_result(), parent) == run_id
    (folder / "mlflow.json").unlink()  # killed after the run was complete, and before that was noted
    assert publish_result(folder, make_result(), parent) == run_id
    assert len(children(client, parent)) == 1


def test_a_child_that_was_cut_short_is_made_anew(client, parent, write_one, make_result):
    folder = write_one(make_result())
    cut_short = publish_result(folder, make_result(), parent)
    client.update_run(cut_short, status="RUNNING")
    (folder / "mlflow.json").unlink()
    again = publish_result(folder, make_result(), parent)
    assert [child.info.run_id for child in children(client, parent)] == [again] != [cut_short]


def test_a_result_that_was_computed_again_takes_the_place_of_the_old_one(client, parent, write_one, make_result):
    publish_result(write_one(make_result(0.5)), make_result(0.5), parent)
    newer = make_result(0.6, identity={"model": "def"})
    publish_result(write_one(newer), newer, parent)
    [child] = children(client, parent)
    assert child.data.metrics["test/mcc"] == 0.6


def test_the_parent_is_the_pretraining_run_of_the_folder(tmp_path, tracking):
    journal = Journal(tmp_path)
    journal.begin(MlflowRunRef(tracking.uri, "pretraining", "abc"))
    for uri in (None, tracking.uri):
        assert find_parent(tmp_path, uri, "scores", "toy") == MlflowRunRef(tracking.uri, "pretraining", "abc")
    journal.close()


def test_another_place_that_is_named_takes_precedence(client, tmp_path, tracking):
    journal = Journal(tmp_path)
    journal.begin(MlflowRunRef("sqlite:////gone/mlflow.db", "pretraining", "abc"))
    journal.close()
    parent = find_parent(tmp_path, tracking.uri, "scores", "toy")
    assert client.get_run(parent.run).info.run_name == "toy"
    assert find_parent(tmp_path, tracking.uri, "scores", "toy") == parent


def test_without_a_pretraining_run_a_parent_is_made_once(client, tmp_path, tracking):
    parent = find_parent(tmp_path, tracking.uri, "scores", "a-model-from-elsewhere")
    assert find_parent(tmp_path, None, "scores", "a-model-from-elsewhere") == parent
    assert client.get_run(parent.run).info.run_name == "a-model-from-elsewhere"


def test_means_stand_on_the_parent_once_until_they_change(client, parent, suite, make_result):
    results = [make_result(0.5), make_result(0.7, seed=43)]
    for _ in range(2):
        publish_means(suite, results, parent)
    points = client.get_metric_history(parent.run, "toy/mcc/one")
    assert [(point.step, point.value) for point in points] == [(100, pytest.approx(0.6))]
    publish_means(suite, [*results, make_result(0.9, seed=44)], parent)
    assert [p.value for p in client.get_metric_history(parent.run, "toy/mcc/one")] == pytest.approx([0.6, 0.7])
    assert client.get_run(parent.run).data.tags["downstream.toy"] == "1 of 3 tasks"


def test_shards_that_end_together_send_the_means_once(client, parent, suite, write_one, make_result, tmp_path):
    write_one(make_result(0.5))
    config = ScoringConfig(model="toy", data="toy", tracking_uri=parent.uri)
    together = Barrier(4)

    def finish(_):
        publisher = Publisher(config, suite, tmp_path, parent)
        together.wait()
        publisher.finish()

    with ThreadPoolExecutor(4) as shards:
        list(shards.map(finish, range(4)))
    assert [point.value for point in client.get_metric_history(parent.run, "toy/mcc/one")] == [0.5]


def test_means_and_deviations_of_models_and_baselines(suite, make_result):
    results = [
        make_result(0.5),
        make_result(0.7, seed=43),
        make_result(0.8, step=200, subject="step-00000200"),
        make_result(0.1, kind="random weights"),
        make_result(0.2, kind="k-mer regression"),
    ]
    metrics = suite_metrics(suite, results)
    assert metrics == {
        ("toy/mcc/one", 100): pytest.approx(0.6),
        ("toy/mcc_sd/one", 100): pytest.approx(0.1 * 2**0.5),
        ("toy/mcc/one", 200): 0.8,
        ("toy/mcc_random/one", 100): 0.1,
        ("toy/mcc_random/one", 200): 0.1,
        ("toy/mcc_kmers/one", 100): 0.2,
        ("toy/mcc_kmers/one", 200): 0.2,
    }


def test_models_of_the_same_step_are_told_apart(suite, make_result):
    results = [make_result(0.5, step=None, subject="A"), make_result(0.7, step=None, subject="B")]
    assert suite_metrics(suite, results) == {("toy/mcc_A/one", 0): 0.5, ("toy/mcc_B/one", 0): 0.7}


def test_a_groups_mean_is_there_once_all_of_its_tasks_are(suite, make_result):
    one, two = make_result(0.4), make_result(0.6, task="two")
    name = ("toy/mean_mcc_human", 100)
    assert name not in suite_metrics(suite, [one])
    assert suite_metrics(suite, [one, two])[name] == pytest.approx(0.5)
    assert suite_metrics(suite, [one, two, make_result(0.9, task="three")])[name] == pytest.approx(0.5)


def test_a_resplit_task_has_another_name_and_enters_no_mean(suite, make_result):
    metrics = suite_metrics(suite, [make_result(0.4), make_result(0.6, task="two", resplit=True)])
    assert set(metrics) == {("toy/mcc/one", 100), ("toy/resplit_mcc/two", 100)}


def test_a_report_is_an_artifact_of_its_runs(client, parent, tmp_path):
    (tmp_path / "report.html").write_text("page")
    publish_report(tmp_path, [tmp_path / "report.html"])
    assert [file.path for file in client.list_artifacts(parent.run, "report")] == ["report/report.html"]


def test_a_report_that_mlflow_does_not_take_is_a_warning(tmp_path, parent, capsys, tracking):
    shutil.rmtree(tmp_path / "downstream")
    journal = Journal(tmp_path)
    journal.begin(MlflowRunRef("sqlite:////proc/no/mlflow.db", "pretraining", "abc"))
    journal.close()
    publish_report(tmp_path, [tmp_path / "report.html"])
    assert "warning: the report is not in MLflow" in capsys.readouterr().err
