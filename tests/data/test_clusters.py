"""Similar sequences are in one cluster, and all of a cluster in one fold, whatever the order of the rows."""

import random
from collections import Counter

import numpy as np
import pytest

from cmgems.data import clusters
from cmgems.data.clusters import K, clusters_of, folds_of


def draw(length, seed):
    return "".join(random.Random(seed).choices("ACGT", k=length))


def mutated(sequence, share, seed):
    """The sequence with another base at a share of its places."""
    bases, drawn = list(sequence), random.Random(seed)
    for place in drawn.sample(range(len(bases)), round(share * len(bases))):
        bases[place] = drawn.choice([base for base in "ACGT" if base != bases[place]])
    return "".join(bases)


def jaccard(first, second):
    one, other = ({s[i : i + K] for i in range(len(s) - K + 1)} | {s} for s in (first, second))
    return len(one & other) / len(one | other)


def test_similar_sequences_are_in_one_cluster_and_others_are_not():
    genes = [draw(900, seed) for seed in range(5)]
    relatives = [mutated(gene, 0.15, seed) for seed, gene in enumerate(genes)]
    assert clusters_of(genes + relatives).tolist() == [0, 1, 2, 3, 4] * 2


def test_a_pair_is_similar_from_a_jaccard_index_of_three_hundredths_on():
    gene = draw(900, 1)
    for share in np.linspace(0.1, 0.5, 30):
        other = mutated(gene, share, 2)
        assert (len(set(clusters_of([gene, other]).tolist())) == 1) == (jaccard(gene, other) >= 0.03)


def test_relatives_of_relatives_are_in_the_cluster_too():
    first, second = draw(600, 1), draw(600, 2)
    both = first[:300] + second[300:]
    assert clusters_of([first, second]).tolist() == [0, 1]
    assert clusters_of([first, second, both]).tolist() == [0, 0, 0]


def test_short_sequences_are_similar_only_if_they_are_equal():
    assert clusters_of(["ACGT", "ACGA", "ACGT", "A"]).tolist() == [0, 1, 0, 2]


def test_more_sequences_than_are_compared_at_once(monkeypatch):
    monkeypatch.setattr(clusters, "_AT_ONCE", 7)
    genes = [draw(200, seed) for seed in range(30)]
    assert clusters_of(genes + genes).tolist() == [*range(30)] * 2


@pytest.fixture(scope="module")
def families():
    """Families of 12, 5, 5 and 2 genes, and 26 single ones."""
    sizes = [12, 5, 5, 2, *[1] * 26]
    return [
        mutated(draw(300, family), 0.05, 100 * family + i) for family, size in enumerate(sizes) for i in range(size)
    ]


def test_folds_keep_clusters_together_and_are_equally_large(families):
    folds = folds_of(tuple(families), 5)
    assert sorted(Counter(folds).values()) == [9, 9, 10, 10, 12]  # the family of 12 has a fold to itself
    assert len(set(zip(clusters_of(families).tolist(), folds, strict=True))) == 30


def test_the_order_of_the_rows_does_not_decide_which_share_a_fold(families):
    folds = dict(zip(families, folds_of(tuple(families), 5), strict=True))
    other = random.Random(3).sample(families, len(families))
    assert dict(zip(other, folds_of(tuple(other), 5), strict=True)) == folds
