"""Hugging Face datasets as genomes, in parts of bounded size.

The rows are regions: those with the same `chromosome` make one record, in the order of their `start`. Memory grows with
the number of rows, not with the length of their sequences.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cmgems.data import genome_text
from cmgems.data.genome_text import WHITESPACE, Text, Unit
from cmgems.data.hub import load_dataset
from cmgems.errors import UserError

_REGION_COLUMNS = ("sequence", "chromosome", "start")
_ROWS = 1000  # rows of a dataset looked at together
_LARGEST_START = 2**62  # what is added to it still fits 64 bits


def dataset_units(source: str) -> Iterator[Unit]:
    """Yield a dataset whose rows are regions, or each split of one whose rows are records.

    Raises
    ------
    UserError
        If the dataset cannot be loaded, or lacks the columns of a genome; while the text is read, if a chromosome has
        no name, a start is not a position, or a sequence is not text.
    """
    loaded = load_dataset(source, text_columns=("sequence", "chromosome"))
    parts: dict[Any, Any] = loaded if isinstance(loaded, datasets.DatasetDict) else {None: loaded}
    for dataset in parts.values():
        if "sequence" not in dataset.column_names:
            columns = ", ".join(dataset.column_names)
            raise UserError(f"{source}: this dataset has no column `sequence`; its columns are: {columns}")
    if any("chromosome" in dataset.column_names for dataset in parts.values()):
        # Rows are counted over all splits, in the order of the name.
        name = source if len(parts) == 1 else f"{source} (splits {', '.join(parts)})"
        yield Unit(name, "row", _region_texts(_joined(parts, source), name))
        return
    folder = Path(source).resolve().name if Path(source).is_dir() else source
    for split, dataset in parts.items():
        part = folder if len(parts) == 1 else f"{folder}/{split}"
        yield Unit(source, "row", _row_texts(dataset, part, source))


def _joined(parts: Mapping[Any, Any], source: str) -> Any:
    """Return the splits as one dataset of the columns of regions."""
    present = {tuple(name for name in _REGION_COLUMNS if name in part.column_names) for part in parts.values()}
    if len(present) > 1:
        raise UserError(f"{source}: some splits of this dataset have a column `chromosome` or `start`, others have not")
    [columns] = present
    try:
        return datasets.concatenate_datasets([part.select_columns(list(columns)) for part in parts.values()])
    except (ValueError, pa.ArrowException) as error:
        raise UserError(f"{source}: the splits of this dataset have columns of different types ({error})") from error


def _row_texts(dataset: Any, part: str, source: str) -> Iterator[Text]:
    """Yield every row as a record of its own, named after its number."""
    for row, texts in _cells(dataset, np.arange(len(dataset)), source):
        yield Text(f"{part}:{row}", row, b"", begins="record")
        for text in texts:
            yield Text(f"{part}:{row}", row, text)


def _region_texts(dataset: Any, name: str) -> Iterator[Text]:
    """Yield the rows as regions: chromosomes in the order of their first rows, each in the order of the positions."""
    chromosomes, chromosome_of, starts = _regions(dataset, name)
    has_starts = "start" in dataset.column_names
    before = -1
    end = 0
    for row, texts in _cells(dataset, np.lexsort((starts, chromosome_of)), name):
        chromosome = chromosomes[chromosome_of[row]]
        is_first = chromosome_of[row] != before
        before = chromosome_of[row]
        # The position left free keeps windows from reaching from one region into the next.
        end = int(starts[row]) if has_starts else 0 if is_first else end + 1
        yield Text(chromosome, row, b"", begins="record" if is_first else "region", start=end)
        for text in texts:
            yield Text(chromosome, row, text)
            end += len(text)


def _regions(dataset: Any, name: str) -> tuple[list[str], npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Return the chromosomes' names, and for each row the index of its chromosome and its start, both [rows].

    Without a column `start`, all starts are 0.
    """
    numbers: dict[str, int] = {}
    chromosome_of = np.zeros(len(dataset), dtype=np.int32)
    starts = np.zeros(len(dataset), dtype=np.int64)
    columns = dataset.select_columns([column for column in dataset.column_names if column != "sequence"])
    row = 0
    for table in columns.with_format("arrow").iter(batch_size=_ROWS):
        chromosomes = table["chromosome"].to_pylist()
        positions = table["start"].to_pylist() if "start" in table.column_names else [0] * len(table)
        for chromosome, start in zip(chromosomes, positions, strict=True):
            if chromosome in (None, ""):
                raise UserError(f"{name}, row {row}: a record without a name (column `chromosome`)")
            if type(start) is not int or not 0 <= start <= _LARGEST_START:
                raise UserError(f"{name}, row {row}: start is {start!r}; it must be an integer in 0..{_LARGEST_START}")
            chromosome_of[row] = numbers.setdefault(str(chromosome), len(numbers))
            starts[row] = start
            row += 1
    return list(numbers), chromosome_of, starts


def _cells(dataset: Any, order: npt.NDArray[np.int64], source: str) -> Iterator[tuple[int, Iterator[bytes]]]:
    """Yield the rows in `order`, each with its sequence, without white space and in parts of `BLOCK` bytes at most."""
    rows = dataset.select_columns("sequence").with_format("arrow")
    for first, last in _consecutive(order):
        # The table is a view of the file on disk, and so are the cells.
        cells = _as_binary(rows[first:last]["sequence"], source, first)
        lengths = pc.binary_length(cells).fill_null(0).to_pylist()
        for i, length in enumerate(lengths):
            yield first + i, _cell_parts(cells.slice(i, 1), length)


def _consecutive(order: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield the ranges (first row, row after the last) of rows that follow each other in the dataset and in `order`."""
    for begin in range(0, len(order), _ROWS):
        rows = order[begin : begin + _ROWS]
        for group in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1):
            yield int(group[0]), int(group[-1]) + 1


def _cell_parts(cell: Any, length: int) -> Iterator[bytes]:
    """Yield a cell's `length` bytes but for white space: of a chromosome in one cell, only a part is in memory."""
    for begin in range(0, length, genome_text.BLOCK):
        [text] = pc.binary_slice(cell, begin, begin + genome_text.BLOCK).to_pylist()
        yield text.translate(None, WHITESPACE)


def _as_binary(column: Any, source: str, row: int) -> Any:
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise UserError(f"{source}: the column `sequence` is not text but {column.type}")
    try:
        column.validate(full=True)  # offsets that point out of a damaged file would end the process
    except pa.ArrowException as error:
        raise UserError(f"{source}, from row {row}: damaged ({error}); fetch or save it again") from error
    return column.cast(pa.large_binary())
