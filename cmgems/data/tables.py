"""CSV and TSV files with a header: rows of text, each with the line that an editor shows."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO

from cmgems.data.streams import open_text
from cmgems.errors import UserError

_LARGEST_CELL = 2**31 - 1  # characters; csv's own limit is 131,072
_SHOWN = 60  # characters of a cell in an error message


def read_table(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a file with a header: the line where each begins, and its cells in the order of `columns`, then
    of those `optional` ones that the header has.

    Columns are separated by tabs if there is one in the header, else by commas; cells may be quoted; blank lines are
    passed over. The file may be compressed (gzip, bzip2, xz), whatever its name.

    Raises
    ------
    UserError
        If the file cannot be read, lacks one of `columns`, or has a row with another number of cells than the header.
    """
    try:
        with open_text(path) as file, _long_cells():
            yield from _rows(file, path, columns, optional)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


@contextmanager
def _long_cells() -> Iterator[None]:
    """Lift csv's limit to the length of a cell, which is one of the whole process."""
    before = csv.field_size_limit(_LARGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _rows(
    file: IO[str], path: Path, columns: Sequence[str], optional: Sequence[str]
) -> Iterator[tuple[int, list[str]]]:
    first = file.readline()
    delimiter = "\t" if "\t" in first else ","
    header: list[str] = []
    for number, cells in _cells(chain([first], file), delimiter, path):
        if not header:
            header = cells
            require_columns(header, f"{path}, line {number}", columns)
            places = [header.index(column) for column in (*columns, *(name for name in optional if name in header))]
        elif len(cells) != len(header):
            raise UserError(f"{path}, line {number}: {len(cells)} cells, but the header has {len(header)}")
        else:
            yield number, [cells[place] for place in places]
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


def require_columns(columns: list[str], where: str, wanted: Sequence[str]) -> None:
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
