"""The published tables of `codon` are read whole, and baselines on them score as published ones of their kind do."""

import numpy as np
import pytest

from cmgems.data.clusters import clusters_of
from cmgems.downstream.data import read_task
from cmgems.downstream.ridge import fit_forest, fit_ridge
from cmgems.downstream.scores import score
from cmgems.downstream.tasks import load_suite
from cmgems.downstream.tfidf import tfidf
from cmgems.report.published import published

TASKS = {task.name: task for task in load_suite("codon").tasks}
FOLDS = {table: [f"{table}/{fold}" for fold in range(1, 6)] for table in ("transcripts", "proteins")}

pytestmark = pytest.mark.matrix


@pytest.fixture(scope="module")
def read(shared_data):
    """Read a task."""
    folder = shared_data / "codon"
    if not folder.is_dir():
        pytest.skip(f"there are no tables of the suite codon in {shared_data}")
    return lambda name: read_task(TASKS[name], folder)


@pytest.mark.parametrize(
    ("name", "rows", "longest"),
    [("mRFP", (1021, 219, 219), 678), ("riboswitches", (248, 53, 54), 75), ("vaccines", (1600, 400, 400), 81)],
)
def test_tables_with_published_splits(read, name, rows, longest):
    splits = read(name).splits.values()
    assert tuple(map(len, splits)) == rows
    assert max(len(s) for split in splits for s in split.sequences) == longest == TASKS[name].length
    assert {base for split in splits for s in split.sequences for base in s} == set("ACGT")  # written with U


@pytest.mark.parametrize(("table", "rows", "clusters"), [("transcripts", 3528, 3495), ("proteins", 3627, 3602)])
def test_folds_of_genes(read, table, rows, clusters):
    folds = [read(name) for name in FOLDS[table]]
    sequences = [s for split in folds[0].splits.values() for s in split.sequences]
    assert len(sequences) == rows
    assert max(map(len, sequences)) == TASKS[FOLDS[table][0]].length
    cluster = dict(zip(sequences, clusters_of(sequences).tolist(), strict=True))
    assert len(set(cluster.values())) == clusters
    seen: set[int] = set()
    for fold in folds:
        own = {cluster[s] for s in fold.test.sequences}
        assert not own & seen
        assert not own & {cluster[s] for s in fold.train.sequences + fold.dev.sequences}
        assert abs(len(fold.test) - rows / 5) < 2
        seen |= own


@pytest.mark.parametrize("name", ["mRFP", "riboswitches"])
def test_a_random_forest_on_3_mers_scores_about_as_the_published_one(read, name):
    data = read(name)
    found = score(fit_forest(tfidf(data, 3), data, 42, resampled=False).test)["spearman"]
    assert found == pytest.approx(published("codon").scores["codon_tfidf", name] / 100, abs=0.06)


def test_codons_say_much_about_the_abundance_of_proteins(read):
    scores = []
    for name in FOLDS["proteins"]:
        data = read(name)
        found = fit_ridge(tfidf(data, 3, codons=True), data, "spearman", 42, resampled=False)
        scores.append(score(found.test)["spearman"])
    assert np.mean(scores) == pytest.approx(0.65, abs=0.02)
