"""Results of a study: a JSON file for each arm and seed, small enough to be kept in a repository."""

import base64
import json
import zlib
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cmgems.errors import UserError
from cmgems.runtime.files import atomic_file

Rows = npt.NDArray[np.uint8]


class Entry(BaseModel):
    """A model's score on a task."""

    model_config = ConfigDict(extra="forbid")

    metric: str
    """Name of the suite's metric."""
    value: float
    """Its value on the test split."""
    dev: float | None
    """The same on the validation split, if there is one."""
    choice: float | None
    """The penalty or learning rate that was chosen, if there was a choice."""
    classes: int
    """Number of classes."""
    rows: dict[str, int]
    """Number of rows of each split."""
    seconds: float
    """Wall-clock time."""
    outcomes: str | None = None
    """`pack_rows` of label x classes + prediction of each row of the test split; of the last step only."""


class Pretraining(BaseModel):
    """What a pretraining run has logged."""

    model_config = ConfigDict(extra="forbid")

    steps: int
    """Optimizer steps."""
    tokens: int
    """Tokens that it has been trained on."""
    petaflop: float
    """10^15 model operations."""
    hours: float
    """Wall-clock time x processes."""
    switches: list[int]
    """Optimizer steps after which a new stage began."""
    masked_share: float
    """Share of the tokens that were masked, over the whole run."""
    hidden_bases_share: float
    """Share of the nucleotides that no visible token contained."""
    validation: dict[str, list[float | None]]
    """Validation metrics in columns, with `step`; None where one was not finite."""


class Record(BaseModel):
    """What there is of an arm and seed."""

    model_config = ConfigDict(extra="forbid")

    study: str
    arm: str
    seed: int
    settings: dict[str, Any]
    """All settings that determine the numbers, by their dotted names."""
    scoring: dict[str, str] = Field(default_factory=dict)
    """Fingerprints of how each score is computed."""
    fingerprints: dict[str, str] = Field(default_factory=dict)
    """Of the corpus and the NPMI table."""
    pretraining: Pretraining | None = None
    """None: it is not pretrained, or not yet."""
    bits: dict[int, dict[str, float]] = Field(default_factory=dict)
    """Bits per hidden base by step and length of the gap, as `gap_6`; of the base composition, and of the best Markov
    chain, as `gap_6_composition` and `gap_6_chain`."""
    scores: dict[str, dict[int, dict[str, Entry]]] = Field(default_factory=dict)
    """Downstream scores by name, step and task."""
    seconds: dict[str, float] = Field(default_factory=dict)
    """Wall-clock time of each part."""
    machine: str = ""
    """Processors or GPUs that it was computed on."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Versions of the libraries."""

    def digest(self) -> str:
        """Return a fingerprint of all that is in it."""
        return sha256(self.model_dump_json().encode()).hexdigest()


def pack_rows(values: npt.NDArray[np.integer]) -> str:
    """Return small numbers, 0 to 255, as text.

    Examples
    --------
    >>> unpack_rows(pack_rows(np.array([0, 3, 1]))).tolist()
    [0, 3, 1]
    """
    return base64.b85encode(zlib.compress(values.astype(np.uint8).tobytes(), 9)).decode("ascii")


def unpack_rows(text: str) -> Rows:
    """Return what `pack_rows` has packed."""
    return np.frombuffer(zlib.decompress(base64.b85decode(text)), dtype=np.uint8)


def write_record(path: Path, record: Record) -> None:
    """Write a record in the place of the one before it.

    Raises
    ------
    UserError
        If it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as partial:
            partial.write_text(_as_text(_rounded(record.model_dump(mode="json"))) + "\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error}") from error


def read_record(path: Path) -> Record | None:
    """Read a record; None if there is none.

    Raises
    ------
    UserError
        If it cannot be read.
    """
    if not path.is_file():
        return None
    try:
        return Record.model_validate_json(path.read_text())
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise UserError(f"{path}: not a study's result that can be read: {error}") from error


def _as_text(value: Any, indent: str = "") -> str:
    """Return JSON with a line for each innermost group."""
    if not isinstance(value, dict) or not any(isinstance(each, dict | list) for each in value.values()):
        return json.dumps(value)
    inner = indent + " "
    lines = [f"{inner}{json.dumps(key)}: {_as_text(each, inner)}" for key, each in value.items()]
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


def _rounded(value: Any) -> Any:
    """Return JSON values with seven significant digits."""
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return value
