"""Variants of VCF and CSV files, with the alleles that can be scored, and why the others cannot."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TextIO

from cmgems.data.tables import read_table
from cmgems.errors import UserError
from cmgems.inference.tables import is_table, opened

_ALLELE = re.compile("[ACGT]+", re.IGNORECASE)
_VCF_COLUMNS = 5
_COLUMNS = ("chromosome", "position", "reference", "alternative")


class Variant(NamedTuple):
    """One alternative allele."""

    row: int
    """Number of its row in the file, from 0."""
    chromosome: str
    """Name of the record."""
    position: int
    """Position of the first nucleotide of the reference allele, from 0."""
    reference: str
    """The reference allele, in upper case."""
    alternative: str
    """The alternative allele, in upper case; something else than nucleotides if it is symbolic."""

    @property
    def is_symbolic(self) -> bool:
        """Whether an allele is not written in A, C, G and T: <DEL>, *, a breakend, or N."""
        return not (_ALLELE.fullmatch(self.reference) and _ALLELE.fullmatch(self.alternative))


@dataclass(frozen=True)
class Trimmed:
    """A variant without what both alleles begin and end with: what it changes."""

    start: int
    """Position of the first nucleotide that is changed, or before which some are inserted."""
    reference: str
    alternative: str

    @property
    def is_indel(self) -> bool:
        """Whether the alleles have different lengths."""
        return len(self.reference) != len(self.alternative)


def trim(variant: Variant) -> Trimmed:
    """Return a variant without the ends, then the beginnings, that its alleles share.

    Examples
    --------
    >>> trim(Variant(0, "1", 100, "GCA", "GA"))
    Trimmed(start=101, reference='C', alternative='')
    """
    reference, alternative, start = variant.reference, variant.alternative, variant.position
    while reference and alternative and reference[-1] == alternative[-1]:
        reference, alternative = reference[:-1], alternative[:-1]
    while reference and alternative and reference[0] == alternative[0]:
        reference, alternative, start = reference[1:], alternative[1:], start + 1
    return Trimmed(start, reference, alternative)


def read_variants(path: Path) -> Iterator[Variant]:
    """Yield all alternative alleles of a file, in its order.

    Parameters
    ----------
    path
        A VCF file, or a CSV or TSV file with columns `chromosome`, `position` (from 1), `reference` and `alternative`;
        compressed or not.

    Raises
    ------
    UserError
        If it cannot be read, or a line is damaged; the message names file and line.
    """
    if is_table(str(path)):
        yield from _of_table(path)
        return
    with opened(path) as text:
        yield from _of_vcf(text, path)


def _of_vcf(text: TextIO, path: Path) -> Iterator[Variant]:
    row = 0
    if not text.readline().startswith("##fileformat=VCF"):
        raise UserError(f"{path}, line 1: not VCF, whose first line is ##fileformat=VCFv4.x")
    for number, line in enumerate(text, start=2):
        if line.startswith("#") or not line.strip():
            continue
        cells = line.rstrip("\n").split("\t")
        if len(cells) < _VCF_COLUMNS:
            raise UserError(f"{path}, line {number}: {len(cells)} columns; VCF has 8 or more, which tabs separate")
        chromosome, position, _, reference, alternatives = cells[:_VCF_COLUMNS]
        yield from _alleles(row, chromosome, position, reference, alternatives.split(","), f"{path}, line {number}")
        row += 1


def _of_table(path: Path) -> Iterator[Variant]:
    for row, (number, cells) in enumerate(read_table(path, _COLUMNS)):
        chromosome, position, reference, alternative = cells
        yield from _alleles(row, chromosome, position, reference, [alternative], f"{path}, line {number}")


def _alleles(
    row: int, chromosome: str, position: str, reference: str, alternatives: list[str], where: str
) -> Iterator[Variant]:
    if not position.isdecimal() or int(position) < 1:
        raise UserError(f"{where}: position {position!r}; positions count from 1")
    for alternative in alternatives:
        yield Variant(row, chromosome, int(position) - 1, reference.upper(), alternative.upper())
