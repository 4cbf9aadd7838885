"""`make demo` as a user runs it: the perplexity trigger causes the switch, and the model has learned."""

import math
import os
import subprocess
from itertools import pairwise
from pathlib import Path

import mlflow
import pytest

from cmgems.config import load_config
from cmgems.sequence.corpus import load_corpus
from cmgems.training.evaluation import unigram_perplexity

REPOSITORY = Path(__file__).parents[1]
# What the tests' own surroundings, `make test` among them, would have the demo inherit.
AROUND = {"OMP_NUM_THREADS", "MAKEFLAGS", "MAKELEVEL", "MFLAGS"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo's output, its MLflow run and its corpus."""
    folder = tmp_path_factory.mktemp("demo")
    uri = f"sqlite:///{folder}/mlflow.db"
    settings = f"--tracking.uri {uri} --corpus.path {folder}/corpus"
    finished = subprocess.run(
        ["make", "--no-print-directory", "demo", f"ARGS={settings}", f"RUN={folder}/run"],
        cwd=REPOSITORY,
        env={name: value for name, value in os.environ.items() if name not in AROUND},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert finished.returncode == 0, finished.stderr
    mlflow.set_tracking_uri(uri)
    run, *_ = mlflow.search_runs(search_all_experiments=True, output_format="list", order_by=["start_time"])
    return finished.stdout, run, load_corpus(folder / "corpus")


def history(run, metric):
    points = mlflow.MlflowClient().get_metric_history(run.info.run_id, metric)
    return {point.step: point.value for point in points}


def test_it_runs_under_deepspeed_zero_2_in_two_processes(demo):
    output, run, _ = demo
    assert run.info.status == "FINISHED"
    assert run.data.tags["launch"].startswith("deepspeed ZeRO-2, 2 process(es) (DeepSpeedEngine)")
    assert run.data.tags["launch"] in output


def test_the_perplexity_trigger_causes_the_switch_after_at_least_three_evaluations(demo):
    _, run, _ = demo
    trigger = load_config([]).curriculum.stages[0].until
    assert trigger.unit == "perplexity"
    switch = int(run.data.tags["switch.1.step"])
    before = [value for step, value in history(run, "ppl/genemask").items() if step <= switch]
    assert len(before) >= 3
    *earlier, last = [a - b for a, b in pairwise(before)]
    assert all(drop > trigger.below for drop in earlier)
    assert last < trigger.below
    stages = history(run, "curriculum/stage")
    assert (stages[switch], stages[max(stages)]) == (1, 1)


def test_the_model_ends_below_the_unigram_perplexity_under_every_masking(demo):
    _, run, corpus = demo
    unigram = unigram_perplexity(corpus.counts)
    assert unigram == pytest.approx(math.exp(-sum(p * math.log(p) for p in corpus.counts / corpus.counts.sum())))
    for masking in ("span", "genemask", "global_pmi"):
        perplexities = history(run, f"ppl/{masking}")
        assert perplexities[max(perplexities)] < 0.5 * unigram


def test_it_says_what_happened_and_how_to_look_at_the_run(demo):
    output, run, _ = demo
    assert "stage genemask gave way to global after step " + run.data.tags["switch.1.step"] in output
    assert "mlflow ui --backend-store-uri sqlite:///" in output


def test_it_ends_with_the_score_of_a_downstream_task_beside_its_floors(demo):
    output, run, _ = demo
    client = mlflow.MlflowClient()
    children = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
    scores = {child.data.tags["kind"]: child.data.metrics["test/mcc"] for child in children}
    assert set(scores) == {"model", "random weights", "k-mer regression"}
    assert all(score > 0.2 for score in scores.values())
    last = client.get_run(run.info.run_id).data.metrics
    assert last["demo/mcc/promoters"] == scores["model"]
    assert last["demo/mcc_random/promoters"] == scores["random weights"]
    title, names, row = output.strip().splitlines()[-3:]
    assert title.startswith("mcc x 100 of the test split")
    assert names.split() == ["task", "step-00003000", "random-weights", "4-mer-regression"]
    shown = [f"{100 * scores[kind]:.2f}" for kind in ("model", "random weights", "k-mer regression")]
    assert row.replace("(1)", "").split() == ["promoters", *shown]
