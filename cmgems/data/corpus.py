"""The corpus: windows of a genome as an Arrow dataset, with its k-mer counts and a manifest of how it came about.

A corpus is a folder that `datasets.load_from_disk` reads (splits `train` and `validation`; columns `chromosome`,
`start`, `sequence`), with `manifest.json` and `kmer_counts.csv` beside the splits. It exists completely or not at all.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cmgems.data.kmer_tables import read_counts
from cmgems.data.settings import PrepareConfig
from cmgems.data.split import SPLITS, Split
from cmgems.errors import UserError

FORMAT = 1
"""Version of the folder's layout."""

MANIFEST = "manifest.json"
COUNTS = "kmer_counts.csv"


@dataclass(frozen=True)
class Corpus:
    """A corpus on disk. Its windows are read from the files as they are asked for."""

    path: Path
    """The folder."""
    manifest: dict[str, Any]
    """What `prepare_corpus` returned."""
    train: datasets.Dataset
    """Training windows, in the order of the genome."""
    validation: datasets.Dataset
    """Validation windows, in the order of the genome."""
    counts: npt.NDArray[np.int64]
    """Occurrences of the k-mers in the training windows, int64 [4**k]; entry i is for the token id i + 5."""

    @property
    def k(self) -> int:
        """Length of a token, in nucleotides, the corpus was prepared for."""
        return int(self.manifest["config"]["k"])

    @property
    def fingerprint(self) -> str:
        """SHA-256 over k and all windows: equal if and only if the content is."""
        return str(self.manifest["fingerprint"])


def load_corpus(path: Path) -> Corpus:
    """Open a corpus; its windows stay on disk.

    Raises
    ------
    UserError
        If the folder is missing or not a corpus, or if a part of it is missing or damaged.
    """
    if not path.is_dir():
        raise UserError(f"{path}: there is no corpus here; make one with `cmgems prepare`")
    manifest = _read_manifest(path)
    train, validation = (_load_split(path, split) for split in SPLITS)
    return Corpus(path, manifest, train, validation, _read_counts(path / COUNTS, manifest["config"]["k"]))


def _read_counts(path: Path, k: int) -> npt.NDArray[np.int64]:
    try:
        found, counts = read_counts(path, complete=True)
        if found != k:
            raise UserError(f"it has {found}-mers instead of {k}-mers")
    except UserError as error:
        raise UserError(f"{path}: missing or damaged ({error}); prepare the corpus again") from error
    return counts


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text())
        if manifest["format"] != FORMAT:
            raise UserError(f"{path}: format {manifest['format']} is not {FORMAT}; make it again with `cmgems prepare`")
        PrepareConfig.model_validate(manifest["config"])
        str(manifest["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a corpus of `cmgems prepare` ({MANIFEST} is missing or damaged)") from error
    return manifest


def _load_split(path: Path, split: Split) -> datasets.Dataset:
    try:
        dataset = datasets.load_from_disk(str(path / split))
    except (OSError, ValueError, LookupError, pa.ArrowException) as error:
        raise UserError(f"{path}: the {split} split is missing or damaged; make it with `cmgems prepare`") from error
    return dataset
