"""`cmgems study` from end to end: workers, interruptions, changed settings, MLflow, the page."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from mlflow import MlflowClient

from cmgems.cli import main
from cmgems.study.records import read_record
from cmgems.study.settings import load_study
from tests.study.test_settings import change
from tests.support.waits import wait_until
from tests.training.launching import REPOSITORY

pytestmark = pytest.mark.slow

CELLS = ["3-mers-1", "genemask-1", "genemask-2", "none-1", "none-2", "random-1", "span-1", "span-2"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


def start(study_file, *arguments):
    """Start `cmgems study` in the folder above the study's, in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "cmgems", "study", str(study_file), *arguments],
        cwd=study_file.parents[1],
        env=ENVIRONMENT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def run(study_file, *arguments):
    process = start(study_file, *arguments)
    output, _ = process.communicate(timeout=600)
    return process.returncode, output


def results(study_file):
    """What does not depend on the time, by cell."""
    found = {}
    for path in sorted((study_file.parent / "results").glob("*.json")):
        record = json.loads(path.read_text())
        for name in ("seconds", "machine", "versions"):
            del record[name]
        if record["pretraining"]:
            del record["pretraining"]["hours"]
        for steps in record["scores"].values():
            for tasks in steps.values():
                for entry in tasks.values():
                    del entry["seconds"]
        found[path.stem] = record
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Results of the study by one process without an interruption; made once."""
    return {}


def whole(study_file, finished):
    if not finished:
        code, output = run(study_file)
        assert code == 0, output
        finished.update(results(study_file))
        assert list(finished) == CELLS
    return finished


def test_a_study_is_computed_once_and_is_in_mlflow(study_file, finished, tmp_path):
    expected = whole(study_file, finished)
    if not (study_file.parent / "results").exists():
        pytest.fail("this test has to be the first")
    record = read_record(study_file.parent / "results/genemask-2.json")
    assert record.pretraining.steps == 8
    assert record.pretraining.tokens == 8 * 8 * 40
    assert sorted(record.bits) == sorted(record.scores["probe"]) == [4, 8]
    assert set(record.bits[8]) == {f"gap_{gap}{kind}" for gap in (1, 4) for kind in ("", "_chain", "_composition")}
    assert record.scores["probe"][8]["toy/one"].rows == {"train": 24, "dev": 12, "test": 14}
    assert record.scores["probe"][4]["toy/one"].outcomes is None
    assert record.scores["probe"][8]["toy/one"].outcomes
    assert expected["none-1"]["pretraining"] is None

    before = {path: path.stat().st_mtime_ns for path in (study_file.parent / "results").iterdir()}
    code, output = run(study_file)
    assert code == 0
    assert "8 of 8 arms and seeds are done" in output
    assert {path: path.stat().st_mtime_ns for path in (study_file.parent / "results").iterdir()} == before

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("study-toy").experiment_id])
    [parent] = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert parent.info.run_name == "toy"
    nested = {run.info.run_name: run for run in runs if run is not parent}
    assert sorted(nested) == CELLS
    assert {run.data.tags["mlflow.parentRunId"] for run in nested.values()} == {parent.info.run_id}
    metrics = nested["span-1"].data.metrics
    assert metrics["primary/mean"] == pytest.approx(expected["span-1"]["scores"]["probe"]["8"]["toy/one"]["value"])
    assert metrics["bits/gap_4"] == pytest.approx(expected["span-1"]["bits"]["8"]["gap_4"])
    assert [point.step for point in client.get_metric_history(nested["span-1"].info.run_id, "bits/gap_4")] == [4, 8]

    change(study_file, name="toy", seeds=2, contrasts=[{"option": "span", "against": "genemask"}])
    main(["report", str(study_file.parent), "--output", str(tmp_path / "page")])
    page = (tmp_path / "page/report.html").read_text()
    assert "A toy study" in page
    assert "Span minus GeneMask" in page
    assert "8 of 8 arms and seeds have results" in page


def test_two_workers_have_the_same_results(study_file, finished):
    expected = whole(study_file, finished)
    if not results(study_file):
        code, output = run(study_file, "--workers", "2")
        assert code == 0, output
    assert results(study_file) == expected


def test_a_study_that_is_killed_has_the_same_results_and_does_nothing_twice(study_file, finished):
    expected = whole(study_file, finished)
    if results(study_file):
        pytest.skip("the first test to run computes the results that this one compares with")
    process = start(study_file)
    folder = study_file.parent / "results"
    wait_until(lambda: len(list(folder.glob("*.json"))) >= 2, 300)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    study = load_study(study_file)
    assert 2 <= len(before) < len(CELLS)
    code, output = run(study_file)
    assert code == 0, output
    assert results(study_file) == expected
    assert study.config.name == "toy"
    done_before = [path for path, when in before.items() if path.stat().st_mtime_ns == when]
    assert len(done_before) >= len(before) - 1  # all but the one that it was at


def test_a_study_that_is_stopped_goes_on(study_file, finished):
    expected = whole(study_file, finished)
    if results(study_file):
        pytest.skip("the first test to run computes the results that this one compares with")
    process = start(study_file, "--workers", "2")
    folder = study_file.parents[1] / "runs/studies/toy"
    wait_until(lambda: list(folder.glob("*/checkpoints/step-*")) or list(folder.glob("*/models/step-*")), 300)
    process.terminate()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output
    time.sleep(1)
    code, output = run(study_file, "--workers", "2")
    assert code == 0, output
    assert results(study_file) == expected


def test_a_changed_setting_is_named_before_anything_is_computed(study_file):
    code, output = run(study_file, "--cells", "3-mers")
    assert code == 0, output
    recipe = yaml.safe_load((study_file.parent / "recipe.yaml").read_text())
    recipe["optimizer"]["learning_rate"] = 2e-3
    (study_file.parent / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    code, output = run(study_file)
    assert code == 2
    assert "3-mers-1.json was computed with other settings" in output
    assert "optimizer.learning_rate: 0.001 there, 0.002 in the study" in output


def test_a_cell_that_fails_does_not_keep_the_others_back(study_file):
    (study_file.parents[1] / "data/one/dev.csv").unlink()
    code, output = run(study_file, "--cells", "random,none-1")
    assert code == 1
    assert "2 of 2 failed" in output
    assert "has no dev split here" in output
    record = read_record(study_file.parent / "results/none-1.json")
    assert record.bits  # what could be computed is kept


def test_the_plan_says_what_is_left(study_file, capsys, monkeypatch):
    monkeypatch.chdir(study_file.parents[1])
    main(["prepare", *yaml.safe_load((study_file.parent / "recipe.yaml").read_text())["corpus"]["prepare"]["inputs"],
          "--k", "4", "--window-tokens", "40", "--min-window-tokens", "40", "--full-length-share", "1",
          "--validation-chromosomes", "three", "--output", str(study_file.parents[1] / "corpus")])  # fmt: skip
    main(["study", str(study_file), "--plan"])
    shown = capsys.readouterr().out
    assert "A toy study" in shown
    [span] = [line.split() for line in shown.splitlines() if line.startswith("span")]
    assert span[:3] == ["span", "2", "2"]
    assert "tokens/s" in shown
    assert not (study_file.parent / "results").exists()
