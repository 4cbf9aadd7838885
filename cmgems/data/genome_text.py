"""The text of genomes as their readers yield it."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

BLOCK = 1 << 20
"""Bytes read at once; a piece is about this long at most."""

WHITESPACE = b" \t\r\n\v\f"
"""What may stand between nucleotides, and is left out."""


class Text(NamedTuple):
    """A stretch of a record as it is written in the input."""

    record: str
    """Name of the record."""
    number: int
    """Line of the file, from 1, or row of the dataset, from 0, where the text begins."""
    text: bytes
    """Nucleotides and white space; empty where a record or region begins."""
    begins: Literal["", "record", "region"] = ""
    """What begins here: a record, or another region of the same record; nothing where the text continues."""
    start: int = 0
    """Position in the record, from 0, of what begins here."""
    length: int | None = None
    """Number of nucleotides that the input says the record has, where it begins; None: it does not say."""


class Unit(NamedTuple):
    """A file, a file in a zip archive, a dataset, or one split of a dataset without names."""

    name: str
    """What error messages call it."""
    counted_in: str
    """What `Text.number` counts: `line` or `row`."""
    texts: Iterator[Text]
    """All the text of all records, in order."""
