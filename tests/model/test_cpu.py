"""What speeds up a CPU leaves a model on GPUs as transformers made it."""

import torch
from torch import nn

from cmgems.config.schema import ModelConfig
from cmgems.data.tokenization import Tokenization
from cmgems.model.bert import build_model
from cmgems.model.dropout import ATTENTION, Dropout
from cmgems.model.linear import Linear

SMALL = ModelConfig(layers=1, hidden=16, intermediate=32, heads=2, max_positions=32)


def kinds(model):
    return {type(module) for module in model.modules() if isinstance(module, nn.Linear | nn.Dropout)}


def test_a_model_on_a_cpu_gets_linear_layers_and_dropout_of_its_own():
    model = build_model(SMALL, Tokenization(3), 1, torch.device("cpu")).bert
    assert kinds(model) == {Linear, Dropout}
    assert model.config._attn_implementation == ATTENTION


def test_a_model_on_a_gpu_is_left_alone():
    model = build_model(SMALL, Tokenization(3), 1, torch.device("cuda")).bert
    assert kinds(model) == {nn.Linear, nn.Dropout}
    assert model.config._attn_implementation == "sdpa"
