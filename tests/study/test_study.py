"""`cmgems study` from end to end: workers, interruptions, changed settings, MLflow, the page."""

import json
import os
import subprocess
import sys
import time

import pytest
import yaml
from mlflow import MlflowClient

from cmgems.cli import main
from cmgems.data.prepare import prepare_corpus
from cmgems.study.records import read_record
from cmgems.study.settings import load_study
from tests.study.conftest import write_study
from tests.training.launching import REPOSITORY

pytestmark = pytest.mark.slow

CELLS = ["3-mers-1", "genemask-1", "none-1", "random-1", "span-1", "span-2"]
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


def wait_for(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_genome):
    """The file of a study that one process has finished without an interruption."""
    study_file = write_study(tmp_path_factory.mktemp("whole"), tiny_genome)
    code, output = run(study_file)
    assert code == 0, output
    return study_file


def test_records_have_what_was_computed(whole):
    found = results(whole)
    assert list(found) == CELLS
    record = read_record(whole.parent / "results/genemask-1.json")
    assert record.pretraining.steps == 8
    assert record.pretraining.tokens == 8 * 8 * 40
    assert sorted(record.bits) == sorted(record.scores["probe"]) == [4, 8]
    assert set(record.bits[8]) == {f"gap_{gap}{kind}" for gap in (1, 4) for kind in ("", "_chain", "_composition")}
    assert record.scores["probe"][8]["toy/one"].rows == {"train": 24, "dev": 12, "test": 14}
    assert record.scores["probe"][4]["toy/one"].outcomes is None
    assert record.scores["probe"][8]["toy/one"].outcomes
    assert found["none-1"]["pretraining"] is None


def test_a_finished_study_is_left_as_it_is(whole):
    before = {path: path.stat().st_mtime_ns for path in (whole.parent / "results").iterdir()}
    code, output = run(whole)
    assert code == 0
    assert "6 of 6 arms and seeds are done" in output
    assert {path: path.stat().st_mtime_ns for path in (whole.parent / "results").iterdir()} == before


def test_it_is_one_experiment_with_one_run_that_the_others_are_nested_in(whole):
    client = MlflowClient(tracking_uri=f"sqlite:///{whole.parents[1]}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("study-toy").experiment_id])
    [parent] = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert parent.info.run_name == "toy"
    assert parent.info.status == "FINISHED"
    nested = {run.info.run_name: run for run in runs if run is not parent}
    assert sorted(nested) == CELLS
    assert {run.data.tags["mlflow.parentRunId"] for run in nested.values()} == {parent.info.run_id}
    expected, metrics = results(whole)["span-1"], nested["span-1"].data.metrics
    assert metrics["primary/mean"] == pytest.approx(expected["scores"]["probe"]["8"]["toy/one"]["value"])
    assert metrics["bits/gap_4"] == pytest.approx(expected["bits"]["8"]["gap_4"])
    assert [point.step for point in client.get_metric_history(nested["span-1"].info.run_id, "bits/gap_4")] == [4, 8]


def test_kept_results_alone_make_the_experiment_anew(whole, tmp_path, tiny_genome):
    """As in a fresh clone: no runs, no corpus, no data."""
    study_file = write_study(tmp_path, tiny_genome)
    (study_file.parent / "results").mkdir()
    for path in (whole.parent / "results").glob("*.json"):
        (study_file.parent / "results" / path.name).write_bytes(path.read_bytes())
    code, output = run(study_file, "--work", str(tmp_path / "work"))
    assert code == 0, output
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("study-toy").experiment_id])
    metrics = {run.info.run_name: run.data.metrics for run in runs}
    assert sorted(metrics) == [*CELLS, "toy"]
    assert metrics["span-2"]["ppl/genemask"] > 1
    assert metrics["span-2"]["bits/gap_1"] == pytest.approx(results(whole)["span-2"]["bits"]["8"]["gap_1"])


def test_the_page_is_made_of_the_results(whole, tmp_path):
    main(["report", str(whole.parent), "--output", str(tmp_path / "page")])
    page = (tmp_path / "page/report.html").read_text()
    assert "A toy study" in page
    assert "GeneMask minus Span" in page
    assert "6 of 6 arms and seeds have results" in page
    assert {path.name for path in (tmp_path / "page").iterdir()} == {
        "report.html",
        "report_contrasts.png",
        "report_curves.png",
    }


def test_a_study_that_is_killed_has_the_same_results_and_does_nothing_twice(whole, study_file):
    process = start(study_file)
    folder = study_file.parent / "results"
    wait_for(lambda: len(list(folder.glob("*.json"))) >= 2)
    process.kill()
    process.communicate()
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    assert len(before) < len(CELLS)
    code, output = run(study_file)
    assert code == 0, output
    assert results(study_file) == results(whole)
    changed = [path for path, when in before.items() if path.stat().st_mtime_ns != when]
    assert len(changed) <= 1  # the one that it was at
    logs = [path.read_text() for path in (study_file.parents[1] / "runs/studies/toy").glob("*.log")]
    assert sum(log.count("step 8  validation perplexity") for log in logs) == 3  # span-1, span-2, genemask-1


def test_two_workers_that_are_stopped_go_on_to_the_same_results(whole, study_file):
    process = start(study_file, "--workers", "2")
    folder = study_file.parents[1] / "runs/studies/toy"
    wait_for(lambda: list(folder.glob("*/tracking.jsonl")))
    process.terminate()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output
    code, output = run(study_file, "--workers", "2")
    assert code == 0, output
    assert results(study_file) == results(whole)


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
    recipe = load_study(study_file).configs["span"]
    prepare_corpus(recipe.corpus.prepare, recipe.corpus.path, progress=False)
    main(["study", str(study_file), "--plan"])
    shown = capsys.readouterr().out
    assert "A toy study" in shown
    [span] = [line.split() for line in shown.splitlines() if line.startswith("span")]
    assert span[:3] == ["span", "2", "2"]
    assert "tokens/s" in shown
    assert not (study_file.parent / "results").exists()
