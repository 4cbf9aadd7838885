"""Sequences that occur more than once, within a split and across splits: counted, never dropped."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations

from cmgems.downstream.data import Split, TaskData


@dataclass(frozen=True)
class Duplicates:
    """Sequences that occur more than once in a split."""

    split: str
    sequences: int
    """Different sequences that occur more than once."""
    rows: int
    """Rows that repeat the sequence of an earlier row."""
    conflicting: int
    """Different sequences that have more than one label, or value."""


@dataclass(frozen=True)
class Overlap:
    """Sequences that occur in two splits."""

    first: str
    second: str
    sequences: int
    """Different sequences that occur in both."""
    rows: int
    """Rows of the second split whose sequence occurs in the first."""
    conflicting: int
    """Different sequences that occur in both and do not have the same labels there."""


@dataclass(frozen=True)
class Integrity:
    """What occurs more than once in a task."""

    task: str
    rows: dict[str, int]
    """Rows of each split."""
    duplicates: list[Duplicates] = field(default_factory=list)
    """One for each split."""
    overlaps: list[Overlap] = field(default_factory=list)
    """One for each two splits: (train, dev), (train, test), (dev, test)."""


def check_integrity(data: TaskData) -> Integrity:
    """Count what occurs more than once in the splits of a task."""
    labels = {name: _labels_of(split) for name, split in data.splits.items()}
    return Integrity(
        task=data.task.name,
        rows={name: len(split) for name, split in data.splits.items()},
        duplicates=[_duplicates(name, split, labels[name]) for name, split in data.splits.items()],
        overlaps=[
            _overlap(first, second, labels[first], data.splits[second], labels[second])
            for first, second in combinations(data.splits, 2)
        ],
    )


def _labels_of(split: Split) -> dict[str, set[float]]:
    """Map each sequence to all labels, or values, that it has."""
    labels: defaultdict[str, set[float]] = defaultdict(set)
    for sequence, label in zip(split.sequences, split.labels.tolist(), strict=True):
        labels[sequence].add(label)
    return labels


def _duplicates(name: str, split: Split, labels: Mapping[str, set[float]]) -> Duplicates:
    seen: set[str] = set()
    repeated: list[str] = []
    for sequence in split.sequences:
        if sequence in seen:
            repeated.append(sequence)
        seen.add(sequence)
    conflicting = sum(len(several) > 1 for several in labels.values())
    return Duplicates(name, sequences=len(set(repeated)), rows=len(repeated), conflicting=conflicting)


def _overlap(
    first: str, second: str, labels: Mapping[str, set[float]], split: Split, other_labels: Mapping[str, set[float]]
) -> Overlap:
    shared = labels.keys() & other_labels.keys()
    return Overlap(
        first,
        second,
        sequences=len(shared),
        rows=sum(sequence in shared for sequence in split.sequences),
        conflicting=sum(labels[sequence] != other_labels[sequence] for sequence in shared),
    )
