"""Features are the means of a frozen model's hidden states over a sequence's own tokens."""

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, dynamic_module_utils

from cmgems.downstream import features
from cmgems.downstream.data import Split, TaskData
from cmgems.downstream.features import FeatureReader, model_features
from cmgems.downstream.finetuning import ComputeConfig
from cmgems.downstream.regression import kmer_shares
from cmgems.errors import UserError
from cmgems.inference.source import Source, load_encoder
from tests.downstream import models
from tests.downstream.probe_independently import feature_row

LENGTHS = (8, 100, 400, 33, 9)


def split(rows, seed):
    """Random sequences of different lengths, of two classes in turn."""
    draw = np.random.default_rng(seed)
    sequences = ["".join(draw.choice(list("ACGT"), LENGTHS[i % len(LENGTHS)])) for i in range(rows)]
    return Split("toy", sequences, np.arange(rows) % 2, [0] * rows)


@pytest.fixture
def data(make_task):
    return TaskData(make_task(length=400), split(11, 1), split(5, 2), split(7, 3))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return Source(str(models.ours(tmp_path_factory.mktemp("model"))))


@pytest.fixture
def code(tmp_path, monkeypatch):
    """A model with code of its own, of which lines can be replaced."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))

    def make(**replaced):
        folder = models.remote_code(tmp_path / "model")
        text = (folder / "bag.py").read_text()
        for old, new in replaced.values():
            assert old in text
            text = text.replace(old, new)
        (folder / "bag.py").write_text(text)
        return Source(str(folder), trust_remote_code=True)

    return make


@pytest.mark.parametrize("kind", models.NATIVE)
def test_they_are_means_over_all_tokens_of_all_windows_whatever_the_batch(tmp_path, data, kind):
    source = Source(str(models.NATIVE[kind](tmp_path / "model")))
    found = model_features(source, data, ComputeConfig(evaluation_batch=4), 1, "toy")
    alone = model_features(source, data, ComputeConfig(evaluation_batch=1), 1, "toy")
    assert (found.layers, found.lengths["longer"] > 0) == (2, True)

    model, tokenizer = AutoModel.from_pretrained(source.model).eval(), AutoTokenizer.from_pretrained(source.model)
    for name, of_split in data.splits.items():
        expected = [feature_row(s, tokenizer, model, load_encoder(source).k) for s in of_split.sequences]
        assert found.splits[name].shape == (len(of_split), 2 * 16)
        assert found.splits[name] == pytest.approx(np.stack(expected), abs=2e-6)
        assert found.splits[name] == pytest.approx(alone.splits[name], abs=2e-6)


def test_the_seed_draws_random_weights_and_nothing_of_a_pretrained_model(source, data):
    first, second = (model_features(source, data, ComputeConfig(), seed, "toy").splits["test"] for seed in (1, 2))
    assert first.tolist() == second.tolist()
    drawn = Source(source.model, random_weights=True)
    first, same, second = (
        model_features(drawn, data, ComputeConfig(), seed, "toy").splits["test"] for seed in (1, 1, 2)
    )
    assert first.tolist() == same.tolist()
    assert not np.allclose(first, second)


def test_bf16_changes_them_a_little(source, data):
    exact = model_features(source, data, ComputeConfig(), 1, "toy").splits["test"]
    rough = model_features(source, data, ComputeConfig(precision="bf16"), 1, "toy").splits["test"]
    assert 0 < np.abs(exact - rough).max() < 0.05


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_fp16_needs_a_gpu(source, data):
    with pytest.raises(UserError, match="precision fp16 needs a GPU"):
        model_features(source, data, ComputeConfig(precision="fp16"), 1, "toy")


@pytest.mark.parametrize("signature", ["attention_mask, **_", "attention_mask"])
def test_a_model_that_returns_no_hidden_states_is_an_error(code, make_task, signature):
    data = TaskData(make_task(), split(4, 1), None, split(2, 2))
    source = code(signature=("attention_mask, **_", signature))
    with pytest.raises(
        UserError, match=r"model .*model returns no hidden states: it can be fine-tuned, but not probed"
    ):
        model_features(source, data, ComputeConfig(), 1, "toy")


def test_a_model_that_returns_its_last_layer_alone_has_one_layer(code, make_task):
    data = TaskData(make_task(length=400), split(4, 1), None, split(2, 2))
    source = code(output=("self.classifier(mean))", "self.classifier(mean), hidden_states=self.embeddings(input_ids))"))
    found = model_features(source, data, ComputeConfig(), 1, "toy")
    assert (found.layers, found.splits["train"].shape) == (1, (4, 16))


def test_hidden_states_that_are_not_finite_are_an_error(code, make_task):
    data = TaskData(make_task(length=400), split(4, 1), None, split(2, 2))
    output = ("self.classifier(mean))", "self.classifier(mean), hidden_states=self.embeddings(input_ids) / 0)")
    with pytest.raises(UserError, match="its hidden states are not finite in precision fp32"):
        model_features(code(output=output), data, ComputeConfig(), 1, "toy")


def test_k_mers_have_their_shares(data):
    found = FeatureReader(ComputeConfig()).of_kmers(data, 4)
    assert found.splits["dev"].tolist() == kmer_shares(data.dev.sequences, 4).tolist()


def test_they_are_computed_once_for_all_seeds_of_a_model_and_for_each_of_random_weights(source, data, monkeypatch):
    computed = []

    def count(source, data, machine, seed, title):
        computed.append((source.random_weights, seed))
        return model_features(source, data, machine, seed, title)

    monkeypatch.setattr(features, "model_features", count)
    reader, drawn = FeatureReader(ComputeConfig()), Source(source.model, random_weights=True)
    first = reader.of_model(source, data, 42, "toy")
    assert reader.of_model(source, data, 43, "toy") is first
    for seed in (42, 42, 43):
        reader.of_model(drawn, data, seed, "toy")
    assert computed == [(False, 42), (True, 42), (True, 43)]
    other = TaskData(data.task, data.test, data.dev, data.train)
    assert reader.of_model(source, other, 43, "toy").splits["test"].tolist() == first.splits["train"].tolist()
