"""Dropout that on the CPU makes four values' draws of one number of a fast generator, where torch takes one for each.

Done by torch it takes a quarter of a training step of DNABERT, most of it for the attention's probabilities, as no
fused kernel computes attention with dropout on the CPU. On GPUs torch's own kernels are used.
"""

from math import prod

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "sdpa_with_dropout_on_cpu"
"""Name of `attention` among those that transformers knows."""
_DRAW_BITS = 16
_DRAWS = 2**_DRAW_BITS
_DRAWS_A_WORD = 64 // _DRAW_BITS


def use_dropout(model: PreTrainedModel) -> None:
    """Let a model of transformers draw its dropout by `drop`, in its attention too. Its weights have the same names,
    and what it is saved as is the same."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, Dropout(child.p).train(child.training))
    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    model.set_attn_implementation(ATTENTION)


class Dropout(nn.Dropout):
    """`drop` as a module; not to be done in place."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the input, with dropout while training."""
        return drop(input, self.p) if self.training else input


def drop(values: Tensor, p: float) -> Tensor:
    """Values, each zero with probability p (to 2^-17 on the CPU), the others divided by 1 - p.

    `torch.manual_seed` determines which.
    """
    if not p:
        return values
    if values.device.type != "cpu" or p == 1:
        return functional.dropout(values, p)
    kept, share = _kept(values.shape, p)
    dropped: Tensor = values * kept / share
    return dropped


def _kept(shape: torch.Size, p: float) -> tuple[Tensor, float]:
    """Which values are kept, uint8 (multiplied in less time than a bool), and the share of them to be expected.

    The draws are those of a generator of NumPy's, twice as fast as torch's, which is seeded from torch's.
    """
    number, values = min(round(p * _DRAWS), _DRAWS - 1), prod(shape)
    generator = np.random.Generator(np.random.SFC64(int(torch.randint(2**63 - 1, ()))))
    words = generator.integers(0, 2**64 - 1, -(-values // _DRAWS_A_WORD), np.uint64, endpoint=True)
    draws = torch.from_numpy(words.view(np.int16))[:values].view(shape)  # -2^15 to 2^15 - 1
    return (draws >= number - _DRAWS // 2).view(torch.uint8), 1 - number / _DRAWS


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention as transformers calls it.

    Parameters
    ----------
    module : the layer that calls it.
    query, key, value : [B, heads, T, size of a head].
    attention_mask : bool [B, 1, T, T], which tokens see which, or None if all see all.
    dropout : probability that a token does not see another one, 0 unless the model trains.
    scaling : what the products are multiplied with; the default is 1 / sqrt(size of a head).

    Returns
    -------
    [B, T, heads, size of a head], and None in the place of the probabilities
    """
    if dropout in (0, 1) or query.device.type != "cpu":
        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **others
        )
        return found
    scores = query * (query.shape[-1] ** -0.5 if scaling is None else scaling) @ key.transpose(2, 3)
    if attention_mask is not None:
        # Not -inf: in a row where a token sees none, the probabilities would not be numbers.
        scores = scores + torch.where(attention_mask, 0.0, torch.finfo(scores.dtype).min).to(scores.dtype)
    kept, share = _kept(scores.shape, dropout)
    seen = (scores.softmax(dim=-1, dtype=torch.float32) * kept).to(value.dtype)
    context: Tensor = seen @ (value / share)  # there are fewer values than probabilities
    return context.transpose(1, 2).contiguous(), None
