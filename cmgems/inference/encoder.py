"""Sequences as a language model reads them: what its tokenizer wants is found out from the tokenizer itself.

Some tokenizers take nucleotides as they are (byte pairs, non-overlapping k-mers, single nucleotides), others blank-
separated overlapping k-mers.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cmgems.data.tokenizer import KMER_STRIDE
from cmgems.errors import UserError

Ids = npt.NDArray[np.int32]

# Architectures whose first position has the number after that of the padding.
_OFFSET_POSITIONS = ("esm", "roberta", "xlm-roberta", "camembert")

# Tokenizers take a hundred times as much memory as what they return.
_ENCODED_AT_ONCE = 1000

_PROBE = "".join(random.Random(0).choices("ACGT", k=300))


@dataclass(frozen=True)
class Encoder:
    """Turns nucleotides into what one model reads."""

    tokenizer: Any
    k: int | None
    """Length of the overlapping k-mers that the tokenizer takes; None: it takes nucleotides as they are."""
    limit: int
    """Longest input of the model, in tokens, special tokens not counted."""
    before: list[int]
    """Special tokens before the others."""
    after: list[int]
    """Special tokens after the others."""
    padding: int
    """Id of the padding token."""
    stride: int = 1
    """Nucleotides from the start of an overlapping k-mer to that of the next one."""

    def encode(self, sequences: Sequence[str]) -> list[Ids]:
        """Return the ids of each sequence, without special tokens and at full length."""
        found: list[Ids] = []
        for start in range(0, len(sequences), _ENCODED_AT_ONCE):
            some = sequences[start : start + _ENCODED_AT_ONCE]
            texts = [as_kmers(sequence, self.k, self.stride) for sequence in some] if self.k else list(some)
            # `verbose` is about sequences that are longer than the model takes, which are read in windows.
            encoded = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
            found += [np.asarray(ids, dtype=np.int32) for ids in encoded["input_ids"]]
        return found

    def own_tokens(self, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return which tokens [windows, tokens] are the sequence's own, bool: neither special ones nor padding."""
        position = torch.arange(attention_mask.shape[1], device=attention_mask.device)
        end = attention_mask.sum(dim=1, keepdim=True) - len(self.after)
        return (position >= len(self.before)) & (position < end)

    def windows(self, ids: Ids) -> list[list[int]]:
        """Return the inputs that a sequence makes: its ids in one or more parts, each with the special tokens.

        There are as few parts as can be, equally long to within one token.
        """
        parts = np.array_split(ids, -(-len(ids) // self.limit))
        return [[*self.before, *part.tolist(), *self.after] for part in parts]


def as_kmers(sequence: str, k: int, stride: int = 1) -> str:
    """Write a sequence as its overlapping k-mers, one at every `stride` nucleotides, with blanks between them.

    Examples
    --------
    >>> as_kmers("ACGTT", 3)
    'ACG CGT GTT'
    """
    return " ".join(sequence[i : i + k] for i in range(0, len(sequence) - k + 1, stride))


def make_encoder(tokenizer: Any, config: Any, name: str, max_tokens: int | None = None) -> Encoder:
    """Find out how `tokenizer` takes sequences, and how long they may be.

    Parameters
    ----------
    tokenizer, config
        Of the model, from transformers.
    name
        What error messages call the model.
    max_tokens
        Longest input in tokens, special tokens not counted, where the model does not say, or fewer than it takes.

    Raises
    ------
    UserError
        If the tokenizer knows neither nucleotides nor k-mers, has no padding, or the longest input is not known.
    """
    if tokenizer.pad_token_id is None:
        raise UserError(f"model {name}: its tokenizer has no padding token")
    k = _kmers_wanted(tokenizer, name)
    plain = _ids(tokenizer, _PROBE, k, special=False)
    whole = _ids(tokenizer, _PROBE, k, special=True)
    start = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), None)
    if start is None:
        raise UserError(f"model {name}: its tokenizer changes a sequence when it adds special tokens")
    before, after = whole[:start], whole[start + len(plain) :]
    limit = _longest_input(tokenizer, config)
    if limit is not None:
        limit -= len(before) + len(after)
    if limit is None and max_tokens is None:
        raise UserError(f"model {name} does not say how long its input may be: give --max_tokens")
    if limit is not None and max_tokens is not None and max_tokens > limit:
        raise UserError(f"--max_tokens is {max_tokens}, but model {name} takes {limit} (special tokens not counted)")
    shortest = min(length for length in (limit, max_tokens) if length is not None)
    stride = int(tokenizer.init_kwargs.get(KMER_STRIDE, 1))
    return Encoder(tokenizer, k, shortest, before, after, tokenizer.pad_token_id, stride)


def _kmers_wanted(tokenizer: Any, name: str) -> int | None:
    """Length of the k-mers that the tokenizer wants; None if it knows nucleotides as they are."""
    lengths = {len(word) for word in tokenizer.get_vocab() if word and set(word) <= set("ACGT")}
    for k in (None, *sorted(lengths, reverse=True)):
        ids = _ids(tokenizer, _PROBE, k, special=False)
        if ids and tokenizer.unk_token_id not in ids:
            return k
    raise UserError(f"model {name}: its tokenizer knows neither nucleotides nor k-mers: it is not one for DNA")


def _ids(tokenizer: Any, sequence: str, k: int | None, special: bool) -> list[int]:
    text = as_kmers(sequence, k) if k else sequence
    return list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])


def _longest_input(tokenizer: Any, config: Any) -> int | None:
    """Longest input in tokens, special tokens included, as tokenizer and model say; None if neither does."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and config.model_type in _OFFSET_POSITIONS:
        positions -= config.pad_token_id + 1
    # A tokenizer that does not know has a very large number here.
    known = [length for length in (positions, tokenizer.model_max_length) if length is not None and length < 10**9]
    return min(known, default=None)
