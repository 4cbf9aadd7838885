"""The analysis of a study, against scikit-learn, brute force, and numbers worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, matthews_corrcoef

from cmgems.study.analysis import (
    Bootstrap,
    Endpoint,
    difference,
    metric_of_counts,
    share_to_reach,
    sign_test,
)
from cmgems.study.records import Entry, Pretraining, Record, pack_rows, unpack_rows

pairs = st.integers(2, 4).flatmap(
    lambda classes: st.lists(
        st.tuples(st.integers(0, classes - 1), st.integers(0, classes - 1)), min_size=1, max_size=60
    ).map(lambda rows: (classes, rows))
)


def entry(labels, predicted, classes=2, metric="mcc"):
    value = matthews_corrcoef(labels, predicted) if metric == "mcc" else accuracy_score(labels, predicted)
    outcomes = pack_rows(np.array(labels) * classes + np.array(predicted))
    rows = {"test": len(labels)}
    return Entry(
        metric=metric, value=value, dev=None, choice=None, classes=classes, rows=rows, seconds=0, outcomes=outcomes
    )


def record(arm, seed, tasks):
    pretraining = Pretraining(
        steps=10, tokens=0, petaflop=0, hours=0, switches=[], masked_share=0, hidden_bases_share=0, validation={}
    )
    scores = {"probe": {10: tasks}}
    return Record(study="toy", arm=arm, seed=seed, settings={}, pretraining=pretraining, scores=scores)


@given(pairs)
def test_metrics_of_counts_are_scikit_learns(drawn):
    classes, rows = drawn
    labels, predicted = np.array(rows).T
    counts = np.zeros((classes, classes))
    np.add.at(counts, (labels, predicted), 1)
    assert metric_of_counts(counts, "mcc") == pytest.approx(matthews_corrcoef(labels, predicted), abs=1e-12)
    assert metric_of_counts(counts, "accuracy") == pytest.approx(accuracy_score(labels, predicted))


@given(st.lists(st.integers(0, 255), max_size=300))
def test_rows_are_unpacked_as_they_were_packed(values):
    assert unpack_rows(pack_rows(np.array(values, dtype=np.int64))).tolist() == values


def test_resampled_scores_are_those_of_the_resampled_rows():
    draw = np.random.default_rng(1)
    labels, predicted = draw.integers(2, size=(2, 50))
    bootstrap = Bootstrap(resamples=20)
    found = bootstrap.scores("one", entry(labels, predicted))
    assert found[0] == pytest.approx(matthews_corrcoef(labels, predicted))
    weights = bootstrap._resampled("one", 50)
    assert weights.sum(axis=1).tolist() == [50] * 20
    for value, times in zip(found[1:], weights, strict=True):
        rows = np.repeat(np.arange(50), times.astype(int))
        assert value == pytest.approx(matthews_corrcoef(labels[rows], predicted[rows]))


def test_both_arms_get_the_same_rows():
    labels = np.array([0, 1] * 40)
    predicted = labels.copy()
    predicted[:20] = 1 - predicted[:20]
    same = entry(labels, predicted)
    endpoint = Endpoint([record(arm, seed, {"one": same}) for arm in "ab" for seed in (1, 2)], ["probe"])
    bootstrap = Bootstrap(resamples=100)
    found = difference(endpoint, "a", "b", endpoint.resampled("ab", bootstrap), bootstrap)
    assert (found.mean, found.low, found.high, found.error) == (0, 0, 0, 0)


def test_a_difference_is_that_of_the_seeds_that_both_have():
    labels = np.array([0, 1] * 100)

    def with_errors(number):
        predicted = labels.copy()
        predicted[:number] = 1 - predicted[:number]
        return entry(labels, predicted)

    records = [record("a", seed, {"one": with_errors(10 * seed)}) for seed in (1, 2, 3)]
    records += [record("b", seed, {"one": with_errors(30)}) for seed in (1, 2)]
    endpoint = Endpoint(records, ["probe"])
    bootstrap = Bootstrap(resamples=2000)
    found = difference(endpoint, "a", "b", endpoint.resampled("ab", bootstrap), bootstrap)
    assert found.seeds == [1, 2]
    assert found.by_seed == pytest.approx([0.2, 0.1])  # of 200 rows 10 fewer wrong: MCC 0.1 more
    assert found.mean == pytest.approx(0.15)
    assert found.by_task == {"one": pytest.approx(0.15)}
    assert found.low < 0.15 < found.high
    assert found.low < 0.1  # seeds alone: 0.1 to 0.2; rows add to it
    assert found.high > 0.2


def test_intervals_hold_the_true_difference_as_often_as_they_say():
    """Two arms of equal accuracy, 12 seeds: the interval of 95 % leaves out zero in about one of twenty studies."""
    draw = np.random.default_rng(7)
    missed, studies = 0, 60
    for _ in range(studies):
        labels = draw.integers(2, size=200)
        records = []
        for arm in "ab":
            for seed in range(1, 13):
                right = draw.random(200) < draw.normal(0.75, 0.03)
                records.append(record(arm, seed, {"one": entry(labels, np.where(right, labels, 1 - labels))}))
        endpoint = Endpoint(records, ["probe"])
        bootstrap = Bootstrap(resamples=100)
        found = difference(endpoint, "a", "b", endpoint.resampled("ab", bootstrap), bootstrap)
        missed += not found.low <= 0 <= found.high
    assert missed / studies < 0.12


def test_ranks_are_means_over_the_tasks_with_ties_shared():
    labels = [0, 1] * 10
    good, bad = entry(labels, labels), entry(labels, [1 - x for x in labels])
    records = [
        record("a", 1, {"one": good, "two": bad}),
        record("b", 1, {"one": good, "two": good}),
        record("c", 1, {"one": bad, "two": bad}),
    ]
    assert Endpoint(records, ["probe"]).ranks(["a", "b", "c"]) == {"a": 2.0, "b": 1.25, "c": 2.75}


def test_an_arm_without_all_scores_is_not_compared():
    endpoint = Endpoint([record("a", 1, {"one": entry([0, 1], [0, 1])})], ["probe", "tuned"])
    assert endpoint.by_arm == {}
    bootstrap = Bootstrap(resamples=2)
    assert difference(endpoint, "a", "b", {}, bootstrap) is None


@pytest.mark.parametrize(
    ("values", "p"), [([1, 1, 1, 1, 1], 0.0625), ([1, 1, 1, 1, 1, 1], 0.03125), ([1, -1, 0], 1.0), ([], 1.0)]
)
def test_sign_test(values, p):
    assert sign_test(values) == p


@pytest.mark.parametrize(
    ("values", "target", "share"),
    [
        ([1, 2, 3], 0.5, 0.25),
        ([1, 2, 3], 1.5, 0.375),
        ([1, 2, 3], 3, 1.0),
        ([1, 2, 3], 4, None),
        ([3, 1, 4], 3.5, None),
    ],
)
def test_share_to_reach(values, target, share):
    found = share_to_reach([0.25, 0.5, 1.0], values, target)
    assert found == share or (share is None and found == pytest.approx(0.5 + 0.5 * 2.5 / 3))
