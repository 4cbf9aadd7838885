"""Sequences with labels or values as they are written: CSV and TSV files, and Hugging Face datasets.

Both give rows of text, each with the number that an error message names: in a file the line that an editor shows, in a
dataset the row, from 0. What the text means is read in `cmgems.downstream.data`.
"""

import csv
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple

from cmgems.data.streams import open_text
from cmgems.errors import UserError

COLUMNS = ("sequence", "label")

_LARGEST_CELL = 2**31 - 1  # characters; csv's own limit is 131,072
_SHOWN = 60  # characters of a cell in an error message


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

    Columns are separated by tabs if there is one in the header, else by commas; cells may be quoted; blank lines are
    passed over. The file may be compressed (gzip, bzip2, xz), whatever its name.

    Raises
    ------
    UserError
        If the file cannot be read, has no such columns, or has a row with another number of cells than the header.
    """
    csv.field_size_limit(_LARGEST_CELL)
    try:
        with open_text(path) as file:
            yield from _rows(file, path, columns)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def _rows(file: IO[str], path: Path, columns: Sequence[str]) -> Iterator[Row]:
    first = file.readline()
    delimiter = "\t" if "\t" in first else ","
    header: list[str] = []
    for number, cells in _cells(chain([first], file), delimiter, path):
        if not header:
            header = cells
            require_columns(header, f"{path}, line {number}", columns)
            places = [header.index(column) for column in columns]
        elif len(cells) != len(header):
            raise UserError(f"{path}, line {number}: {len(cells)} cells, but the header has {len(header)}")
        else:
            yield Row(number, *(cells[place] for place in places))
    if not header:
        raise UserError(f"{path}, line 1: the file is empty")


def _cells(lines: Iterable[str], delimiter: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield each row that is not blank, with the line where it begins: a quoted cell may hold line ends."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise UserError(f"{path}, line {number}: this row cannot be read ({error})") from error
        if cells is None:
            return
        if cells:
            yield number, cells


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


def require_columns(columns: list[str], where: str, wanted: Sequence[str] = COLUMNS) -> None:
    """Check that the `wanted` columns are among `columns`.

    Raises
    ------
    UserError
        If one is missing; `where` begins the message.
    """
    for column in wanted:
        if column not in columns:
            raise UserError(f"{where}: there is no column `{column}`; the columns are: {shorten(', '.join(columns))}")


def shorten(text: str) -> str:
    """Return `text` as an error message can show it: on one line, and not at any length."""
    text = ascii(text)[1:-1]
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
