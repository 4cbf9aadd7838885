"""What occurs more than once is counted."""

import numpy as np

from cmgems.downstream.data import Split, TaskData
from cmgems.downstream.integrity import Duplicates, Overlap, check_integrity


def split(source, *rows):
    return Split(source, [sequence for sequence, _ in rows], np.array([label for _, label in rows]), [0] * len(rows))


def test_duplicates_and_overlaps(make_task):
    data = TaskData(
        make_task(),
        train=split("train", ("AA", 0), ("AA", 0), ("AA", 1), ("CC", 1), ("GG", 0)),
        dev=split("dev", ("TT", 0)),
        test=split("test", ("CC", 1), ("CC", 1), ("GG", 1), ("AC", 0)),
    )
    found = check_integrity(data)
    assert found.task == "toy"
    assert found.rows == {"train": 5, "dev": 1, "test": 4}
    assert found.duplicates == [
        Duplicates("train", sequences=1, rows=2, conflicting=1),
        Duplicates("dev", sequences=0, rows=0, conflicting=0),
        Duplicates("test", sequences=1, rows=1, conflicting=0),
    ]
    assert found.overlaps == [
        Overlap("train", "dev", sequences=0, rows=0, conflicting=0),
        Overlap("train", "test", sequences=2, rows=3, conflicting=1),
        Overlap("dev", "test", sequences=0, rows=0, conflicting=0),
    ]
    assert len(data.test) == 4


def test_a_task_without_a_validation_split(make_task):
    data = TaskData(make_task(), split("train", ("AA", 0)), None, split("test", ("AA", 0)))
    found = check_integrity(data)
    assert [(overlap.first, overlap.second) for overlap in found.overlaps] == [("train", "test")]
    assert [overlap.rows for overlap in found.overlaps] == [1]
