"""A human piece, soft-masked, gzipped and with N, prepared and pretrained on with the LOGO recipe."""

import json

import mlflow
import pytest

from cmgems.cli import main
from cmgems.data.corpus import load_corpus
from tests.training.launching import ZERO2, launch

pytestmark = pytest.mark.slow

RECIPE = """
extends: logo-cm-gems-15.yaml
name: human-logo
corpus: {path: %s, workers: 1}
training: {steps: 6, global_batch: 8, micro_batch: 4, precision: fp32}
optimizer: {warmup_steps: 2}
evaluation: {every: 2, windows: 16}
tracking: {log_every: 1}
"""


def test_logo_on_a_human_chromosome_piece(shared_data, tmp_path):
    genomes = shared_data / "genomes"
    corpus = tmp_path / "human"
    inputs = [str(genomes / "hg38_chr2_1-2333275.fa.gz"), str(genomes / "hg19_chr22_20-21M.fa")]
    main(["prepare", *inputs, "--output", str(corpus)])
    opened = load_corpus(corpus)
    train, validation = set(opened.train.unique("chromosome")), set(opened.validation.unique("chromosome"))
    assert not train & validation
    assert len(train | validation) == 2

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE % json.dumps(str(corpus)))
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    overrides = ("--tracking.uri", uri, "--output", str(tmp_path / "run"), "--optimizer.learning_rate", "4e-4")
    finished = launch(ZERO2, "--config", str(recipe), *overrides)
    assert finished.returncode == 0, finished.stderr
    mlflow.set_tracking_uri(uri)
    [run] = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert run.data.params["model.intermediate"] == "3072"
    assert run.data.params["optimizer.learning_rate"] == "0.0004"
    points = mlflow.MlflowClient().get_metric_history(run.info.run_id, "train/loss")
    losses = {point.step: point.value for point in points}
    assert sorted(losses) == [1, 2, 3, 4, 5, 6]
    assert losses[6] < losses[1]
