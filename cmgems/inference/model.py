"""A model and its tokenizer, ready for use."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from transformers import AutoModel, AutoModelForMaskedLM
from transformers.utils import logging as transformers_logging

from cmgems.errors import UserError
from cmgems.inference.bases import BaseReader, Masked, Probabilities
from cmgems.inference.encoder import Encoder, Ids
from cmgems.inference.hidden_states import Floats, HiddenStates
from cmgems.inference.likelihoods import Scorer, Scores
from cmgems.inference.settings import CPU_BATCH_TOKENS, GPU_BATCH_TOKENS, Pooling, Precision, Strands
from cmgems.inference.source import Source, load_encoder, loading_errors, read_config
from cmgems.inference.variants import Variant
from cmgems.model.linear import use_linear


class SequenceModel:
    """A language model for DNA or RNA with its tokenizer: one of cmgems, or any that transformers can load.

    Sequences are plain nucleotides, in upper or lower case, whatever the tokenizer takes. `cmgems.load` makes one.
    """

    def __init__(
        self,
        model: str,
        device: torch.device | str | None = None,
        precision: Precision = "fp32",
        max_tokens: int | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self.source = Source(str(model), trust_remote_code, max_tokens=max_tokens)
        self.config: Any = read_config(self.source)
        self.encoder: Encoder = load_encoder(self.source)
        self.precision: Precision = precision
        self.device = torch.device(device) if device is not None else PartialState().device

    def __repr__(self) -> str:
        """Name, longest input and width."""
        layers, width = self.config.num_hidden_layers, self.config.hidden_size
        return (
            f"SequenceModel({self.source.model!r}, {layers} layers of {width}, "
            f"up to {self.encoder.limit} tokens, {self.device})"
        )

    def tokenize(self, sequences: Sequence[str]) -> list[Ids]:
        """Return the token ids of each sequence, int32 [tokens], without special tokens and at full length.

        Raises
        ------
        UserError
            If a sequence is too short for a token.
        """
        ids = self.encoder.encode(sequences)
        for number, tokens in enumerate(ids):
            if not len(tokens):
                raise UserError(
                    f"sequence {number}, {sequences[number]!r}, is too short for the model: it has no token"
                )
        return ids

    def embed(
        self,
        sequences: Sequence[str],
        layer: int = -1,
        pooling: Pooling = "mean",
        overlap: int | None = None,
        batch_tokens: int | None = None,
    ) -> Floats | list[Floats]:
        """Return the embeddings of some sequences.

        Parameters
        ----------
        sequences
            Plain nucleotides.
        layer
            0: the embeddings below the first layer; -1: the last layer.
        pooling
            `mean` of a sequence's tokens, special ones left out; `cls`, the first special token; or all `tokens`.
        overlap
            A sequence of more tokens than the model takes is read in windows, which have at least so many tokens in
            common; None: an eighth of a window.
        batch_tokens
            Tokens computed at once; None: 2,048 on CPUs and 32,768 on GPUs.

        Returns
        -------
        float32 array [sequences, width]
            With `tokens` a list of arrays [tokens, width].

        Raises
        ------
        UserError
            If there is no such layer, a sequence is too short for a token, or values are not finite.
        """
        found = self.hidden_states([layer]).pooled(
            self.tokenize(sequences), pooling, self.default_overlap(overlap), self.batch_tokens(batch_tokens)
        )
        if pooling == "tokens":
            return [states[:, 0] for states in found]
        if not found:
            return np.empty((0, self.config.hidden_size), dtype=np.float32)
        return np.stack([states[0] for states in found])

    def predict_masked(self, sequences: Sequence[str], batch: int = 32) -> list[Probabilities]:
        """Return what the model expects in the place of each N.

        Parameters
        ----------
        sequences
            Nucleotides, with an N for each that is hidden; every token that contains one is masked.
        batch
            Sequences computed at once.

        Returns
        -------
        list of float64 arrays [hidden, 4]
            For each sequence the probabilities of A, C, G and T in the place of each N.

        Raises
        ------
        UserError
            If the model has no masked-language-model head, its tokens are not k-mers, or a sequence is longer than it
            takes.
        """
        masked = []
        for number, sequence in enumerate(sequences):
            bases = sequence.upper()
            tokens = self.base_reader.tokens.tokens(len(bases))
            if not 1 <= tokens <= self.encoder.limit:
                raise UserError(f"sequence {number} makes {tokens:,} tokens; it can be 1 to {self.encoder.limit}")
            masked.append(
                Masked(bases.replace("N", "A"), tuple(place for place, base in enumerate(bases) if base == "N"))
            )
        starts = range(0, len(masked), batch)
        return [found for start in starts for found in self.base_reader.probabilities(masked[start : start + batch])]

    def score_variants(
        self,
        variants: Sequence[tuple[str, int, str, str]],
        genome: str,
        strands: Strands | None = None,
        batch_tokens: int | None = None,
    ) -> Scores:
        """Return the log-likelihood ratio of the alternative and the reference allele of each variant.

        Parameters
        ----------
        variants
            Chromosome, position (from 1), reference and alternative allele of each.
        genome
            A genome file, or another input of `cmgems prepare`.
        strands
            `both` are averaged, or `forward`; None: both, but forward where tokens lie side by side.
        batch_tokens
            Tokens computed at once; None: 2,048 on CPUs and 32,768 on GPUs.

        Returns
        -------
        float64 array [variants]
            In nats, as `cmgems.inference.likelihoods` defines it; NaN for a variant that cannot be scored: its record
            is not in the genome, the reference is another one there, or an allele is symbolic or too long.

        Raises
        ------
        UserError
            If the model has no masked-language-model head, its tokens are not k-mers, or the genome cannot be read.
        """
        alleles = [
            Variant(row, chromosome, position - 1, reference.upper(), alternative.upper())
            for row, (chromosome, position, reference, alternative) in enumerate(variants)
        ]
        scores, _ = Scorer(self.base_reader, strands, self.batch_tokens(batch_tokens)).score(alleles, genome)
        return scores

    def hidden_states(self, layers: Sequence[int]) -> HiddenStates:
        """Return a reader of the hidden states of some layers."""
        return HiddenStates(self.encoder, self.body, layers, self.precision, self.source.model)

    def default_overlap(self, overlap: int | None) -> int:
        """Return the tokens that windows have in common.

        Raises
        ------
        UserError
            If it is not less than a window.
        """
        if overlap is None:
            return self.encoder.limit // 8
        if not 0 <= overlap < self.encoder.limit:
            raise UserError(f"overlap {overlap}: the model reads {self.encoder.limit} tokens at once")
        return overlap

    def batch_tokens(self, wanted: int | None) -> int:
        """Return the tokens to compute at once."""
        return wanted or (CPU_BATCH_TOKENS if self.device.type == "cpu" else GPU_BATCH_TOKENS)

    @cached_property
    def body(self) -> Any:
        """The model without a head."""
        if self.is_masked_lm:
            return self.masked_lm.base_model
        body = _load(AutoModel, self.source)
        if getattr(body, "pooler", None) is not None:
            body.pooler = None  # it is not used, and its weights may be random
        return self._ready(body)

    @cached_property
    def masked_lm(self) -> Any:
        """The model with its masked-language-model head.

        Raises
        ------
        UserError
            If it has none.
        """
        if not self.is_masked_lm:
            raise UserError(f"model {self.source.model} has no masked-language-model head: it predicts no token")
        return self._ready(_load(AutoModelForMaskedLM, self.source))

    def _ready(self, model: Any) -> Any:
        if self.device.type == "cpu":
            use_linear(model)
        return model.to(self.device).eval()

    @cached_property
    def base_reader(self) -> BaseReader:
        """A reader of the distributions of hidden nucleotides.

        Raises
        ------
        UserError
            If the model has no masked-language-model head, or its tokens are not k-mers.
        """
        return BaseReader(self.encoder, self.masked_lm, self.precision, self.source.model)

    @property
    def is_masked_lm(self) -> bool:
        """Whether the model was saved with a masked-language-model head."""
        return any(name.endswith("ForMaskedLM") for name in self.config.architectures or ())


def _load(kind: Any, source: Source) -> Any:
    """Load a model in float32; weights that are missing, other than a pooler's, are an error."""
    transformers_logging.set_verbosity_error()  # its warning about missing weights is checked below instead
    transformers_logging.disable_progress_bar()
    with loading_errors(source):
        model, loading = kind.from_pretrained(
            source.model, trust_remote_code=source.trust_remote_code, dtype=torch.float32, output_loading_info=True
        )
    missing = sorted(key for key in loading["missing_keys"] if "pooler" not in key.split("."))
    if missing:
        raise UserError(f"model {source.model}: weights are missing: {', '.join(missing[:5])}")
    return model
