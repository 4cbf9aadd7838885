"""A masking to score models under: isolated gaps of one length, which no curriculum trains on."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from cmgems.data.tokenization import Tokenization
from cmgems.masking.counters import Counters, Stream
from cmgems.masking.strategies import MaskingStrategy
from cmgems.masking.words import Words


class Gaps(MaskingStrategy):
    """Isolated gaps: a few times in a window, so many adjacent nucleotides are hidden, at random places.

    The window is divided into equal parts with one gap each, between visible tokens of the same part. A window that is
    too short for that gets nothing masked.
    """

    strategy: Literal["gaps"] = "gaps"
    bases: int = Field(ge=1)
    """Length of a gap, in nucleotides."""
    number: int = Field(default=2, ge=1)
    """Gaps of a window."""

    def select(self, ids: Tensor, valid: Tensor, words: Words, random: Counters) -> Tensor:
        """Return the tokens that share a nucleotide with a gap."""
        width = self._width(words.tokens)
        rank = valid.cumsum(dim=1) - 1  # of the valid tokens in their window
        part = valid.sum(dim=1, keepdim=True) // self.number
        places = (part - width - 1).clamp(min=0)  # a visible token on either side
        starts = random.bits(Stream.CENTRE, self.number) * places >> 32
        starts = starts + part * torch.arange(self.number, device=ids.device) + 1
        since = rank[:, None, :] - starts[:, :, None]
        return ((since >= 0) & (since < width)).any(dim=1) & valid & (places > 0)

    def masked_share(self, tokens: Tokenization, length: int) -> float:
        """Return the share of the tokens of all gaps."""
        width = self._width(tokens)
        return self.number * width / length if length // self.number - width - 1 > 0 else 0.0

    def _width(self, tokens: Tokenization) -> int:
        """Return the number of tokens that share a nucleotide with a gap, which begins where a token does."""
        return -(-self.bases // tokens.stride) + tokens.token_blocks - 1
