"""Text files as streams of bytes: decompressed, without a byte-order mark, every line end a newline."""

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from cmgems.errors import UserError

_BUFFER = 1 << 20  # bytes
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_GZIP, _BZIP2, _XZ = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00"
_BGZIP_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")  # SAM specification, 4.1.2
_HEAD = 512  # bytes that tell the kind of a file

_OTHER_KINDS = {
    _GZIP: "compressed twice (gzip); unpack it once",
    _BZIP2: "compressed twice (bzip2); unpack it once",
    _XZ: "compressed twice (xz); unpack it once",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it",
    b"PK\x03\x04": "a zip archive in another file; unpack it",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive; unpack it",
    b"Rar!": "a RAR archive; unpack it",
    b"\xff\xfe": "text in UTF-16; save it as UTF-8",
    b"\xfe\xff": "text in UTF-16; save it as UTF-8",
    b"\x1a\x41\x27\x43": "a 2bit file; convert it with twoBitToFa",
    b"\x43\x27\x41\x1a": "a 2bit file; convert it with twoBitToFa",
    b"BAM\x01": "a BAM file; convert it with `samtools fasta`",
    b"CRAM": "a CRAM file; convert it with `samtools fasta`",
}


class DamagedError(UserError):
    """A file is damaged or was cut short."""


@contextmanager
def text_stream(file: IO[bytes], name: str) -> Iterator[io.BufferedReader]:
    """Open a seekable binary file as a stream of text.

    gzip (bgzip too), bzip2 and xz are recognised by the first bytes, whatever the name. CR and CR LF become LF.

    Parameters
    ----------
    file
        The file, at its beginning.
    name
        What error messages call it.

    Raises
    ------
    UserError
        If it is of a kind that is not read, such as zstd or UTF-16.
    DamagedError
        If it is damaged or cut short; also while the stream is read within this context.
    """
    lines = _Newlines(file)
    try:
        lines.source = _decompressed(file)
        text: io.BufferedReader = io.BufferedReader(cast(Any, lines), _BUFFER)
        head = text.peek(_HEAD)
        for magic, kind in _OTHER_KINDS.items():
            if head.startswith(magic):
                raise UserError(f"{name}: {kind}")
        if head[257:262] == b"ustar":
            raise UserError(f"{name}: a tar archive; unpack it")
        if head.startswith(_BYTE_ORDER_MARK):
            text.read(len(_BYTE_ORDER_MARK))
        yield text
    except (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, OSError) as error:
        if getattr(error, "errno", None) is not None:  # of the disk; those of bzip2 and gzip have no number
            raise
        raise DamagedError(
            f"{name}, after line {lines.passed}: damaged or cut short ({error}); fetch it again"
        ) from error


@contextmanager
def open_text(path: Path) -> Iterator[io.TextIOWrapper]:
    """Open a file as `text_stream`, and read it as UTF-8.

    Raises
    ------
    UserError
        As `text_stream`, and if `path` is not a regular file.
    OSError
        If it cannot be opened.
    """
    require_regular(path)
    with path.open("rb") as file, text_stream(file, str(path)) as text:
        yield io.TextIOWrapper(text, encoding="utf-8", newline="")


def require_regular(path: Path) -> None:
    """Check that what is there can be read more than once.

    Raises
    ------
    UserError
        If it is a pipe, a socket or a device.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UserError(f"{path}: a pipe or a device, which can be read only once; write its content to a file")


def _decompressed(file: IO[bytes]) -> Any:
    head = file.read(_HEAD)
    file.seek(0)
    if head.startswith(_BZIP2):
        return bz2.BZ2File(file)
    if head.startswith(_XZ):
        return lzma.LZMAFile(file)
    if not head.startswith(_GZIP):
        return file
    is_bgzip = len(head) > 16 and head[3] & 4 and head[12:16] == b"BC\x02\x00"
    return _Bgzip(file) if is_bgzip else gzip.GzipFile(fileobj=file)


class _Bgzip:
    """A bgzip file, which has an empty block at its end: without it, the file was cut between two blocks."""

    def __init__(self, file: IO[bytes]) -> None:
        self._compressed = _Tail(file)
        self._text = gzip.GzipFile(fileobj=cast(IO[bytes], self._compressed))

    def read1(self, size: int = -1) -> bytes:
        text = self._text.read1(size)
        if not text and self._compressed.tail != _BGZIP_END:
            raise EOFError("the empty block at the end of a bgzip file is missing")
        return text


class _Tail:
    """A file that remembers the last bytes read from it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.tail = b""

    def read(self, size: int = -1) -> bytes:
        read = self._file.read(size)
        self.tail = (self.tail + read[-len(_BGZIP_END) :])[-len(_BGZIP_END) :]
        return read


class _Newlines(io.RawIOBase):
    """A stream whose line ends, CR, LF or CR LF, are all LF."""

    def __init__(self, source: Any) -> None:
        self.source = source
        self._after_return = False
        self.passed = 0  # line ends so far

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while block := self.source.read1(len(buffer)):  # what is there, so that the line of a damage is known
            skip = 1 if self._after_return and block.startswith(b"\n") else 0
            self._after_return = block.endswith(b"\r")
            if b"\r" in block:
                block = block[skip:].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            elif skip:
                block = block[1:]
            self.passed += block.count(b"\n")
            if block:
                buffer[: len(block)] = block
                return len(block)
        return 0
