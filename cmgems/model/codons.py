"""What a model over codons says of hidden codons, in bits, beside what codon usage alone says.

The bits of a codon are those of its amino acid and those of the codon among its synonyms, which have the same amino
acid: a model can be better than codon usage at either.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cmgems.data.genetic_code import synonyms
from cmgems.masking.masker import FIRST_KMER
from cmgems.masking.npmi import Counts

CODON_BITS = ("codon_bits/{}", "codon_bits/{}_usage", "synonym_bits/{}", "synonym_bits/{}_usage")
"""Bits of the hidden codon, and of it given its amino acid: by the model, and by codon usage in the training split. The
names of the metrics, with the masking's in the place of {}."""


@dataclass(frozen=True, slots=True)
class CodonUsage:
    """Shares of the codons, and which are synonyms."""

    bits: Tensor
    """-log2 of each codon's share, float64 [64]."""
    synonym_bits: Tensor
    """The same of its share among its synonyms."""
    synonyms: Tensor
    """1 for codons of the same amino acid (or both stop codons), float64 [64, 64]."""


def codon_usage(counts: Counts, genetic_code: int, device: torch.device) -> CodonUsage:
    """Return the usage of codons from their counts, int64 [64] in the order of the token ids; each counts as one more
    than it is, so that none is impossible."""
    same = synonyms(genetic_code).astype(float)
    shares = (counts + 1) / (counts + 1).sum()
    bits = -np.log2(np.stack([shares, shares / (same @ shares)]))
    return CodonUsage(*(torch.from_numpy(values).to(device) for values in (*bits, same)))


def score_codons(logits: Tensor, codons: Tensor, usage: CodonUsage) -> Tensor:
    """Return the sums over M hidden codons of CODON_BITS, float64 [4].

    Parameters
    ----------
    logits
        The model's, [M, 5 + 64].
    codons
        The true ones, int64 [M] in 0..63.
    usage
        Codon usage in the training split.
    """
    shares = logits[:, FIRST_KMER:].double().softmax(dim=-1)
    true = shares.gather(1, codons[:, None])[:, 0]
    of_amino_acid = (shares * usage.synonyms[codons]).sum(dim=1)
    return torch.stack(
        [
            -true.log2().sum(),
            usage.bits[codons].sum(),
            -(true / of_amino_acid).log2().sum(),
            usage.synonym_bits[codons].sum(),
        ]
    )
