"""`cmgems benchmark` and cmgems/finetune.py on a toy suite, with tiny models."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from mlflow import MlflowClient

from cmgems.cli import main
from cmgems.downstream import finetuning
from cmgems.downstream.finetuning import start_processes
from cmgems.downstream.settings import BenchmarkConfig
from cmgems.downstream.subjects import model_subject, run_folder
from cmgems.errors import Interrupted, UserError
from cmgems.runtime import process
from cmgems.tracking.journal import Journal, MlflowRunRef
from tests.downstream.models import ours
from tests.support.suites import RECIPE, write_suite
from tests.training.launching import ACCELERATE, DDP, ENVIRONMENT, REPOSITORY, forget_accelerator


@pytest.fixture(autouse=True)
def fresh_accelerator():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    forget_accelerator()
    yield
    forget_accelerator()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def mlflow_uri(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def place(tmp_path):
    """A folder with a model in a run's folder, a suite of two tasks, and their data."""
    write_suite(tmp_path)
    return tmp_path


def benchmark(place, uri, *more):
    main(
        [
            *("benchmark", "--suite", f"{place}/toys.yaml", "--data", f"{place}/data", "--tracking_uri", uri),
            *("--model", f"{place}/run/models/step-00000100", "--output", f"{place}/run", "--seeds", "2", *more),
        ]
    )


def results(place):
    """Results by their place, with the time of their file."""
    folder = place / "run" / "downstream" / "toys"
    return {
        str(path.parent.relative_to(folder)): (json.loads(path.read_text()), path.stat().st_mtime_ns)
        for path in sorted(folder.glob("*/*/seed-*/result.json"))
    }


def test_a_suite_gives_results_children_in_mlflow_means_and_a_table(place, mlflow_uri, capsys):
    benchmark(place, mlflow_uri)
    there = results(place)
    assert set(there) == {
        *(f"step-00000100/{task}/seed-{seed}" for task in ("one", "two") for seed in (42, 43)),
        *(f"random-weights/{task}/seed-{seed}" for task in ("one", "two") for seed in (42, 43)),
        *(f"4-mer-regression/{task}/seed-42" for task in ("one", "two")),
    }
    output = capsys.readouterr().out
    assert "[10/10] two, 4-mer-regression, seed 42: mcc" in output
    first, second = (there[f"step-00000100/one/seed-{seed}"][0]["metrics"]["mcc"] for seed in (42, 43))
    mean, sd = (first + second) / 2, abs(first - second) / 2**0.5
    assert f"one   {100 * mean:.2f} ± {100 * sd:.2f} (2)" in output

    client = MlflowClient(tracking_uri=mlflow_uri)
    parent = json.loads((place / "run/downstream/mlflow.json").read_text())["run"]
    experiment = client.get_run(parent).info.experiment_id
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert len(children) == 10
    metrics = client.get_run(parent).data.metrics
    assert metrics["toys/mcc/one"] == pytest.approx(mean)
    assert {"toys/mean_mcc_toys", "toys/mean_mcc_toys_random", "toys/mean_mcc_toys_kmers"} <= set(metrics)
    [point] = client.get_metric_history(parent, "toys/mean_mcc_toys")
    assert point.step == 100

    benchmark(place, mlflow_uri)
    assert results(place) == there
    assert "there already" in capsys.readouterr().out
    assert len(client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")) == 10


def test_seeds_begin_where_told_and_k_mers_have_the_lengths_that_are_told(place, mlflow_uri):
    benchmark(place, mlflow_uri, "--tasks", "one", "--first-seed", "7", "--kmers", "3,4", "--probe")
    subjects = ("step-00000100", "random-weights", "3-mer-regression", "4-mer-regression")
    found = sorted(str(path.relative_to(place)) for path in place.rglob("result.json"))
    folder = "run/downstream/toys-probe"
    assert found == sorted(f"{folder}/{s}/one/seed-{seed}/result.json" for s in subjects for seed in (7, 8))
    features = {s: json.loads((place / f"{folder}/{s}/one/seed-7/result.json").read_text())["probe"] for s in subjects}
    assert (features["3-mer-regression"]["features"], features["4-mer-regression"]["features"]) == (64, 256)
    parent = json.loads((place / "run/downstream/mlflow.json").read_text())["run"]
    metrics = MlflowClient(tracking_uri=mlflow_uri).get_run(parent).data.metrics
    assert {"toys-probe/mcc_kmers/one", "toys-probe/mcc_3-mer-regression/one"} <= set(metrics)


def test_a_signal_is_no_failure_of_a_score(place, mlflow_uri, monkeypatch):
    def stopped(*_, **__):
        raise Interrupted("stopped by SIGTERM")

    monkeypatch.setattr("cmgems.downstream.benchmark.find_or_compute", stopped)
    with pytest.raises(SystemExit) as stop:
        benchmark(place, mlflow_uri)
    assert stop.value.code == 75


def test_a_task_that_fails_does_not_keep_the_others_back(place, mlflow_uri, capsys):
    (place / "data" / "one" / "test.csv").write_text("sequence,label\nACGTACGT,2\n")
    with pytest.raises(SystemExit) as exit_:
        benchmark(place, mlflow_uri, "--no-baselines")
    assert exit_.value.code == 1
    assert set(results(place)) == {f"step-00000100/two/seed-{seed}" for seed in (42, 43)}
    errors = capsys.readouterr().err
    assert "2 of 4 failed" in errors
    assert "one/test.csv, line 2: the label is 2, but the task has 2 classes: 0..1" in errors


def test_a_task_without_a_train_split_runs_only_when_asked_to_and_is_marked(place, mlflow_uri, capsys):
    (place / "data" / "one" / "train.csv").unlink()
    chosen = ("--tasks", "one", "--seeds", "1", "--no-baselines")
    with pytest.raises(SystemExit):
        benchmark(place, mlflow_uri, *chosen)
    assert "--resplit divides its dev split instead" in capsys.readouterr().err
    benchmark(place, mlflow_uri, *chosen, "--resplit")
    [(result, _)] = results(place).values()
    assert (result["resplit"], result["rows"]) == (True, {"train": 10, "dev": 2, "test": 13})
    assert "(1) resplit" in capsys.readouterr().out
    parent = json.loads((place / "run/downstream/mlflow.json").read_text())["run"]
    metrics = MlflowClient(tracking_uri=mlflow_uri).get_run(parent).data.metrics
    assert set(metrics) == {"toys/resplit_mcc/one"}


def test_seeds_of_other_data_make_no_mean_together(place, mlflow_uri, capsys):
    chosen = ("--tasks", "one", "--no-baselines")
    benchmark(place, mlflow_uri, *chosen)
    with (place / "data/one/test.csv").open("a") as file:
        file.write("ACGTTTTTTTGGG,1\n")
    capsys.readouterr()
    benchmark(place, mlflow_uri, *chosen, "--seeds", "1")
    shown = capsys.readouterr()
    assert "(1)" in shown.out
    assert "(2)" not in shown.out
    assert "left out, it is of other data, weights or settings than newer seeds of its task" in shown.err
    benchmark(place, mlflow_uri, *chosen)
    assert "(2)" in capsys.readouterr().out


def test_a_result_that_cannot_be_read_is_left_out_and_computed_again(place, mlflow_uri, capsys):
    benchmark(place, mlflow_uri, "--no-baselines", "--seeds", "1")
    (place / "run/downstream/toys/step-00000100/one/seed-42/result.json").write_text("{}")
    benchmark(place, mlflow_uri, "--no-baselines", "--seeds", "1", "--tasks", "two")
    assert "warning: left out" in capsys.readouterr().err
    benchmark(place, mlflow_uri, "--no-baselines", "--seeds", "1", "--tasks", "one")
    assert len(results(place)) == 2


def test_a_step_or_group_that_is_told_later_reaches_a_result_that_is_kept(place, mlflow_uri):
    chosen = ("--tasks", "one", "--no-baselines", "--seeds", "1")
    benchmark(place, mlflow_uri, *chosen)
    suite = yaml.safe_load((place / "toys.yaml").read_text())
    suite["tasks"][0]["group"] = "others"
    (place / "toys.yaml").write_text(yaml.safe_dump(suite))
    benchmark(place, mlflow_uri, *chosen, "--step", "7")
    [(result, _)] = results(place).values()
    assert (result["step"], result["group"]) == (7, "others")


def test_another_model_does_not_take_the_place_of_results(place, mlflow_uri, capsys):
    chosen = ("--tasks", "one", "--no-baselines", "--seeds", "1")
    benchmark(place, mlflow_uri, *chosen)
    before = results(place)
    other = ours(place / "other" / "step-00000100", seed=1)
    with pytest.raises(SystemExit):
        benchmark(place, mlflow_uri, *chosen, "--model", str(other))
    assert f"give {other} an --output of its own" in capsys.readouterr().err
    assert results(place) == before


def test_a_suite_is_one_process(place, mlflow_uri, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(process, "end_process", sys.exit)
    with pytest.raises(SystemExit):
        benchmark(place, mlflow_uri)
    assert "several share the work by --shard" in capsys.readouterr().err


def test_data_that_is_not_there_is_told_once(place, mlflow_uri, capsys):
    with pytest.raises(SystemExit) as exit_:
        benchmark(place, mlflow_uri, "--data", f"{place}/nowhere")
    assert exit_.value.code == 2
    assert capsys.readouterr().err.strip() == f"error: {place}/nowhere: there is no such folder"


def test_shards_share_the_work(place, mlflow_uri):
    benchmark(place, mlflow_uri, "--no-baselines", "--shard", "1/3")
    first = results(place)
    assert set(first) == {"step-00000100/one/seed-42", "step-00000100/two/seed-43"}
    for shard in ("2/3", "3/3"):
        benchmark(place, mlflow_uri, "--no-baselines", "--shard", shard)
    whole = results(place)
    assert len(whole) == 4
    assert {name: whole[name] for name in first} == first


def test_a_result_of_another_recipe_or_of_other_data_is_computed_again(place, mlflow_uri):
    chosen = ("--tasks", "one", "--seeds", "1", "--no-baselines")
    benchmark(place, mlflow_uri, *chosen)
    before = results(place)
    suite = yaml.safe_load((place / "toys.yaml").read_text())
    suite["tasks"][0]["recipe"] = RECIPE | {"learning_rate": 2e-3}
    (place / "toys.yaml").write_text(yaml.safe_dump(suite))
    benchmark(place, mlflow_uri, *chosen)
    after = results(place)
    assert after["step-00000100/one/seed-42"][0]["recipe"]["learning_rate"] == 2e-3
    with (place / "data/one/test.csv").open("a") as file:
        file.write("ACGTTTTTTTGGG,1\n")
    benchmark(place, mlflow_uri, *chosen)
    assert [result["rows"]["test"] for result, _ in results(place).values()] == [14]
    assert set(before) == set(after) == set(results(place))


def test_without_mlflow_the_scores_are_in_files_and_are_sent_the_next_time(place, mlflow_uri, capsys):
    chosen = ("--tasks", "one", "--no-baselines")
    benchmark(place, "http://127.0.0.1:9", *chosen)
    assert "MLflow does not have all scores" in capsys.readouterr().err
    there = results(place)
    assert len(there) == 2
    benchmark(place, mlflow_uri, *chosen)
    assert results(place) == there
    parent = json.loads((place / "run/downstream/mlflow.json").read_text())["run"]
    assert "toys/mcc/one" in MlflowClient(tracking_uri=mlflow_uri).get_run(parent).data.metrics


def all_results(place):
    """All results by their place, whatever the suite's name became, with the time of their file."""
    folder = place / "run" / "downstream"
    return {
        str(path.parent.relative_to(folder)): (json.loads(path.read_text()), path.stat().st_mtime_ns)
        for path in sorted(folder.glob("*/*/*/seed-*/result.json"))
    }


def mlflow_run(place, uri):
    """The run that the results belong to, and the children of it."""
    client = MlflowClient(tracking_uri=uri)
    parent = client.get_run(json.loads((place / "run/downstream/mlflow.json").read_text())["run"])
    mine = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    return parent, client.search_runs([parent.info.experiment_id], mine)


def test_the_untrained_start_of_a_run_is_scored_beside_its_models(place, mlflow_uri, capsys):
    ours(place / "run/models/step-00000000", seed=1)
    benchmark(place, mlflow_uri, "--tasks", "one", "--seeds", "1")
    start = results(place)["step-00000000/one/seed-42"][0]
    assert (start["kind"], start["step"]) == ("model", 0)
    columns = capsys.readouterr().out.split("\n\n")[-1].splitlines()[1].split()
    assert columns == ["task", "step-00000000", "step-00000100", "random-weights", "4-mer-regression"]


def test_mean_pooling_is_a_protocol_of_its_own_and_in_the_result(place, mlflow_uri):
    benchmark(place, mlflow_uri, "--tasks", "one", "--seeds", "1", "--no-baselines", "--pooling", "mean")
    [(name, (result, _))] = all_results(place).items()
    assert name == "toys-pooled/step-00000100/one/seed-42"
    assert result["recipe"]["pooling"] == "mean"
    assert json.loads(result["identity"]["recipe"])["pooling"] == "mean"


def test_a_result_from_before_there_were_protocols_is_kept(place, mlflow_uri):
    chosen = ("--tasks", "one", "--seeds", "1", "--no-baselines")
    benchmark(place, mlflow_uri, *chosen)
    [(name, (result, _))] = all_results(place).items()
    assert set(result["identity"]) == {
        *("procedure", "data", "classes", "model", "recipe", "precision", "max_tokens"),
    }
    assert json.loads(result["identity"]["recipe"])["learning_rate"] == 1e-3
    path = place / "run/downstream" / name / "result.json"
    older = {field: value for field, value in result.items() if field not in ("protocol", "choice", "probe")}
    path.write_text(json.dumps(older))
    before = all_results(place)
    benchmark(place, mlflow_uri, *chosen)
    assert all_results(place) == before


def test_a_probe_has_results_metrics_and_a_table_of_its_own(place, mlflow_uri, capsys):
    chosen = ("--tasks", "one")
    benchmark(place, mlflow_uri, *chosen, "--seeds", "1", "--no-baselines")
    tuned = all_results(place)
    assert set(tuned) == {"toys/step-00000100/one/seed-42"}
    capsys.readouterr()
    benchmark(place, mlflow_uri, *chosen, "--probe")
    there = all_results(place)
    subjects = ("step-00000100", "random-weights", "4-mer-regression")
    probed = {f"toys-probe/{subject}/one/seed-{seed}" for subject in subjects for seed in (42, 43)}
    assert set(there) == probed | set(tuned)
    assert {name: there[name] for name in tuned} == tuned
    for name in probed:
        result = there[name][0]
        assert (result["suite"], result["protocol"], result["recipe"]) == ("toys-probe", "probe", {})
        assert result["choice"]["value"] == min(
            (float(c) for c, score in result["choice"]["scores"].items() if score == result["dev_metrics"]["mcc"])
        )
        of_model = {"layers": 2, "features": 2 * 16}
        expected = {"layers": 0, "features": 256} if "4-mer" in name else of_model
        assert {key: result["probe"][key] for key in expected} == expected
        assert result["probe"]["converged"] is True
    output = capsys.readouterr().out
    assert "suite toys-probe: 6 scores to compute" in output
    assert [line.split()[0] for line in output.split("\n\n")[-1].splitlines()[1:]] == ["task", "one"]

    parent, children = mlflow_run(place, mlflow_uri)
    names = {f"mcc{baseline}{sd}" for baseline in ("", "_random", "_kmers") for sd in ("", "_sd")}
    assert {name for name in parent.data.metrics if "mcc" in name} == {"toys/mcc/one"} | {
        f"toys-probe/{name}/one" for name in names
    }
    model = [there[f"toys-probe/step-00000100/one/seed-{seed}"][0] for seed in (42, 43)]
    assert parent.data.metrics["toys-probe/mcc/one"] == pytest.approx(sum(r["metrics"]["mcc"] for r in model) / 2)
    params = {child.info.run_name: child.data.params for child in children if child.data.tags["protocol"] == "probe"}
    assert len(params) == 6
    assert float(params["toys-probe step-00000100 one seed 42"]["C"]) == model[0]["choice"]["value"]

    benchmark(place, mlflow_uri, *chosen, "--probe")
    assert all_results(place) == there
    assert capsys.readouterr().out.count("there already") == 6


@pytest.mark.slow
def test_a_probe_is_what_a_script_without_cmgems_computes(place, mlflow_uri):
    chosen = ("--tasks", "one", "--no-baselines", "--seeds", "1", "--evaluation_batch", "7")
    benchmark(place, mlflow_uri, "--probe", *chosen)
    folder = place / "run/downstream/toys-probe/step-00000100/one/seed-42"
    files = [place / "data/one" / f"{split}.csv" for split in ("train", "dev", "test")]
    script = [sys.executable, "tests/downstream/probe_independently.py", place / "run/models/step-00000100"]
    independent = json.loads(subprocess.check_output([*script, *files, "42", "3"], cwd=REPOSITORY))
    choice = json.loads((folder / "result.json").read_text())["choice"]
    assert choice["scores"] == pytest.approx({str(c): score for c, score in independent["scores"].items()})
    assert choice["value"] == independent["chosen"]
    with (folder / "predictions.csv").open() as file:
        probabilities = [[float(row["probability_0"]), float(row["probability_1"])] for row in csv.DictReader(file)]
    for mine, its in zip(probabilities, independent["probabilities"], strict=True):
        assert mine == pytest.approx(its, abs=1e-4)


def test_a_probe_is_computed_again_where_something_else_determines_it(place, mlflow_uri):
    chosen = ("--tasks", "one", "--no-baselines", "--probe", "--seeds", "1")
    benchmark(place, mlflow_uri, *chosen)
    [before] = all_results(place).values()
    suite = yaml.safe_load((place / "toys.yaml").read_text())
    suite["tasks"][0]["recipe"] = RECIPE | {"steps": 9}
    (place / "toys.yaml").write_text(yaml.safe_dump(suite))
    benchmark(place, mlflow_uri, *chosen)
    assert [before] == list(all_results(place).values())  # nothing is fine-tuned by the recipe
    (place / "toys.yaml").write_text(yaml.safe_dump(suite | {"metric": "f1"}))
    benchmark(place, mlflow_uri, *chosen)
    [after] = all_results(place).values()
    assert after[1] > before[1]
    assert (before[0]["identity"]["chosen by"], after[0]["identity"]["chosen by"]) == ("mcc", "f1")


def test_an_untrained_start_is_a_column_beside_its_trained_model_and_a_point_at_step_0(place, mlflow_uri, capsys):
    ours(place / "run/models/step-00000000", seed=1)
    for step in ("step-00000100", "step-00000000"):
        chosen = ("--tasks", "one", "--probe", "--seeds", "1", "--model", f"{place}/run/models/{step}")
        benchmark(place, mlflow_uri, *chosen)
    columns = capsys.readouterr().out.split("\n\n")[-1].splitlines()[1].split()
    assert columns == ["task", "step-00000000", "step-00000100", "random-weights", "4-mer-regression"]
    parent, _ = mlflow_run(place, mlflow_uri)
    client = MlflowClient(tracking_uri=mlflow_uri)
    for name, subjects in (
        ("mcc", ("step-00000000", "step-00000100")),
        ("mcc_random", 2 * ("random-weights",)),
        ("mcc_kmers", 2 * ("4-mer-regression",)),
    ):
        points = {p.step: p.value for p in client.get_metric_history(parent.info.run_id, f"toys-probe/{name}/one")}
        scores = [all_results(place)[f"toys-probe/{who}/one/seed-42"][0]["metrics"]["mcc"] for who in subjects]
        assert points == dict(zip((0, 100), scores, strict=True))


LEARNABLE = RECIPE | {"learning_rate": 1e-5, "steps": 30, "warmup_steps": 5, "evaluate_every": 10}


@pytest.fixture
def learnable(place):
    """The place, with a recipe that is long enough for the right learning rate to show."""
    suite = yaml.safe_load((place / "toys.yaml").read_text())
    for task in suite["tasks"]:
        task["recipe"] = LEARNABLE
    (place / "toys.yaml").write_text(yaml.safe_dump(suite))
    return place


def test_the_dev_split_chooses_the_learning_rate_of_the_model_and_of_random_weights(learnable, mlflow_uri, capsys):
    chosen = ("--tasks", "one", "--seeds", "1")
    benchmark(learnable, mlflow_uri, *chosen)
    with_the_recipes_own = all_results(learnable)
    benchmark(learnable, mlflow_uri, *chosen, "--learning_rates", "1e30,1e-2,1e-9")
    there = all_results(learnable)
    subjects = ("step-00000100", "random-weights")
    assert {name: there[name] for name in with_the_recipes_own} == with_the_recipes_own
    assert set(there) - set(with_the_recipes_own) == {
        f"toys-tuned/{subject}/one/seed-42" for subject in (*subjects, "4-mer-regression")
    }
    output = capsys.readouterr().out
    for subject in subjects:
        result = there[f"toys-tuned/{subject}/one/seed-42"][0]
        assert (result["protocol"], result["recipe"]["learning_rate"]) == ("tuned", [1e-9, 1e-2, 1e30])
        assert (result["choice"]["setting"], result["choice"]["value"]) == ("learning_rate", 1e-2)
        absurd, right, diverged = (result["choice"]["scores"][rate] for rate in ("1e-09", "0.01", "1e+30"))
        assert (right, diverged) == (result["dev_metrics"]["mcc"], None)
        assert absurd < right
        assert f"one, {subject}, seed 42, learning rate 0.01: mcc {right:.4f} on dev" in output
        assert f"one, {subject}, seed 42, learning rate 1e+30: it diverged" in output
        # The last update of step 20 has 19 behind it: after 5 of warm-up, 14 of 25 on the way to zero.
        rates = [entry["learning_rate"] for entry in result["history"] if "loss" in entry]
        assert rates == [pytest.approx(1e-2 * (1 - 14 / 25))]
    parent, children = mlflow_run(learnable, mlflow_uri)
    assert {"toys/mcc/one", "toys-tuned/mcc/one", "toys-tuned/mcc_random/one"} <= set(parent.data.metrics)
    [child] = [child for child in children if child.info.run_name == "toys-tuned step-00000100 one seed 42"]
    assert child.data.params["learning_rate"] == "0.01"

    benchmark(learnable, mlflow_uri, *chosen, "--learning_rates", "1e-9,1e-2,1e30")
    assert all_results(learnable) == there


def test_a_chosen_learning_rate_gives_what_it_gives_alone_and_of_equals_the_smaller_is_taken(learnable, mlflow_uri):
    chosen = ("--tasks", "one", "--seeds", "1", "--no-baselines", "--learning_rates")
    name = "toys-tuned/step-00000100/one/seed-42"
    benchmark(learnable, mlflow_uri, *chosen, "1e-2,1e-9")
    among, _ = all_results(learnable)[name]
    benchmark(learnable, mlflow_uri, *chosen, "1e-2")
    alone, _ = all_results(learnable)[name]
    assert (among["choice"]["value"], alone["choice"]) == (1e-2, None)
    same = ("metrics", "dev_metrics", "history", "best_step", "confusion")
    assert {key: among[key] for key in same} == {key: alone[key] for key in same}
    benchmark(learnable, mlflow_uri, *chosen, "2e-9,1e-9")
    tied, _ = all_results(learnable)[name]
    assert len(set(tied["choice"]["scores"].values())) == 1
    assert tied["choice"]["value"] == 1e-9


def test_a_task_may_have_several_learning_rates_of_its_own(learnable, mlflow_uri):
    suite = yaml.safe_load((learnable / "toys.yaml").read_text())
    suite["tasks"][0]["recipe"] = LEARNABLE | {"learning_rate": [1e-9, 1e-2]}
    (learnable / "toys.yaml").write_text(yaml.safe_dump(suite))
    benchmark(learnable, mlflow_uri, "--tasks", "one", "--seeds", "1", "--no-baselines")
    [(name, (result, _))] = all_results(learnable).items()
    assert (name, result["protocol"]) == ("toys/step-00000100/one/seed-42", "fine-tuning")
    assert result["choice"]["value"] == 1e-2


def test_rates_that_all_diverge_are_a_failure(place, mlflow_uri, capsys):
    with pytest.raises(SystemExit):
        benchmark(
            *(place, mlflow_uri, "--tasks", "one", "--seeds", "1", "--no-baselines", "--learning_rates", "1e30,1e31")
        )
    assert "the fine-tuning diverged" in capsys.readouterr().err
    assert all_results(place) == {}


def test_several_learning_rates_and_no_dev_split_are_refused_before_anything_is_computed(place, mlflow_uri, capsys):
    suite = yaml.safe_load((place / "toys.yaml").read_text())
    suite["tasks"][1] |= {"files": {"dev": None}, "recipe": {k: v for k, v in RECIPE.items() if k != "evaluate_every"}}
    (place / "toys.yaml").write_text(yaml.safe_dump(suite))
    with pytest.raises(SystemExit) as exit_:
        benchmark(place, mlflow_uri, "--learning_rates", "1e-4,1e-3")
    assert exit_.value.code == 2
    assert "task two: --learning_rates: a choice of several needs a validation split" in capsys.readouterr().err
    assert all_results(place) == {}


def test_a_probe_takes_no_learning_rates(place, mlflow_uri, capsys):
    with pytest.raises(SystemExit) as exit_:
        benchmark(place, mlflow_uri, "--learning_rates", "1e-4", "--probe")
    assert exit_.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "--probe trains no model, and takes no --learning_rates: give one of them" in line


def test_a_model_in_a_runs_folder_belongs_to_that_run(tmp_path, monkeypatch):
    model = ours(tmp_path / "runs" / "demo" / "1" / "models" / "step-00003000")
    config = BenchmarkConfig(model=str(model), data="data")
    monkeypatch.chdir(tmp_path)
    assert run_folder(config) == Path("runs/step-00003000")  # nobody knows of a run there yet
    journal = Journal(model.parent.parent)
    journal.begin(MlflowRunRef("sqlite:///mlflow.db", "pretraining", "abc"))
    journal.close()
    (tmp_path / "latest").symlink_to(model)
    for name in (str(model), "runs/demo/1/models/step-00003000/", "latest"):
        config = BenchmarkConfig(model=name, data="data")
        assert run_folder(config) == Path("runs/demo/1")
        assert (model_subject(config).name, model_subject(config).step) == ("step-00003000", 3000)
    monkeypatch.chdir(model)
    here = BenchmarkConfig(model=".", data="data")
    assert (run_folder(here), model_subject(here).name) == (model.parent.parent, "step-00003000")


def test_a_model_of_the_hub_has_a_folder_of_its_own():
    config = BenchmarkConfig(model="zhihan1996/DNA_bert_6", data="data")
    assert str(run_folder(config)) == "runs/zhihan1996--DNA_bert_6"
    assert (model_subject(config).name, model_subject(config).step) == ("DNA_bert_6", None)


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/0"])
def test_a_shard_that_is_none_is_an_error(shard, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["benchmark", "--model", "m", "--data", "d", "--shard", shard])
    assert exit_.value.code == 2
    assert f"{shard} is not a share such as 1/4" in capsys.readouterr().err


@pytest.mark.slow
def test_a_suite_that_was_killed_goes_on_and_ends_with_the_same_table(place, tmp_path_factory, mlflow_uri, capsys):
    benchmark(place, mlflow_uri)
    undisturbed = {name: result["metrics"] for name, (result, _) in results(place).items()}
    table = capsys.readouterr().out.split("\n\n")[-1]
    (place / "run" / "downstream").rename(place / "undisturbed")

    program = "import sys; from cmgems.cli import main; main(sys.argv[1:])"
    arguments = [
        *("benchmark", "--suite", f"{place}/toys.yaml", "--data", f"{place}/data", "--tracking_uri", mlflow_uri),
        *("--model", f"{place}/run/models/step-00000100", "--output", f"{place}/run", "--seeds", "2"),
    ]
    process = subprocess.Popen([sys.executable, "-c", program, *arguments], env=ENVIRONMENT, cwd=REPOSITORY)
    end = time.monotonic() + 400
    while len(results(place)) < 3:
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = results(place)
    assert 3 <= len(before) < 10

    benchmark(place, mlflow_uri)
    after = results(place)
    assert {name: after[name] for name in before} == before
    assert {name: result["metrics"] for name, (result, _) in after.items()} == undisturbed
    assert capsys.readouterr().out.split("\n\n")[-1] == table
    parent = json.loads((place / "run/downstream/mlflow.json").read_text())["run"]
    client = MlflowClient(tracking_uri=mlflow_uri)
    experiment = client.get_run(parent).info.experiment_id
    assert len(client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")) == 10


def finetune(place, uri, launcher, output, *more):
    return subprocess.run(
        [
            *(ACCELERATE, "launch", *launcher, "cmgems/finetune.py", "--suite", f"{place}/toys.yaml", "--task", "one"),
            *("--data", f"{place}/data", "--model", f"{place}/run/models/step-00000100", "--tracking_uri", uri),
            *("--output", f"{place}/{output}", *more),
        ],
        env=ENVIRONMENT,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=240,
    )


def predictions(place, output):
    path = place / output / "downstream/toys/step-00000100/one/seed-42/predictions.csv"
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_two_processes_score_as_one_does(place, mlflow_uri):
    path = place / "run/models/step-00000100/config.json"
    without_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    path.write_text(json.dumps(json.loads(path.read_text()) | without_dropout))
    # 13 rows: the last batch of two processes is ragged.
    one = finetune(place, mlflow_uri, ("--num_processes", "1", "--cpu"), "alone", "--evaluation_batch", "2")
    assert one.returncode == 0, one.stderr
    two = finetune(place, mlflow_uri, DDP, "together", "--evaluation_batch", "2")
    assert two.returncode == 0, two.stderr
    alone, together = predictions(place, "alone"), predictions(place, "together")
    assert [row["row"] for row in together] == [str(number) for number in range(13)]
    for mine, theirs in zip(alone, together, strict=True):
        assert (mine["label"], mine["prediction"]) == (theirs["label"], theirs["prediction"])
        assert float(mine["probability_1"]) == pytest.approx(float(theirs["probability_1"]), abs=1e-6)
    assert "one, step-00000100, seed 42, scored: mcc" in two.stdout
    assert (place / "together/downstream/toys/step-00000100/one/seed-42/model/config.json").is_file()


@pytest.mark.slow
def test_two_processes_choose_the_learning_rate_that_one_chooses(learnable, mlflow_uri):
    path = learnable / "run/models/step-00000100/config.json"
    without_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    path.write_text(json.dumps(json.loads(path.read_text()) | without_dropout))
    choices = []
    for launcher, output in ((("--num_processes", "1", "--cpu"), "alone"), (DDP, "together")):
        run = finetune(learnable, mlflow_uri, launcher, output, "--learning_rates", "1e-9,1e-2,1e30")
        assert run.returncode == 0, run.stderr
        assert run.stdout.count("learning rate 1e+30: it diverged") == 1
        folder = learnable / output / "downstream/toys-tuned/step-00000100/one/seed-42"
        choices.append(json.loads((folder / "result.json").read_text())["choice"])
        assert (folder / "model/config.json").is_file()
        assert [path.name for path in folder.iterdir() if "checkpoints" in path.name] == []
    alone, together = choices
    assert alone["value"] == together["value"] == 1e-2
    assert together["scores"] == pytest.approx(alone["scores"], abs=1e-6)


def test_fine_tuning_under_deepspeed_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UserError, match="launch with --config_file deepspeed_configs/ddp"):
        start_processes()


def test_processes_that_do_not_see_each_other_are_found_out(monkeypatch):
    monkeypatch.setattr(finetuning, "PartialState", lambda **_: SimpleNamespace(num_processes=1))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes were launched, but each is on its own"):
        start_processes()
