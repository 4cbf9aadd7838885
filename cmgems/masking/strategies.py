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

import torch
from torch import Tensor
from torch.nn.functional import max_pool1d, pad

from cmgems.config import MaskingConfig
from cmgems.masking.centre_probability import ALL_STRONG, genemask_thresholds, span_centre_probability
from cmgems.masking.counters import Counters, Stream, threshold
from cmgems.sequence.tokenizer import SPECIAL_TOKENS

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
    return _genemask(_lookup(npmi[ids], valid), valid, _k(npmi), setting, random)


def genemask_by_position(ids: Tensor, valid: Tensor, npmi: Tensor, setting: MaskingConfig, random: Counters) -> Tensor:
    """Ablation: GeneMask with the slip of its published script, which looks NPMI up by a token's position.

    Column t gets the NPMI of token id t, whatever token stands there; columns beyond the vocabulary rank lowest.
    """
    columns = ids.shape[1]
    by_column = pad(npmi[:columns], (0, max(0, columns - len(npmi))), value=-torch.inf)
    return _genemask(_lookup(by_column.expand(ids.shape), valid), valid, _k(npmi), setting, random)


def global_pmi(ids: Tensor, valid: Tensor, npmi: Tensor, setting: MaskingConfig, random: Counters) -> Tensor:
    """Global: hides the window's k-mers completely, from the highest NPMI down, as near to the budget as they go.

    The budget is rate x valid tokens. A window with a budget below k tokens hides one nucleotide of its top k-mer.
    """
    k = _k(npmi)
    scores = _lookup(npmi[ids], valid)
    if setting.temperature:
        scores = scores + setting.temperature * _gumbel(random.bits(Stream.GUMBEL, ids.shape[1]))
    ranks = _ranks(scores)
    budget = _rate(setting) * valid.sum(dim=1, keepdim=True).double()

    # Token t is masked as soon as one of the k-mers t-k+1..t+k-1 is among the top m, so by any m above `first`.
    first = -max_pool1d(-ranks.float(), 2 * k - 1, stride=1, padding=k - 1).long()
    newly_masked = torch.zeros_like(ranks).scatter_add_(1, first, valid.long())
    masked_by_top = pad(newly_masked.cumsum(dim=1), (1, 0))  # [B, T+1]: the number masked by the top m, for m = 0..T
    m = (masked_by_top - budget).abs().argmin(dim=1, keepdim=True)  # of equally near ones the first
    whole_kmers = first < m
    one_nucleotide = _around(ranks == 0, k)
    return torch.where(budget < k, one_nucleotide, whole_kmers) & valid


STRATEGIES: dict[str, Strategy] = {
    "span": span,
    "genemask": genemask,
    "global_pmi": global_pmi,
    "genemask_by_position": genemask_by_position,
}


def _genemask(scores: Tensor, valid: Tensor, k: int, setting: MaskingConfig, random: Counters) -> Tensor:
    """GeneMask by any scores of the tokens, float [B, T], -inf where not valid."""
    draws = random.bits(Stream.CENTRE, valid.shape[1])
    if setting.centre_probability is not None:
        centres = valid & (draws < threshold(setting.centre_probability))
    else:
        by_length = genemask_thresholds(_rate(setting), k, valid.device)
        length = valid.sum(dim=1, keepdim=True).clamp(max=len(by_length) - 1)
        centres = valid & (draws < by_length[length])

    best_score, best_column = _best_nearby(scores, k)
    number = centres.sum(dim=1, keepdim=True)
    strong_number = torch.where(number <= ALL_STRONG, number, (number + 1) // 2)
    strong = centres & (_ranks(best_score.where(centres, -torch.inf)) < strong_number)

    hidden = _columns_set(best_column, strong)
    return (_around(centres, k) | spread(hidden, k - 1, k - 1)) & valid


def _best_nearby(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Highest score among the k tokens around each token, and its column (tie: the token itself, then the leftmost)."""
    before, after = (k - 1) // 2, k // 2
    columns = scores.shape[1]
    padded = pad(scores, (before, after), value=-torch.inf)
    best, offset = scores, torch.zeros_like(scores, dtype=torch.long)
    for o in range(-before, after + 1):
        candidate = padded[:, before + o : before + o + columns]
        offset = torch.where(candidate > best, o, offset)
        best = torch.maximum(candidate, best)
    return best, offset + torch.arange(columns, device=scores.device)


def _lookup(scores: Tensor, valid: Tensor) -> Tensor:
    """Scores of the tokens, float [B, T]: finite for each valid one (unknown NPMI: the lowest), -inf for the others."""
    return scores.clamp(min=torch.finfo(scores.dtype).min).where(valid, -torch.inf)


def _ranks(scores: Tensor) -> Tensor:
    """Rank of each token in its row, int64 [B, T]: 0 for the highest score; equal scores from left to right."""
    order = scores.sort(dim=1, descending=True, stable=True).indices
    return torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )


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


def _columns_set(columns: Tensor, where: Tensor) -> Tensor:
    """Bool [B, T], True in the columns named where `where` is True; both [B, T]."""
    width = columns.shape[1]
    target = columns.where(where, width)  # the others set a spare column, so that no column gets two values
    return torch.zeros_like(pad(where, (0, 1))).scatter_(1, target, True)[:, :width]


def _rate(setting: MaskingConfig) -> float:
    """The rate of a setting without a centre probability: MaskingConfig makes sure that there is one."""
    assert setting.rate is not None
    return setting.rate


def _k(npmi: Tensor) -> int:
    """k of a vector of 5 + 4^k values."""
    return ((len(npmi) - len(SPECIAL_TOKENS)).bit_length() - 1) // 2
