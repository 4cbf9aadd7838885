"""Masking strategies: which tokens of a window the model has to predict.

Which tokens contain a nucleotide, and which have to be masked to hide all of a word, is the tokenization's
(`cmgems.data.tokenization`). Of overlapping k-mers, which are words at the same time, a nucleotide is in k tokens:
around a centre c, the tokens c - (k-1)//2 to c + k//2 share exactly one nucleotide; hiding all of a k-mer in column s
takes the 2k-1 tokens s-k+1 to s+k-1.

To add a strategy, write a class here, and enter it in `Masking`. torch is imported where it is used: settings are read
without it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from math import ceil
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args

from pydantic import Field, model_validator

from cmgems.settings import OpenShare, Settings

if TYPE_CHECKING:
    from torch import Tensor

    from cmgems.data.tokenization import Tokenization
    from cmgems.masking.counters import Counters
    from cmgems.masking.words import Words


class MaskingStrategy(Settings):
    """Base of the strategies: settings, and the choice of tokens by them."""

    strategy: str
    """Which tokens are masked."""
    weight: float = Field(default=1, gt=0)
    """Weight in a mix: each window samples one strategy of its stage with probability weight / sum of weights."""

    @abstractmethod
    def select(self, ids: Tensor, valid: Tensor, words: Words, random: Counters) -> Tensor:
        """Return the tokens to be masked; in batched tensor operations only.

        Parameters
        ----------
        ids : int64 [B, T]
            Token ids.
        valid : bool [B, T]
            The tokens that are nucleotides. They need not be adjacent; only these may be selected.
        words
            `words.tokens` says which nucleotides a token has; `words.scores(ids, valid)` is the NPMI, float32 [B, T],
            of the word that begins at each token.
        random
            Random bits of the rows, the only source of chance.

        Returns
        -------
        bool [B, T]
        """

    @abstractmethod
    def masked_share(self, tokens: Tokenization, length: int) -> float:
        """Return the expected share of the tokens that are masked in a window of `length` tokens."""

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

    def masked_share(self, tokens: Tokenization, length: int) -> float:
        """Return the rate, or the share that the centre probability masks."""
        if self.rate is not None:
            return self.rate
        assert self.centre_probability is not None  # one of both is there
        return self._share_by_centres(self.centre_probability, tokens, length)

    @abstractmethod
    def _share_by_centres(self, probability: float, tokens: Tokenization, length: int) -> float:
        """Return the share of the tokens that centres of this probability mask."""


class Span(_AroundCentres):
    """DNABERT's masking: around random centres, the tokens that share one nucleotide (or spans of drawn lengths)."""

    strategy: Literal["span"] = "span"
    lengths: list[Annotated[int, Field(ge=1)]] | None = Field(default=None, min_length=1)
    """Lengths of a span, in tokens, drawn uniformly for each centre; empty: the tokens that share one nucleotide, k of
    them if they overlap."""

    def select(self, ids: Tensor, valid: Tensor, words: Words, random: Counters) -> Tensor:
        """Return the tokens around random centres."""
        import torch

        from cmgems.masking.centre_probability import span_centre_probability
        from cmgems.masking.counters import Stream, threshold
        from cmgems.masking.tokens import around

        lengths, columns = self._lengths(words.tokens), ids.shape[1]
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

    def _share_by_centres(self, probability: float, tokens: Tokenization, length: int) -> float:
        from cmgems.masking.centre_probability import span_masked_share

        return span_masked_share(probability, self._lengths(tokens))

    def _lengths(self, tokens: Tokenization) -> tuple[int, ...]:
        return tuple(self.lengths or [tokens.token_blocks])


class GeneMask(_AroundCentres):
    """GeneMask: as span, and the higher-ranking half of the centres hides the best word nearby completely."""

    strategy: Literal["genemask"] = "genemask"

    def select(self, ids: Tensor, valid: Tensor, words: Words, random: Counters) -> Tensor:
        """Return the tokens around random centres and local maxima of NPMI."""
        return self._select(valid, words.tokens, random, lambda places: words.scores_at(places, ids, valid))

    def _select(
        self, valid: Tensor, tokens: Tokenization, random: Counters, scores_at: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """By the scores of words. Few tokens are centres, and only what is near one is read."""
        import torch

        from cmgems.masking.centre_probability import ALL_STRONG
        from cmgems.masking.tokens import places

        columns, device = valid.shape[1], valid.device
        centre = places(self._centres(valid, tokens, random))  # [C], among all B * T tokens, as all places here
        row = centre // columns
        left = (row * columns)[:, None]
        right = left + columns - 1

        # The centre comes first, as of equal scores the first one is taken. Past an edge stands the edge's token.
        offsets = torch.tensor([0, *tokens.near] if 0 in tokens.near else [*tokens.near], device=device)
        nearby = (centre[:, None] + offsets).clamp(left, right)  # [C, words that contain the centre's block, + 1]
        scores, which = scores_at(nearby).max(dim=1)
        best = nearby.gather(1, which[:, None])[:, 0]

        # Row by row, in each from the highest score down; of equal ones the left centre is first.
        order = scores.argsort(descending=True, stable=True)
        order = order[row[order].argsort(stable=True)]
        first = torch.searchsorted(row, torch.arange(len(valid) + 1, device=device))  # of each row's centres
        number = first.diff()
        weak_number = (number >> 1).masked_fill(number <= ALL_STRONG, 0)
        strong = torch.arange(len(row), device=device) < (first[1:] - weak_number)[row]  # in that order
        if tokens.word != tokens.k:  # not every centre has a whole word near
            strong &= scores[order] > -torch.inf

        middle = best[order].where(strong, centre[order])
        word = strong[:, None] * torch.tensor([*tokens.hiding], device=device)  # a weak centre hides no more
        hidden = (middle[:, None] + word).clamp(left, right)
        around = nearby  # the same where words are tokens
        if tokens.near != tokens.around:
            around = (centre[:, None] + torch.tensor([*tokens.around], device=device)).clamp(left, right)
        masked = torch.zeros_like(valid).flatten()
        masked.index_fill_(0, around.flatten(), True).index_fill_(0, hidden.flatten(), True)
        return masked.view_as(valid) & valid

    def _centres(self, valid: Tensor, tokens: Tokenization, random: Counters) -> Tensor:
        """Return the tokens that are centres, bool [B, T]: by one probability, or by one for each number of tokens."""
        from cmgems.masking.centre_probability import genemask_thresholds
        from cmgems.masking.counters import Stream, threshold

        draws = random.bits(Stream.CENTRE, valid.shape[1])
        if self.centre_probability is not None:
            return valid & (draws < threshold(self.centre_probability))
        assert self.rate is not None
        by_length = genemask_thresholds(self.rate, tokens, valid.device)
        length = valid.sum(dim=1, keepdim=True).clamp(max=len(by_length) - 1)
        return valid & (draws < by_length[length])

    def _share_by_centres(self, probability: float, tokens: Tokenization, length: int) -> float:
        from cmgems.masking.centre_probability import genemask_masked_share

        return genemask_masked_share(probability, tokens, length)


class GeneMaskByPosition(GeneMask):
    """Ablation: GeneMask with the slip of its published script, which looks NPMI up by a token's position.

    Column t gets the NPMI of id t, whatever word begins there; columns beyond the table rank lowest.
    """

    strategy: Literal["genemask_by_position"] = "genemask_by_position"  # type: ignore[assignment]

    def select(self, ids: Tensor, valid: Tensor, words: Words, random: Counters) -> Tensor:
        """Return the tokens around random centres and local maxima of the values by position."""
        import torch
        from torch.nn.functional import pad

        from cmgems.masking.tokens import lookup

        columns = ids.shape[1]
        by_column = pad(words.npmi, (0, max(0, columns - len(words.npmi))), value=-torch.inf)

        def scores_at(places: Tensor) -> Tensor:
            return lookup(by_column, places % columns, valid.take(places))

        return self._select(valid, words.tokens, random, scores_at)


class GlobalPmi(MaskingStrategy):
    """Global-PMI: hides the window's words completely, from the highest NPMI down, as near to the budget as they go.

    The budget is rate x valid tokens. A window with a budget below half of the tokens that hide a word (rounded up, k
    of overlapping k-mers) hides one nucleotide of its top word, or one token where tokens do not overlap.
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

    def select(self, ids: Tensor, valid: Tensor, words: Words, random: Counters) -> Tensor:
        """Return the tokens of the window's best words."""
        import torch
        from torch.nn.functional import max_pool1d, pad

        from cmgems.masking.counters import Stream
        from cmgems.masking.tokens import gumbel, highest_first

        tokens, columns = words.tokens, ids.shape[1]
        scores = words.scores(ids, valid)
        if self.temperature:
            scores = scores + self.temperature * gumbel(random.bits(Stream.GUMBEL, columns))
        budget = self.rate * valid.sum(dim=1, keepdim=True).double()

        # As each word masks its first token at least, no more of them are needed than the budget has tokens.
        top = min(columns, ceil(self.rate * columns))
        best = highest_first(scores, top)
        falling = -torch.arange(top, device=ids.device, dtype=torch.float32).expand_as(best)
        if tokens.word > tokens.k:  # not every token begins a whole word
            falling = falling.masked_fill(scores.gather(1, best) == -torch.inf, -top)
        height = torch.full_like(scores, -top).scatter_(1, best, falling)  # minus the rank

        # A token is masked as soon as one of the words that it hides is among the top m, so by any m above `first`.
        before, behind = tokens.hiding[-1], -tokens.hiding[0]
        if before != behind:  # what is padded must be so evenly
            height = pad(height, (max(before - behind, 0), max(behind - before, 0)), value=-top)
        first = -max_pool1d(height, before + 1 + behind, stride=1, padding=min(before, behind)).long()
        newly_masked = first.new_zeros(len(ids), top + 1).scatter_add_(1, first, valid.long())
        masked_by_top = pad(newly_masked[:, :-1].cumsum(dim=1), (1, 0))  # [B, top + 1]: number masked for m = 0..top
        m = (masked_by_top - budget).abs().argmin(dim=1, keepdim=True)  # of equally near ones the first
        from_top = torch.arange(columns, device=ids.device) - best[:, :1]
        one_nucleotide = (from_top >= tokens.in_word[0]) & (from_top <= tokens.in_word[-1])
        if tokens.word > tokens.k:
            one_nucleotide &= scores.gather(1, best[:, :1]) > -torch.inf
        return torch.where(2 * budget < len(tokens.hiding) + 1, one_nucleotide, first < m) & valid

    def masked_share(self, tokens: Tokenization, length: int) -> float:
        """Return the rate."""
        return self.rate


Masking = Annotated[Span | GeneMask | GlobalPmi | GeneMaskByPosition, Field(discriminator="strategy")]

STRATEGIES: dict[str, type[MaskingStrategy]] = {
    strategy.model_fields["strategy"].default: strategy for strategy in get_args(get_args(Masking)[0])
}
"""The strategies by the names that they have in recipes."""
