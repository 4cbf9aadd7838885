"""What a model over overlapping k-mers says of single bases.

A base is hidden if every k-mer that contains it is masked. Perplexities of k-mers cannot be compared between values of
k, strategies or spans: 11 masked 6-mers hide 6 bases, 6 hide one, and what a k-mer shares with a visible one is no
secret. Bits per hidden base can.
"""

from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from cmgems.data.tokenizer import BASES, NO_BASE, kmer_digits
from cmgems.masking.masker import FIRST_KMER, MaskedBatch, nucleotides_of


@cache
def bases_of_kmers(k: int, device: torch.device) -> Tensor:
    """1 where a k-mer's base at place j is b, float32 [4^k, k * 4]."""
    return one_hot(torch.from_numpy(kmer_digits(k)), len(BASES)).flatten(1).float().to(device)


def base_probabilities(logits: Tensor, k: int) -> Tensor:
    """Distribution of each of the k bases of M tokens, float32 [M, k, 4], from logits [M, 5 + 4^k]: the sum of the
    softmax over the k-mers that have the base there. No special token is ever hidden, and none has a share."""
    with torch.autocast(logits.device.type, enabled=False):  # bf16 would round the sums
        of_kmers = logits[:, FIRST_KMER:].float().softmax(dim=-1)
        return (of_kmers @ bases_of_kmers(k, logits.device)).view(-1, k, len(BASES))


def bases_of_batch(batch: MaskedBatch, k: int) -> tuple[Tensor, Tensor]:
    """Digits of the bases of each window, int64 [B, T + k - 1] with NO_BASE where there is none, and which of them are
    hidden, bool of the same shape. Column n holds the first base of the token in column n."""
    is_kmer = batch.labels >= FIRST_KMER
    digits = torch.from_numpy(kmer_digits(k)).to(batch.labels.device)
    found = digits.new_full((len(is_kmer), is_kmer.shape[1] + k - 1), NO_BASE)
    kmers = (batch.labels - FIRST_KMER).clamp(min=0)
    for place in range(k):
        part = found[:, place : place + is_kmer.shape[1]]
        part.copy_(digits[:, place][kmers].where(is_kmer, part))
    hidden = (found != NO_BASE) & ~nucleotides_of(is_kmer & ~batch.masked, k)
    return found, hidden


def hidden_base_probabilities(of_tokens: Tensor, masked: Tensor, hidden: Tensor, k: int) -> Tensor:
    """Distributions of H hidden bases, float32 [H, 4]: each the mean of those of the masked tokens that contain it.

    `of_tokens` [M, k, 4] are `base_probabilities` of the masked tokens [B, T], in order; `hidden` is [B, T + k - 1].
    """
    row, column = masked.nonzero(as_tuple=True)
    base = (row * hidden.shape[1] + column)[:, None] + torch.arange(k, device=masked.device)
    summed = of_tokens.new_zeros(hidden.numel(), len(BASES)).index_add_(0, base.flatten(), of_tokens.flatten(0, 1))
    found = summed[hidden.flatten()]
    return found / found.sum(dim=-1, keepdim=True)
