"""Bits per hidden base under gaps, as a plain loop over windows finds them."""

import math

import pytest
import torch
from accelerate import Accelerator

from cmgems.data.tokenization import Tokenization
from cmgems.data.tokenizer import MASK
from cmgems.masking.gaps import Gaps
from cmgems.model.bases import bases_of_batch
from cmgems.model.bert import build_model
from cmgems.study.gaps import GapScorer
from cmgems.study.settings import BitsConfig, load_study
from cmgems.training.setup import open_data, open_masker
from cmgems.training.weights import export_model


@pytest.fixture
def scorer(study_file):
    recipe = load_study(study_file).configs["span"]
    return GapScorer(BitsConfig(gaps=[3], windows=5), recipe, open_data(recipe))


def test_bits_are_those_of_the_summed_softmax(scorer, tmp_path):
    accelerator, recipe = Accelerator(), scorer.recipe
    model = build_model(recipe.model, Tokenization(4), seed=3)
    export_model(accelerator, model, Tokenization(4), tmp_path / "model")
    found = scorer.score(tmp_path / "model")
    assert list(found) == ["gap_3"]

    masker = open_masker(scorer.data, recipe, accelerator.device, recipe.evaluation.seed)
    total, number = 0.0, 0
    for windows in scorer._validation.windows():
        batch = masker(windows.ids, windows.epoch, windows.sample_id, [Gaps(bases=3)])
        bases, hidden = bases_of_batch(batch, Tokenization(4))
        ids = batch.labels.masked_fill(batch.masked, MASK)
        with torch.no_grad():
            logits = model.eval().bert(input_ids=ids, attention_mask=batch.attention_mask.long()).logits
        probabilities = logits[:, :, 5:].double().softmax(dim=-1)
        for row, column in hidden.nonzero().tolist():
            shares = torch.zeros(4, dtype=torch.float64)
            for place in range(4):  # the k-mer token whose base at this place it is
                token = column - place
                of_kmers = probabilities[row, token].view(4, 4, 4, 4)
                shares += of_kmers.sum(dim=[axis for axis in range(4) if axis != place])
            total -= math.log2(shares[bases[row, column]] / shares.sum())
            number += 1
    assert number == 5 * 2 * 3
    assert found["gap_3"] == pytest.approx(total / number, rel=1e-5)


def test_the_chain_knows_the_words_of_the_genome_and_the_composition_does_not(scorer):
    assert set(scorer.baselines) == {"gap_3_composition", "gap_3_chain"}
    assert scorer.baselines["gap_3_chain"] < 0.1
    assert 1.9 < scorer.baselines["gap_3_composition"] < 2.1
