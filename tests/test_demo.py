"""`make demo` as a user runs it: the perplexity trigger causes the switch, and the model has learned."""

import math
import os
import re
import statistics
import subprocess
from itertools import pairwise
from pathlib import Path

import mlflow
import pytest

from cmgems.config.command_line import load_config
from cmgems.data.corpus import load_corpus
from cmgems.training.validation import unigram_perplexity

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


def test_the_model_reads_visible_bases_off_its_neighbours(demo):
    _, run, corpus = demo
    unigram = unigram_perplexity(corpus.counts)
    assert unigram == pytest.approx(math.exp(-sum(p * math.log(p) for p in corpus.counts / corpus.counts.sum())))
    for masking in ("span", "genemask", "global_pmi"):
        perplexities = history(run, f"ppl/{masking}")
        assert perplexities[max(perplexities)] < 0.05 * unigram


def test_bits_per_hidden_base_stand_beside_their_baselines(demo):
    output, run, _ = demo
    for masking in ("span", "genemask", "global_pmi"):
        bits = history(run, f"bits/{masking}")
        composition = history(run, f"bits/{masking}_composition")
        assert len(set(composition.values())) == 1
        assert bits[max(bits)] == pytest.approx(composition[max(bits)], rel=0.03)
        assert f"{masking} {bits[max(bits)]:.3f} (Markov chain " in output


def test_it_says_what_happened_and_how_to_look_at_the_run(demo):
    output, run, _ = demo
    assert "switched from stage genemask to global after step " + run.data.tags["switch.1.step"] in output
    assert "mlflow ui --backend-store-uri sqlite:///" in output


@pytest.fixture(scope="module")
def scores(demo):
    """MCC on the test split by protocol (`probe`, `fine-tuning`), subject and seed."""
    _, run, _ = demo
    found = {}
    client = mlflow.MlflowClient()
    for child in client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"):
        protocol = {"demo-probe": "probe", "demo": "fine-tuning"}[child.data.tags["suite"]]
        subject, seed = child.data.tags["subject"], int(child.data.params["seed"])
        found.setdefault(protocol, {}).setdefault(subject, {})[seed] = child.data.metrics["test/mcc"]
    return found


MODEL, UNTRAINED, RANDOM, KMERS = "step-00001200", "step-00000000", "random-weights", "4-mer-regression"


def mean(of_seeds):
    return statistics.mean(of_seeds.values())


def test_the_pretrained_model_is_above_its_baselines(scores):
    probe, fine_tuning = scores["probe"], scores["fine-tuning"]
    for found in (probe, fine_tuning):
        assert set(found) == {MODEL, UNTRAINED, RANDOM, KMERS}
    assert all(set(of_seeds) == {42, 43, 44, 45, 46} for of_seeds in probe.values())
    for baseline in (UNTRAINED, RANDOM):  # by probe the 4-mers are about as good
        assert mean(probe[MODEL]) > mean(probe[baseline]), (baseline, probe)
    for baseline in (UNTRAINED, RANDOM, KMERS):
        assert mean(fine_tuning[MODEL]) > mean(fine_tuning[baseline]), (baseline, fine_tuning)


def test_it_ends_with_two_tables_that_are_in_mlflow_too(demo, scores):
    output, run, _ = demo
    last = mlflow.MlflowClient().get_run(run.info.run_id).data.metrics
    for protocol, suite in (("probe", "demo-probe"), ("fine-tuning", "demo")):
        assert last[f"{suite}/mcc/starts"] == pytest.approx(mean(scores[protocol][MODEL]))
        assert last[f"{suite}/mcc_random/starts"] == pytest.approx(mean(scores[protocol][RANDOM]))
    tables = [text.splitlines() for text in output.split("mcc x 100 of the test split")[1:]]
    for (_, names, row, *_), found in zip(tables, (scores["probe"], scores["fine-tuning"]), strict=True):
        assert names.split() == ["task", UNTRAINED, MODEL, RANDOM, KMERS]
        shown = [f"{100 * mean(found[subject]):.2f}" for subject in (UNTRAINED, MODEL, RANDOM, KMERS)]
        assert [cell.split()[0] for cell in re.split(" {2,}", row)[1:]] == shown
