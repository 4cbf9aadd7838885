"""BED and VCF files as text, compressed or not, and which kind a file is by its name."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from cmgems.data.streams import open_text
from cmgems.errors import UserError

_TABLES = (".csv", ".tsv")
_COMPRESSED = (".gz", ".bz2", ".xz")


@contextmanager
def opened(path: Path) -> Iterator[TextIO]:
    """Open a file; what is wrong with it while it is read is a UserError that names it."""
    try:
        with open_text(path) as text:
            yield text
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def kind_of(source: str) -> str:
    """Return the suffix of a file's name, in lower case, without that of a compression: `.bed` for x.bed.gz."""
    suffixes = [suffix.lower() for suffix in Path(source).suffixes if suffix.lower() not in _COMPRESSED]
    return suffixes[-1] if suffixes else ""


def is_table(source: str) -> bool:
    """Return whether a file is a CSV or TSV file, which `cmgems.data.tables` reads."""
    return kind_of(source) in _TABLES
