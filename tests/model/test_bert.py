"""The model computes what BERT computes, for the masked tokens only."""

import json
import re
from unittest.mock import patch

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertForMaskedLM

from cmgems.config.schema import ModelConfig, OptimizerConfig
from cmgems.data.tokenization import Tokenization
from cmgems.errors import UserError
from cmgems.model.bert import (
    bert_config,
    build_model,
    build_optimizer,
    check_init_from,
    learning_rate,
    repeatable_flops,
    training_flops,
)
from tests.support.waits import Waits

SMALL = ModelConfig(layers=2, hidden=32, intermediate=64, heads=4, dropout=0.1, max_positions=32)


@pytest.fixture
def batch():
    torch.manual_seed(0)
    ids = torch.randint(5, 69, (3, 16))
    ids[:, 0] = 2
    ids[1, 10:] = 0
    masked = torch.rand(3, 16) < 0.3
    masked[:, 0] = False
    masked[1, 10:] = False
    return {"input_ids": ids.masked_fill(masked, 4), "attention_mask": ids != 0, "masked": masked, "labels": ids}


def test_the_loss_is_that_of_transformers_on_the_masked_tokens(batch):
    model = build_model(SMALL, Tokenization(3), seed=1).eval()
    nll = model(**batch)
    labels = batch["labels"].masked_fill(~batch["masked"], -100)
    expected = model.bert(batch["input_ids"], attention_mask=batch["attention_mask"].long(), labels=labels).loss
    assert nll.shape == (int(batch["masked"].sum()),)
    assert nll.mean().item() == pytest.approx(expected.item(), rel=1e-6)


def test_gradients_are_those_of_the_whole_model(batch):
    batch["masked"][0] = False
    batch["masked"][2, 1:] = True
    of_masked, of_all = (build_model(SMALL, Tokenization(3), seed=1).eval() for _ in range(2))
    of_masked(**batch).sum().backward()
    logits = of_all.bert(batch["input_ids"], attention_mask=batch["attention_mask"].long()).logits
    torch.nn.functional.cross_entropy(
        logits[batch["masked"]], batch["labels"][batch["masked"]], reduction="sum"
    ).backward()
    for one, other in zip(of_masked.parameters(), of_all.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_a_device_is_waited_for_before_the_first_layer_only(batch):
    model = build_model(SMALL.model_copy(update={"dropout": 0}), Tokenization(3), seed=1)
    before = []
    model.bert.bert.encoder.layer[0].register_forward_pre_hook(lambda *_: before.append(len(waits.found)))
    with Waits() as waits:
        model(**batch).sum().backward()
    assert before == [len(waits.found)] == [3], waits.found  # where masked tokens are, the most in a row; any padding?


def test_padding_does_not_change_the_loss(batch):
    model = build_model(SMALL, Tokenization(3), seed=1).eval()
    wide = {name: torch.nn.functional.pad(tensor, (0, 8)) for name, tensor in batch.items()}
    assert torch.allclose(model(**wide), model(**batch), atol=1e-5)


def test_a_micro_batch_without_a_masked_token_gives_zero_gradients(batch):
    model = build_model(SMALL, Tokenization(3), seed=1)
    nll = model(**{**batch, "masked": torch.zeros_like(batch["masked"])})
    nll.sum().backward()
    assert nll.shape == (0,)
    gradients = [p.grad for p in model.parameters()]
    assert all(g is not None and not g.any() for g in gradients)


def test_weights_are_a_function_of_the_seed():
    first, second, other = (build_model(SMALL, Tokenization(3), seed=s).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_activation_checkpointing_changes_no_gradient(batch):
    gradients = []
    for checkpointing in (False, True):
        settings = SMALL.model_copy(update={"activation_checkpointing": checkpointing, "dropout": 0.0})
        model = build_model(settings, Tokenization(3), seed=1)
        model.train()
        model(**batch).sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


def test_no_weight_decay_on_biases_and_layer_norm():
    model = build_model(SMALL, Tokenization(3), seed=1)
    decayed, spared = build_optimizer(model, OptimizerConfig()).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.01, 0.0)
    assert all(name.endswith("bias") or "LayerNorm" in name for name in (names[id(p)] for p in spared["params"]))
    assert not any(name.endswith("bias") or "LayerNorm" in name for name in (names[id(p)] for p in decayed["params"]))
    assert len(decayed["params"]) + len(spared["params"]) == len(names)


def test_the_learning_rate_warms_up_and_decays_to_zero():
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=4)
    rates = [learning_rate(config, step, total_steps=10) for step in range(10)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])


def test_the_published_models_have_their_published_shapes():
    with torch.device("meta"):
        dnabert = BertForMaskedLM(bert_config(ModelConfig(), Tokenization(6)))
    assert dnabert.config.vocab_size == 4101
    assert sum(p.numel() for p in dnabert.bert.encoder.parameters()) == 85_054_464  # BERT base


@pytest.mark.parametrize("checkpointing", [False, True])
@patch("torch.backends.mkldnn.is_available", lambda: False)  # torch does not count oneDNN's products
def test_flops_are_those_that_torch_counts(checkpointing):
    settings = ModelConfig(
        layers=3,
        hidden=32,
        intermediate=48,
        heads=4,
        dropout=0,
        max_positions=32,
        activation_checkpointing=checkpointing,
    )
    model = build_model(settings, Tokenization(3), seed=1).train()
    ids = torch.randint(5, 69, (4, 24))
    masked = torch.zeros_like(ids, dtype=torch.bool)
    masked[:, 3:9] = True
    # Without a padding mask torch takes its math path of attention, whose products its counter knows.
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(ids, torch.ones_like(ids, dtype=torch.bool), masked, ids).sum().backward()
    ours = training_flops(model.bert.config, *ids.shape, int(masked.sum()))
    ours += repeatable_flops(model.bert.config, *ids.shape) * checkpointing
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_training_can_start_from_a_saved_model(tmp_path):
    source = build_model(SMALL, Tokenization(3), seed=5)
    source.bert.save_pretrained(tmp_path)
    settings = SMALL.model_copy(update={"init_from": str(tmp_path), "dropout": 0.25})
    check_init_from(settings, Tokenization(3))
    model = build_model(settings, Tokenization(3), seed=1)
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), model.parameters(), strict=True))
    assert model.bert.config.hidden_dropout_prob == 0.25


def test_training_can_start_from_a_dnabert_style_folder(tmp_path):
    """Weights as DNABERT's repository has them: pytorch_model.bin, with a pooler and older names of LayerNorm."""
    source = build_model(SMALL, Tokenization(3), seed=5)
    old = {"weight": "gamma", "bias": "beta"}
    weights = {
        re.sub(r"LayerNorm\.(weight|bias)", lambda found: f"LayerNorm.{old[found[1]]}", name): tensor
        for name, tensor in source.bert.state_dict().items()
    }
    weights["bert.pooler.dense.weight"] = torch.zeros(32, 32)
    torch.save(weights, tmp_path / "pytorch_model.bin")
    bert_config(SMALL, Tokenization(3)).save_pretrained(tmp_path)
    model = build_model(SMALL.model_copy(update={"init_from": str(tmp_path)}), Tokenization(3), seed=1)
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), model.parameters(), strict=True))


def test_a_model_without_its_head_is_refused(tmp_path):
    build_model(SMALL, Tokenization(3), seed=5).bert.bert.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"weights are missing, it is not a masked LM: .*cls\.predictions"):
        build_model(SMALL.model_copy(update={"init_from": str(tmp_path)}), Tokenization(3), seed=1)


def test_a_model_without_weights_is_refused(tmp_path):
    bert_config(SMALL, Tokenization(3)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no weights that can be read"):
        build_model(SMALL.model_copy(update={"init_from": str(tmp_path)}), Tokenization(3), seed=1)


@pytest.mark.parametrize(
    ("change", "k", "message"),
    [
        ({}, 4, "vocab_size is 69, the vocabulary of 4-mers asks for 261"),
        ({"layers": 3}, 3, "num_hidden_layers is 2, model.layers asks for 3"),
        ({"max_positions": 64}, 3, "max_position_embeddings is 32, model.max_positions asks for 64"),
    ],
)
def test_a_model_of_another_architecture_is_refused(tmp_path, change, k, message):
    bert_config(SMALL, Tokenization(3)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="does not fit the recipe") as error:
        check_init_from(SMALL.model_copy(update={"init_from": str(tmp_path), **change}), Tokenization(k))
    assert message in str(error.value)


def test_a_model_that_is_no_bert_is_refused(tmp_path):
    config = bert_config(SMALL, Tokenization(3)).to_dict()
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "esm"}))
    with pytest.raises(UserError, match="model_type is esm, not bert"):
        check_init_from(SMALL.model_copy(update={"init_from": str(tmp_path)}), Tokenization(3))


def test_a_missing_model_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no readable config\.json"):
        check_init_from(SMALL.model_copy(update={"init_from": str(tmp_path)}), Tokenization(3))
