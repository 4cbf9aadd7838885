"""Masking strategies: which tokens of a window the model has to predict.

Tokens are overlapping k-mers: the token in column t covers nucleotides t to t+k-1 of its window, so a nucleotide is in
k tokens. Around a centre c, the tokens c - (k-1)//2 to c + k//2 share exactly one nucleotide; hiding all of a k-mer in
column s takes the 2k-1 tokens s-k+1 to s+k-1.

Every strategy is a function `select(ids, valid, npmi, setting, random) -> tokens`, in batched tensor operations only:

    ids : int64 [B, T], token ids.
    valid : bool [B, T], the tokens that are k-mers. They need not be adjacent; whatever a strategy picks is clipped to
        them.
    npmi : float32 [5 + 4^k], NPMI by token id (`NpmiTable.by_token_id`).
    setting : MaskingConfig, the strategy's settings.
    random : Counters, the random bits of the rows.
    Returns bool [B, T], the tokens to be masked.

To add a strategy, write one such function, enter it in STRATEGIES and allow its name in MaskingConfig.
"""

from collections.abc import Callable
from math import ceil

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import max_pool1d, pad

from cmgems.config.schema import MaskingConfig
from cmgems.data.tokenizer import SPECIAL_TOKENS
from cmgems.masking.centre_probability import ALL_STRONG, genemask_thresholds, span_centre_probability
from cmgems.masking.counters import Counters, Stream, threshold

_COLUMN_BITS = 20
_COLUMN = (1 << _COLUMN_BITS) - 1
"""Largest column of a key of `_highest_first`, and the bits that hold it."""

Strategy = Callable[[Tensor, Tensor, Tensor, MaskingConfig, Counters], Tensor]


def span(ids: Tensor, valid: Tensor, npmi: Tensor, setting: MaskingConfig, random: Counters) -> Tensor:
    """DNABERT's masking: around random centres, the tokens that share one nucleotide (or spans of drawn lengths)."""
    k = _k(npmi)
    lengths = tuple(setting.lengths or [k])
    probability = setting.centre_probability or span_centre_probability(_rate(setting), lengths)
    columns = ids.shape[1]
    centres = valid & (random.bits(Stream.CENTRE, columns) < threshold(probability))
    if len(lengths) == 1:
        return _around(centres, lengths[0]) & valid

    drawn = random.bits(Stream.LENGTH, columns) * len(lengths) >> 32
    masked = torch.zeros_like(valid)
    for i, length in enumerate(lengths):
        masked |= _around(centres & (drawn == i), length)
    return masked & valid


def genemask(ids: Tensor, valid: Tensor, npmi: Tensor, setting: MaskingConfig, random: Counters) -> Tensor:
    """GeneMask: as span, and the higher-ranking half of the centres hides the best k-mer nearby completely."""
    return _genemask(ids, valid, npmi, _k(npmi), setting, random)


def genemask_by_position(ids: Tensor, valid: Tensor, npmi: Tensor, setting: MaskingConfig, random: Counters) -> Tensor:
    """Ablation: GeneMask with the slip of its published script, which looks NPMI up by a token's position.

    Column t gets the NPMI of token id t, whatever token stands there; columns beyond the vocabulary rank lowest.
    """
    columns = ids.shape[1]
    by_column = pad(npmi, (0, max(0, columns - len(npmi))), value=-torch.inf)
    positions = torch.arange(columns, device=ids.device).expand_as(ids)
    return _genemask(positions, valid, by_column, _k(npmi), setting, random)


def global_pmi(ids: Tensor, valid: Tensor, npmi: Tensor, setting: MaskingConfig, random: Counters) -> Tensor:
    """Global: hides the window's k-mers completely, from the highest NPMI down, as near to the budget as they go.

    The budget is rate x valid tokens. A window with a budget below k tokens hides one nucleotide of its top k-mer.
    """
    k, columns = _k(npmi), ids.shape[1]
    scores = _lookup(npmi, ids, valid)
    if setting.temperature:
        scores = scores + setting.temperature * _gumbel(random.bits(Stream.GUMBEL, columns))
    budget = _rate(setting) * valid.sum(dim=1, keepdim=True).double()

    # As each k-mer masks its own token at least, no more of them are needed than the budget has tokens.
    top = min(columns, ceil(_rate(setting) * columns))
    best = _highest_first(scores, top)
    falling = -torch.arange(top, device=ids.device, dtype=torch.float32)
    height = torch.full_like(scores, -top).scatter_(1, best, falling.expand_as(best))  # minus the rank

    # Token t is masked as soon as one of the k-mers t-k+1..t+k-1 is among the top m, so by any m above `first`.
    first = -max_pool1d(height, 2 * k - 1, stride=1, padding=k - 1).long()
    newly_masked = first.new_zeros(len(ids), top + 1).scatter_add_(1, first, valid.long())
    masked_by_top = pad(newly_masked[:, :-1].cumsum(dim=1), (1, 0))  # [B, top + 1]: the number masked for m = 0..top
    m = (masked_by_top - budget).abs().argmin(dim=1, keepdim=True)  # of equally near ones the first
    from_top = torch.arange(columns, device=ids.device) - best[:, :1]
    one_nucleotide = (from_top >= -((k - 1) // 2)) & (from_top <= k // 2)
    return torch.where(budget < k, one_nucleotide, first < m) & valid


STRATEGIES: dict[str, Strategy] = {
    "span": span,
    "genemask": genemask,
    "global_pmi": global_pmi,
    "genemask_by_position": genemask_by_position,
}


def _genemask(ids: Tensor, valid: Tensor, npmi: Tensor, k: int, setting: MaskingConfig, random: Counters) -> Tensor:
    """GeneMask by the values in `npmi` of `ids` [B, T]. Few tokens are centres, and only what is near one is read."""
    columns = ids.shape[1]
    centre = places(_genemask_centres(valid, k, setting, random))  # [C], among all B * T tokens, as all places here
    row = centre // columns
    left = (row * columns)[:, None]
    right = left + columns - 1

    # The centre itself comes first, as of equal scores the first one is taken. Past an edge stands the edge's token.
    offsets = torch.tensor([0, *range(-((k - 1) // 2), k // 2 + 1)], device=ids.device)
    nearby = (centre[:, None] + offsets).clamp(left, right)  # [C, k + 1]
    scores, which = _lookup(npmi, ids.take(nearby), valid.take(nearby)).max(dim=1)
    best = nearby.gather(1, which[:, None])[:, 0]

    # Row by row, in each from the highest score down; of equal ones the left centre is first.
    order = scores.argsort(descending=True, stable=True)
    order = order[row[order].argsort(stable=True)]
    first = torch.searchsorted(row, torch.arange(len(ids) + 1, device=ids.device))  # of each row's centres
    number = first.diff()
    weak_number = (number >> 1).masked_fill(number <= ALL_STRONG, 0)
    strong = torch.arange(len(row), device=ids.device) < (first[1:] - weak_number)[row]  # in that order

    middle = best[order].where(strong, centre[order])
    around = strong[:, None] * torch.arange(1 - k, k, device=ids.device)  # of a weak centre there is no more to hide
    hidden = (middle[:, None] + around).clamp(left, right)
    masked = torch.zeros_like(valid).flatten()
    masked.index_fill_(0, nearby.flatten(), True).index_fill_(0, hidden.flatten(), True)
    return masked.view_as(valid) & valid


def _genemask_centres(valid: Tensor, k: int, setting: MaskingConfig, random: Counters) -> Tensor:
    """Tokens that are centres, bool [B, T]: by the setting's own probability, or by one for each number of tokens."""
    draws = random.bits(Stream.CENTRE, valid.shape[1])
    if setting.centre_probability is not None:
        return valid & (draws < threshold(setting.centre_probability))
    by_length = genemask_thresholds(_rate(setting), k, valid.device)
    length = valid.sum(dim=1, keepdim=True).clamp(max=len(by_length) - 1)
    return valid & (draws < by_length[length])


def places(tokens: Tensor) -> Tensor:
    """Places of the set tokens [B, T] among all [B * T], int64 [M], in order; waits for the device."""
    if tokens.device.type == "cpu":  # by NumPy in half of the time
        return torch.from_numpy(np.flatnonzero(tokens.numpy()))
    return tokens.flatten().nonzero().squeeze(1)


def _highest_first(scores: Tensor, number: int) -> Tensor:
    """Columns of each row's highest scores, downwards, int64 [B, number]; of equal ones the one further left is first.

    What is sorted is int64: the lower bits hold the column, the upper ones the score's own bits, in such a way that
    their order is that of the numbers, and downwards.
    """
    if scores.shape[1] > _COLUMN:
        raise ValueError(f"{scores.shape[1]} tokens in a row; {_COLUMN} at most can be ranked")
    bits = (scores + 0.0).view(torch.int32)  # with -0 as 0
    order = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    keys = torch.arange(scores.shape[1], device=scores.device) - (order.long() << _COLUMN_BITS)
    return _smallest(keys, number) & _COLUMN


def _smallest(keys: Tensor, number: int) -> Tensor:
    """Each row's smallest keys in ascending order; as all differ, there is only one such order."""
    if keys.device.type == "cpu":  # by NumPy in a fifth of the time
        return torch.from_numpy(np.sort(np.partition(keys.numpy(), number - 1, axis=1)[:, :number], axis=1))
    return keys.topk(number, dim=1, largest=False).values


def _lookup(npmi: Tensor, ids: Tensor, valid: Tensor) -> Tensor:
    """Scores of tokens, float32 as `ids`: finite for each valid one (unknown NPMI: the lowest), -inf for the others."""
    finite = npmi.clamp(min=torch.finfo(npmi.dtype).min)
    return finite.index_select(0, ids.flatten()).view_as(ids).where(valid, -torch.inf)


def _gumbel(bits: Tensor) -> Tensor:
    """Standard Gumbel noise from random words, float32, same shape."""
    uniform = (bits.double() + 0.5) / 2**32
    return -torch.log(-torch.log(uniform)).float()


def _around(centres: Tensor, length: int) -> Tensor:
    """The `length` tokens around each centre; for length k, those that share one nucleotide with it."""
    return spread(centres, (length - 1) // 2, length // 2)


def spread(tokens: Tensor, before: int, after: int) -> Tensor:
    """For each set column c the columns c-before to c+after, bool [B, T]."""
    return max_pool1d(pad(tokens.float(), (after, before)), before + after + 1, stride=1) > 0


def _rate(setting: MaskingConfig) -> float:
    """The rate of a setting without a centre probability: MaskingConfig makes sure that there is one."""
    assert setting.rate is not None
    return setting.rate


def _k(npmi: Tensor) -> int:
    """k of a vector of 5 + 4^k values."""
    return ((len(npmi) - len(SPECIAL_TOKENS)).bit_length() - 1) // 2
