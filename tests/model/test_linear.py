"""Linear layers by oneDNN: the same products, for the same parameters, and torch's own wherever oneDNN is not taken."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from cmgems.config.schema import ModelConfig
from cmgems.data.tokenization import Tokenization
from cmgems.model.bert import build_model
from cmgems.model.linear import Linear, use_linear

SMALL = ModelConfig(layers=2, hidden=32, intermediate=64, heads=4, dropout=0, max_positions=32)


class Products(TorchDispatchMode):
    """Notes which operations multiply matrices."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("aten::").partition(".")[0]
        if name in ("mm", "addmm") or name.startswith("mkldnn_linear"):
            self.found.add(name)
        return func(*args, **(kwargs or {}))


def both(inputs, outputs, bias=True):
    """A layer of torch's, and the same by `Linear`."""
    theirs, ours = nn.Linear(inputs, outputs, bias=bias), nn.Linear(inputs, outputs, bias=bias)
    ours.load_state_dict(theirs.state_dict())
    use_linear(ours)
    assert type(ours) is Linear
    return theirs, ours


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3, 7, 48), (50, 48), (1, 48), (0, 48)])
def test_outputs_and_gradients_are_those_of_torch(shape, bias):
    torch.manual_seed(0)
    inputs, weights = torch.randn(shape), torch.randn(*shape[:-1], 20)
    found = []
    for layer in both(48, 20, bias):
        own = inputs.clone().requires_grad_()
        output = layer(own)
        (output * weights).sum().backward()
        found.append([output, own.grad, *(parameter.grad for parameter in layer.parameters())])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_strided_inputs_and_gradients_are_read_as_they_are_meant():
    torch.manual_seed(0)
    found = []
    for layer in both(8, 8):
        torch.manual_seed(1)
        inputs = torch.randn(8, 5, 3).transpose(0, 2).requires_grad_()
        layer(inputs).transpose(0, 1)[:, ::2].sum().backward()
        found.append([inputs.grad, layer.weight.grad, layer.bias.grad])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("frozen", [["weight"], ["bias"], ["weight", "bias"]])
def test_what_is_frozen_gets_no_gradient(frozen):
    _, layer = both(8, 4)
    for name in frozen:
        layer.get_parameter(name).requires_grad_(False)
    inputs = torch.randn(3, 8, requires_grad=True)
    layer(inputs).sum().backward()
    assert inputs.grad is not None
    assert [name for name, parameter in layer.named_parameters() if parameter.grad is None] == frozen


def test_inputs_without_a_gradient_and_evaluations_are_fine():
    theirs, ours = both(8, 4)
    inputs = torch.randn(3, 8)
    ours(inputs).sum().backward()
    assert torch.equal(ours.bias.grad, torch.full((4,), 3.0))
    with torch.no_grad():
        torch.testing.assert_close(ours(inputs), theirs(inputs))


def test_bf16_is_left_to_torch():
    theirs, ours = both(32, 16)
    inputs = torch.randn(5, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(inputs), theirs(inputs))
        assert ours(inputs).dtype == torch.bfloat16
    assert torch.equal(ours.bfloat16()(inputs.bfloat16()), theirs.bfloat16()(inputs.bfloat16()))


def test_all_linear_layers_of_the_model_compute_by_onednn_with_the_parameters_they_had():
    model = build_model(SMALL, Tokenization(3), seed=1)
    kinds = {type(module) for module in model.modules() if isinstance(module, nn.Linear)}
    assert kinds == {Linear}
    embeddings = model.bert.get_input_embeddings().weight
    assert model.bert.cls.predictions.decoder.weight is embeddings
    ids = torch.arange(5, 37).view(2, 16)
    with Products() as products:
        model(ids, torch.ones_like(ids, dtype=torch.bool), ids % 3 == 0, ids).sum().backward()
    assert products.found == {"mkldnn_linear", "mkldnn_linear_backward"}
    assert all(parameter.grad is not None for parameter in model.bert.bert.encoder.parameters())
