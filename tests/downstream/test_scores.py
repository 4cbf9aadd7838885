"""Scores agree with what is computed by hand from confusion matrices, also where a class is missing."""

from math import sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmgems.downstream.scores import Predictions, confusion, probabilities, score


def predictions_with(matrix):
    """Predictions with this confusion matrix: rows of each true class (outer) that are predicted as each (inner)."""
    classes = len(matrix)
    pairs = [(t, p) for t in range(classes) for p in range(classes) for _ in range(matrix[t][p])]
    shares = np.full((len(pairs), classes), 0.1 / (classes - 1))
    shares[range(len(pairs)), [p for _, p in pairs]] = 0.9
    return Predictions(np.array([t for t, _ in pairs]), shares)


def mcc_of(matrix):
    """Multi-class MCC from a confusion matrix (Gorodkin 2004): a covariance over two standard deviations."""
    classes = range(len(matrix))
    true = [sum(matrix[c]) for c in classes]
    predicted = [sum(row[c] for row in matrix) for c in classes]
    rows, right = sum(true), sum(matrix[c][c] for c in classes)
    covariance = right * rows - sum(t * p for t, p in zip(true, predicted, strict=True))
    spread = (rows**2 - sum(p**2 for p in predicted)) * (rows**2 - sum(t**2 for t in true))
    return covariance / sqrt(spread) if spread else 0.0


def test_two_classes():
    metrics = score(predictions_with([[50, 10], [5, 35]]))
    assert metrics == pytest.approx(
        {
            "mcc": (35 * 50 - 10 * 5) / sqrt((35 + 10) * (35 + 5) * (50 + 10) * (50 + 5)),
            "accuracy": 85 / 100,
            "precision": (50 / 55 + 35 / 45) / 2,
            "recall": (50 / 60 + 35 / 40) / 2,
            "f1": (2 * 50 / (55 + 60) + 2 * 35 / (45 + 40)) / 2,
            "roc_auc": (50 * 35 + (50 * 5 + 10 * 35) / 2) / (60 * 40),
        }
    )


def test_three_classes():
    metrics = score(predictions_with([[3, 1, 0], [1, 2, 1], [0, 0, 4]]))
    assert metrics["mcc"] == pytest.approx((9 * 12 - 4 * (4 + 3 + 5)) / sqrt((144 - 16 - 9 - 25) * (144 - 3 * 16)))
    assert metrics["accuracy"] == pytest.approx(9 / 12)
    assert metrics["precision"] == pytest.approx((3 / 4 + 2 / 3 + 4 / 5) / 3)
    assert metrics["recall"] == pytest.approx((3 / 4 + 2 / 4 + 4 / 4) / 3)
    assert metrics["f1"] == pytest.approx((2 * 3 / 8 + 2 * 2 / 7 + 2 * 4 / 9) / 3)


@settings(max_examples=50)
@given(
    st.integers(2, 5).flatmap(
        lambda n: st.lists(st.lists(st.integers(0, 9), min_size=n, max_size=n), min_size=n, max_size=n)
    )
)
def test_the_mcc_is_the_one_of_the_confusion_matrix_for_any_number_of_classes(matrix):
    matrix[0][0] += 1
    matrix[1][0] += 1
    predictions = predictions_with(matrix)
    assert confusion(predictions) == matrix
    assert score(predictions)["mcc"] == pytest.approx(mcc_of(matrix), abs=1e-12)


def test_the_roc_auc_of_two_classes_is_that_of_class_1():
    shares = np.array([0.1, 0.4, 0.35, 0.8])
    predictions = Predictions(np.array([0, 0, 1, 1]), np.stack([1 - shares, shares], axis=1))
    # Of the four pairs of a row of class 0 and one of class 1, only 0.4 and 0.35 are in the wrong order.
    assert score(predictions)["roc_auc"] == pytest.approx(3 / 4)


def test_the_roc_auc_of_three_classes_is_the_mean_over_each_against_the_rest():
    shares = [[0.5, 0.3, 0.2], [0.2, 0.6, 0.2], [0.3, 0.4, 0.3], [0.1, 0.2, 0.7]]
    # Class 0: row 0 is above all others. Class 1: row 1 is. Class 2: row 2 is above rows 0 and 1, and row 3 too.
    assert score(Predictions(np.array([0, 1, 2, 2]), np.array(shares)))["roc_auc"] == 1
    # Class 0: row 0 is above two of the others and below row 2. Class 1: as before. Class 2: row 0 is below row 3 only.
    swapped = Predictions(np.array([2, 1, 0, 2]), np.array(shares))
    assert score(swapped)["roc_auc"] == pytest.approx((2 / 3 + 1 + (1 + 1 + 0.5 + 0) / 4) / 3)


def test_a_class_that_is_never_predicted_counts_as_zero_in_the_means():
    metrics = score(predictions_with([[4, 0, 0], [0, 4, 0], [2, 2, 0]]))
    assert metrics["precision"] == pytest.approx((4 / 6 + 4 / 6 + 0) / 3)
    assert metrics["recall"] == pytest.approx((1 + 1 + 0) / 3)
    assert metrics["f1"] == pytest.approx((8 / 10 + 8 / 10 + 0) / 3)


@pytest.mark.parametrize("matrix", [[[5, 0], [3, 0]], [[0, 0, 5], [0, 0, 3], [0, 0, 1]]], ids=["two", "three"])
def test_the_mcc_of_a_constant_prediction_is_zero(matrix):
    metrics = score(predictions_with(matrix))
    assert metrics["mcc"] == 0
    assert metrics["roc_auc"] == pytest.approx(0.5)


@pytest.mark.parametrize("matrix", [[[3, 1], [0, 0]], [[3, 1, 0], [0, 2, 2], [0, 0, 0]]], ids=["two", "three"])
def test_there_is_no_roc_auc_where_the_split_lacks_a_class(matrix):
    metrics = score(predictions_with(matrix))
    assert sorted(metrics) == ["accuracy", "f1", "mcc", "precision", "recall"]
    assert len(confusion(predictions_with(matrix))) == len(matrix)


def test_of_equal_probabilities_the_first_class_is_predicted():
    shares = np.array([[0.5, 0.5, 0], [0.2, 0.4, 0.4]])
    assert Predictions(np.array([0, 1]), shares).predicted.tolist() == [0, 1]


def test_probabilities_are_the_softmax_of_logits_of_any_size():
    found = probabilities(np.array([[0, np.log(3)], [1e4, -1e4]], dtype=np.float32))
    assert found.dtype == np.float64
    assert found == pytest.approx(np.array([[0.25, 0.75], [1, 0]]))
