"""Bits of hidden codons equal a plain reading of the definition."""

import math

import numpy as np
import pytest
import torch

from cmgems.data.genetic_code import amino_acids
from cmgems.model.codons import CODON_BITS, codon_usage, score_codons


@pytest.mark.parametrize("genetic_code", [1, 2])
def test_bits_of_codons_equal_a_plain_loop(genetic_code):
    random = np.random.default_rng(genetic_code)
    counts = random.integers(0, 50, 64)
    logits = torch.from_numpy(random.normal(size=(40, 69)))
    true = random.integers(0, 64, 40)
    letters = amino_acids(genetic_code)
    shares = (counts + 1) / (counts + 1).sum()
    expected = np.zeros(4)
    for row, codon in zip(logits[:, 5:].softmax(dim=1).tolist(), true, strict=True):
        of_synonyms = [other for other in range(64) if letters[other] == letters[codon]]
        expected[0] -= math.log2(row[codon])
        expected[1] -= math.log2(shares[codon])
        expected[2] -= math.log2(row[codon] / sum(row[other] for other in of_synonyms))
        expected[3] -= math.log2(shares[codon] / sum(shares[other] for other in of_synonyms))
    usage = codon_usage(counts, genetic_code, torch.device("cpu"))
    found = score_codons(logits, torch.from_numpy(true), usage)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert len(CODON_BITS) == len(found)


def test_a_model_that_knows_codon_usage_scores_as_it():
    counts = np.random.default_rng(3).integers(1, 50, 64)
    usage = codon_usage(counts, 1, torch.device("cpu"))
    logits = torch.cat([torch.full((64, 5), -9.0), torch.from_numpy(np.log(counts + 1)).expand(64, -1)], dim=1)
    model, by_usage, synonym, synonym_by_usage = score_codons(logits, torch.arange(64), usage).tolist()
    assert model == pytest.approx(by_usage)
    assert synonym == pytest.approx(synonym_by_usage)
