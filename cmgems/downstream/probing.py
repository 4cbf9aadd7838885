"""A linear probe: a regularised logistic regression on features of sequences, such as a frozen model's hidden states.

The features are standardised. The penalty is L2, as strong as the validation split says; a task without one asks a
stratified cross-validation on the training split. Seeds are bootstraps of the training rows, class by class: each class
keeps its number of rows, so that none is lost, and few-shot tasks keep their number of shots.

References
----------
Alain & Bengio, Understanding intermediate layers using linear classifier probes, 2016 (arXiv:1610.01644).
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler

from cmgems.downstream.data import TaskData
from cmgems.downstream.results import Choice
from cmgems.downstream.scores import Estimates, Predictions, best_value, score
from cmgems.errors import UserError

PENALTIES = tuple(10.0**exponent for exponent in range(-4, 3))
"""Values of scikit-learn's C to choose from, the inverse of the penalty's strength: the strongest penalty first."""

UNCHOSEN_PENALTY = 1.0
"""C where neither a validation split nor enough rows for a cross-validation can choose: scikit-learn's default."""

FOLDS = 5
"""Folds of the cross-validation; it needs as many training rows of each class."""

PROCEDURE = "1"
"""Raised when the same features are to give other numbers than before: results are computed again."""

# Newton's method takes few iterations however the features correlate, but has a matrix [weights, weights] in each.
_NEWTON_WEIGHTS = 2048
_NEWTON: dict[str, Any] = {"solver": "newton-cholesky", "max_iter": 100, "tol": 1e-6}
_LBFGS: dict[str, Any] = {"solver": "lbfgs", "max_iter": 2000, "tol": 1e-4}


@dataclass(frozen=True)
class Fit:
    """What is known of a fitted regression."""

    features: int
    """Number of features."""
    solver: str
    """scikit-learn's solver."""
    iterations: int | None
    """Its iterations, from the weights of the next stronger penalty on; None: it has none."""
    converged: bool
    """Whether it stopped by itself, and not at the most iterations."""


@dataclass(frozen=True)
class Probe:
    """What came of a probe."""

    test: Predictions | Estimates
    dev: Predictions | Estimates | None
    choice: Choice | None
    """The chosen penalty, and the score of each; None: there was nothing to choose."""
    fit: Fit


def probe(features: Mapping[str, npt.NDArray[np.floating]], data: TaskData, metric: str, seed: int) -> Probe:
    """Fit on a bootstrap of the split `train`, and score `dev`, if there is one, and `test`.

    Parameters
    ----------
    features
        Features [rows, features] of each split of `data`.
    data
        The task's splits, for their labels.
    metric
        What C is chosen by: a name of `cmgems.downstream.scores.score`. Of equally good values the smallest is taken.
    seed
        Seed of the bootstrap, and of the folds of a cross-validation.

    Raises
    ------
    UserError
        If all training rows have the same label.
    """
    labels, classes = data.train.labels, len(data.task.classes)
    if len(np.unique(labels)) == 1:
        raise UserError(f"{data.train.source}: all rows have the same label: nothing can be learned from them")
    rows = bootstrap(labels, seed)
    training = features["train"][rows], labels[rows], classes
    if data.dev is None:
        choice = _cross_validate(features["train"], labels, classes, metric, seed)
        [regression] = _regressions(*training, [choice.value])
        return Probe(regression.predict(features["test"], data.test.labels), None, choice, regression.fit)
    return best_on_dev(_regressions(*training, PENALTIES), features, data, metric, "C")


class Fitted(Protocol):
    """A regression that was fitted with a penalty."""

    @property
    def penalty(self) -> float:
        """The penalty, as scikit-learn's parameter."""

    @property
    def fit(self) -> Fit:
        """How it was fitted."""

    def predict(self, features: npt.NDArray[np.floating], labels: npt.NDArray[Any]) -> Predictions | Estimates:
        """Return what it predicts from features [rows, features], beside the true labels or values [rows]."""


def best_on_dev(
    fitted: Iterable[Fitted],
    features: Mapping[str, npt.NDArray[np.floating]],
    data: TaskData,
    metric: str,
    setting: str,
) -> Probe:
    """Choose the regression with the best metric on the split `dev`, of equally good ones the first, and score it;
    `setting` is scikit-learn's name of the penalty."""
    assert data.dev is not None
    scores: dict[float, float | None] = {}
    for tried in fitted:
        of_dev = tried.predict(features["dev"], data.dev.labels)
        scores[tried.penalty] = score(of_dev)[metric]
        if best_value(scores) == tried.penalty:
            best, dev = tried, of_dev
    choice = Choice(setting=setting, value=best.penalty, by="dev", scores=scores)
    return Probe(best.predict(features["test"], data.test.labels), dev, choice, best.fit)


def bootstrap(labels: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
    """Draw as many rows of each class as there are, with replacement; return their numbers, class by class.

    Examples
    --------
    >>> bootstrap(np.array([0, 1, 0, 1, 0]), seed=42).tolist()
    [4, 0, 4, 1, 3]
    """
    draw = np.random.RandomState(seed)  # its numbers are the same in every release of NumPy
    of_classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    return np.concatenate([own[draw.randint(len(own), size=len(own))] for own in of_classes])


def _cross_validate(
    features: npt.NDArray[np.floating], labels: npt.NDArray[np.int64], classes: int, metric: str, seed: int
) -> Choice:
    """Choose C on the training rows as they are: of a bootstrap, copies of a row would be on both sides of a fold."""
    if np.bincount(labels)[np.unique(labels)].min() < FOLDS:
        return Choice(setting="C", value=UNCHOSEN_PENALTY, by="nothing: too few training rows", scores={})
    held_out = {penalty: np.zeros((len(labels), classes)) for penalty in PENALTIES}
    for train, rest in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(features, labels):
        for tried in _regressions(features[train], labels[train], classes, PENALTIES):
            held_out[tried.penalty][rest] = tried.predict(features[rest], labels[rest]).probabilities
    scores: dict[float, float | None] = {
        penalty: score(Predictions(labels, probabilities))[metric] for penalty, probabilities in held_out.items()
    }
    return Choice(setting="C", value=best_value(scores), by=f"{FOLDS}-fold cross-validation on train", scores=scores)


@dataclass(frozen=True)
class _Regression:
    """A fitted logistic regression with its standardisation."""

    penalty: float
    classes: int
    scaler: StandardScaler
    model: LogisticRegression

    @property
    def fit(self) -> Fit:
        """How it was fitted."""
        iterations = int(self.model.n_iter_.max())
        return Fit(self.model.n_features_in_, self.model.solver, iterations, iterations < self.model.max_iter)

    def predict(self, features: npt.NDArray[np.floating], labels: npt.NDArray[np.int64]) -> Predictions:
        """Return probabilities of all classes; of one that the training rows do not have 0."""
        probabilities = np.zeros((len(features), self.classes))
        known = self.model.predict_proba(self.scaler.transform(features.astype(np.float64)))
        probabilities[:, self.model.classes_] = known
        return Predictions(labels, probabilities)


def _regressions(
    features: npt.NDArray[np.floating], labels: npt.NDArray[np.int64], classes: int, penalties: Sequence[float]
) -> Iterator[_Regression]:
    """Fit a regression for each of the penalties, in double precision, the strongest first."""
    scaler = StandardScaler(copy=False)
    scaled = scaler.fit_transform(features.astype(np.float64))
    present = len(np.unique(labels))
    weights = features.shape[1] * (1 if present == 2 else present)
    model = LogisticRegression(warm_start=True, **(_NEWTON if weights <= _NEWTON_WEIGHTS else _LBFGS))
    for penalty in penalties:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the result says so instead
            model.set_params(C=penalty).fit(scaled, labels)
        yield _Regression(penalty, classes, scaler, copy(model))  # the next fit gives the original other weights
