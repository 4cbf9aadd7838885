"""Regressions of a value on features of sequences: ridge regression for probes and baselines, and a random forest.

The features are standardised for the ridge regression, and its penalty is as strong as the validation split says; a
task without one asks a cross-validation on the training split. Seeds of a probe are bootstraps of the training rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold
from sklearn.preprocessing import StandardScaler

from cmgems.downstream.data import TaskData
from cmgems.downstream.probing import FOLDS, Fit, Probe, best_on_dev, bootstrap
from cmgems.downstream.results import Choice
from cmgems.downstream.scores import Estimates, best_value, score
from cmgems.errors import UserError

PENALTIES = tuple(10.0**exponent for exponent in range(6, -3, -1))
"""Values of scikit-learn's alpha to choose from: the strongest penalty first."""

UNCHOSEN_PENALTY = 1.0
"""alpha where there are too few training rows for a cross-validation: scikit-learn's default."""

TREES = 500
"""Trees of a random forest; each split of a tree sees a third of the features."""

RIDGE = f"ridge 1, alpha of {PENALTIES}"
FOREST = f"forest 1, {TREES} trees"
"""What determines the numbers; the procedure's number is raised when the same features are to give other ones."""

Values = npt.NDArray[np.floating]


def fit_ridge(features: Mapping[str, Values], data: TaskData, metric: str, seed: int, resampled: bool) -> Probe:
    """Fit on the split `train`, and score `dev`, if there is one, and `test`.

    Parameters
    ----------
    features
        Features [rows, features] of each split of `data`.
    data
        The task's splits, for their values.
    metric
        What alpha is chosen by: a name of `cmgems.downstream.scores.score`. Of equally good values the largest is
        taken.
    seed
        Seed of the bootstrap, and of the folds of a cross-validation.
    resampled
        Whether to fit on a bootstrap of the training rows.

    Raises
    ------
    UserError
        If a bootstrap has the same value in all rows.
    """
    values, rows = data.train.labels, _training_rows(data, seed, resampled)
    training = features["train"][rows], values[rows]
    if data.dev is None:
        choice = _cross_validate(features["train"], values, metric, seed)
        [ridge] = _ridges(*training, [choice.value])
        return Probe(ridge.predict(features["test"], data.test.labels), None, choice, ridge.fit)
    return best_on_dev(_ridges(*training, PENALTIES), features, data, metric, "alpha")


def fit_forest(features: Mapping[str, Values], data: TaskData, seed: int, resampled: bool) -> Probe:
    """Fit a random forest, in which nothing is chosen, on the split `train`; parameters are those of `fit_ridge`."""
    rows = _training_rows(data, seed, resampled)
    forest = RandomForestRegressor(TREES, max_features=1 / 3, random_state=seed)
    forest.fit(features["train"][rows], data.train.labels[rows])
    found = {
        name: Estimates(split.labels, forest.predict(features[name]))
        for name, split in data.splits.items()
        if name != "train"
    }
    return Probe(found["test"], found.get("dev"), None, Fit(forest.n_features_in_, "random forest", None, True))


def _training_rows(data: TaskData, seed: int, resampled: bool) -> npt.NDArray[np.int64]:
    """Numbers of the rows to fit on."""
    if not resampled:
        return np.arange(len(data.train))
    rows = bootstrap(np.zeros(len(data.train), dtype=np.int64), seed)
    if len(np.unique(data.train.labels[rows])) == 1:
        raise UserError(f"{data.train.source}: a bootstrap of its {len(rows)} rows has a single value: take more rows")
    return rows


def _cross_validate(features: Values, values: npt.NDArray[np.float64], metric: str, seed: int) -> Choice:
    """Choose alpha on the training rows as they are: copies of a bootstrap would be on both sides of a fold."""
    if len(values) < 2 * FOLDS:
        return Choice(setting="alpha", value=UNCHOSEN_PENALTY, by="nothing: too few training rows", scores={})
    held_out = {penalty: np.zeros(len(values)) for penalty in PENALTIES}
    for train, rest in KFold(FOLDS, shuffle=True, random_state=seed).split(features):
        for tried in _ridges(features[train], values[train], PENALTIES):
            held_out[tried.penalty][rest] = tried.predict(features[rest], values[rest]).predicted
    scores: dict[float, float | None] = {
        penalty: score(Estimates(values, predicted))[metric] for penalty, predicted in held_out.items()
    }
    by = f"{FOLDS}-fold cross-validation on train"
    return Choice(setting="alpha", value=best_value(scores), by=by, scores=scores)


@dataclass(frozen=True)
class _Ridge:
    """A fitted ridge regression with its standardisation."""

    penalty: float
    scaler: StandardScaler
    model: Ridge

    @property
    def fit(self) -> Fit:
        """How it was fitted."""
        return Fit(self.model.n_features_in_, "cholesky", None, True)

    def predict(self, features: Values, values: npt.NDArray[np.float64]) -> Estimates:
        """Return what it predicts, beside the true values."""
        return Estimates(values, self.model.predict(self.scaler.transform(features.astype(np.float64))))


def _ridges(features: Values, values: npt.NDArray[np.float64], penalties: Sequence[float]) -> Iterator[_Ridge]:
    """Fit a regression for each of the penalties, in double precision, in their order."""
    scaler = StandardScaler(copy=False)
    scaled = scaler.fit_transform(features.astype(np.float64))
    for penalty in penalties:
        yield _Ridge(penalty, scaler, Ridge(alpha=penalty, solver="cholesky").fit(scaled, values))
