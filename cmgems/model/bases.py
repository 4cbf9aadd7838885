"""What a model over overlapping k-mers says of single bases.

A base is hidden if every k-mer that contains it is masked. Perplexities of k-mers cannot be compared between values of
k, strategies or spans: 11 masked 6-mers hide 6 bases, 6 hide one, and what a k-mer shares with a visible one is no
secret. Bits per hidden base can.
"""

from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from cmgems.data.alphabet import BASES
from cmgems.data.tokenization import Tokenization
from cmgems.data.tokenizer import NO_BASE, kmer_digits
from cmgems.masking.masker import FIRST_KMER, MaskedBatch, blocks_of


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


def bases_of_batch(batch: MaskedBatch, tokens: Tokenization) -> tuple[Tensor, Tensor]:
    """Digits of the bases of each window, int64 [B, nucleotides of T tokens] with NO_BASE where there is none, and
    which of them are hidden, bool of the same shape. The token in column t begins with base t * stride."""
    is_kmer = batch.labels >= FIRST_KMER
    columns = is_kmer.shape[1]
    digits = torch.from_numpy(kmer_digits(tokens.k)).to(batch.labels.device)
    found = digits.new_full((len(is_kmer), tokens.nucleotides(columns)), NO_BASE)
    kmers = (batch.labels - FIRST_KMER).clamp(min=0)
    for place in range(tokens.k):
        part = found[:, place : place + columns * tokens.stride : tokens.stride][:, :columns]
        part.copy_(digits[:, place][kmers].where(is_kmer, part))
    seen = blocks_of(is_kmer & ~batch.masked, tokens).repeat_interleave(tokens.stride, dim=1)
    return found, (found != NO_BASE) & ~seen


def hidden_base_probabilities(of_tokens: Tensor, masked: Tensor, hidden: Tensor, tokens: Tokenization) -> Tensor:
    """Distributions of H hidden bases, float32 [H, 4]: each the mean of those of the masked tokens that contain it.

    `of_tokens` [M, k, 4] are `base_probabilities` of the masked tokens [B, T], in order; `hidden` is [B, nucleotides].
    """
    row, column = masked.nonzero(as_tuple=True)
    first = row * hidden.shape[1] + column * tokens.stride
    base = first[:, None] + torch.arange(tokens.k, device=masked.device)
    summed = of_tokens.new_zeros(hidden.numel(), len(BASES)).index_add_(0, base.flatten(), of_tokens.flatten(0, 1))
    found = summed[hidden.flatten()]
    return found / found.sum(dim=-1, keepdim=True)
