"""Cuts genomes into the windows of a corpus (`cmgems prepare`)."""

import errno
import gc
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import compress, groupby
from operator import attrgetter, itemgetter
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from xxhash import xxh3_64_intdigest

from cmgems.data.clusters import families_of
from cmgems.data.corpus import COUNTS, DATA, FORMAT, MANIFEST, WORD_COUNTS, describe_files
from cmgems.data.genomes import Piece, genome_file, read_bases, split_runs
from cmgems.data.kmer_tables import write_counts
from cmgems.data.sequences import Dropped, read_sequences
from cmgems.data.settings import PrepareConfig
from cmgems.data.split import SPLITS, Chromosome, Split, assign, measure, validation_starts
from cmgems.data.tokenization import Tokenization
from cmgems.data.tokenizer import count_kmers
from cmgems.data.windows import Window, cut_chromosome, window_lengths
from cmgems.errors import UserError
from cmgems.runtime.files import atomic_folder, remove_abandoned
from cmgems.runtime.progress import ProgressLines

logger = logging.getLogger(__name__)

FEATURES = datasets.Features(
    {
        "chromosome": datasets.Value("string"),
        "start": datasets.Value("int64"),
        "sequence": datasets.Value("string"),
    }
)
"""Columns of the splits."""

_BATCH = 1 << 20  # nucleotides in a record batch of the Arrow file


def prepare_corpus(config: PrepareConfig, output: Path, progress: bool = True) -> dict[str, Any]:
    """Cut genomes into windows and write them as a corpus.

    Chromosomes are read twice: once for their lengths, once to cut them. Memory does not grow with the genome, but for
    8 bytes a window, by which exact duplicates are found (twice that for a moment). Transcripts and coding sequences
    are read once, and all in memory.

    Parameters
    ----------
    config
        Inputs, lengths of the windows, choice of the validation data, seed.
    output
        Folder to write. It appears under this name when it is complete; on any failure nothing is left.
    progress
        Show a progress bar on a terminal, or a line now and then in a log.

    Returns
    -------
    dict
        The manifest: format, config, inputs, chromosomes, splits, duplicates_dropped, nucleotides, sequences (of
        transcripts and coding sequences: kept, families, dropped by reason), fingerprint, files.

    Raises
    ------
    UserError
        If `output` exists or cannot be written, an input cannot be read, or a split would have no windows.
    """
    try:
        if output.exists():
            raise UserError(f"{output}: exists already; choose another output folder, or remove this one")
        with _complete_or_absent(output) as partial, _without_cycle_search():
            return _write_corpus(config, partial, progress)
    except OSError as error:
        raise UserError(f"{output}: the corpus cannot be written ({error})") from error


@contextmanager
def _without_cycle_search() -> Iterator[None]:
    """Keep the garbage collector from looking for cycles, again and again, among millions of windows that have none."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def _complete_or_absent(output: Path) -> Iterator[Path]:
    """Give a folder to write, which becomes `output` at the end; on a failure it goes, and new parents with it."""
    missing = [folder for folder in output.parents if not folder.exists()]
    remove_abandoned(output)
    try:
        with atomic_folder(output) as partial:
            yield partial
    except BaseException as error:
        for folder in missing:
            with suppress(OSError):  # another process may have put something there
                folder.rmdir()
        if isinstance(error, OSError) and error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise UserError(f"{output}: another process has written it in the meantime; its corpus stays") from error
        raise


def _write_corpus(config: PrepareConfig, folder: Path, progress: bool) -> dict[str, Any]:
    dropped = Dropped()
    reading = _with_progress(read_sequences(config, dropped), "reading", None, progress)
    sequences: dict[str, bytes] = {}  # transcripts, and none of chromosomes
    chromosomes = measure(_collected(reading, sequences) if config.records != "chromosomes" else reading)
    _check_sequences(chromosomes, dropped, config)
    families = families_of(sequences)
    starts = validation_starts(chromosomes, config, families)
    total = sum(chromosome.length for chromosome in chromosomes.values())
    again = (Piece(name, 0, bases) for name, bases in sequences.items()) if sequences else read_bases(*config.inputs)
    pieces = _with_progress(again, "cutting", total, progress)

    with (
        _SplitWriter(folder / "train", config.tokenization) as train,
        _SplitWriter(folder / "validation", config.tokenization) as validation,
    ):
        writers: dict[Split, _SplitWriter] = {"train": train, "validation": validation}
        cut, fingerprint = _write_windows(_split_windows(pieces, starts, config), writers, config.tokenization)
    _check_windows(train, validation, config)

    for split, writer in writers.items():
        writer.describe(split, fingerprint)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": SPLITS}))
    write_counts(folder / COUNTS, train.counts, config.k)
    if config.word != config.k:
        write_counts(folder / WORD_COUNTS, train.word_counts, config.word)
    manifest = {
        "format": FORMAT,
        "config": config.model_dump(mode="json"),
        "inputs": [describe_input(source) for source in (*config.inputs, *config.annotation)],
        "chromosomes": [_describe_chromosome(name, size, starts) for name, size in chromosomes.items()],
        "splits": {split: writer.totals() for split, writer in writers.items()},
        "duplicates_dropped": cut.windows - train.windows - validation.windows,
        "nucleotides": {
            "in_inputs": total,
            "in_windows": train.nucleotides + validation.nucleotides,
            "ambiguous": sum(chromosome.ambiguous for chromosome in chromosomes.values()),
            "in_duplicates": cut.nucleotides - train.nucleotides - validation.nucleotides,
        },
        **_describe_sequences(chromosomes, dropped, families, config),
        "fingerprint": fingerprint,
        "files": describe_files(folder),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def _collected(pieces: Iterable[Piece], sequences: dict[str, bytes]) -> Iterator[Piece]:
    """Pass `pieces`, each of them a whole sequence, on; they are added to `sequences`."""
    for piece in pieces:
        sequences[piece.chromosome] = piece.bases
        yield piece


def _check_sequences(chromosomes: Mapping[str, Chromosome], dropped: Dropped, config: PrepareConfig) -> None:
    """Say which sequences were dropped; they are an error if they are all."""
    if not dropped:
        return
    reasons = ", ".join(f"{number:,} ({reason})" for reason, number in sorted(dropped.items()))
    total = len(chromosomes) + dropped.total()
    if not chromosomes:
        raise UserError(f"all {total:,} sequences are dropped: {reasons}")
    logger.warning("%s of %s sequences are dropped: %s", f"{dropped.total():,}", f"{total:,}", reasons)


def _describe_sequences(
    chromosomes: Mapping[str, Chromosome], dropped: Dropped, families: Mapping[str, int], config: PrepareConfig
) -> dict[str, Any]:
    """Return the manifest's entry of transcripts or coding sequences; nothing for chromosomes."""
    if config.records == "chromosomes":
        return {}
    of_kept = {"kept": len(chromosomes), "families": len(set(families.values()))}
    return {"sequences": {**of_kept, "dropped": dict(sorted(dropped.items()))}}


@dataclass
class _Cut:
    """What was cut out of a genome."""

    windows: int = 0
    nucleotides: int = 0


def _write_windows(
    windows: Iterable[tuple[Split, Window]], writers: Mapping[Split, "_SplitWriter"], tokens: Tokenization
) -> tuple[_Cut, str]:
    """Write the windows, each sequence once.

    Returns
    -------
    _Cut
        How many were cut, duplicates included.
    str
        The fingerprint: SHA-256 over k, the stride unless it is 1, and the windows written.
    """
    stride = f"stride={tokens.stride}\n" if tokens.stride > 1 else ""
    fingerprint = hashlib.sha256(f"k={tokens.k}\n{stride}".encode())
    seen = _SeenSequences()
    cut = _Cut()
    for batch in _batches(windows):
        cut.windows += len(batch)
        cut.nucleotides += sum(len(window.sequence) for _, window in batch)
        new = list(compress(batch, seen.add([window.sequence for _, window in batch])))
        lines = (f"{split}\t{chromosome}\t{start}\t{sequence}\n" for split, (chromosome, start, sequence) in new)
        fingerprint.update("".join(lines).encode())
        for split, group in groupby(new, key=itemgetter(0)):
            writers[split].add([window for _, window in group])
    return cut, fingerprint.hexdigest()


def _split_windows(
    pieces: Iterable[Piece], starts: Mapping[str, int], config: PrepareConfig
) -> Iterator[tuple[Split, Window]]:
    """Yield the windows with their split. None reaches over the border of a split: each side is cut on its own."""
    for chromosome, group in groupby(split_runs(pieces), key=attrgetter("chromosome")):
        # A side that is left and entered again, as overlapping regions do, continues with its next length.
        lengths = {split: window_lengths(chromosome, config) for split in SPLITS}
        for split, side in groupby(assign(group, starts), key=itemgetter(0)):
            for window in cut_chromosome((piece for _, piece in side), lengths[split], config):
                yield split, window


def _batches(windows: Iterable[tuple[Split, Window]]) -> Iterator[list[tuple[Split, Window]]]:
    """Yield the windows in lists of about _BATCH nucleotides."""
    batch: list[tuple[Split, Window]] = []
    nucleotides = 0
    for split, window in windows:
        batch.append((split, window))
        nucleotides += len(window.sequence)
        if nucleotides >= _BATCH:
            yield batch
            batch, nucleotides = [], 0
    yield batch


def _check_windows(train: "_SplitWriter", validation: "_SplitWriter", config: PrepareConfig) -> None:
    shortest = config.tokenization.nucleotides(config.min_window_tokens)
    if not train.windows and not validation.windows:
        raise UserError(
            f"no windows: the inputs have no run of {shortest} A, C, G, T (min_window_tokens tokens) or more; "
            "lower min_window_tokens"
        )
    if not validation.windows:
        raise UserError(
            f"no validation windows: the validation part of the inputs has no run of {shortest} A, C, G, T of its own; "
            "raise validation_share, name larger validation_chromosomes, or lower min_window_tokens"
        )
    if not train.windows:
        raise UserError(
            f"no training windows: the training part of the inputs has no run of {shortest} A, C, G, T of its own; "
            "lower validation_share, name fewer validation_chromosomes, or lower min_window_tokens"
        )


class _SeenSequences:
    """The set of all sequences so far, as 64-bit digests: 8 bytes a sequence, in a few sorted arrays.

    Two different sequences have the same digest with a chance of n^2 / 2^65 among n: 2 in a million for the eight
    million windows of a human genome, of which one would then be missing.
    """

    def __init__(self) -> None:
        self._sorted: list[npt.NDArray[np.uint64]] = []  # each more than twice as long as the next

    def add(self, sequences: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Add sequences; return which of them are new, bool [sequences]."""
        digests = (xxh3_64_intdigest(sequence.encode()) for sequence in sequences)
        added, first = np.unique(np.fromiter(digests, np.uint64, len(sequences)), return_index=True)
        known = np.zeros(len(added), dtype=bool)
        for digest in self._sorted:
            place = np.searchsorted(digest, added)
            known |= digest[np.minimum(place, len(digest) - 1)] == added
        self._keep(added[~known])
        is_new = np.zeros(len(sequences), dtype=bool)
        is_new[first[~known]] = True
        return is_new

    def _keep(self, digests: npt.NDArray[np.uint64]) -> None:
        """Keep new digests, which are sorted: each of them is moved into a longer array a few times only."""
        while self._sorted and len(self._sorted[-1]) <= 2 * len(digests):
            digests = np.concatenate([self._sorted.pop(), digests])
            digests.sort(kind="stable")
        if len(digests):
            self._sorted.append(digests)


class _SplitWriter:
    """Writes the windows of one split to an Arrow file, in batches, and counts what it writes."""

    def __init__(self, folder: Path, tokens: Tokenization) -> None:
        folder.mkdir()
        self.windows = 0
        self.nucleotides = 0
        self.counts = np.zeros(4**tokens.k, dtype=np.int64)
        self.word_counts = np.zeros(4**tokens.word, dtype=np.int64)
        self._tokens = tokens
        self._folder = folder
        self._batch: list[Window] = []
        self._batch_nucleotides = 0
        self._schema = FEATURES.arrow_schema
        self._file = pa.OSFile(str(folder / DATA), "wb")
        self._stream = pa.ipc.new_stream(self._file, self._schema)

    def add(self, windows: list[Window]) -> None:
        """Write windows, now or with later ones."""
        self._batch += windows
        self._batch_nucleotides += sum(len(sequence) for _, _, sequence in windows)
        if self._batch_nucleotides >= _BATCH:
            self._flush()

    def _flush(self) -> None:
        if not self._batch:
            return
        columns = [
            pa.array(column, type=field.type)
            for column, field in zip(zip(*self._batch, strict=True), self._schema, strict=True)
        ]
        self._stream.write_batch(pa.record_batch(columns, schema=self._schema))
        sequences = [window.sequence for window in self._batch]
        self.counts += count_kmers(sequences, self._tokens.k, self._tokens.stride)
        if self._tokens.word != self._tokens.k:
            self.word_counts += count_kmers(sequences, self._tokens.word, self._tokens.stride)
        self.windows += len(self._batch)
        self.nucleotides += self._batch_nucleotides
        self._batch, self._batch_nucleotides = [], 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with closing(self._file), closing(self._stream):
            if error is None:
                self._flush()

    def totals(self) -> dict[str, int]:
        """Return what the manifest says of the split."""
        return {"windows": self.windows, "tokens": int(self.counts.sum()), "nucleotides": self.nucleotides}

    def describe(self, split: Split, fingerprint: str) -> None:
        """Write the two small files that make the folder one that `datasets.load_from_disk` reads."""
        datasets.DatasetInfo(features=FEATURES).write_to_directory(str(self._folder))
        state: dict[str, Any] = {
            "_data_files": [{"filename": DATA}],
            "_fingerprint": f"{split}-{fingerprint[:32]}",
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": split,
        }
        (self._folder / "state.json").write_text(json.dumps(state, indent=1) + "\n")


def describe_input(source: str) -> dict[str, Any]:
    """Return name, size and SHA-256 of an input; of a dataset its name alone."""
    path = genome_file(source)
    if path is None:
        return {"name": source, "bytes": None, "sha256": None}
    with path.open("rb") as file:
        return {"name": source, "bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _describe_chromosome(name: str, size: Chromosome, starts: Mapping[str, int]) -> dict[str, Any]:
    """Return the manifest's entry: `split` is `both` for the only chromosome of a genome, cut at `validation_start`."""
    start = starts.get(name)
    split = "train" if start is None else "both" if start > 0 else "validation"
    return {
        "name": name,
        "length": size.length,
        "ambiguous": size.ambiguous,
        "split": split,
        "validation_start": start,
    }


def _with_progress(pieces: Iterable[Piece], title: str, total: int | None, is_shown: bool) -> Iterator[Piece]:
    """Pass `pieces` on, showing how many nucleotides (of `total`) went by."""
    done = 0
    with ProgressLines(title, total, "nucleotide", is_shown=is_shown) as progress:
        for piece in pieces:
            yield piece
            done += len(piece.bases)
            progress.update(done)
