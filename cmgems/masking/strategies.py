"""Masking strategies: which tokens of a window the model has to predict.

Tokens are overlapping k-mers: the token in column t covers nucleotides t to t+k-1 of its window, so a nucleotide is in
k tokens. Around a centre c, the tokens c - (k-1)//2 to c + k//2 share exactly one nucleotide; hiding all of a k-mer in
column s takes the 2k-1 tokens s-k+1 to s+k-1.

To add a strategy, write a class here, and enter it in `Masking`. torch is imported where it is used: settings are read
without it.
"""

from __future__ import annotations

from abc import abstractmethod
from math import ceil
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args

from pydantic import Field, model_validator

from cmgems.settings import OpenShare, Settings

if TYPE_CHECKING:
    from torch import Tensor

    from cmgems.masking.counters import Counters


class MaskingStrategy(Settings):
    """Base of the strategies: settings, and the choice of tokens by them."""

    strategy: str
    """Which tokens are masked."""
    weight: float = Field(default=1, gt=0)
    """Weight in a mix: each window samples one strategy of its stage with probability weight / sum of weights."""

    @abstractmethod
    def select(self, ids: Tensor, valid: Tensor, npmi: Tensor, random: Counters) -> Tensor:
        """Return the tokens to be masked; in batched tensor operations only.

        Parameters
        ----------
        ids : int64 [B, T]
            Token ids.
        valid : bool [B, T]
            The tokens that are k-mers. They need not be adjacent; only these may be selected.
        npmi : float32 [5 + 4^k]
            NPMI by token id (`NpmiTable.by_token_id`).
        random
            Random bits of the rows, the only source of chance.

        Returns
        -------
        bool [B, T]
        """

    @abstractmethod
    def masked_share(self, k: int, length: int) -> float:
        """Return the expected share of the tokens that are masked in a window of `length` k-mers."""

    @model_validator(mode="before")
    @classmethod
    def _knows_settings(cls, given: Any) -> Any:
        """Name the strategies that a setting belongs to, rather than call it unknown."""
        for setting in given if isinstance(given, dict) else ():
            owners = [name for name, strategy in STRATEGIES.items() if setting in strategy.model_fields]
            if owners and setting not in cls.model_fields:
                own = cls.model_fields["strategy"].default
                raise ValueError(f"{setting} belongs to {' and '.join(owners)}, not to {own}")
        return given


class _AroundCentres(MaskingStrategy):
    """A strategy that masks around centres, which are random tokens."""

    rate: OpenShare | None = None
    """Expected share of the window's tokens that are masked."""
    centre_probability: OpenShare | None = None
    """Probability that a token is a centre, instead of a rate."""

    @model_validator(mode="after")
    def _one_amount(self) -> Self:
        if (self.rate is None) == (self.centre_probability is None):
            raise ValueError("give either rate or centre_probability, and not both")
        return self

    def masked_share(self, k: int, length: int) -> float:
        """Return the rate, or the share that the centre probability masks."""
        if self.rate is not None:
            return self.rate
        assert self.centre_probability is not None  # one of both is there
        return self._share_by_centres(self.centre_probability, k, length)

    @abstractmethod
    def _share_by_centres(self, probability: float, k: int, length: int) -> float:
        """Return the share of the tokens that centres of this probability mask."""


class Span(_AroundCentres):
    """DNABERT's masking: around random centres, the tokens that share one nucleotide (or spans of drawn lengths)."""

    strategy: Literal["span"] = "span"
    lengths: list[Annotated[int, Field(ge=1)]] | None = Field(default=None, min_length=1)
    """Lengths of a span, in tokens, drawn uniformly for each centre; empty: always k."""

    def select(self, ids: Tensor, valid: Tensor, npmi: Tensor, random: Counters) -> Tensor:
        """Return the tokens around random centres."""
        import torch

        from cmgems.masking.centre_probability import span_centre_probability
        from cmgems.masking.counters import Stream, threshold
        from cmgems.masking.tokens import around, k_of

        lengths, columns = self._lengths(k_of(npmi)), ids.shape[1]
        probability = self.centre_probability
        if probability is None:
            assert self.rate is not None
            probability = span_centre_probability(self.rate, lengths)
        centres = valid & (random.bits(Stream.CENTRE, columns) < threshold(probability))
        if len(lengths) == 1:
            return around(centres, lengths[0]) & valid

        drawn = random.bits(Stream.LENGTH, columns) * len(lengths) >> 32
        masked = torch.zeros_like(valid)
        for i, length in enumerate(lengths):
            masked |= around(centres & (drawn == i), length)
        return masked & valid

    def _share_by_centres(self, probability: float, k: int, length: int) -> float:
        from cmgems.masking.centre_probability import span_masked_share

        return span_masked_share(probability, self._lengths(k))

    def _lengths(self, k: int) -> tuple[int, ...]:
        return tuple(self.lengths or [k])


class GeneMask(_AroundCentres):
    """GeneMask: as span, and the higher-ranking half of the centres hides the best k-mer nearby completely."""

    strategy: Literal["genemask"] = "genemask"

    def select(self, ids: Tensor, valid: Tensor, npmi: Tensor, random: Counters) -> Tensor:
        """Return the tokens around random centres and local maxima of NPMI."""
        from cmgems.masking.tokens import k_of

        return self._select(ids, valid, npmi, k_of(npmi), random)

    def _select(self, ids: Tensor, valid: Tensor, npmi: Tensor, k: int, random: Counters) -> Tensor:
        """By the values in `npmi` of `ids`. Few tokens are centres, and only what is near one is read."""
        import torch

        from cmgems.masking.centre_probability import ALL_STRONG
        from cmgems.masking.tokens import lookup, places

        columns = ids.shape[1]
        centre = places(self._centres(valid, k, random))  # [C], among all B * T tokens, as all places here
        row = centre // columns
        left = (row * columns)[:, None]
        right = left + columns - 1

        # The centre comes first, as of equal scores the first one is taken. Past an edge stands the edge's token.
        offsets = torch.tensor([0, *range(-((k - 1) // 2), k // 2 + 1)], device=ids.device)
        nearby = (centre[:, None] + offsets).clamp(left, right)  # [C, k + 1]
        scores, which = lookup(npmi, ids.take(nearby), valid.take(nearby)).max(dim=1)
        best = nearby.gather(1, which[:, None])[:, 0]

        # Row by row, in each from the highest score down; of equal ones the left centre is first.
        order = scores.argsort(descending=True, stable=True)
        order = order[row[order].argsort(stable=True)]
        first = torch.searchsorted(row, torch.arange(len(ids) + 1, device=ids.device))  # of each row's centres
        number = first.diff()
        weak_number = (number >> 1).masked_fill(number <= ALL_STRONG, 0)
        strong = torch.arange(len(row), device=ids.device) < (first[1:] - weak_number)[row]  # in that order

        middle = best[order].where(strong, centre[order])
        around = strong[:, None] * torch.arange(1 - k, k, device=ids.device)  # a weak centre hides no more
        hidden = (middle[:, None] + around).clamp(left, right)
        masked = torch.zeros_like(valid).flatten()
        masked.index_fill_(0, nearby.flatten(), True).index_fill_(0, hidden.flatten(), True)
        return masked.view_as(valid) & valid

    def _centres(self, valid: Tensor, k: int, random: Counters) -> Tensor:
        """Return the tokens that are centres, bool [B, T]: by one probability, or by one for each number of tokens."""
        from cmgems.masking.centre_probability import genemask_thresholds
        from cmgems.masking.counters import Stream, threshold

        draws = random.bits(Stream.CENTRE, valid.shape[1])
        if self.centre_probability is not None:
            return valid & (draws < threshold(self.centre_probability))
        assert self.rate is not None
        by_length = genemask_thresholds(self.rate, k, valid.device)
        length = valid.sum(dim=1, keepdim=True).clamp(max=len(by_length) - 1)
        return valid & (draws < by_length[length])

    def _share_by_centres(self, probability: float, k: int, length: int) -> float:
        from cmgems.masking.centre_probability import genemask_masked_share

        return genemask_masked_share(probability, k, length)


class GeneMaskByPosition(GeneMask):
    """Ablation: GeneMask with the slip of its published script, which looks NPMI up by a token's position.

    Column t gets the NPMI of token id t, whatever token stands there; columns beyond the vocabulary rank lowest.
    """

    strategy: Literal["genemask_by_position"] = "genemask_by_position"  # type: ignore[assignment]

    def select(self, ids: Tensor, valid: Tensor, npmi: Tensor, random: Counters) -> Tensor:
        """Return the tokens around random centres and local maxima of the values by position."""
        import torch
        from torch.nn.functional import pad

        from cmgems.masking.tokens import k_of

        columns = ids.shape[1]
        by_column = pad(npmi, (0, max(0, columns - len(npmi))), value=-torch.inf)
        positions = torch.arange(columns, device=ids.device).expand_as(ids)
        return self._select(positions, valid, by_column, k_of(npmi), random)


class GlobalPmi(MaskingStrategy):
    """Global-PMI: hides the window's k-mers completely, from the highest NPMI down, as near to the budget as they go.

    The budget is rate x valid tokens. A window with a budget below k tokens hides one nucleotide of its top k-mer.
    """

    strategy: Literal["global_pmi"] = "global_pmi"
    rate: OpenShare
    """Expected share of the window's tokens that are masked."""
    temperature: float = Field(default=0, ge=0)
    """Scale of the Gumbel noise on the NPMI ranking, in NPMI units; 0: deterministic."""

    @model_validator(mode="before")
    @classmethod
    def _has_no_centres(cls, given: Any) -> Any:
        if isinstance(given, dict) and "centre_probability" in given:
            raise ValueError("global_pmi has no centres: give rate, not centre_probability")
        return given

    def select(self, ids: Tensor, valid: Tensor, npmi: Tensor, random: Counters) -> Tensor:
        """Return the tokens of the window's best k-mers."""
        import torch
        from torch.nn.functional import max_pool1d, pad

        from cmgems.masking.counters import Stream
        from cmgems.masking.tokens import gumbel, highest_first, k_of, lookup

        k, columns = k_of(npmi), ids.shape[1]
        scores = lookup(npmi, ids, valid)
        if self.temperature:
            scores = scores + self.temperature * gumbel(random.bits(Stream.GUMBEL, columns))
        budget = self.rate * valid.sum(dim=1, keepdim=True).double()

        # As each k-mer masks its own token at least, no more of them are needed than the budget has tokens.
        top = min(columns, ceil(self.rate * columns))
        best = highest_first(scores, top)
        falling = -torch.arange(top, device=ids.device, dtype=torch.float32)
        height = torch.full_like(scores, -top).scatter_(1, best, falling.expand_as(best))  # minus the rank

        # Token t is masked as soon as one of the k-mers t-k+1..t+k-1 is among the top m, so by any m above `first`.
        first = -max_pool1d(height, 2 * k - 1, stride=1, padding=k - 1).long()
        newly_masked = first.new_zeros(len(ids), top + 1).scatter_add_(1, first, valid.long())
        masked_by_top = pad(newly_masked[:, :-1].cumsum(dim=1), (1, 0))  # [B, top + 1]: number masked for m = 0..top
        m = (masked_by_top - budget).abs().argmin(dim=1, keepdim=True)  # of equally near ones the first
        from_top = torch.arange(columns, device=ids.device) - best[:, :1]
        one_nucleotide = (from_top >= -((k - 1) // 2)) & (from_top <= k // 2)
        return torch.where(budget < k, one_nucleotide, first < m) & valid

    def masked_share(self, k: int, length: int) -> float:
        """Return the rate."""
        return self.rate


Masking = Annotated[Span | GeneMask | GlobalPmi | GeneMaskByPosition, Field(discriminator="strategy")]

STRATEGIES: dict[str, type[MaskingStrategy]] = {
    strategy.model_fields["strategy"].default: strategy for strategy in get_args(get_args(Masking)[0])
}
"""The strategies by the names that they have in recipes."""
