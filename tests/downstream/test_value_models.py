"""Models are fine-tuned and probed on tasks with a value, from the command line to the report."""

import csv
import json
import random

import numpy as np
import pytest
import torch
import yaml
from mlflow import MlflowClient

from cmgems.cli import main
from cmgems.downstream.classifier import load_classifier
from cmgems.downstream.data import Split
from cmgems.downstream.finetuning import ComputeConfig, fine_tune
from cmgems.downstream.inputs import Rows
from cmgems.downstream.objectives import value_regression
from cmgems.downstream.scores import score
from cmgems.downstream.tasks import Recipe
from cmgems.errors import UserError
from cmgems.inference.source import Source, load_encoder
from cmgems.report.page import write_report
from tests.downstream.models import ours
from tests.training.launching import forget_accelerator


@pytest.fixture(autouse=True)
def fresh_accelerator():
    forget_accelerator()
    yield
    forget_accelerator()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A model that takes 18 3-mers: sequences of 30 nucleotides are two windows."""
    return Source(str(ours(tmp_path_factory.mktemp("model"), max_positions=20)))


def split(rows, seed):
    """Sequences whose share of A makes the value, around -100."""
    draw = random.Random(seed)
    sequences = ["".join(draw.choices("ACGT", [draw.random() * 6, 1, 1, 1], k=30)) for _ in range(rows)]
    values = np.array([sequence.count("A") - 110.0 for sequence in sequences])
    return Split(f"toy {seed}", sequences, values, [0] * rows)


@pytest.fixture
def run(tmp_path, source):
    def fine_tune_model(splits, machine=ComputeConfig(), **settings):  # noqa: B008
        encoder = load_encoder(source)
        model = load_classifier(source, 1, 0.0, 1)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        rows = {name: Rows(own, encoder) for name, own in splits.items()}
        recipe = Recipe.model_validate({"learning_rate": 0.01, "batch": 16, "warmup_steps": 0} | settings)
        objective = value_regression(splits["train"].labels)
        return fine_tune(model, encoder, rows, recipe, machine, 1, tmp_path, "toy", objective), model

    return fine_tune_model


def outputs_by_hand(model, source, sequences):
    """Each sequence's mean over its windows, which go through the model one by one."""
    encoder = load_encoder(source)
    model.eval()
    with torch.no_grad():
        return np.array(
            [
                np.mean([model(input_ids=torch.tensor([window])).logits.item() for window in encoder.windows(ids)])
                for ids in encoder.encode(sequences)
            ]
        )


def test_predictions_are_in_the_unit_of_the_values(run, source):
    data = {"train": split(32, 1), "test": split(20, 2)}
    outcome, model = run(data, steps=3)
    values = data["train"].labels
    expected = outputs_by_hand(model, source, data["test"].sequences) * values.std() + values.mean()
    assert outcome.test.predicted == pytest.approx(expected, abs=1e-4)
    assert outcome.test.values.tolist() == data["test"].labels.tolist()


@pytest.mark.slow
def test_the_loss_is_the_mean_squared_error_of_standardised_values_also_of_minus_100(run, source):
    data = {"train": split(16, 1), "test": split(4, 2)}
    data["train"].labels[:8] = -100.0  # which other losses pass over
    outcome, model = run(data, ComputeConfig(micro_batch=5), learning_rate=1e-12, steps=20)
    values = data["train"].labels
    standardised = (values - values.mean()) / values.std()
    expected = np.square(outputs_by_hand(model, source, data["train"].sequences) - standardised).mean()
    assert [entry["loss"] for entry in outcome.history] == [pytest.approx(expected, rel=1e-4)]


@pytest.mark.slow
def test_the_weights_of_the_best_spearman_correlation_are_scored(run):
    data = {"train": split(128, 1), "dev": split(40, 3), "test": split(60, 2)}
    data["dev"].labels[:] *= -1  # what is learned is wrong for it: the longer, the worse
    outcome, _ = run(data, steps=24, evaluate_every=4)
    by_step = {entry["step"]: entry["dev/spearman"] for entry in outcome.history if "dev/spearman" in entry}
    assert sorted(by_step) == [4, 8, 12, 16, 20, 24]
    assert outcome.best_step == max(by_step, key=by_step.__getitem__) < 24
    assert score(outcome.dev)["spearman"] == by_step[outcome.best_step]


@pytest.mark.slow
def test_a_model_learns_a_value(run):
    data = {"train": split(128, 1), "dev": split(40, 3), "test": split(60, 2)}
    outcome, _ = run(data, steps=40, evaluate_every=10)
    found = score(outcome.test)
    assert found["spearman"] > 0.8
    losses = [entry["dev/loss"] for entry in outcome.history if "dev/loss" in entry]
    assert losses[-1] < losses[0]
    evaluation = next(entry for entry in outcome.history if "dev/loss" in entry)
    assert set(evaluation) == {"step", "dev/loss", "dev/spearman", "dev/pearson", "dev/r2", "dev/rmse"}


@pytest.fixture
def place(tmp_path):
    """A folder with a model in a run's folder, a suite of a task with a table, and its data."""
    ours(tmp_path / "run" / "models" / "step-00000100")
    task = {"name": "one", "species": "toy", "kind": "toy", "value": "share of A", "length": 40, "group": "toys"}
    task |= {"table": {"file": "all.csv", "split": "part"}}
    task |= {"recipe": {"learning_rate": 1e-3, "batch": 8, "steps": 4, "warmup_steps": 1, "evaluate_every": 2}}
    suite = {"name": "toys", "source": "toys", "metric": "spearman", "tasks": [task]}
    (tmp_path / "toys.yaml").write_text(yaml.safe_dump(suite))
    (tmp_path / "data" / "one").mkdir(parents=True)
    with (tmp_path / "data" / "one" / "all.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["sequence", "value", "part"])
        for seed, (name, rows) in enumerate({"train": 40, "val": 12, "test": 13}.items()):
            own = split(rows, seed)
            writer.writerows(zip(own.sequences, own.labels.tolist(), [name] * rows, strict=True))
    return tmp_path


def benchmark(place, *more):
    main(
        [
            *("benchmark", "--suite", f"{place}/toys.yaml", "--data", f"{place}/data"),
            *("--tracking_uri", f"sqlite:///{place}/mlflow.db", "--seeds", "2", "--codons", "--forest"),
            *("--model", f"{place}/run/models/step-00000100", "--output", f"{place}/run", *more),
        ]
    )


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["", "-probe"])
def test_a_suite_of_values_gives_results_children_in_mlflow_means_and_a_report(place, capsys, protocol):
    benchmark(place, *(["--probe"] if protocol else []))
    folder = place / "run" / "downstream" / f"toys{protocol}"
    found = {str(path.parent.relative_to(folder)): json.loads(path.read_text()) for path in folder.rglob("result.json")}
    several = ["step-00000100", "random-weights", "4-mer-forest", "codon-forest"]
    regressions = ["4-mer-regression", "codon-regression"]
    expected = {f"{subject}/one/seed-{seed}" for subject in several for seed in (42, 43)}
    expected |= {f"{subject}/one/seed-{seed}" for subject in regressions for seed in ((42, 43) if protocol else (42,))}
    assert set(found) == expected
    for name, result in found.items():
        assert set(result["metrics"]) == {"spearman", "pearson", "r2", "rmse"}
        assert (result["value"], result["classes"], result["confusion"]) == ("share of A", [], [])
        assert (result["choice"] is not None) == (
            "regression" in name or (protocol == "-probe" and "forest" not in name)
        )
        with (folder / name / "predictions.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [float(row["value"]) for row in rows] == split(13, 2).labels.tolist()
        true, predicted = ([float(row[column]) for row in rows] for column in ("value", "prediction"))
        assert result["metrics"]["rmse"] == pytest.approx(np.sqrt(np.square(np.subtract(true, predicted)).mean()))
        assert (folder / name / "values.png").read_bytes()[:4] == b"\x89PNG"

    client = MlflowClient(tracking_uri=f"sqlite:///{place}/mlflow.db")
    parent = json.loads((place / "run/downstream/mlflow.json").read_text())["run"]
    suite = f"toys{protocol}"
    metrics = client.get_run(parent).data.metrics
    mean = np.mean([found[f"step-00000100/one/seed-{seed}"]["metrics"]["spearman"] for seed in (42, 43)])
    assert metrics[f"{suite}/spearman/one"] == metrics[f"{suite}/mean_spearman_toys"] == pytest.approx(mean)
    kinds = ("_random", "_kmers", "_codon-regression", "_4-mer-forest", "_codon-forest")
    assert {f"{suite}/spearman{kind}/one" for kind in kinds} <= set(metrics)
    children = client.search_runs(["1", "2", "0"], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert len(children) == len(found)
    assert all("test/rmse" in child.data.metrics for child in children)

    assert f"{100 * mean:.2f} ±" in capsys.readouterr().out
    page = write_report([place / "run"], place / "report").read_text()
    assert "Spearman&#39;s ρ × 100" in page
    assert f"{100 * mean:.2f}" in page
    for name in ("4-mer-regression", "codon-regression", "4-mer-forest", "codon-forest", "random weights"):
        assert f">{name}</th>" in page

    before = {path: path.stat().st_mtime_ns for path in folder.rglob("result.json")}
    benchmark(place, *(["--probe"] if protocol else []))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("result.json")} == before


@pytest.mark.slow
def test_a_fine_tuned_model_says_what_its_output_means(place):
    import cmgems.finetune
    from cmgems.config.command_line import run_command

    arguments = ["--suite", f"{place}/toys.yaml", "--data", f"{place}/data", "--task", "one"]
    arguments += ["--model", f"{place}/run/models/step-00000100", "--output", f"{place}/run"]
    run_command(cmgems.finetune.Finetune, [*arguments, "--tracking_uri", f"sqlite:///{place}/mlflow.db"])
    config = json.loads((place / "run/downstream/toys/step-00000100/one/seed-42/model/config.json").read_text())
    values = split(40, 0).labels
    assert (config["value_mean"], config["value_deviation"]) == pytest.approx((values.mean(), values.std()))


def test_baselines_of_values_are_refused_where_there_are_classes(place):
    suite = yaml.safe_load((place / "toys.yaml").read_text())
    del suite["tasks"][0]["value"]
    suite["tasks"][0]["classes"] = ["no", "yes"]
    (place / "toys.yaml").write_text(yaml.safe_dump(suite | {"metric": "mcc"}))
    with pytest.raises(SystemExit) as stop:
        benchmark(place)
    assert stop.value.code == UserError("").exit_code
