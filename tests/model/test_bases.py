"""Bits per hidden base, against a reading by plain loops."""

import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from cmgems.config.schema import EvaluationConfig, ModelConfig
from cmgems.data.corpus import load_corpus
from cmgems.data.loader import Windows
from cmgems.data.prepare import prepare_corpus
from cmgems.data.settings import PrepareConfig
from cmgems.data.tokenization import Tokenization
from cmgems.data.tokenizer import MASK, encode_batch, vocabulary
from cmgems.masking.corruption import CorruptionConfig
from cmgems.masking.masker import Masker
from cmgems.masking.npmi import npmi_from_counts
from cmgems.model.bases import base_probabilities as token_base_probabilities
from cmgems.model.bases import bases_of_kmers
from cmgems.model.bert import build_model
from cmgems.training.baselines import fit_baselines, score_baselines
from cmgems.training.validation import Validation, fixed_maskings

K = 3
SHAPE = ModelConfig(layers=1, hidden=16, intermediate=16, heads=2, dropout=0.5, max_positions=64, initializer_range=0.5)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """3-mers in windows of 60 bases, some of them shorter."""
    folder = tmp_path_factory.mktemp("bases")
    random = np.random.default_rng(0)
    for name, length in (("train", 3000), ("validation", 900)):
        (folder / f"{name}.fa").write_text(f">{name}\n{''.join(random.choice(list('AACGT'), length))}\n")
    config = PrepareConfig(
        inputs=[str(folder / "train.fa"), str(folder / "validation.fa")],
        k=K,
        window_tokens=58,
        validation_chromosomes=["validation"],
    )
    prepare_corpus(config, folder / "corpus", progress=False)
    return load_corpus(folder / "corpus")


@pytest.fixture
def validation(corpus):
    accelerator = Accelerator()
    masker = Masker(npmi_from_counts(corpus.counts, K), CorruptionConfig(), seed=20_231)
    windows = Windows(corpus.validation, Tokenization(K), 64)
    yield Validation(windows, EvaluationConfig(micro_batch=7), masker, corpus, accelerator)
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def masked_windows(corpus, masking):
    """Sequence, ids, and numbers of the masked tokens of each validation window; masked one window at a time."""
    masker = Masker(npmi_from_counts(corpus.counts, K), CorruptionConfig(), seed=20_231)
    for number, row in enumerate(corpus.validation):
        ids = torch.from_numpy(encode_batch([row["sequence"]], K))
        batch = masker(ids, torch.zeros(1, dtype=torch.int64), torch.tensor([number]), masking)
        # Column 0 holds [CLS].
        yield row["sequence"], ids, [column - 1 for column in batch.masked[0].nonzero().flatten().tolist()]


def hidden_bases(sequence, masked):
    """Places of the bases that no visible k-mer contains."""
    tokens = range(len(sequence) - K + 1)
    return [n for n in range(len(sequence)) if all(t in masked for t in tokens if t <= n < t + K)]


def distributions(model, ids, masked):
    """Of each masked token the probability of every k-mer, where all masked tokens are [MASK]."""
    hidden = ids.clone()
    for token in masked:
        hidden[0, token + 1] = MASK
    with torch.no_grad():
        logits = model.bert.eval()(hidden, attention_mask=(ids != 0).long()).logits[0]
    return {token: dict(zip(vocabulary(K), logits[token + 1].softmax(0).tolist(), strict=True)) for token in masked}


def base_probabilities(of_kmers, place):
    """Of the base at `place` of a k-mer."""
    sums = {
        base: sum(p for kmer, p in of_kmers.items() if set(kmer) <= set("ACGT") and kmer[place] == base)
        for base in "ACGT"
    }
    return {base: value / sum(sums.values()) for base, value in sums.items()}


@pytest.mark.parametrize("name", ["span", "genemask", "global_pmi"])
def test_bits_and_accuracy_are_those_of_a_plain_loop_over_windows_tokens_and_kmers(corpus, validation, name):
    model = build_model(SHAPE, Tokenization(K), seed=1)
    masking = fixed_maskings(0.15)[name]
    score = validation.score(model, {name: masking}, bases=[name])[name]
    bits, right = [], []
    for sequence, ids, masked in masked_windows(corpus, masking):
        of_tokens = distributions(model, ids, masked)
        hidden = hidden_bases(sequence, masked)
        for n in hidden:
            seen_by = [base_probabilities(of_tokens[t], n - t) for t in masked if t <= n < t + K]
            mean = {base: sum(p[base] for p in seen_by) / len(seen_by) for base in "ACGT"}
            bits.append(-math.log2(mean[sequence[n]]))
            right.append(max(mean, key=mean.get) == sequence[n])
    assert len(bits) > 50
    assert score.bits == pytest.approx(np.mean(bits), rel=1e-4)
    assert score.accuracy == pytest.approx(np.mean(right), abs=1e-9)


def test_the_composition_predicts_hidden_bases_and_reads_the_visible_ones(corpus, validation):
    masking = fixed_maskings(0.15)
    found = score_baselines(validation, fit_baselines(Windows(corpus.train, Tokenization(K), 64)), masking)
    # The chains count words of nine bases, of which the composition is a marginal.
    words = [s[i : i + 9] for s in corpus.train["sequence"] for i in range(len(s) - 8)]
    count = {base: 1 + sum(word[-1] == base for word in words) for base in "ACGT"}
    share = {base: n / sum(count.values()) for base, n in count.items()}
    for name, settings in masking.items():
        bits, nats = [], []
        for sequence, _, masked in masked_windows(corpus, settings):
            hidden = set(hidden_bases(sequence, masked))
            bits += [-math.log2(share[sequence[n]]) for n in hidden]
            nats += [sum(-math.log(share[sequence[n]]) for n in range(t, t + K) if n in hidden) for t in masked]
        assert found[name]["composition"]["bits"] == pytest.approx(np.mean(bits), abs=1e-6)
        assert found[name]["composition"]["perplexity"] == pytest.approx(math.exp(np.mean(nats)), rel=1e-6)
        assert found[name]["chain"]["name"].startswith("order ")


def test_a_window_without_a_hidden_base_has_no_bits(validation):
    nothing = fixed_maskings(1e-9)["span"]
    score = validation.score(build_model(SHAPE, Tokenization(K), seed=1), {"span": nothing}, bases=["span"])["span"]
    assert math.isnan(score.bits)
    assert math.isnan(score.accuracy)


def test_base_probabilities_sum_to_one_for_each_place():
    found = token_base_probabilities(torch.randn(5, 5 + 4**K), K)
    assert found.shape == (5, K, 4)
    assert torch.allclose(found.sum(dim=-1), torch.ones(5, K))


def test_every_kmer_counts_for_its_own_bases():
    table = bases_of_kmers(2, torch.device("cpu")).view(-1, 2, 4)
    for row, kmer in zip(table, vocabulary(2)[5:], strict=True):
        assert row.tolist() == [[float(base == letter) for base in "ATCG"] for letter in kmer]


def test_base_probabilities_are_not_rounded_where_the_model_computes_in_half_precision():
    logits = torch.randn(5, 5 + 4**K)
    with torch.autocast("cpu", torch.bfloat16):
        found = token_base_probabilities(logits, K)
    assert found.dtype == torch.float32
    assert torch.equal(found, token_base_probabilities(logits, K))
