"""Words: what has an NPMI. One begins at each token; where it is as long as a token, it is the token."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cmgems.data.tokenization import Tokenization
from cmgems.data.tokenizer import SPECIAL_TOKENS
from cmgems.masking.npmi import NpmiTable
from cmgems.masking.tokens import lookup


@dataclass(frozen=True, eq=False)
class Words:
    """Words on a device: their scores, and which tokens have to be masked to hide one."""

    tokens: Tokenization
    """How tokens and words lie."""
    npmi: Tensor
    """NPMI, float32 [5 + 4^word]: in front the special tokens with -inf, then the words as the vocabulary orders
    them."""

    def ids(self, ids: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Return the word that begins at each token, as an index into `npmi`, int64 [B, T], and where there is one
        whole, bool [B, T]: where all its nucleotides are in valid tokens of the row."""
        tokens, special = self.tokens, len(SPECIAL_TOKENS)
        if tokens.word == tokens.k:
            return ids, valid
        values = (ids - special).clamp(min=0)
        if tokens.word < tokens.k:
            return (values >> 2 * (tokens.k - tokens.word)) + special, valid
        whole, word, columns = valid.clone(), values, ids.shape[1]
        for more in range(1, tokens.word_blocks - tokens.token_blocks + 1):
            # The last block of the token `more` columns to the right.
            word[:, columns - more :], whole[:, columns - more :] = 0, False
            last = values[:, more:] & (4**tokens.stride - 1)
            word = torch.nn.functional.pad((word[:, : columns - more] << 2 * tokens.stride) | last, (0, more))
            whole[:, : columns - more] &= valid[:, more:]
        return (word + special) * whole, whole

    def scores(self, ids: Tensor, valid: Tensor) -> Tensor:
        """Return the NPMI of the word that begins at each token, float32 [B, T]: finite for each whole word (unknown
        NPMI: the lowest), -inf for the others."""
        return lookup(self.npmi, *self.ids(ids, valid))

    def scores_at(self, places: Tensor, ids: Tensor, valid: Tensor) -> Tensor:
        """Return the same at some of the places among all [B * T], of any shape."""
        if self.tokens.word == self.tokens.k:
            return lookup(self.npmi, ids.take(places), valid.take(places))
        return self.scores(ids, valid).take(places)


def words_of(table: NpmiTable, tokens: Tokenization | None = None, device: torch.device | str = "cpu") -> Words:
    """Return the words of an NPMI table on a device; without `tokens` those of overlapping k-mers.

    Raises
    ------
    ValueError
        If the table is of words of another length.
    """
    tokens = tokens or Tokenization(table.k)
    if tokens.word != table.k:
        raise ValueError(f"the NPMI table is of {table.k} nucleotides a word, the tokenization of {tokens.word}")
    return Words(tokens, table.by_token_id(device))
