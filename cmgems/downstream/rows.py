"""Sequences with labels or values as they are written: CSV and TSV files, and Hugging Face datasets.

Both give rows of text, each with the number that an error message names: in a file the line that an editor shows, in a
dataset the row, from 0. What the text means is read in `cmgems.downstream.data`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cmgems.data.tables import read_table, require_columns
from cmgems.errors import UserError

COLUMNS = ("sequence", "label")


class Row(NamedTuple):
    """A labelled sequence."""

    number: int
    """Line of the file, from 1, or row of the dataset, from 0."""
    sequence: str
    """The cell of the column `sequence`."""
    label: str
    """The cell of the column `label`, or of that of the values."""
    split: str = ""
    """The cell of the column that says which split the row is in; empty where none is read."""


def read_file(path: Path, columns: Sequence[str] = COLUMNS) -> Iterator[Row]:
    """Yield the rows of a file with a header, which names at least the columns of a row, by default `sequence` and
    `label`.

    Raises
    ------
    UserError
        As `cmgems.data.tables.read_table`.
    """
    for number, cells in read_table(path, columns):
        yield Row(number, *cells)


def read_dataset(dataset: Any, name: str, columns: Sequence[str] = COLUMNS) -> Iterator[Row]:
    """Yield the rows of a split of a Hugging Face dataset with the columns of a row, by default `sequence` and `label`.

    Raises
    ------
    UserError
        If a column is missing, or a cell empty.
    """
    require_columns(dataset.column_names, name, columns)
    for number, row in enumerate(dataset.select_columns(list(columns))):
        empty = [column for column in columns if row[column] is None]
        if empty:
            raise UserError(f"{name}, row {number}: there is nothing in the column `{empty[0]}`")
        yield Row(number, *(str(row[column]) for column in columns))
