"""What a masked language model says of hidden nucleotides: every token that contains one is masked.

The tokens are k-mers at every nucleotide, nucleotides, or k-mers side by side; a tokenizer of byte pairs has no fixed
place for a nucleotide.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import BertForMaskedLM

from cmgems.data.alphabet import BASES
from cmgems.data.tokenization import LONGEST_K, SHORTEST_K, Tokenization
from cmgems.data.tokenizer import SPECIAL_TOKENS, encode
from cmgems.errors import UserError
from cmgems.inference.encoder import Encoder
from cmgems.inference.hidden_states import precision_context
from cmgems.inference.settings import Precision
from cmgems.model.bases import base_probabilities, hidden_base_probabilities
from cmgems.model.bert import MaskedLanguageModel

_ACGT = [BASES.index(base) for base in "ACGT"]

Probabilities = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Masked:
    """A sequence with hidden nucleotides."""

    bases: str
    """Nucleotides, of which those that are hidden change nothing."""
    hidden: tuple[int, ...]
    """Places of the hidden ones, ascending."""


class BaseReader:
    """Reads the distributions of hidden nucleotides off a model."""

    def __init__(self, encoder: Encoder, model: Any, precision: Precision, name: str) -> None:
        """Find out how tokens cover nucleotides. `model` has a masked-language-model head; `name` is what errors call
        it.

        Raises
        ------
        UserError
            If its tokens are not k-mers, or there is no token for a mask.
        """
        self._encoder, self._model, self._precision, self._name = encoder, model, precision, name
        self._device = next(model.parameters()).device
        # BERT's last layer and head are computed for the masked tokens alone.
        self._fast = MaskedLanguageModel(model).eval() if type(model) is BertForMaskedLM else None
        self.tokens = tokens_of(encoder, name)
        """How the tokens cover nucleotides."""
        ids = _kmer_ids(encoder, self.tokens.k)
        assert ids is not None  # as tokens_of has seen
        self._ids = torch.from_numpy(ids)
        self._to_model = np.concatenate([[0, encoder.tokenizer.unk_token_id or 0, 0, 0, 0], ids])
        self._mask = encoder.tokenizer.mask_token_id
        if self._mask is None:
            raise UserError(f"model {name}: its tokenizer has no mask token")
        self.limit = encoder.limit
        """Longest sequence, in tokens."""

    @torch.inference_mode()
    def probabilities(self, batch: Sequence[Masked]) -> list[Probabilities]:
        """Return the distributions over A, C, G and T of the hidden nucleotides of each sequence, float64 [hidden, 4].

        That of a nucleotide is the mean of those that the tokens that contain it give, each the sum of the token's
        softmax over the k-mers with that base in its place.

        Raises
        ------
        UserError
            If a hidden nucleotide is in no token, or values are not finite.
        """
        ids = [encode(masked.bases, self.tokens.k, self.tokens.stride) for masked in batch]
        width = max(map(len, ids))
        before, after = self._encoder.before, self._encoder.after
        tokens = torch.full((len(batch), len(before) + width + len(after)), self._encoder.padding)
        own = torch.zeros(len(batch), width, dtype=torch.bool)
        hidden = torch.zeros(len(batch), self.tokens.nucleotides(width), dtype=torch.bool)
        for row, (masked, of_row) in enumerate(zip(batch, ids, strict=True)):
            hidden[row, list(masked.hidden)] = True
            own[row, : len(of_row)] = _containing(masked, len(of_row), self.tokens)
            inputs = self._to_model[of_row]
            inputs[own[row, : len(of_row)].numpy()] = self._mask
            tokens[row, : len(before) + len(of_row) + len(after)] = torch.tensor([*before, *inputs.tolist(), *after])
        attention = torch.arange(tokens.shape[1]) < torch.tensor([len(i) for i in ids])[:, None] + len(before) + len(
            after
        )
        logits = self._logits(tokens, attention.long(), own, len(before))
        of_tokens = base_probabilities(logits.cpu(), self.tokens.k)
        found = hidden_base_probabilities(of_tokens, own, hidden, self.tokens)[
            :, [BASES.index(base) for base in "ACGT"]
        ]
        if not bool(found.isfinite().all()):
            raise UserError(f"model {self._name}: its predictions are not finite")
        ends = np.cumsum([len(masked.hidden) for masked in batch])
        return np.split(found.double().numpy(), ends[:-1])

    def _logits(self, tokens: Tensor, attention: Tensor, own: Tensor, before: int) -> Tensor:
        """Return the logits of masked tokens, [masked, 5 + 4^k], k-mers in the order of `cmgems.data.tokenizer`."""
        device = self._device
        masked = torch.zeros_like(tokens, dtype=torch.bool)
        masked[:, before : before + own.shape[1]] = own
        tokens, attention, masked = tokens.to(device), attention.to(device), masked.to(device)
        with precision_context(self._precision, device):
            if self._fast is not None:
                logits = self._fast(tokens, attention, masked, tokens, return_logits=True)
            else:
                logits = self._model(input_ids=tokens, attention_mask=attention).logits[masked]
        of_kmers = logits.float()[:, self._ids.to(device)]
        return torch.nn.functional.pad(of_kmers, (len(SPECIAL_TOKENS), 0))


def _containing(masked: Masked, tokens: int, how: Tokenization) -> Tensor:
    """Return which tokens contain a hidden nucleotide, bool [tokens]."""
    found = torch.zeros(tokens, dtype=torch.bool)
    for place in masked.hidden:
        first = max(-(-(place - how.k + 1) // how.stride), 0)
        last = min(place // how.stride, tokens - 1)
        if first > last:
            raise UserError(f"nucleotide {place} of a sequence of {len(masked.bases)} is in no token")
        found[first : last + 1] = True
    return found


def tokens_of(encoder: Encoder, name: str) -> Tokenization:
    """Return how a tokenizer's tokens cover nucleotides.

    Raises
    ------
    UserError
        If they are not k-mers at every nucleotide or side by side.
    """
    if encoder.k is not None:
        return Tokenization(k=encoder.k, stride=encoder.stride)
    sequence = "ACGTTGCATCGATCAGCATTAGCCATGCATTTGCACGGTA" * 3
    for k in range(SHORTEST_K, LONGEST_K + 1):
        length = len(sequence) // k * k
        is_one_a_kmer = len(encoder.encode([sequence[:length]])[0]) == length // k
        if is_one_a_kmer and _kmer_ids(encoder, k) is not None:
            return Tokenization(k=k, stride=k)
    raise UserError(f"model {name}: its tokens are not k-mers, so that a nucleotide has no place in them")


def _kmer_ids(encoder: Encoder, k: int) -> npt.NDArray[np.int64] | None:
    """Return the tokenizer's ids of all k-mers, int64 [4^k], in the order of `cmgems.data.tokenizer`; None if one has
    none."""
    vocabulary: dict[str, int] = encoder.tokenizer.get_vocab()
    for letters in (BASES, BASES.replace("T", "U")):
        kmers = ["".join(kmer) for kmer in product(letters, repeat=k)]
        if all(kmer in vocabulary for kmer in kmers):
            return np.array([vocabulary[kmer] for kmer in kmers])
    return None
