"""Sequences to be read by a model: records of FASTA and GenBank files and of datasets, regions of a BED file, rows of a
table."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from cmgems.data.annotation import reverse_complement
from cmgems.data.genomes import Piece, joined, read_bases, whole
from cmgems.data.tables import read_table, shorten
from cmgems.errors import UserError
from cmgems.inference.tables import is_table, kind_of, opened

_NAMES = ("name", "id")
_BED_COLUMNS = 3
_STRANDS = ("+", "-", ".")
_NOT_ROWS = ("#", "track", "browser")


class Region(NamedTuple):
    """A sequence, and where it is from."""

    name: str
    """Name of the record, the region, or the row; its number where it has none."""
    start: int
    """Position of its first nucleotide in the record, from 0; 0 for whole records and rows."""
    end: int
    """Position after its last nucleotide."""
    bases: str
    """Its nucleotides, in upper case for those of genomes."""


def read_regions(source: str, genome: str | None = None, tile: int | None = None) -> Iterator[Region]:
    """Yield sequences in the order of the input.

    Parameters
    ----------
    source
        A genome as `cmgems prepare` takes it, each record a sequence; a BED file of regions of `genome`, those of the
        reverse strand as they read; a CSV or TSV file with a column `sequence`, and `name` or `id`. Tables may be
        compressed.
    genome
        What the regions of a BED file are of.
    tile
        Cut sequences into stretches of so many nucleotides, and a shorter one at the end.

    Raises
    ------
    UserError
        If the input cannot be read; the message names file and line.
    """
    is_bed = kind_of(source) == ".bed"
    if (genome is not None) != is_bed:
        raise UserError("genome belongs to a BED file, and a BED file needs it: the regions are of it")
    if is_bed:
        regions = _of_bed(Path(source), str(genome))
    elif is_table(source):
        regions = _of_table(Path(source))
    else:
        regions = (_region(record) for record in joined(read_bases(source)))
    return _tiled(regions, tile) if tile else regions


def _region(record: Piece) -> Region:
    return Region(record.chromosome, record.start, record.end, record.bases.decode())


def _tiled(regions: Iterable[Region], tile: int) -> Iterator[Region]:
    for region in regions:
        for begin in range(0, len(region.bases), tile):
            bases = region.bases[begin : begin + tile]
            yield Region(region.name, region.start + begin, region.start + begin + len(bases), bases)


def _of_table(path: Path) -> Iterator[Region]:
    for row, (number, (sequence, *names)) in enumerate(read_table(path, ["sequence"], optional=_NAMES)):
        bases = sequence.strip()
        if not bases.isalpha():
            raise UserError(f"{path}, line {number}: '{shorten(bases)}' is no sequence of nucleotides")
        yield Region(names[0] if names else str(row), 0, len(bases), bases)


class _Interval(NamedTuple):
    row: int
    chromosome: str
    start: int
    end: int
    name: str
    is_reverse: bool
    where: str


def _of_bed(path: Path, genome: str) -> Iterator[Region]:
    """Yield the regions of a BED file in its order; the genome is read once, and one chromosome at a time is kept."""
    with opened(path) as text:
        intervals = [
            _interval(row, line.rstrip("\n"), f"{path}, line {number}")
            for row, (number, line) in enumerate(
                (number, line)
                for number, line in enumerate(text, start=1)
                if line.strip() and not line.startswith(_NOT_ROWS)
            )
        ]
    of_chromosome: defaultdict[str, list[_Interval]] = defaultdict(list)
    for interval in intervals:
        of_chromosome[interval.chromosome].append(interval)
    found: list[Region | None] = [None] * len(intervals)
    for record in chromosomes(genome, set(of_chromosome)):
        for interval in of_chromosome.pop(record.name):
            if interval.end > len(record.bases):
                raise UserError(
                    f"{interval.where}: the region ends at {interval.end:,}, but {record.name} has "
                    f"{len(record.bases):,} nucleotides"
                )
            bases = record.bases[interval.start : interval.end]
            if interval.is_reverse:
                bases = reverse_complement(bases.encode()).decode()
            found[interval.row] = Region(interval.name, interval.start, interval.end, bases)
    if of_chromosome:
        raise UserError(f"{path}: {genome} has no record {', '.join(sorted(of_chromosome)[:5])}")
    yield from (region for region in found if region is not None)


def chromosomes(genome: str, wanted: Collection[str]) -> Iterator[Region]:
    """Yield those records of a genome that are wanted, whole, one at a time.

    Raises
    ------
    UserError
        If the genome cannot be read, or a wanted record is in several regions.
    """
    for record in whole(piece for piece in read_bases(genome) if piece.chromosome in wanted):
        yield _region(record)


def _interval(row: int, line: str, where: str) -> _Interval:
    cells = line.split("\t") if "\t" in line else line.split()
    if len(cells) < _BED_COLUMNS or not cells[1].isdecimal() or not cells[2].isdecimal():
        raise UserError(f"{where}: not BED: a record, where a region starts and ends, separated by tabs")
    start, end = int(cells[1]), int(cells[2])
    if start >= end:
        raise UserError(f"{where}: a region from {start} to {end}; positions count from 0, the end not included")
    name = cells[3] if len(cells) > _BED_COLUMNS else f"{cells[0]}:{start}-{end}"
    strand = cells[5] if len(cells) > 5 else "."  # the sixth column
    if strand not in _STRANDS:
        raise UserError(f"{where}: strand {strand!r}; it is +, - or .")
    return _Interval(row, cells[0], start, end, name, strand == "-", where)
