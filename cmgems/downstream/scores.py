"""Scores of a classifier or of a regression, computed once over all rows of a split (scikit-learn's and SciPy's
definitions)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    matthews_corrcoef,
    precision_recall_fscore_support,
    r2_score,
    roc_auc_score,
    root_mean_squared_error,
)


@dataclass(frozen=True)
class Predictions:
    """What a classifier says about the rows of a split, in their order."""

    labels: npt.NDArray[np.int64]
    """True labels [rows], in 0..classes-1."""
    probabilities: npt.NDArray[np.float64]
    """Probability of each class [rows, classes]; each row sums to one."""

    @property
    def predicted(self) -> npt.NDArray[np.int64]:
        """Label of the highest probability of each row [rows]; of equal ones the first."""
        return np.asarray(self.probabilities.argmax(axis=1))


@dataclass(frozen=True)
class Estimates:
    """What a regression says about the rows of a split, in their order."""

    values: npt.NDArray[np.float64]
    """True values [rows]."""
    predicted: npt.NDArray[np.float64]
    """Predicted values [rows], in the same unit."""


def probabilities(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Softmax over the classes of `logits` [rows, classes], in double precision."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def score(predictions: Predictions | Estimates) -> dict[str, float]:
    """Return all metrics of a split, those of classes or those of values."""
    return _score_values(predictions) if isinstance(predictions, Estimates) else _score_classes(predictions)


def _score_values(estimates: Estimates) -> dict[str, float]:
    """Return `spearman` and `pearson` in -1..1, `r2`, at most 1, and `rmse`, in the unit of the values.

    `r2` is the coefficient of determination: 0 is what the mean of the split would get, and less can be had.
    Predictions that are all the same are correlated with nothing: 0.
    """
    values, predicted = estimates.values, estimates.predicted
    is_constant = predicted.min() == predicted.max()
    return {
        "spearman": 0.0 if is_constant else float(spearmanr(values, predicted).statistic),
        "pearson": 0.0 if is_constant else float(pearsonr(values, predicted).statistic),
        "r2": float(r2_score(values, predicted)),
        "rmse": float(root_mean_squared_error(values, predicted)),
    }


def _score_classes(predictions: Predictions) -> dict[str, float]:
    """Return `mcc` in -1..1, the others in 0..1.

    `f1`, `precision` and `recall` are unweighted means over all classes of the task (macro), 0 for a class that is
    never predicted. `roc_auc` is the area for class 1 of two classes; of more, the unweighted mean over the classes,
    each against the rest. It is left out where the split does not have all classes: there it has no value.
    """
    labels, predicted = predictions.labels, predictions.predicted
    classes = predictions.probabilities.shape[1]
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, predicted, labels=range(classes), average="macro", zero_division=0
    )
    metrics = {
        "mcc": float(matthews_corrcoef(labels, predicted)),
        "accuracy": float(accuracy_score(labels, predicted)),
        "f1": float(f1),
        "precision": float(precision),
        "recall": float(recall),
    }
    if len(np.unique(labels)) == classes:
        of_class = predictions.probabilities[:, 1] if classes == 2 else predictions.probabilities
        metrics["roc_auc"] = float(roc_auc_score(labels, of_class, multi_class="ovr"))
    return metrics


def best_value(scores: Mapping[float, float | None]) -> float:
    """Return the value of a setting with the highest score; of equally good ones the first. None is no score.

    Examples
    --------
    >>> best_value({0.01: 0.4, 0.1: 0.5, 1.0: 0.5, 10.0: None})
    0.1
    """
    known = {value: score for value, score in scores.items() if score is not None}
    return max(known, key=known.__getitem__)


def confusion(predictions: Predictions) -> list[list[int]]:
    """Return the number of rows of each true class (outer list) that are predicted as each class (inner list)."""
    classes = range(predictions.probabilities.shape[1])
    matrix = confusion_matrix(predictions.labels, predictions.predicted, labels=classes)
    return [[int(count) for count in row] for row in matrix]
