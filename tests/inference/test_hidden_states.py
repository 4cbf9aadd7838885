"""Embeddings are what transformers gives, sequence by sequence, whatever the batch and the length."""

import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

import cmgems
from cmgems.errors import UserError
from cmgems.inference.encoder import as_kmers
from cmgems.inference.hidden_states import overlapping_windows
from tests.downstream import models

SEQUENCES = ["".join(random.Random(i).choices("ACGT", k=length)) for i, length in enumerate((24, 60, 12, 48, 36))]


@pytest.mark.parametrize("overlap", [0, 1, 5, 9])
@pytest.mark.parametrize("tokens", [1, 10, 11, 12, 19, 20, 21, 101])
def test_windows_cover_every_token_once_and_share_the_overlap(tokens, overlap):
    windows = overlapping_windows(7, tokens, 10, overlap)
    assert all(window.row == 7 and window.end - window.start == min(10, tokens) for window in windows)
    assert [window.own_start for window in windows] == [0, *(window.own_end for window in windows[:-1])]
    assert windows[-1].own_end == windows[-1].end == tokens
    assert all(left.end - right.start >= overlap for left, right in pairwise(windows))
    assert all(window.start <= window.own_start < window.own_end <= window.end for window in windows)
    # Each token is as far from the ends of its window as it can be.
    for window in windows[:-1]:
        assert abs((window.end - window.own_end) - (overlap // 2)) <= 10


def plainly(folder, sequence, k):
    """All hidden states [layers, tokens, width] by transformers, special tokens included, and how many are before."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    text = as_kmers(sequence, k) if k else sequence
    inputs = tokenizer(text, return_tensors="pt")
    own = tokenizer(text, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        hidden = model(input_ids=inputs["input_ids"], output_hidden_states=True).hidden_states
    before = inputs["input_ids"][0].tolist().index(own[0])
    return torch.stack(hidden)[:, 0].numpy(), slice(before, before + len(own))


@pytest.mark.parametrize("kind", models.NATIVE)
def test_they_are_those_of_transformers(tmp_path, kind):
    folder = models.NATIVE[kind](tmp_path / "model")
    model = cmgems.load(folder)
    k = model.encoder.k
    for layer in (-1, 0):
        mean, tokens = model.embed(SEQUENCES, layer), model.embed(SEQUENCES, layer, "tokens")
        first = model.embed(SEQUENCES, layer, "cls", batch_tokens=1)
        assert mean.shape == first.shape == (5, 16)
        for row, sequence in enumerate(SEQUENCES):
            hidden, own = plainly(folder, sequence, k)
            np.testing.assert_allclose(tokens[row], hidden[layer, own], atol=1e-5)
            np.testing.assert_allclose(mean[row], hidden[layer, own].mean(axis=0), atol=1e-5)
            np.testing.assert_allclose(first[row], hidden[layer, 0], atol=1e-5)


def test_a_long_sequence_is_read_in_windows_that_overlap(tmp_path):
    folder = models.ours(tmp_path / "model", k=3, max_positions=34)
    model = cmgems.load(folder)
    sequence = "".join(random.Random(5).choices("ACGT", k=102))
    windows = overlapping_windows(0, 100, 32, 12)
    expected = np.concatenate(
        [
            plainly(folder, sequence[window.start : window.end + 2], 3)[0][-1, 1:-1][
                window.own_start - window.start : window.own_end - window.start
            ]
            for window in windows
        ]
    )
    [found] = model.embed([sequence], pooling="tokens", overlap=12)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(model.embed([sequence], overlap=12)[0], expected.mean(axis=0), atol=1e-5)


def test_what_cannot_be_embedded_is_said(tmp_path):
    model = cmgems.load(models.ours(tmp_path / "model"))
    assert model.embed([]).shape == (0, 16)
    with pytest.raises(UserError, match="sequence 1, 'AC', is too short for the model"):
        model.embed(["ACGT", "AC"])
    with pytest.raises(UserError, match="has no layer 2; its layers are 0"):
        model.embed(SEQUENCES, layer=2)
    with pytest.raises(UserError, match="overlap 62: the model reads 62 tokens at once"):
        model.embed(SEQUENCES, overlap=62)
    with pytest.raises(UserError, match=r"model .*/such cannot be loaded"):
        cmgems.load(tmp_path / "no" / "such")
