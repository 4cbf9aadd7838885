"""Settings of embeddings and of scores of variants. Imports neither torch nor transformers."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from cmgems.settings import Settings

Pooling = Literal["mean", "cls", "tokens"]
"""What an embedding is: the mean of a sequence's own tokens, the first special token ([CLS]), or each token."""

Precision = Literal["fp32", "bf16", "fp16"]

Strands = Literal["both", "forward"]

CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 2048, 32768
"""Tokens computed at once, unless it is said. On CPUs large batches are slower: their activations leave the caches."""


class EmbedConfig(Settings):
    """What to embed, by which model, and how."""

    model: str
    """Folder of a model, as in RUN/models/ of a pretraining run, or a name on the Hugging Face hub."""
    output: Path
    """Folder of the embeddings. One that an interrupted command has left is completed."""
    genome: str | None = None
    """Genome that the regions of a BED file are of."""
    tile: int | None = Field(default=None, ge=1)
    """Cut sequences into stretches of so many nucleotides, each with an embedding of its own; empty: not at all."""
    layers: list[int] = Field(default=[-1], min_length=1)
    """Layers, comma-separated: 0 is the embeddings below the first layer, -1 the last layer."""
    pooling: Pooling = "mean"
    """`mean` of a sequence's tokens, special ones left out; `cls`, the first special token; or all `tokens`."""
    overlap: int | None = Field(default=None, ge=0)
    """Tokens that neighbouring windows of a long sequence have in common, at least; empty: an eighth of a window."""
    format: Literal["parquet", "npy"] = "parquet"
    """`parquet`: a folder of Parquet files; `npy`: one array, and a CSV file that says what its rows are."""
    batch_tokens: int | None = Field(default=None, ge=1)
    """Tokens that a process computes at once; empty: 2,048 on CPUs and 32,768 on GPUs."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Longest input in tokens, special ones not counted; longer sequences are read in windows. Empty: the model's."""
    precision: Precision = "fp32"
    """Arithmetic of the forward pass."""
    trust_remote_code: bool = False
    """Run the code that comes with a model from the hub."""


class ScoreConfig(Settings):
    """What to score variants with, and how."""

    model: str
    """Folder of a model, as in RUN/models/ of a pretraining run, or a name on the Hugging Face hub."""
    genome: str
    """Genome that the variants are of: a file, or a dataset, as `cmgems prepare` takes it."""
    output: Path
    """File to write: `.vcf`, the input with a field more; `.parquet` or `.csv`, a row for each allele."""
    strands: Strands | None = None
    """`both`, whose scores are averaged, or `forward`; empty: both, but forward where tokens lie side by side and so
    have a reading frame."""
    batch_tokens: int | None = Field(default=None, ge=1)
    """Tokens computed at once; empty: 2,048 on CPUs and 32,768 on GPUs."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Tokens around a variant that the model reads, special ones not counted; empty: as many as it takes."""
    precision: Precision = "fp32"
    """Arithmetic of the forward pass."""
    trust_remote_code: bool = False
    """Run the code that comes with a model from the hub."""
