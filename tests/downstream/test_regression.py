"""The baseline that is no neural network: a logistic regression on shares of k-mers."""

import random

import numpy as np
import pytest

from cmgems.data.tokenizer import vocabulary
from cmgems.downstream.data import Split
from cmgems.downstream.regression import kmer_shares, regression
from cmgems.downstream.scores import score


def rich_in(bases, rows, seed):
    draw = random.Random(seed)
    return ["".join(draw.choices("ACGT", [5 if base in bases else 1 for base in "ACGT"], k=80)) for _ in range(rows)]


def split(*of_classes):
    """A split with these sequences of class 0, of class 1 and so on."""
    sequences = [sequence for some in of_classes for sequence in some]
    labels = [label for label, some in enumerate(of_classes) for _ in some]
    return Split("toy", sequences, np.array(labels, dtype=np.int64), [0] * len(sequences))


def test_features_are_the_shares_of_the_k_mers_and_an_n_makes_none():
    shares = dict(zip(vocabulary(2)[5:], kmer_shares(["ACACNGG"], k=2)[0], strict=True))
    assert {kmer: share for kmer, share in shares.items() if share} == {"AC": 0.5, "CA": 0.25, "GG": 0.25}


def test_a_sequence_without_any_k_mer_has_no_shares():
    assert kmer_shares(["NNNNN", "ACG"], k=4).tolist() == [[0.0] * 256] * 2


def test_it_tells_apart_what_the_k_mers_tell_apart():
    train = split(rich_in("AT", 30, 1), rich_in("CG", 30, 2), rich_in("AC", 30, 3))
    test = split(rich_in("AT", 10, 4), rich_in("CG", 10, 5), rich_in("AC", 10, 6))
    predictions = regression(train, test, classes=3, k=4)
    assert score(predictions)["mcc"] == 1
    assert predictions.labels.tolist() == test.labels.tolist()
    assert predictions.probabilities.sum(axis=1) == pytest.approx(1)


def test_a_class_without_training_rows_has_a_column_of_zeros():
    train = split(rich_in("AT", 20, 1), [], rich_in("CG", 20, 2))
    test = split(rich_in("AT", 5, 3), rich_in("AC", 5, 4), rich_in("CG", 5, 5))
    found = regression(train, test, classes=3, k=4)
    assert found.probabilities.shape == (15, 3)
    assert found.probabilities[:, 1].tolist() == [0.0] * 15
    assert set(found.predicted[:5]) == {0}
    assert set(found.predicted[10:]) == {2}
