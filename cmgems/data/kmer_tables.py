"""CSV files with a line for each k-mer; tabs or semicolons may separate the cells, and the file may be compressed."""

import csv
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from cmgems.data.streams import open_text
from cmgems.data.tokenization import LONGEST_WORD, SHORTEST_WORD
from cmgems.data.tokenizer import SPECIAL_TOKENS, vocabulary
from cmgems.errors import UserError

logger = logging.getLogger(__name__)

_MOST = 2**63 - 1  # occurrences that an int64 can count


@dataclass(frozen=True)
class KmerRow:
    """One line of a k-mer CSV: its fields as text, and where it stands, for messages."""

    where: str
    """The file and the line."""
    fields: dict[str, str | None]
    """The cells by column; None where the line is too short."""

    def count(self, column: str) -> int:
        """Return the field as a whole number of at least 0.

        Raises
        ------
        UserError
            If it is none, or does not fit 64 bits.
        """
        text = self._text(column)
        if not (text.isascii() and text.isdigit()):
            raise UserError(f"{self.where}: {column} is '{text}'; it must be a whole number, 0 or more")
        digits = text.lstrip("0") or "0"  # Python converts a limited number of them
        if len(digits) > len(str(_MOST)) or int(digits) > _MOST:
            raise UserError(f"{self.where}: {column} is {text[:30]}{'...' * (len(text) > 30)}; it must be below 2^63")
        return int(digits)

    def value(self, column: str) -> float:
        """Return the field as a finite number or -inf.

        Raises
        ------
        UserError
            If it is none.
        """
        text = self._text(column)
        try:
            number = float(text.replace("_", " "))  # Python alone takes 1_000 for a number
        except ValueError:
            number = math.nan
        if math.isnan(number) or number == math.inf:
            raise UserError(f"{self.where}: {column} is '{text}'; it must be a number or -inf")
        return number

    def _text(self, column: str) -> str:
        text = self.fields[column]
        if text is None:
            raise UserError(f"{self.where}: there is no cell in the column {column}")
        return text


def read_kmer_rows(path: Path, columns: list[str], shortest: int = SHORTEST_WORD) -> tuple[int, dict[int, KmerRow]]:
    """Read a CSV with a line for each k-mer.

    Parameters
    ----------
    path
        The file, with a header.
    columns
        Columns that it must have beside `kmer`.
    shortest
        Length of the shortest k-mers allowed, in nucleotides.

    Returns
    -------
    int
        k, the length of the first k-mer and of all others.
    dict
        The rows by k-mer: 0 for the first in the order of the token ids. A k-mer may be absent.

    Raises
    ------
    UserError
        If the file cannot be read, a column is missing, or a k-mer is not one or stands in it twice; the message names
        the file, and the line where there is one.
    """
    lines = _read_lines(path, ["kmer", *columns])
    k = len(lines[0][0])
    if not shortest <= k <= LONGEST_WORD:
        raise UserError(f"{lines[0][1].where}: '{lines[0][0]}' must have {shortest} to {LONGEST_WORD} nucleotides")
    index_of = {kmer: index for index, kmer in enumerate(kmers(k))}
    rows: dict[int, KmerRow] = {}
    for kmer, row in lines:
        if len(kmer) != k:
            raise UserError(f"{row.where}: '{kmer}' has {len(kmer)} nucleotides, the k-mers above it have {k}")
        if kmer not in index_of:
            raise UserError(f"{row.where}: '{kmer}' has a letter other than A, T, C and G")
        if index_of[kmer] in rows:
            raise UserError(f"{row.where}: '{kmer}' stands in the file twice; first: {rows[index_of[kmer]].where}")
        rows[index_of[kmer]] = row
    return k, rows


def _read_lines(path: Path, columns: list[str]) -> list[tuple[str, KmerRow]]:
    """Return the k-mer and the row of each line below the header."""
    try:
        with open_text(path) as file:
            lines = list(_rows(path, columns, file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as CSV ({error})") from error
    if not lines:
        raise UserError(f"{path}: there are no k-mers below the header")
    return lines


def _rows(path: Path, columns: list[str], file: IO[str]) -> Iterator[tuple[str, KmerRow]]:
    header = file.readline()
    separator = next((separator for separator in ",\t;" if separator in header), ",")
    names = [name.strip() for name in next(csv.reader([header], delimiter=separator), [])]
    for column in columns:
        if names.count(column) != 1:
            many = "no" if column not in names else "more than one"
            raise UserError(f"{path}, line 1: the header has {many} column '{column}'")
    reader = csv.DictReader(file, names, restkey="", delimiter=separator, skipinitialspace=True, strict=True)
    for row in reader:
        where = f"{path}, line {reader.line_num + 1}"
        if row.get(""):
            cells = len(names) + len(row[""])
            raise UserError(
                f"{where}: {cells} cells, the header has {len(names)}; is there a separator inside a number?"
            )
        yield row["kmer"] or "", KmerRow(where, row)


def kmers(k: int) -> list[str]:
    """Return all k-mers in the order of their token ids."""
    return vocabulary(k)[len(SPECIAL_TOKENS) :]


def read_counts(path: Path, complete: bool = False, shortest: int = SHORTEST_WORD) -> tuple[int, npt.NDArray[np.int64]]:
    """Read counts of k-mers from a CSV with columns `kmer` and `count`.

    Parameters
    ----------
    path
        The file.
    complete
        Whether every k-mer has to be in it; if not, absent ones count 0, and a warning says how many they are.

    Returns
    -------
    int
        k.
    int64 array [4**k]
        Occurrences in the order of the token ids: entry i counts the k-mer with id i + 5.

    Raises
    ------
    UserError
        As `read_kmer_rows`, and if a count is not a whole number, the counts add up to 2^63 or more, or the table is
        not `complete`.
    """
    k, rows = read_kmer_rows(path, ["count"], shortest)
    if complete:
        require_all(path, k, rows)
    elif len(rows) < 4**k:
        logger.warning(f"{path}: {4**k - len(rows):,} of the {4**k:,} {k}-mers are not in this table, and count 0")
    found = {index: row.count("count") for index, row in rows.items()}
    if sum(found.values()) > _MOST:
        raise UserError(f"{path}: the counts add up to {sum(found.values()):.3g}; the total must be below 2^63")
    counts = np.zeros(4**k, dtype=np.int64)
    counts[list(found)] = list(found.values())
    return k, counts


def require_all(path: Path, k: int, rows: Mapping[int, KmerRow]) -> None:
    """Check that there is a row for each of the 4**k k-mers.

    Raises
    ------
    UserError
        Naming the first that is absent.
    """
    if len(rows) < 4**k:
        absent = next(kmer for index, kmer in enumerate(kmers(k)) if index not in rows)
        raise UserError(f"{path}: {4**k - len(rows)} of the {4**k} {k}-mers are missing, the first is {absent}")


def write_counts(path: Path, counts: npt.NDArray[np.int64], k: int) -> None:
    """Write a CSV with columns `kmer` and `count` and a line for each k-mer, in alphabetical order.

    Parameters
    ----------
    path
        The file; one that is there is overwritten.
    counts
        int64 [4**k], in the order of the token ids.
    k
        Length of the k-mers, 2..8.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["kmer", "count"])
        writer.writerows(sorted((kmer, int(counts[i])) for i, kmer in enumerate(kmers(k))))
