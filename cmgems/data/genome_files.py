"""Genome files: FASTA and GenBank, plain, compressed or in zip archives, in parts of bounded size."""

import logging
import re
import struct
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import IO

from cmgems.data import genome_text
from cmgems.data.genome_text import Text, Unit
from cmgems.data.streams import DamagedError, text_stream
from cmgems.errors import UserError

logger = logging.getLogger(__name__)

_FASTA_SUFFIXES = {".fa", ".fasta", ".fna", ".fas", ".ffn", ".fsa", ".frn"}
_GENBANK_SUFFIXES = {".gb", ".gbk", ".gbff", ".genbank"}
_PROTEIN_SUFFIXES = {".faa", ".pep", ".mpfa"}
_COMPRESSED_SUFFIXES = {".gz", ".bgz", ".bz2", ".xz"}

GENOME_SUFFIXES = _FASTA_SUFFIXES | _GENBANK_SUFFIXES | _COMPRESSED_SUFFIXES | {".zip"}
"""What the names of genome files end in, lower case."""

_NAMES_SHOWN = 5
_LONGEST_LINE = 1 << 20  # bytes of a header, which is read whole
_LOCUS = re.compile(rb"LOCUS\s+\S+\s+(\d+) bp\s")


def is_zip(path: Path) -> bool:
    """Return whether a file is a zip archive, by its first bytes and whatever its name.

    Raises
    ------
    OSError
        If the file cannot be read.
    """
    with path.open("rb") as file:
        return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")


def file_units(path: Path, pattern: str = "*") -> Iterator[Unit]:
    """Yield a FASTA or GenBank file, plain or compressed (gzip, bgzip, bzip2, xz); of a zip archive every one in it.

    Parameters
    ----------
    path, pattern
        As those of `open_files`.

    Raises
    ------
    UserError
        As `open_files`; while the text is read, if a file is empty, damaged or not a genome; the message names the
        line.
    OSError
        If the file cannot be read.
    """
    for name, file in open_files(path, pattern):
        yield Unit(name, "line", _file_texts(file, name))


def open_files(path: Path, pattern: str = "*") -> Iterator[tuple[str, IO[bytes]]]:
    """Yield a file, or the FASTA and GenBank files in a zip archive, one at a time, open, with what messages call it.

    Parameters
    ----------
    path
        The file or archive. A warning names what is passed over in an archive.
    pattern
        Which names in an archive to look at, as `fnmatch` has it. What macOS adds (`__MACOSX/`, names that begin with
        a dot) is never looked at.

    Raises
    ------
    UserError
        If the archive is damaged, encrypted, packed in a way that Python does not know, or has no genome in it.
    OSError
        If the file cannot be read.
    """
    if not is_zip(path):
        with path.open("rb") as file:
            yield str(path), file
        return
    passed_over: dict[str, list[str]] = {}  # names by reason
    found = 0
    try:
        with zipfile.ZipFile(path) as archive:
            members = [n for n in archive.namelist() if fnmatch(n, pattern) and not _is_folder_or_hidden(n)]
            for member in members:
                name = f"{path}/{member}"
                if reason := _why_no_genome(archive, member, name):
                    passed_over.setdefault(reason, []).append(member)
                    continue
                found += 1
                with _open_member(archive, member, name) as unpacked:
                    yield name, unpacked
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:  # all of them of zipfile
        raise DamagedError(f"{path}: damaged or cut short ({error}); fetch it again") from error
    reasons = "; ".join(f"{_listed(names)} ({reason})" for reason, names in passed_over.items())
    if not found:
        raise UserError(f"{path}: there are no FASTA or GenBank files in this archive{reasons and f': {reasons}'}")
    if reasons:
        _warn_once(f"{path}: {len(members) - found} of {len(members)} files are passed over: {reasons}")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more


@cache
def _warn_once(message: str) -> None:
    """Log a warning; not again when the same input is read for the second time."""
    logger.warning(message)


def _is_folder_or_hidden(member: str) -> bool:
    parts = PurePosixPath(member).parts
    return member.endswith("/") or any(part == "__MACOSX" or (part[0] == "." and part.strip(".")) for part in parts)


def _why_no_genome(archive: zipfile.ZipFile, member: str, name: str) -> str:
    """Return why a file in an archive is not read; nothing for a genome, for what its name says is one, and for what is
    damaged: it may be one, and is an error when it is read."""
    suffix = _suffix(member)
    if suffix in _PROTEIN_SUFFIXES:
        return "proteins"
    if suffix in _FASTA_SUFFIXES | _GENBANK_SUFFIXES:
        return ""
    try:
        with _open_member(archive, member, name) as file, text_stream(file, name) as stream:
            _first_line(stream, name)
    except DamagedError:
        return ""
    except UserError as error:
        return re.sub(r"^(, line \d+)?: ", "", str(error).removeprefix(name))
    return ""


def _suffix(name: str) -> str:
    path = PurePosixPath(name.lower())
    return PurePosixPath(path.stem).suffix if path.suffix in _COMPRESSED_SUFFIXES else path.suffix


def _open_member(archive: zipfile.ZipFile, member: str, name: str) -> IO[bytes]:
    try:
        return archive.open(member)
    except RuntimeError as error:  # encrypted, or a compression that Python does not know
        raise UserError(f"{name}: cannot be unpacked ({error}); unpack it yourself and give the file") from error


def _file_texts(file: IO[bytes], name: str) -> Iterator[Text]:
    """Yield the text of an open FASTA or GenBank file, plain or compressed."""
    with text_stream(file, name) as stream:
        number, line = _first_line(stream, name)
        reader = _fasta_texts if line.startswith(b">") else _genbank_texts
        yield from reader(stream, name, number, line)


def _first_line(stream: BufferedReader, name: str) -> tuple[int, bytes]:
    """Return the first line that is not blank, which tells the format, and its number."""
    number = 0
    while line := _whole_line(stream, name, number + 1):
        number += 1
        if line.strip():
            if not line.startswith((b">", b"LOCUS")):
                raise UserError(f"{name}, line {number}: neither FASTA (a line that begins with >) nor GenBank (LOCUS)")
            return number, line
    raise UserError(f"{name}, line 1: the file is empty")


def _whole_line(stream: BufferedReader, name: str, number: int, begin: bytes = b"") -> bytes:
    """Return the line that `begin` is the beginning of; the limit keeps what is no text out of memory."""
    line = begin if begin.endswith(b"\n") else begin + stream.readline(_LONGEST_LINE)
    if len(line) >= _LONGEST_LINE and line.startswith(b">"):
        raise UserError(f"{name}, line {number}: a header of more than {_LONGEST_LINE:,} bytes")
    return line


def _fasta_texts(stream: BufferedReader, name: str, number: int, line: bytes) -> Iterator[Text]:
    record = ""
    for at, is_header, text in _fasta_sections(stream, name, number, line):
        if is_header:
            record = _record_name(text[1:], name, at)
            yield Text(record, at, b"", begins="record")
        else:
            yield Text(record, at, text)


def _fasta_sections(stream: BufferedReader, name: str, number: int, line: bytes) -> Iterator[tuple[int, bool, bytes]]:
    """Yield (line number, whether it is a header, text): a header line, or about `BLOCK` bytes of sequence at most.

    A sequence line may be as long as a chromosome: it is read in parts. Header lines, such as the first `line`, are
    always whole.
    """
    yield number, True, line
    number += 1
    at_line_start = True
    while block := stream.read(genome_text.BLOCK):
        last_line = block.rfind(b"\n") + 1
        if block.startswith(b">", last_line) and (last_line or at_line_start):
            block = block[:last_line] + _whole_line(stream, name, number + block.count(b"\n"), block[last_line:])
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


def _genbank_texts(stream: BufferedReader, name: str, number: int, line: bytes) -> Iterator[Text]:
    record = ""
    in_sequence = False
    for first, lines in _numbered_lines(stream, number, line):
        sequence: list[bytes] = []
        for number, line in enumerate(lines, start=first):
            if line.startswith(b"LOCUS"):
                _require_end(record, name, number)
                record = _record_name(line[5:], name, number)
                yield Text(record, number, b"", begins="record", length=_locus_length(line))
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


def _locus_length(line: bytes) -> int | None:
    """Return the number of nucleotides that a LOCUS line gives, if it does."""
    match = _LOCUS.match(line)
    return int(match[1]) if match else None


def _require_end(record: str, name: str, number: int) -> None:
    if record:
        raise UserError(f"{name}, line {number}: record {record} does not end in //; is the file cut short?")


def _numbered_lines(stream: BufferedReader, number: int, line: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """Yield (number of the first line, about `BLOCK` bytes of lines): the first `line`, and those of `stream`."""
    yield number, [line]
    number += 1
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
