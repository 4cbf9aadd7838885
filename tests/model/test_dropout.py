"""Dropout as on the CPU: the right share, unbiased, from torch's generator, and in the attention too."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForMaskedLM, BertForMaskedLM

from cmgems.config.schema import ModelConfig
from cmgems.data.tokenization import Tokenization
from cmgems.model.bert import bert_config, build_model
from cmgems.model.dropout import ATTENTION, attention, drop, use_dropout

SMALL = ModelConfig(layers=2, hidden=32, intermediate=64, heads=4, dropout=0.1, max_positions=32)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(1000, 1001), (1_000_003,)])  # of the last word a part is used
def test_the_share_is_dropped_and_the_mean_kept(p, shape):
    torch.manual_seed(0)
    values = drop(torch.ones(shape), p)
    dropped = values == 0
    spread = (p * (1 - p) / values.numel()) ** 0.5
    assert dropped.double().mean().item() == pytest.approx(p, abs=5 * spread + 2**-17)
    assert values[~dropped].unique().tolist() == pytest.approx([1 / (1 - p)], rel=1e-4 / (1 - p))
    # Four values share a word of torch's generator: none says anything about another, in its word or beyond.
    for lag in (1, 2, 3, 4, 8):
        first, second = dropped.flatten()[:-lag].double(), dropped.flatten()[lag:].double()
        assert torch.corrcoef(torch.stack([first, second]))[0, 1].abs() < 5e-3


def test_it_is_a_function_of_the_seed_and_the_gradient_goes_where_the_values_went():
    values = torch.ones(50, 41, requires_grad=True)
    torch.manual_seed(3)
    once = drop(values, 0.3)
    once.sum().backward()
    assert torch.equal(values.grad, once.detach())
    assert not torch.equal(drop(values, 0.3), once)
    torch.manual_seed(3)
    assert torch.equal(drop(values, 0.3), once)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_keep_their_type(dtype):
    assert drop(torch.ones(7, dtype=dtype), 0.5).dtype == dtype
    assert drop(torch.ones(7, dtype=dtype), 0.0).tolist() == [1] * 7
    assert drop(torch.ones(1000, dtype=dtype), 1.0).tolist() == [0] * 1000


@pytest.mark.parametrize("padded", [False, True])
def test_attention_is_that_of_torch_with_some_probabilities_dropped(padded):
    torch.manual_seed(1)
    query, key = torch.randn(3, 2, 9, 8), torch.randn(3, 2, 9, 8)
    mask = torch.ones(3, 1, 9, 9, dtype=torch.bool)
    mask[1, :, :, 6:] = not padded
    mask[2] = not padded  # a row that sees nothing at all
    value = torch.eye(9).expand(3, 2, 9, 9)  # what comes out are the probabilities
    torch.manual_seed(2)
    found, _ = attention(torch.nn.Module(), query, key, value, mask if padded else None, dropout=0.3)
    full = scaled_dot_product_attention(query, key, value, attn_mask=mask if padded else None).transpose(1, 2)

    kept = found != 0
    assert found.shape == (3, 9, 2, 9)
    assert found.isfinite().all()
    assert torch.allclose((found * 0.7)[:2][kept[:2]], full[:2][kept[:2]], rtol=1e-4)
    possible = mask.transpose(1, 2).expand(3, 9, 2, 9)[:2]
    assert 0.2 < 1 - kept[:2][possible].double().mean() < 0.4
    assert not kept[:2][~possible].any()


def test_without_dropout_the_model_computes_what_it_did_before():
    ids = torch.randint(5, 69, (3, 16))
    mask = (torch.arange(16) < torch.tensor([[16], [9], [16]])).long()
    torch.manual_seed(0)
    model = BertForMaskedLM(bert_config(SMALL, Tokenization(3))).eval()
    before = model(ids, attention_mask=mask).logits
    use_dropout(model)
    assert torch.equal(model(ids, attention_mask=mask).logits, before)
    assert not torch.allclose(model.train()(ids, attention_mask=mask).logits, before)


def test_every_dropout_of_the_model_is_replaced_and_what_it_is_saved_as_is_the_same(tmp_path):
    with_dropout, without = (
        build_model(SMALL, Tokenization(3), 1).bert,
        build_model(SMALL.model_copy(update={"dropout": 0}), Tokenization(3), 1).bert,
    )
    assert not [name for name, module in with_dropout.named_modules() if type(module) is torch.nn.Dropout]
    assert with_dropout.config._attn_implementation == ATTENTION
    assert without.config._attn_implementation == "sdpa"
    assert with_dropout.state_dict().keys() == without.state_dict().keys()
    with_dropout.save_pretrained(tmp_path)
    assert ATTENTION not in (tmp_path / "config.json").read_text()
    assert AutoModelForMaskedLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


def test_recomputed_activations_see_the_same_dropout():
    ids = torch.arange(5, 37).view(2, 16)
    gradients = []
    for checkpointing in (False, True):
        settings = SMALL.model_copy(update={"activation_checkpointing": checkpointing})
        model = build_model(settings, Tokenization(3), 1).train()
        torch.manual_seed(4)
        model(ids, torch.ones_like(ids, dtype=torch.bool), ids % 3 == 0, ids).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert gradients[0].any()
    assert torch.allclose(*gradients, rtol=1e-5, atol=1e-6)
