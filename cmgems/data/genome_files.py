"""Genome files: FASTA and GenBank, plain, gzip-compressed or in zip archives, in parts of bounded size."""

import gzip
import io
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from cmgems.data import genome_text
from cmgems.data.genome_text import Text, Unit
from cmgems.errors import UserError

_FASTA_SUFFIXES = {".fa", ".fasta", ".fna", ".fas", ".ffn"}
_GENBANK_SUFFIXES = {".gb", ".gbk", ".gbff", ".genbank"}

GENOME_SUFFIXES = _FASTA_SUFFIXES | _GENBANK_SUFFIXES | {".gz", ".zip"}
"""What the names of genome files end in, lower case."""

_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile)


def is_zip(path: Path) -> bool:
    """Return whether a file is a zip archive, by its first bytes and whatever its name.

    Raises
    ------
    OSError
        If the file cannot be read.
    """
    with path.open("rb") as file:
        return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")


def file_units(path: Path) -> Iterator[Unit]:
    """Yield a FASTA or GenBank file, plain or gzip-compressed.

    Raises
    ------
    UserError
        While the text is read, if the file is empty, damaged or not a genome; the message names the line.
    OSError
        If the file cannot be read.
    """
    with path.open("rb") as file:
        yield Unit(str(path), "line", _file_texts(file, str(path)))


def archive_units(path: Path) -> Iterator[Unit]:
    """Yield the FASTA and GenBank files in a zip archive, one at a time.

    Raises
    ------
    UserError
        If the archive is damaged, encrypted, packed in a way that Python does not know, or has no genome in it; while
        the text is read, as `file_units`.
    OSError
        If the file cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [name for name in archive.namelist() if _is_genome_name(name)]
            if not members:
                raise UserError(f"{path}: there are no FASTA or GenBank files in this archive")
            for member in members:
                name = f"{path}/{member}"
                with _open_member(archive, member, name) as file:
                    yield Unit(name, "line", _file_texts(file, name))
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


def _file_texts(file: IO[bytes], name: str) -> Iterator[Text]:
    """Yield the text of an open FASTA or GenBank file, plain or gzip-compressed."""
    text = Text("", 1, b"")
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
    while line := stream.readline(genome_text.BLOCK):
        number += 1
        if line.strip():
            if not line.startswith((b">", b"LOCUS")):
                raise UserError(f"{name}, line {number}: neither FASTA (a line that begins with >) nor GenBank (LOCUS)")
            stream.seek(0)
            return line
    raise UserError(f"{name}, line 1: the file is empty")


def _fasta_texts(stream: io.BufferedIOBase, name: str) -> Iterator[Text]:
    record = ""
    for number, is_header, text in _fasta_sections(stream):
        if is_header:
            record = _record_name(text[1:], name, number)
            yield Text(record, number, b"", begins="record")
        elif record:  # only blank lines stand before the first record
            yield Text(record, number, text)


def _fasta_sections(stream: io.BufferedIOBase) -> Iterator[tuple[int, bool, bytes]]:
    """Yield (line number, whether it is a header, text): a header line, or about `BLOCK` bytes of sequence at most.

    A sequence line may be as long as a chromosome: it is read in parts. Header lines are always whole.
    """
    number = 1
    at_line_start = True
    while block := stream.read(genome_text.BLOCK):
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


def _genbank_texts(stream: io.BufferedIOBase, name: str) -> Iterator[Text]:
    record = ""
    in_sequence = False
    for first, lines in _numbered_lines(stream):
        sequence: list[bytes] = []
        for number, line in enumerate(lines, start=first):
            if line.startswith(b"LOCUS"):
                _require_end(record, name, number)
                record = _record_name(line[5:], name, number)
                yield Text(record, number, b"", begins="record")
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
    while lines := stream.readlines(genome_text.BLOCK):
        yield number, lines
        number += len(lines)


def _genbank_sequence(record: str, end: int, lines: list[bytes]) -> Text:
    """Join sequence `lines`, the last of which stands before line `end`, without the positions they begin with."""
    return Text(record, end - len(lines), b"".join(lines).translate(None, b"0123456789"))


def _record_name(header: bytes, name: str, number: int) -> str:
    words = header.split(maxsplit=1)
    if not words:
        raise UserError(f"{name}, line {number}: a record without a name")
    return words[0].decode(errors="replace")
