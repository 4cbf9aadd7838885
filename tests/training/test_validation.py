"""Validation perplexity: one number for the same model, however the windows are divided."""

import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from cmgems.config.schema import EvaluationConfig, ModelConfig
from cmgems.data.loader import Windows
from cmgems.masking.corruption import CorruptionConfig
from cmgems.masking.masker import Masker
from cmgems.masking.npmi import npmi_from_counts
from cmgems.masking.strategies import STRATEGIES, Span
from cmgems.model.bert import build_model
from cmgems.training.validation import Validation, fixed_maskings, unigram_nll, unigram_perplexity

SHAPE = ModelConfig(layers=1, hidden=16, intermediate=16, heads=2, dropout=0.5, max_positions=64)


@pytest.fixture
def accelerator():
    yield Accelerator()
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.fixture
def model(tiny_corpus):
    return build_model(SHAPE, tiny_corpus.tokens, seed=1)


def validation(corpus, accelerator, micro_batch=64, windows=1000):
    masker = Masker(npmi_from_counts(corpus.counts, corpus.k), CorruptionConfig(), seed=20_231)
    config = EvaluationConfig(micro_batch=micro_batch, windows=windows)
    return Validation(Windows(corpus.validation, corpus.tokens, 64), config, masker, corpus, accelerator)


def test_perplexity_is_exp_of_the_mean_over_all_masked_tokens(tiny_corpus, accelerator, model):
    masking = fixed_maskings(0.15)
    scores = validation(tiny_corpus, accelerator).score(model, masking, bases=())
    windows = Windows(tiny_corpus.validation, tiny_corpus.tokens, 64)
    batch = windows[(np.zeros(len(windows.split), np.int64), np.arange(len(windows.split)))]
    masker = Masker(npmi_from_counts(tiny_corpus.counts, tiny_corpus.k), CorruptionConfig(), seed=20_231)
    for name, settings in masking.items():
        masked = masker(batch.ids, batch.epoch, batch.sample_id, settings)
        with torch.no_grad():
            nll = model.eval()(masked.input_ids, masked.attention_mask, masked.masked, masked.labels)
        assert scores[name].perplexity == pytest.approx(math.exp(nll.mean()), rel=1e-5)
        unigram = unigram_nll(tiny_corpus.counts)[masked.labels[masked.masked]].mean()
        assert scores[name].unigram_perplexity == pytest.approx(math.exp(unigram))


def test_every_evaluation_sees_the_same_masks_and_no_dropout(tiny_corpus, accelerator, model):
    scored = validation(tiny_corpus, accelerator)
    once, again = (scored.score(model, fixed_maskings(0.15), bases=STRATEGIES) for _ in range(2))
    assert once == again
    assert model.training


@pytest.mark.parametrize("micro_batch", [1, 7, 100])
def test_the_division_into_micro_batches_does_not_matter(tiny_corpus, accelerator, model, micro_batch):
    whole = validation(tiny_corpus, accelerator).score(model, fixed_maskings(0.15), bases=STRATEGIES)
    divided = validation(tiny_corpus, accelerator, micro_batch).score(model, fixed_maskings(0.15), bases=STRATEGIES)
    for name, score in whole.items():
        assert divided[name].perplexity == pytest.approx(score.perplexity, rel=1e-5)


def test_bases_are_scored_under_the_maskings_that_are_named(tiny_corpus, accelerator, model):
    scores = validation(tiny_corpus, accelerator).score(model, fixed_maskings(0.15), bases=["span"])
    assert {name: math.isfinite(score.bits) for name, score in scores.items()} == {
        **dict.fromkeys(("genemask", "global_pmi"), False),
        "span": True,
    }
    assert all(math.isfinite(score.perplexity) for score in scores.values())


def test_no_more_windows_are_scored_than_asked_for(tiny_corpus, accelerator):
    batches = validation(tiny_corpus, accelerator, micro_batch=4, windows=10).batches
    assert sum(int((batch.sample_id >= 0).sum()) for batch in batches) == 10


def test_a_masking_that_masks_nothing_has_no_perplexity(tiny_corpus, accelerator, model):
    nothing = {"stage": [Span(centre_probability=1e-9)]}
    assert math.isnan(validation(tiny_corpus, accelerator).score(model, nothing, bases=())["stage"].perplexity)


def test_unigram_perplexity_is_the_effective_number_of_kmers():
    assert unigram_perplexity(np.array([5, 5, 5, 5] + [0] * 60)) == pytest.approx(4)
    assert unigram_perplexity(np.array([7] + [0] * 63)) == pytest.approx(1)


def test_an_unseen_kmer_is_unlikely_but_not_impossible():
    nll = unigram_nll(np.array([999] + [0] * 63))
    assert nll.shape == (5 + 64,)
    assert torch.isfinite(nll).all()
    assert nll[6] == pytest.approx(math.log(999 + 64))
