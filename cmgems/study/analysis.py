"""The numbers of a study, from its records: means, paired differences, ranks, and how sure they are.

References
----------
Sellam et al., The MultiBERTs: BERT Reproductions for Robustness Analysis, ICLR 2022 (arXiv:2106.16163): the bootstrap
over seeds and test rows together.
"""

from collections.abc import Sequence

from cmgems.study.records import Record


def mean_score(record: Record, scores: Sequence[str], step: int, without: Sequence[str] = ()) -> float | None:
    """Return the mean over all tasks of some scores at a step; None if one of the scores is not there."""
    found = [record.scores.get(name, {}).get(step) for name in scores]
    values = [entry.value for own in found if own for task, entry in own.items() if task not in without]
    return sum(values) / len(values) if values and all(found) else None
