"""The splits of a task, read and checked: sequences of A, C, G, T and N, and labels that the task knows, or values.

Sequences are read as genomes are (`cmgems.data.genomes`): lower case counts, U is T, every other IUPAC code is N.
Gaps and anything else are errors. A sequence may be written as its overlapping k-mers with blanks between them. No row
is ever left out.
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cmgems.data.alphabet import AMBIGUITY_CODES
from cmgems.data.clusters import folds_of
from cmgems.data.hub import is_hub_name, is_saved_dataset_dict, load_dataset
from cmgems.data.tables import shorten
from cmgems.downstream import rows
from cmgems.downstream.rows import Row
from cmgems.downstream.tasks import FOLDS, Scale, Table, Task
from cmgems.errors import UserError

RESPLIT_TRAIN_SHARE = 0.8
"""Share of the validation split that becomes the training split of a task without one."""

_AMBIGUOUS = AMBIGUITY_CODES + AMBIGUITY_CODES.lower()
_TO_BASES = str.maketrans("acgtnuU" + _AMBIGUOUS, "ACGTNTT" + "N" * len(_AMBIGUOUS))
_SEQUENCE = re.compile("[ACGTN]+")
_INVALID = re.compile("[^ACGTN]")
_LABEL = re.compile("[0-9]{1,9}")
_VALUE = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_LARGEST_VALUE = 1e100  # its square is a number too

# Names of the splits in datasets on the hub, in the order in which they are tried, and in the column of a table.
_DATASET_SPLITS = {"train": ("train",), "dev": ("dev", "validation", "valid", "val"), "test": ("test",)}


@dataclass(frozen=True)
class Split:
    """The rows of a split, in the order in which they are written."""

    source: str
    """File or dataset that they come from."""
    sequences: list[str]
    """Nucleotides: A, C, G, T and N."""
    labels: npt.NDArray[Any]
    """Labels [rows] in 0..classes-1, int64; of a task with a value the values, float64."""
    ambiguous: list[int]
    """Number of nucleotides of each row that are N here and another IUPAC code in the source."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.sequences)

    @property
    def has_values(self) -> bool:
        """Whether the rows have values, and not labels of classes."""
        return self.labels.dtype.kind == "f"

    def class_counts(self, classes: int) -> list[int]:
        """Return the number of rows of each class."""
        return [int(count) for count in np.bincount(self.labels, minlength=classes)]


@dataclass(frozen=True)
class TaskData:
    """A task with its splits."""

    task: Task
    train: Split
    dev: Split | None
    """Validation split; None: the task has none."""
    test: Split
    resplit: bool = False
    """Whether train and dev are both parts of what was published as dev. Scores are then not those of the benchmark."""

    @property
    def splits(self) -> dict[str, Split]:
        """The splits there are, by name."""
        every = {"train": self.train, "dev": self.dev, "test": self.test}
        return {name: split for name, split in every.items() if split is not None}


def read_task(task: Task, data: str | Path, resplit: bool = False, seed: int = 42) -> TaskData:
    """Read all splits of `task`.

    Parameters
    ----------
    task
        Says where the files are and how many classes there are.
    data
        Folder that holds the task's folder, which is one of files or a dataset saved by the `datasets` library; or the
        name of a dataset on the Hugging Face hub (`owner/name`), of which the task is one configuration.
    resplit
        If the training split is absent, divide the validation split in two instead of raising an error.
    seed
        Seed of that division, and of the draw of a task's `train_rows`.

    Raises
    ------
    UserError
        If something is missing or wrong; the message names the file and the line, or the dataset and the row.
    """
    found = _read_splits(task, str(data), resplit, seed)
    if task.value is not None:
        for split in found.splits.values():
            _require_different_values(split)
    return found


def _read_splits(task: Task, data: str, resplit: bool, seed: int) -> TaskData:
    place, find = _find_splits(task, data)
    train, dev, test = find("train"), find("dev") if task.files.dev is not None else None, find("test")
    if test is None:
        raise UserError(f"{place}: task {task.name} has no test split here ({_tried(task, 'test')})")
    if train is not None:
        return TaskData(task, _draw_rows(train, task.train_rows, seed), _require_dev(task, dev, place), test)
    missing = f"{place}: task {task.name} has no train split here ({_tried(task, 'train')})"
    if dev is None:
        raise UserError(missing)
    if not resplit:
        raise UserError(
            f"{missing}; --resplit divides its dev split instead, for scores that compare with none published"
        )
    train, dev = divide(dev, RESPLIT_TRAIN_SHARE, seed)
    return TaskData(task, _draw_rows(train, task.train_rows, seed), dev, test, resplit=True)


def _draw_rows(train: Split, rows: int | None, seed: int) -> Split:
    """Return about so many rows of a split, as large a share of each class; all of a split that has no more.

    Rows with values are drawn as those of one class.
    """
    if rows is None or len(train) <= rows:
        return train
    return replace(divide(train, rows / len(train), seed)[0], source=f"{train.source} (about {rows:,} rows)")


def divide(split: Split, share: float, seed: int) -> tuple[Split, Split]:
    """Divide a split in two, class by class, so that the first has `share` of the rows of each class, or of all rows
    with values.

    Which rows go where depends on the sequences and the seed alone, not on their order; equal sequences of a class are
    neighbours in the ranking, so that at most one such group is divided. The order of the rows stays.

    Raises
    ------
    UserError
        If there are too few rows.
    """
    keys = [blake2b(f"{seed}\t{sequence}".encode(), digest_size=16).digest() for sequence in split.sequences]
    is_first = np.zeros(len(split), dtype=bool)
    classes = np.zeros(len(split)) if split.has_values else split.labels
    for label in np.unique(classes):
        ranked = sorted(np.flatnonzero(classes == label).tolist(), key=lambda row: (keys[row], row))
        is_first[ranked[: round(len(ranked) * share)]] = True
    if is_first.all() or not is_first.any():
        raise UserError(f"{split.source}: {len(split)} rows are too few to divide")
    source = f"{split.source} (resplit)"
    return _select(split, np.flatnonzero(is_first), source), _select(split, np.flatnonzero(~is_first), source)


def _select(split: Split, chosen: npt.NDArray[np.int64], source: str) -> Split:
    sequences = [split.sequences[row] for row in chosen.tolist()]
    ambiguous = [split.ambiguous[row] for row in chosen.tolist()]
    return Split(source, sequences, split.labels[chosen], ambiguous)


def _find_splits(task: Task, data: str) -> tuple[str, Callable[[str], Split | None]]:
    """Return the task's place, and a function that reads the split of a name, or gives None if it is not there."""
    folder = Path(data) / (task.folder or task.name)
    if task.table is not None:
        return str(folder / task.table.file), _table_splits(task, task.table, folder / task.table.file)
    if is_saved_dataset_dict(folder):
        return str(folder), _dataset_splits(task, str(folder))
    if folder.is_dir():
        return str(folder), lambda name: _file_split(task, folder, name)
    if not Path(data).exists() and is_hub_name(data):
        # Without a configuration, several tasks would all be given the same data.
        if task.configuration is None:
            raise UserError(
                f"{data}: task {task.name} does not say which configuration of the dataset it is "
                "(`configuration: default` where there is only one)"
            )
        return data, _dataset_splits(task, data)
    if not Path(data).is_dir():
        raise UserError(f"{data}: there is no such folder")
    raise UserError(f"{data}: there is no folder {task.folder or task.name} in it, where task {task.name} has its data")


def _file_split(task: Task, folder: Path, name: str) -> Split | None:
    path = next((folder / file for file in _file_names(task, name) if (folder / file).is_file()), None)
    if path is None:
        return None
    path = path.resolve() if ".." in path.parts else path
    return _read_rows(task, rows.read_file(path, _columns(task)), str(path), "line")


def _table_splits(task: Task, table: Table, path: Path) -> Callable[[str], Split | None]:
    """Return a function that gives the rows of a table that are in the split of a name, or None without any."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such file, where task {task.name} has the table of its rows")
    columns = [table.sequence, table.target or _columns(task)[1], *([table.split] if table.split else [])]
    there = list(rows.read_file(path, columns))
    every = _read_rows(task, there, str(path), "line")
    if table.fold is None:
        of_rows = [_split_name(row, f"{path}, line {row.number}") for row in there]
    else:
        folds = folds_of(tuple(every.sequences), FOLDS)
        of_rows = [_split_of_fold((fold - (table.fold - 1)) % FOLDS) for fold in folds]

    def find(name: str) -> Split | None:
        chosen = np.flatnonzero(np.array(of_rows) == name)
        return _select(every, chosen, f"{path}, split {name}") if len(chosen) else None

    return find


def _split_of_fold(distance: int) -> str:
    """Name of the split that a fold is, by how far it comes after the one that is the test split."""
    return {0: "test", 1: "dev"}.get(distance, "train")


def _split_name(row: Row, where: str) -> str:
    found = next((name for name, names in _DATASET_SPLITS.items() if row.split.strip() in names), None)
    if found is None:
        names = ", ".join(name for names in _DATASET_SPLITS.values() for name in names)
        raise UserError(f"{where}: the split is '{shorten(row.split)}'; it must be one of {names}")
    return found


def _columns(task: Task) -> tuple[str, str]:
    """Names of the columns with the sequences, and with the labels or values."""
    return ("sequence", "label" if task.value is None else "value")


def _read_rows(task: Task, lines: Iterable[Row], source: str, counted_in: str) -> Split:
    return read_split(lines, source, counted_in, len(task.classes), task.length, task.scale)


def _dataset_splits(task: Task, source: str) -> Callable[[str], Split | None]:
    splits = load_dataset(source, task.configuration)

    def find(name: str) -> Split | None:
        there = next((there for there in _DATASET_SPLITS[name] if there in splits), None)
        if there is None:
            return None
        where = f"{source}, split {there}"
        return _read_rows(task, rows.read_dataset(splits[there], where, _columns(task)), where, "row")

    return find


def _file_names(task: Task, name: str) -> list[str]:
    names: list[str] | None = getattr(task.files, name)
    return names or []


def _tried(task: Task, name: str) -> str:
    if task.table is not None:
        return f"rows of the column `{task.table.split}`" if task.table.split else "too few sequences for folds"
    return " or ".join(_file_names(task, name))


def _require_dev(task: Task, dev: Split | None, place: str) -> Split | None:
    if dev is None and task.files.dev is not None:
        raise UserError(
            f"{place}: task {task.name} has no dev split here ({_tried(task, 'dev')}); "
            "a task that is to have none says `files: {dev: null}`"
        )
    return dev


def read_split(
    lines: Iterable[Row],
    source: str,
    counted_in: str,
    classes: int,
    longest: int | None = None,
    scale: Scale = "linear",
) -> Split:
    """Read the rows of a split, and check them.

    Parameters
    ----------
    lines
        The rows as text.
    source, counted_in
        What error messages call the file or dataset, and what its rows are numbered in: `line` or `row`.
    classes
        Number of classes of the task: labels are 0..classes-1; 0: there are values instead.
    longest
        Length of the task's longest sequence, in nucleotides; None: any.
    scale
        What is made of the values.

    Raises
    ------
    UserError
        Naming the source and the row of what is wrong; also if there are no rows.
    """
    sequences: list[str] = []
    labels: list[float] = []
    ambiguous: list[int] = []
    for row in lines:
        where = f"{source}, {counted_in} {row.number}"
        text = join_kmers(row.sequence, where)
        sequences.append(_to_bases(text, where))
        if longest is not None and len(sequences[-1]) > longest:
            raise UserError(f"{where}: {len(sequences[-1])} nucleotides, but the task's length is {longest}")
        ambiguous.append(sequences[-1].count("N") - text.count("N") - text.count("n"))
        labels.append(_to_label(row.label, classes, where) if classes else _to_value(row.label, scale, where))
    if not sequences:
        raise UserError(f"{source}: there are no rows in it")
    return Split(source, sequences, np.array(labels, dtype=np.int64 if classes else np.float64), ambiguous)


def join_kmers(text: str, where: str) -> str:
    """Return the sequence that overlapping k-mers with blanks between them were made of; text without blanks as it is.

    Raises
    ------
    UserError
        If the k-mers do not overlap; `where` begins the message.

    Examples
    --------
    >>> join_kmers("ACG CGT GTT", "train.tsv, line 2")
    'ACGTT'
    """
    kmers = text.split()
    if len(kmers) < 2:
        return text.strip()
    k = len(kmers[0])
    sequence = kmers[0] + "".join(kmer[-1] for kmer in kmers[1:])
    for i, kmer in enumerate(kmers):
        if kmer != sequence[i : i + k]:
            pair = f"{shorten(kmers[i - 1])} and {shorten(kmer)}"
            raise UserError(f"{where}: words {i} and {i + 1} are {pair}, but neighbouring {k}-mers share {k - 1} bases")
    return sequence


def _to_bases(text: str, where: str) -> str:
    sequence = text.translate(_TO_BASES)
    if _SEQUENCE.fullmatch(sequence):
        return sequence
    invalid = _INVALID.search(sequence)
    if invalid is None:
        raise UserError(f"{where}: there is no sequence")
    at = invalid.start()
    character = ascii(invalid.group())
    raise UserError(f"{where}: {character} (character {at + 1}) is not a nucleotide or an IUPAC code")


def _to_label(text: str, classes: int, where: str) -> int:
    if not _LABEL.fullmatch(text.strip()):
        raise UserError(f"{where}: the label is '{shorten(text)}'; it must be a number in 0..{classes - 1}")
    label = int(text)
    if label >= classes:
        raise UserError(f"{where}: the label is {label}, but the task has {classes} classes: 0..{classes - 1}")
    return label


def _to_value(text: str, scale: Scale, where: str) -> float:
    if not _VALUE.fullmatch(text.strip()):
        raise UserError(f"{where}: the value is '{shorten(text)}'; it must be a finite number")
    value = float(text)
    if abs(value) > _LARGEST_VALUE:
        raise UserError(f"{where}: the value is {shorten(text)}; it must be within ±{_LARGEST_VALUE:g}")
    if scale == "linear":
        return value
    if value < 0:
        raise UserError(f"{where}: the value is {shorten(text)}; the scale {scale} takes none below 0")
    return math.log1p(value)


def _require_different_values(split: Split) -> None:
    deviation = split.labels.std()
    if not deviation > 0:
        raise UserError(f"{split.source}: all {len(split)} rows have the same value: no correlation is defined")
