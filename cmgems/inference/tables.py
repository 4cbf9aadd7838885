"""Tables as text: BED, VCF, CSV and TSV files, compressed or not."""

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from cmgems.data.streams import open_text
from cmgems.errors import UserError

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_COMPRESSED = (".gz", ".bz2", ".xz")


@contextmanager
def opened(path: Path) -> Iterator[TextIO]:
    """Open a table; what is wrong with it while it is read is a UserError that names it."""
    try:
        with open_text(path) as text:
            yield text
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def kind_of(source: str) -> str:
    """Return the suffix of a file's name, in lower case, without that of a compression: `.bed` for x.bed.gz."""
    suffixes = [suffix.lower() for suffix in Path(source).suffixes if suffix.lower() not in _COMPRESSED]
    return suffixes[-1] if suffixes else ""


def separator_of(source: str) -> str | None:
    """Return what separates the columns of a CSV or TSV file; None for other files."""
    return _SEPARATORS.get(kind_of(source))
