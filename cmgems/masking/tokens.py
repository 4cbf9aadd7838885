"""Operations on batches of tokens that masking is made of."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import max_pool1d, pad

_COLUMN_BITS = 20
_COLUMN = (1 << _COLUMN_BITS) - 1
"""Largest column of a key of `highest_first`, and the bits that hold it."""


def places(tokens: Tensor) -> Tensor:
    """Return the places of the set tokens [B, T] among all [B * T], int64 [M], in order; waits for the device."""
    if tokens.device.type == "cpu":  # by NumPy in half of the time
        return torch.from_numpy(np.flatnonzero(tokens.numpy()))
    return tokens.flatten().nonzero().squeeze(1)


def highest_first(scores: Tensor, number: int) -> Tensor:
    """Return the columns of each row's highest scores, downwards, int64 [B, number]; of equal ones the one further left
    is first.

    What is sorted is int64: the lower bits hold the column, the upper ones the score's own bits, in such a way that
    their order is that of the numbers, and downwards.

    Raises
    ------
    ValueError
        If a row has 2^20 tokens or more.
    """
    if scores.shape[1] > _COLUMN:
        raise ValueError(f"{scores.shape[1]} tokens in a row; {_COLUMN} at most can be ranked")
    bits = (scores + 0.0).view(torch.int32)  # with -0 as 0
    order = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    keys = torch.arange(scores.shape[1], device=scores.device) - (order.long() << _COLUMN_BITS)
    return _smallest(keys, number) & _COLUMN


def _smallest(keys: Tensor, number: int) -> Tensor:
    """Return each row's smallest keys in ascending order; as all differ, there is only one such order."""
    if keys.device.type == "cpu":  # by NumPy in a fifth of the time
        return torch.from_numpy(np.sort(np.partition(keys.numpy(), number - 1, axis=1)[:, :number], axis=1))
    return keys.topk(number, dim=1, largest=False).values


def lookup(npmi: Tensor, ids: Tensor, valid: Tensor) -> Tensor:
    """Return the scores of tokens, float32 as `ids`: finite for each valid one (unknown NPMI: the lowest), -inf for the
    others."""
    finite = npmi.clamp(min=torch.finfo(npmi.dtype).min)
    return finite.index_select(0, ids.flatten()).view_as(ids).where(valid, -torch.inf)


def gumbel(bits: Tensor) -> Tensor:
    """Standard Gumbel noise from random words, float32, same shape."""
    uniform = (bits.double() + 0.5) / 2**32
    return -torch.log(-torch.log(uniform)).float()


def around(centres: Tensor, length: int) -> Tensor:
    """Return the `length` tokens around each centre; for length k, those that share one nucleotide with it."""
    return spread(centres, (length - 1) // 2, length // 2)


def spread(tokens: Tensor, before: int, after: int) -> Tensor:
    """For each set column c the columns c-before to c+after, bool [B, T]."""
    return max_pool1d(pad(tokens.float(), (after, before)), before + after + 1, stride=1) > 0
