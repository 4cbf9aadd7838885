"""A classifier has the weights of its model and a head that the seed draws; what cannot be had is an error."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM, dynamic_module_utils

from cmgems.downstream.classifier import load_classifier
from cmgems.errors import UserError
from cmgems.inference.source import Source, digest, load_encoder
from tests.downstream import models


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model of each kind that transformers knows, by name of the kind."""
    folder = tmp_path_factory.mktemp("models")
    return {kind: make(folder / kind) for kind, make in models.NATIVE.items()}


@pytest.fixture
def folder(folders, tmp_path):
    """A model that a test may change."""
    return shutil.copytree(folders["ours"], tmp_path / "model")


@pytest.fixture
def code_cache(tmp_path, monkeypatch):
    """Code that comes with a model is copied below the test's own folder."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))


def load(folder, classes=3, dropout=None, seed=1, **settings):
    return load_classifier(Source(str(folder), **settings), classes, dropout, seed)


def equal(first, second):
    """Names of the weights that two models have in common and alike, and of those that differ."""
    pairs = [(name, weight, second.state_dict()[name]) for name, weight in first.state_dict().items()]
    return (
        {name for name, one, other in pairs if torch.equal(one, other)},
        {name for name, one, other in pairs if not torch.equal(one, other)},
    )


def change_config(folder, **settings):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize("kind", models.NATIVE)
def test_each_kind_of_model_has_its_own_weights_and_a_head_for_the_task(folders, kind):
    source = Source(str(folders[kind]))
    model = load(folders[kind], classes=3)
    encoder = load_encoder(source)
    (window,) = encoder.windows(encoder.encode(["ACGTACGTTTGACCA"])[0])
    assert model(input_ids=torch.tensor([window])).logits.shape == (1, 3)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}

    pretrained = AutoModelForMaskedLM.from_pretrained(folders[kind]).base_model.state_dict()
    body = model.base_model.state_dict()
    assert len(pretrained) > 15
    assert all(torch.equal(weight, body[name]) for name, weight in pretrained.items())


@pytest.mark.parametrize("kind", models.NATIVE)
def test_the_seed_draws_the_head(folders, kind):
    first, same, another = (load(folders[kind], seed=seed) for seed in (1, 1, 2))
    assert equal(first, same)[1] == set()
    differing = equal(first, another)[1]
    assert differing
    assert all(name.startswith(("classifier.", "bert.pooler.")) for name in differing)


def test_the_head_does_not_depend_on_what_was_drawn_before(folders):
    first = load(folders["ours"])
    torch.rand(10)
    assert equal(first, load(folders["ours"]))[1] == set()


def test_a_classifier_of_another_task_gives_its_body_only(folders, tmp_path):
    other = load(folders["ours"], classes=2, seed=5)
    other.save_pretrained(tmp_path)
    model = load(tmp_path, classes=3)
    assert model.classifier.weight.shape == (3, 16)
    assert torch.equal(model.bert.embeddings.word_embeddings.weight, other.bert.embeddings.word_embeddings.weight)


def test_missing_weights_of_the_model_itself_are_named(folder):
    weights = load_file(folder / "model.safetensors")
    gone = "bert.encoder.layer.0.attention.self.query.weight"
    save_file(
        {name: weight for name, weight in weights.items() if name != gone},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(UserError, match=f"model {folder}: weights are missing, or of another shape: {gone}$"):
        load(folder)


def test_weights_of_another_shape_are_named(folder):
    change_config(folder, max_position_embeddings=128)
    with pytest.raises(UserError, match=r"of another shape: bert\.embeddings\.position_embeddings\.weight$"):
        load(folder)


def test_random_weights_keep_the_architecture_and_none_of_the_weights(folders):
    pretrained, random, same, another = (
        load(folders["ours"], seed=seed, random_weights=drawn)
        for seed, drawn in [(1, False), (1, True), (1, True), (2, True)]
    )
    assert type(random) is type(pretrained)
    assert [(n, w.shape) for n, w in random.named_parameters()] == [
        (n, w.shape) for n, w in pretrained.named_parameters()
    ]
    # Biases and layer norms begin at zeros and ones everywhere.
    matrices = {name for name, weight in random.named_parameters() if weight.dim() > 1}
    assert matrices <= equal(pretrained, random)[1]
    assert equal(random, same)[1] == set()
    assert matrices <= equal(random, another)[1]


@pytest.mark.parametrize("random_weights", [False, True])
def test_a_model_in_half_precision_is_fine_tuned_in_single(folders, tmp_path, random_weights):
    AutoModelForMaskedLM.from_pretrained(folders["ours"]).to(torch.bfloat16).save_pretrained(tmp_path)
    model = load(tmp_path, random_weights=random_weights)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_a_classifier_that_was_fine_tuned_already_is_refused(folders, tmp_path):
    load(folders["ours"]).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="was fine-tuned already, and would be scored with its own head"):
        load(tmp_path)


@pytest.mark.parametrize("random_weights", [False, True])
def test_the_recipe_s_dropout_replaces_the_model_s(folders, random_weights):
    assert load(folders["ours"], dropout=None).config.hidden_dropout_prob == 0.1
    model = load(folders["ours"], dropout=0.25, random_weights=random_weights)
    assert model.bert.embeddings.dropout.p == 0.25
    assert model.dropout.p == 0.25
    assert load(folders["ours"], dropout=0.0).dropout.p == 0


@pytest.mark.parametrize("model_type", ["bag-of-tokens", "bert"], ids=["a-type-of-its-own", "a-type-known-otherwise"])
@pytest.mark.parametrize("random_weights", [False, True])
def test_a_model_with_its_own_code_is_refused_with_the_remedy(tmp_path, model_type, random_weights):
    models.remote_code(tmp_path, model_type)
    with pytest.raises(UserError, match=f"{tmp_path} brings code of its own.*give --trust_remote_code if"):
        load(tmp_path, random_weights=random_weights)
    with pytest.raises(UserError, match="--trust_remote_code if"):
        Source(str(tmp_path)).check()


@pytest.mark.parametrize("model_type", ["bag-of-tokens", "bert"], ids=["a-type-of-its-own", "a-type-known-otherwise"])
def test_a_model_with_its_own_code_runs_if_it_is_trusted(tmp_path, code_cache, model_type):
    folder = models.remote_code(tmp_path / "model", model_type)
    model = load(folder, trust_remote_code=True)
    assert type(model).__name__ == "BagForSequenceClassification"
    assert torch.equal(model.embeddings.weight, load_file(folder / "model.safetensors")["embeddings.weight"])
    assert model(torch.tensor([[2, 7, 3]]), torch.ones(1, 3)).logits.shape == (1, 3)


def test_what_is_no_model_is_named(tmp_path):
    with pytest.raises(UserError, match=f"model {tmp_path} cannot be loaded"):
        load(tmp_path)
    with pytest.raises(UserError, match=f"model {tmp_path} cannot be loaded"):
        Source(str(tmp_path)).check()


def test_a_model_without_weights_is_named(folder):
    (folder / "model.safetensors").unlink()
    Source(str(folder)).check()
    with pytest.raises(UserError, match=f"model {folder} cannot be loaded"):
        load(folder)


def test_the_digest_is_of_what_makes_the_model(folder, folders):
    source = Source(str(folder))
    before = digest(source)
    assert before == digest(Source(str(folders["ours"])))
    (folder / "README.md").write_text("About this model")
    assert digest(source) == before

    weights = load_file(folder / "model.safetensors")
    next(iter(weights.values()))[0] += 1e-3
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    changed = digest(source)
    assert changed != before
    change_config(folder, hidden_dropout_prob=0.2)
    assert digest(source) not in (before, changed)


def test_the_digest_of_random_weights_is_of_the_architecture_alone(tmp_path):
    first, second = (models.ours(tmp_path / str(seed), seed=seed) for seed in (0, 1))
    assert digest(Source(str(first))) != digest(Source(str(second)))
    of_random = digest(Source(str(first), random_weights=True))
    assert of_random == digest(Source(str(second), random_weights=True))
    assert of_random != digest(Source(str(first)))
    change_config(second, num_hidden_layers=2)
    assert of_random != digest(Source(str(second), random_weights=True))
