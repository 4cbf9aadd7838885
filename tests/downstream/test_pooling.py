"""The mean of the last hidden states as what is classified."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from cmgems.downstream.classifier import load_classifier
from cmgems.downstream.data import Split
from cmgems.downstream.inputs import Rows, collate
from cmgems.downstream.pooling import HEAD, MeanPooledClassifier
from cmgems.downstream.settings import BenchmarkConfig
from cmgems.downstream.tasks import Recipe
from cmgems.errors import UserError
from cmgems.inference.source import Source, load_encoder
from tests.downstream import models

SEQUENCES = ["ACGTTGCAACGT", "GGGTTTAA", "ACGTA"]


@pytest.fixture(params=["ours", "nucleotide_transformer"])
def source(request, tmp_path):
    return Source(str(getattr(models, request.param)(tmp_path / "model")))


def classifier(source):
    encoder = load_encoder(source)
    return MeanPooledClassifier(load_classifier(source, 2, None, seed=3), encoder, "toy"), encoder


def inputs(encoder):
    rows = Rows(Split("toy", SEQUENCES, np.zeros(3, np.int64), [0] * 3), encoder)
    return {k: v for k, v in collate([rows[i] for i in range(3)], encoder.padding).items() if "i" in k and "_" in k}


def test_logits_are_a_linear_function_of_the_mean_over_the_sequences_own_tokens(source):
    model, encoder = classifier(source)
    batch = inputs(encoder)
    with torch.no_grad():
        logits = model.eval()(batch["input_ids"], batch["attention_mask"]).logits
        plain = AutoModel.from_pretrained(source.model).eval()
        for sequence, found in zip(SEQUENCES, logits, strict=True):
            ids = encoder.encode([sequence])[0].tolist()
            whole = torch.tensor([[*encoder.before, *ids, *encoder.after]])
            hidden = plain(whole, attention_mask=torch.ones_like(whole)).last_hidden_state[0]
            mean = hidden[len(encoder.before) : len(encoder.before) + len(ids)].mean(dim=0)
            torch.testing.assert_close(found, model.head.weight @ mean + model.head.bias, rtol=1e-4, atol=1e-5)


def test_a_saved_classifier_is_an_encoder_for_transformers_and_a_linear_layer(source, tmp_path):
    model, encoder = classifier(source)
    model.save_pretrained(tmp_path / "saved")
    batch = inputs(encoder)
    again = AutoModel.from_pretrained(tmp_path / "saved").eval()
    head = load_file(tmp_path / "saved" / HEAD)
    with torch.no_grad():
        hidden = again(batch["input_ids"], attention_mask=batch["attention_mask"])[0]
        own = encoder.own_tokens(batch["attention_mask"]).float()
        mean = torch.einsum("wth,wt->wh", hidden, own) / own.sum(dim=1, keepdim=True)
        expected = model.eval()(batch["input_ids"], batch["attention_mask"]).logits
        torch.testing.assert_close(mean @ head["weight"].T + head["bias"], expected, rtol=1e-4, atol=1e-5)


def test_a_model_without_an_encoder_of_its_own_is_refused(source):
    whole = load_classifier(source, 2, None, seed=3)
    type(whole).base_model_prefix, before = "nowhere", type(whole).base_model_prefix
    try:
        with pytest.raises(UserError, match="model toy has no encoder of its own"):
            MeanPooledClassifier(whole, load_encoder(source), "toy")
    finally:
        type(whole).base_model_prefix = before


def test_a_seed_draws_the_same_head_every_time(source):
    one, other = (classifier(source)[0].head.weight for _ in range(2))
    assert torch.equal(one, other)
    assert one.std() > 0


def test_the_recipe_of_a_result_names_the_pooling_only_where_it_is_not_the_models_own():
    recipe = Recipe(learning_rate=1e-3, batch=8, steps=10, warmup_steps=1)
    assert "pooling" not in recipe.described()
    assert recipe.model_copy(update={"pooling": "mean"}).described()["pooling"] == "mean"


def test_a_probe_takes_no_pooling():
    with pytest.raises(ValueError, match="--probe takes the means of all layers, and no --pooling"):
        BenchmarkConfig(model="m", data="d", probe=True, pooling="mean")


def test_results_with_another_pooling_are_kept_apart():
    chosen = {"pooling": "mean"}, {"learning_rates": [1e-3]}, {"pooling": "mean", "learning_rates": [1e-3]}, {}
    protocols = [BenchmarkConfig(model="m", data="d", **settings).protocol for settings in chosen]
    assert [protocol.suffix for protocol in protocols] == ["-pooled", "-tuned", "-pooled-tuned", ""]
