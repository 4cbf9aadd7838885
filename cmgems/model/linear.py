"""Linear layers that on the CPU are computed by oneDNN in fp32 too. Torch takes MKL for it, which needs twice the time
on an AMD EPYC (Zen 5)."""

from typing import Any

import torch
from torch import Tensor, nn


def use_linear(model: nn.Module) -> None:
    """Let a model's linear layers compute as `Linear`; its parameters stay the same."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear


class Linear(nn.Linear):
    """A linear layer that computes by oneDNN on the CPU in fp32, and elsewhere as torch's does."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        in_fp32 = input.dtype == self.weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        if input.device.type != "cpu" or not in_fp32 or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            return super().forward(input)
        output: Tensor = _ByOneDNN.apply(input, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return output


class _ByOneDNN(torch.autograd.Function):
    """Inputs [..., I] times weights [O, I], and a bias [O] or None.

    Torch's own derivative of `mkldnn_linear` would keep a copy of the inputs for each layer that reads them.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(input, weight)
        output: Tensor = torch.ops.aten.mkldnn_linear(input.to_mkldnn(), weight, bias).to_dense()
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        (gradient,) = gradients
        needed = ctx.needs_input_grad
        found = torch.ops.aten.mkldnn_linear_backward(input.to_mkldnn(), gradient.to_mkldnn(), weight, needed)
        return tuple(one.to_dense() if wanted else None for one, wanted in zip(found, needed, strict=True))
