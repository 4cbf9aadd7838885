"""The corpus: windows of a genome as an Arrow dataset, with its k-mer counts and a manifest of how it came about.

A corpus is a folder that `datasets.load_from_disk` reads (splits `train` and `validation`; columns `chromosome`,
`start`, `sequence`), with `manifest.json` and `kmer_counts.csv` beside the splits. It exists completely or not at all.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from xxhash import xxh3_128

from cmgems.data.kmer_tables import read_counts
from cmgems.data.settings import PrepareConfig
from cmgems.data.split import SPLITS, Split
from cmgems.data.tokenization import SHORTEST_K, Tokenization
from cmgems.errors import UserError

FORMAT = 1
"""Version of the folder's layout."""

MANIFEST = "manifest.json"
COUNTS = "kmer_counts.csv"
WORD_COUNTS = "word_counts.csv"
"""Counts of the words, where these are no tokens."""

DATA = "data-00000-of-00001.arrow"
"""Name of the file of a split's windows."""

_BLOCK = 1 << 20  # bytes
_SAMPLED = 64  # blocks


@dataclass(frozen=True)
class Corpus:
    """A corpus on disk. Its windows are read from the files as they are asked for."""

    path: Path
    """The folder."""
    manifest: dict[str, Any]
    """What `prepare_corpus` returned."""
    tokens: Tokenization
    """Which nucleotides a token covers."""
    train: datasets.Dataset
    """Training windows, in the order of the genome."""
    validation: datasets.Dataset
    """Validation windows, in the order of the genome."""
    counts: npt.NDArray[np.int64]
    """Occurrences of the tokens in the training windows, int64 [4**k]; entry i is for the token id i + 5."""
    word_counts: npt.NDArray[np.int64]
    """Occurrences of the words that begin where tokens do, int64 [4**word]."""

    @property
    def k(self) -> int:
        """Length of a token, in nucleotides, the corpus was prepared for."""
        return self.tokens.k

    @property
    def genetic_code(self) -> int:
        """NCBI's number of its genetic code."""
        return int(self.manifest["config"].get("genetic_code", 1))

    @property
    def fingerprint(self) -> str:
        """SHA-256 over k and all windows: equal if and only if the content is."""
        return str(self.manifest["fingerprint"])


def load_corpus(path: Path) -> Corpus:
    """Open a corpus; its windows stay on disk.

    Its files are compared with the manifest: the size, and the checksum of 64 MiB or, if it is larger, of a sample.
    `verify_corpus` reads all of them.

    Raises
    ------
    UserError
        If the folder is missing or not a corpus, or if a part of it is missing, damaged or was changed.
    """
    if not path.is_dir():
        raise UserError(f"{path}: there is no corpus here; make one with `cmgems prepare`")
    manifest = _read_manifest(path)
    _check_files(path, manifest, "sample", file_sample)
    train, validation = (_load_split(path, split) for split in SPLITS)
    tokens = PrepareConfig.model_validate(manifest["config"]).tokenization
    counts = _read_counts(path / COUNTS, tokens.k)
    word_counts = counts if tokens.word == tokens.k else _read_counts(path / WORD_COUNTS, tokens.word)
    for what, found, expected in (
        (f"{DATA} of the train split: windows", len(train), manifest["splits"]["train"]["windows"]),
        (f"{DATA} of the validation split: windows", len(validation), manifest["splits"]["validation"]["windows"]),
        (f"{COUNTS}: occurrences", int(counts.sum()), manifest["splits"]["train"]["tokens"]),
    ):
        if found != expected:
            raise UserError(f"{path}: {what}: {found:,} instead of {expected:,}; prepare the corpus again")
    return Corpus(path, manifest, tokens, train, validation, counts, word_counts)


def verify_corpus(path: Path) -> Corpus:
    """Open a corpus after all of its files were read and compared with the manifest's checksums.

    Raises
    ------
    UserError
        As `load_corpus`, and if the manifest has no checksums.
    """
    corpus = load_corpus(path)
    if not corpus.manifest.get("files"):
        raise UserError(f"{path}: it has no checksums, as it was prepared by an older version; prepare it again")
    _check_files(path, corpus.manifest, "checksum", file_checksum)
    return corpus


def describe_files(path: Path) -> dict[str, dict[str, Any]]:
    """Return the manifest's entry of the files of a corpus: name within the folder to bytes, checksum and sample."""
    counts = [name for name in (COUNTS, WORD_COUNTS) if (path / name).exists()]
    names = [*counts, *(f"{split}/{DATA}" for split in SPLITS)]
    return {
        name: {
            "bytes": (path / name).stat().st_size,
            "checksum": file_checksum(path / name),
            "sample": file_sample(path / name),
        }
        for name in names
    }


def file_checksum(path: Path) -> str:
    """Return the 128-bit XXH3 of a file, as hexadecimal digits."""
    digest = xxh3_128()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def file_sample(path: Path) -> str:
    """Return the 128-bit XXH3 of 64 blocks of 1 MiB, from the first to the last one of a file; of all, if smaller."""
    last = path.stat().st_size - _BLOCK
    if last <= _SAMPLED * _BLOCK:
        return file_checksum(path)
    digest = xxh3_128()
    with path.open("rb") as file:
        for i in range(_SAMPLED):
            file.seek(last * i // (_SAMPLED - 1))
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def _check_files(path: Path, manifest: dict[str, Any], kind: str, digest: Callable[[Path], str]) -> None:
    """Compare the files with the manifest; one without checksums is of an older version, and holds any."""
    for name, expected in manifest.get("files", {}).items():
        try:
            same = (path / name).stat().st_size == expected["bytes"] and digest(path / name) == expected[kind]
        except OSError as error:
            raise UserError(f"{path / name}: missing or damaged ({error}); prepare the corpus again") from error
        if not same:
            raise UserError(
                f"{path / name}: not the file that `cmgems prepare` wrote (its size or checksum differs); "
                "prepare the corpus again"
            )


def _read_counts(path: Path, k: int) -> npt.NDArray[np.int64]:
    try:
        found, counts = read_counts(path, complete=True, shortest=SHORTEST_K)
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
        [manifest["splits"][split][total] for split in SPLITS for total in ("windows", "tokens")]
        [files[kind] for files in manifest.get("files", {}).values() for kind in ("bytes", "checksum", "sample")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a corpus of `cmgems prepare` ({MANIFEST} is missing or damaged)") from error
    return manifest


def _load_split(path: Path, split: Split) -> datasets.Dataset:
    try:
        dataset = datasets.load_from_disk(str(path / split))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, pa.ArrowException) as error:
        raise UserError(f"{path}: the {split} split is missing or damaged; make it with `cmgems prepare`") from error
    return dataset
