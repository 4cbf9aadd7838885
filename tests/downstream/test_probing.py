"""A probe is scikit-learn's logistic regression on a bootstrap, with the penalty that the validation split chooses."""

import csv
from collections import Counter

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from cmgems.downstream import probing
from cmgems.downstream.data import Split, TaskData, read_task
from cmgems.downstream.features import model_features
from cmgems.downstream.finetuning import ComputeConfig
from cmgems.downstream.probing import PENALTIES, UNCHOSEN_PENALTY, bootstrap, probe
from cmgems.downstream.scores import score
from cmgems.errors import UserError
from cmgems.inference.source import Source
from tests.downstream import models, probe_independently


@pytest.fixture
def make(make_task):
    """A task's data with these labels; the sequences do not matter, as the features are given apart."""

    def make_data(train, dev, test, classes=2):
        splits = [
            None if labels is None else Split("toy", ["ACGT"] * len(labels), np.array(labels), [0] * len(labels))
            for labels in (train, dev, test)
        ]
        return TaskData(make_task(classes=[str(c) for c in range(classes)]), *splits)

    return make_data


def noisy(rows, seed, classes=2):
    """Features, of which one says a little about the labels and the others nothing."""
    draw = np.random.default_rng(seed)
    labels = np.arange(rows) % classes
    features = draw.normal(size=(rows, 20)).astype(np.float32)
    features[:, 0] += labels
    return features, labels


@pytest.mark.parametrize(("kind", "k"), [("ours", 3), ("nucleotide_transformer", None)])
def test_it_gives_what_a_script_without_cmgems_gives(tmp_path, make_task, kind, k):
    folder = models.NATIVE[kind](tmp_path / "model")
    draw = np.random.default_rng(3)
    (tmp_path / "data" / "toy").mkdir(parents=True)
    for split, rows in (("train", 60), ("dev", 40), ("test", 30)):
        with (tmp_path / "data" / "toy" / f"{split}.csv").open("w") as file:
            writer = csv.writer(file)
            writer.writerow(["sequence", "label"])
            for row in range(rows):
                shares = [0.4, 0.2, 0.2, 0.2] if row % 2 else [0.3, 0.2, 0.2, 0.3]
                writer.writerow(["".join(draw.choice(list("ACGT"), draw.integers(20, 90), p=shares)), row % 2])
    data = read_task(make_task(), tmp_path / "data")
    features = model_features(Source(str(folder)), data, ComputeConfig(evaluation_batch=8), 1, "toy").splits
    for seed in (42, 43):
        found = probe(features, data, "mcc", seed)
        paths = [str(tmp_path / "data" / "toy" / f"{split}.csv") for split in ("train", "dev", "test")]
        expected = probe_independently.probe(str(folder), *paths, seed, k)
        assert found.choice.scores == pytest.approx(expected["scores"], abs=1e-9)
        assert found.choice.value == expected["chosen"]
        assert found.test.probabilities == pytest.approx(np.array(expected["probabilities"]), abs=1e-4)
        assert found.fit.converged
    assert len(set(expected["scores"].values())) > 1


def test_a_bootstrap_has_as_many_rows_of_each_class_and_the_seed_draws_them():
    labels = np.array([0] * 50 + [2] * 3 + [1] * 7)
    rows = bootstrap(labels, 42)
    assert Counter(labels[rows].tolist()) == {0: 50, 1: 7, 2: 3}
    assert len(set(rows.tolist())) < 60
    assert rows.tolist() == bootstrap(labels, 42).tolist()
    assert rows.tolist() != bootstrap(labels, 43).tolist()


def test_a_seed_gives_the_same_each_time_and_another_seed_something_else(make):
    (train, labels), (dev, of_dev), (test, of_test) = noisy(60, 1), noisy(40, 2), noisy(30, 3)
    features, data = {"train": train, "dev": dev, "test": test}, make(labels, of_dev, of_test)
    first, same, other = (probe(features, data, "mcc", seed) for seed in (42, 42, 43))
    assert first.test.probabilities.tolist() == same.test.probabilities.tolist()
    assert first.choice == same.choice
    assert first.test.probabilities.tolist() != other.test.probabilities.tolist()


@pytest.mark.parametrize("right", PENALTIES)
def test_the_dev_split_chooses_the_penalty_and_of_equally_good_ones_the_strongest(make, right):
    """The labels of dev are what the regression with the right penalty says."""
    (train, labels), (test, of_test) = noisy(60, 1), noisy(30, 3)
    dev = noisy(2000, 2)[0] * 3
    rows = bootstrap(labels, 42)
    scaler = StandardScaler().fit(train[rows].astype(float))
    regression = LogisticRegression(C=right, tol=1e-9, max_iter=100_000).fit(
        scaler.transform(train[rows].astype(float)), labels[rows]
    )
    of_dev = regression.predict(scaler.transform(dev.astype(float)))
    found = probe({"train": train, "dev": dev, "test": test}, make(labels, of_dev, of_test), "mcc", 42)
    assert found.choice.setting == "C"
    assert found.choice.by == "dev"
    assert list(found.choice.scores) == list(PENALTIES)
    assert found.choice.value == right
    assert found.choice.scores[right] == score(found.dev)["mcc"] == 1
    expected = regression.predict_proba(scaler.transform(test.astype(float)))
    assert found.test.probabilities == pytest.approx(expected, abs=1e-5)


def test_of_equally_good_penalties_the_strongest_is_taken(make):
    labels = np.arange(40) % 2
    features = np.column_stack([labels * 2.0 - 1, np.zeros(40)])
    data = make(labels, labels, labels)
    found = probe(dict.fromkeys(("train", "dev", "test"), features), data, "mcc", 42)
    assert set(found.choice.scores.values()) == {1.0}
    assert found.choice.value == min(PENALTIES)


def test_the_metric_of_the_suite_chooses(make):
    (train, labels), (dev, of_dev), (test, of_test) = noisy(60, 1), noisy(40, 2), noisy(30, 3)
    features, data = {"train": train, "dev": dev, "test": test}, make(labels, of_dev, of_test)
    found = probe(features, data, "accuracy", 42)
    assert found.choice.scores[found.choice.value] == score(found.dev)["accuracy"]


def test_the_test_split_has_no_part_in_the_choice(make):
    (train, labels), (dev, of_dev), (test, of_test) = noisy(60, 1), noisy(40, 2), noisy(30, 3)
    features = {"train": train, "dev": dev, "test": test}
    found, flipped = (probe(features, make(labels, of_dev, t), "mcc", 42) for t in (of_test, 1 - of_test))
    assert found.choice == flipped.choice
    assert found.test.probabilities.tolist() == flipped.test.probabilities.tolist()


def test_without_a_dev_split_a_cross_validation_of_the_training_rows_chooses(make):
    (train, labels), (test, of_test) = noisy(60, 1), noisy(30, 3)
    found = probe({"train": train, "test": test}, make(labels, None, of_test), "mcc", 42)
    assert found.dev is None
    assert found.choice.by == "5-fold cross-validation on train"
    assert found.choice.scores[found.choice.value] == max(found.choice.scores.values())
    # Pure noise and few rows: a copy of a row on both sides of a fold would be recognised.
    noise = np.random.default_rng(5).normal(size=(60, 200))
    found = probe({"train": noise, "test": test[:, :1] * np.ones(200)}, make(labels, None, of_test), "mcc", 42)
    assert max(found.choice.scores.values()) < 0.5


def test_with_too_few_rows_for_that_the_penalty_is_fixed(make):
    (train, labels), (test, of_test) = noisy(8, 1), noisy(30, 3)
    found = probe({"train": train, "test": test}, make(labels, None, of_test), "mcc", 42)
    assert (found.choice.value, found.choice.scores) == (UNCHOSEN_PENALTY, {})
    assert found.choice.by == "nothing: too few training rows"


def test_a_class_without_training_rows_has_probability_0(make):
    (train, labels), (test, of_test) = noisy(60, 1), noisy(30, 3, classes=3)
    found = probe({"train": train, "dev": test, "test": test}, make(2 * labels, of_test, of_test, 3), "mcc", 42)
    assert found.test.probabilities[:, 1].tolist() == [0.0] * 30
    assert found.test.probabilities.sum(axis=1) == pytest.approx(1)


def test_several_classes_are_told_apart(make):
    (train, labels), (dev, of_dev), (test, of_test) = (noisy(300, seed, classes=3) for seed in (1, 2, 3))
    for features, own in ((train, labels), (dev, of_dev), (test, of_test)):
        features[:, 1] += 4 * (own == 1)
        features[:, 2] += 4 * (own == 2)
    features, data = {"train": train, "dev": dev, "test": test}, make(labels, of_dev, of_test, 3)
    assert score(probe(features, data, "mcc", 42).test)["mcc"] > 0.9


def test_many_features_are_fitted_by_another_solver_to_the_same_probabilities(make, monkeypatch):
    (train, labels), (dev, of_dev), (test, of_test) = noisy(200, 1), noisy(40, 2), noisy(30, 3)
    features, data = {"train": train, "dev": dev, "test": test}, make(labels, of_dev, of_test)
    newton = probe(features, data, "mcc", 42)
    monkeypatch.setattr(probing, "_NEWTON_WEIGHTS", 10)
    lbfgs = probe(features, data, "mcc", 42)
    assert (newton.fit.solver, lbfgs.fit.solver) == ("newton-cholesky", "lbfgs")
    assert lbfgs.choice.value == newton.choice.value
    assert lbfgs.test.probabilities == pytest.approx(newton.test.probabilities, abs=1e-3)


def test_a_fit_that_does_not_converge_is_told_in_the_result(make, monkeypatch):
    (train, labels), (dev, of_dev), (test, of_test) = noisy(60, 1), noisy(40, 2), noisy(30, 3)
    monkeypatch.setattr(probing, "_NEWTON", {"solver": "newton-cholesky", "max_iter": 1, "tol": 1e-12})
    found = probe({"train": train, "dev": dev, "test": test}, make(labels, of_dev, of_test), "mcc", 42)
    assert (found.fit.iterations, found.fit.converged) == (1, False)


def test_one_label_alone_teaches_nothing(make):
    (train, _), (test, of_test) = noisy(8, 1), noisy(30, 3)
    with pytest.raises(UserError, match="all rows have the same label"):
        probe({"train": train, "test": test}, make([1] * 8, None, of_test), "mcc", 42)
