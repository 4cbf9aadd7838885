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

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo's output, its MLflow run and its corpus."""
    folder = tmp_path_factory.mktemp("demo")
    uri = f"sqlite:///{folder}/mlflow.db"
    settings = f"--tracking.uri {uri} --output {folder}/run --corpus.path {folder}/corpus"
    finished = subprocess.run(
        ["make", "demo", f"ARGS={settings}"],
        cwd=REPOSITORY,
        env={name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert finished.returncode == 0, finished.stderr
    mlflow.set_tracking_uri(uri)
    [run] = mlflow.search_runs(search_all_experiments=True, output_format="list")
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
