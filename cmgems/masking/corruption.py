"""Settings of what becomes of the masked tokens in the model's input."""

from typing import Literal

from pydantic import model_validator

from cmgems.settings import Settings, Share


class CorruptionConfig(Settings):
    """What becomes of a masked token in the model's input (BERT's 80/10/10)."""

    mask_share: Share = 0.8
    """Share of the masked tokens replaced by [MASK]."""
    random_share: Share = 0.1
    """Share of the masked tokens replaced by a random k-mer; the rest is kept."""
    unit: Literal["token", "run"] = "token"
    """Draw once for each token (as published), or once for each run of adjacent masked tokens."""

    @model_validator(mode="after")
    def _shares(self) -> "CorruptionConfig":
        if self.mask_share + self.random_share > 1:
            raise ValueError("mask_share + random_share is more than 1")
        return self
