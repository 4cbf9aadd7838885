"""What a run notes of itself in its folder, for what is told of its models later: `run.json`."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cmgems.config.schema import INITIAL_WEIGHTS, PretrainConfig
from cmgems.data.corpus import Corpus
from cmgems.errors import UserError
from cmgems.runtime.files import atomic_file
from cmgems.runtime.passwords import hide_password

RECORD = "run.json"

_LISTS = ("chromosomes", "files")
"""What a manifest has of each chromosome and file, which can be very many."""

_OF_THE_START = ("init_from", *INITIAL_WEIGHTS, *(name for scales in INITIAL_WEIGHTS.values() for name in scales))
"""Settings of the model that have no effect on a run that is resumed, and may then be others."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run's settings and what it trains on; JSON values."""

    recipe: dict[str, Any]
    """All settings, as the schema has them; a password in the tracking URI is left out."""
    corpus: dict[str, Any]
    """The manifest of the corpus, without its lists of chromosomes and files."""
    environment: dict[str, str]
    """Versions, and the device of rank 0."""


def write_record(folder: Path, config: PretrainConfig, corpus: Corpus, environment: dict[str, str]) -> None:
    """Note what a run is in its folder. Of a run that is resumed, the initial weights stay those that it began with.

    Raises
    ------
    UserError
        If it cannot be written, or what is there cannot be read.
    """
    recipe = config.model_dump(mode="json")
    recipe["tracking"]["uri"] = hide_password(config.tracking.uri)
    start = config.model.init_from
    if start is not None and Path(start).exists():  # a name on the hub can look like a path, but not like this one
        recipe["model"]["init_from"] = str(Path(start).resolve())
    if (folder / RECORD).exists():
        began = read_record(folder).recipe["model"]
        recipe["model"] |= {name: began[name] for name in _OF_THE_START if name in began}
    manifest = {name: value for name, value in corpus.manifest.items() if name not in _LISTS}
    try:
        with atomic_file(folder / RECORD) as partial:
            partial.write_text(json.dumps(asdict(RunRecord(recipe, manifest, environment)), indent=1) + "\n")
    except OSError as error:
        raise UserError(f"{folder} cannot be written to: {error}") from None


def read_record(folder: Path) -> RunRecord:
    """Return what `write_record` noted.

    Raises
    ------
    UserError
        If the folder has no record, or one that cannot be read.
    """
    path = folder / RECORD
    try:
        record = RunRecord(**json.loads(path.read_text()))
        [record.recipe["model"], record.corpus["config"], record.corpus["fingerprint"]]  # KeyError if one is missing
        return record
    except FileNotFoundError:
        raise UserError(
            f"{folder} has no {RECORD}. A run of an earlier version has none, and writes it when it is resumed: give "
            "its command once more, with --resume auto"
        ) from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is not what a run has written: {error}") from None
