"""Embeddings of many sequences as files (`cmgems embed`).

The output is written in parts, each complete or absent, which several processes share: part i belongs to process
i modulo their number. Which sequences a part has depends on the input alone, and so do its embeddings. A command that
was interrupted goes on with the parts that are missing.
"""

import csv
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from accelerate import PartialState

from cmgems import __version__
from cmgems.data.prepare import describe_input
from cmgems.errors import UserError
from cmgems.inference.hidden_states import Floats, HiddenStates
from cmgems.inference.model import SequenceModel
from cmgems.inference.sequences import Region, read_regions
from cmgems.inference.settings import EmbedConfig
from cmgems.inference.source import digest
from cmgems.runtime.files import atomic_file, check_writable
from cmgems.runtime.process import rank, world_size
from cmgems.runtime.progress import ProgressLines

logger = logging.getLogger(__name__)

DESCRIPTION = "_description.json"  # the underscore keeps readers of Parquet folders from reading it
ARRAY, INDEX = "embeddings.npy", "sequences.csv"
_PART_NUCLEOTIDES, _PART_SEQUENCES = 1 << 21, 1 << 14


def embed_to_files(source: str, config: EmbedConfig) -> dict[str, Any]:
    """Write the embeddings of all sequences of an input into `config.output`.

    Parameters
    ----------
    source
        As `cmgems.inference.sequences.read_regions` takes it.
    config
        Model and settings.

    Returns
    -------
    dict
        What the folder has: model, input, settings, numbers of sequences and tokens. It is also in the folder, as
        `_description.json`.

    Raises
    ------
    UserError
        If input or model cannot be read, or the folder has something else.
    """
    check_writable("output", config.output)
    model = SequenceModel(config.model, None, config.precision, config.max_tokens, config.trust_remote_code)
    overlap = model.default_overlap(config.overlap)
    states = model.hidden_states(config.layers)
    description = _description(source, config, model, overlap)
    state = PartialState()
    done = _begin(config.output, description, state)
    if done:
        logger.info(f"{config.output}: {done['sequences']:,} embeddings, there already")
        return done
    regions = read_regions(source, config.genome, config.tile)
    with ProgressLines("embedding", None, "sequence", is_shown=rank() == 0) as progress:
        parts = number = 0
        for part, some in enumerate(_parts(regions)):
            path = _part(config.output, part)
            if part % world_size() == rank() and not path.exists():
                _write_part(path, _embed(some, model, states, config, overlap), config)
            parts, number = part + 1, number + len(some)
            progress.update(number)
    if not parts:
        raise UserError(f"{source}: there are no sequences in it")
    state.wait_for_everyone()
    if rank() == 0:
        description |= _complete(config, parts)
    state.wait_for_everyone()
    return description


def _description(source: str, config: EmbedConfig, model: SequenceModel, overlap: int) -> dict[str, Any]:
    """Return what the embeddings depend on."""
    inputs = [describe_input(name) for name in (source, config.genome) if name is not None]
    return {
        "cmgems": __version__,
        "model": config.model,
        "weights": digest(model.source),
        "inputs": inputs,
        "tile": config.tile,
        "layers": config.layers,
        "pooling": config.pooling,
        "overlap": overlap,
        "window_tokens": model.encoder.limit,
        "precision": config.precision,
        "format": config.format,
    }


def _begin(folder: Path, description: dict[str, Any], state: PartialState) -> dict[str, Any] | None:
    """Begin a folder, or go on with one of the same settings; return what a complete one has."""
    path = folder / DESCRIPTION
    found: dict[str, Any] | None = None
    if path.is_file():
        try:
            found = json.loads(path.read_text())
        except ValueError as error:
            raise UserError(f"{path}: damaged ({error}); choose another output folder") from error
        different = [name for name, value in description.items() if found.get(name) != value]
        if different:
            name = different[0]
            raise UserError(
                f"{folder} has embeddings of another {name}: {found.get(name)} there, {description[name]} here; choose "
                "another output folder"
            )
    elif folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder}: has something else in it; choose another output folder")
    state.wait_for_everyone()
    if found is None and rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        _write_json(path, description)
    state.wait_for_everyone()
    return found if found and "sequences" in found else None


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n")


def _parts(regions: Iterable[Region]) -> Iterator[list[Region]]:
    """Yield sequences in lists of about _PART_NUCLEOTIDES nucleotides."""
    part: list[Region] = []
    nucleotides = 0
    for region in regions:
        part.append(region)
        nucleotides += len(region.bases)
        if nucleotides >= _PART_NUCLEOTIDES or len(part) >= _PART_SEQUENCES:
            yield part
            part, nucleotides = [], 0
    if part:
        yield part


def _part(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05d}.parquet"


def _embed(
    regions: Sequence[Region], model: SequenceModel, states: HiddenStates, config: EmbedConfig, overlap: int
) -> pa.Table:
    """Return the table of some sequences and their embeddings."""
    ids = model.encoder.encode([region.bases for region in regions])
    for region, tokens in zip(regions, ids, strict=True):
        if not len(tokens):
            where = f"{region.name}, {region.start}-{region.end}"
            raise UserError(f"{where}: '{region.bases[:30]}' is too short for the model: it has no token")
    found = states.pooled(ids, config.pooling, overlap, model.batch_tokens(config.batch_tokens))
    columns: dict[str, pa.Array] = {
        "name": pa.array([region.name for region in regions]),
        "start": pa.array([region.start for region in regions], pa.int64()),
        "end": pa.array([region.end for region in regions], pa.int64()),
        "tokens": pa.array([len(tokens) for tokens in ids], pa.int64()),
    }
    for place, name in enumerate(_columns(config)):
        columns[name] = _column([states[..., place, :] for states in found])
    return pa.table(columns)


def _columns(config: EmbedConfig) -> list[str]:
    """Return the names of the columns of embeddings."""
    return ["embedding"] if len(config.layers) == 1 else [f"layer_{layer}" for layer in config.layers]


def _column(rows: list[Floats]) -> pa.Array:
    """Return vectors [width], or lists of them [tokens, width], as a column."""
    width = rows[0].shape[-1]
    flat = pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate([row.reshape(-1) for row in rows])), width)
    if rows[0].ndim == 1:
        return flat
    return pa.ListArray.from_arrays(np.cumsum([0, *map(len, rows)]).astype(np.int32), flat)


def _write_part(path: Path, table: pa.Table, config: EmbedConfig) -> None:
    try:
        with atomic_file(path) as partial:
            pq.write_table(table, partial, compression="zstd")
    except OSError as error:
        raise UserError(f"{config.output}: cannot be written ({error})") from error


def _complete(config: EmbedConfig, parts: int) -> dict[str, Any]:
    """Note what the folder has, and put all parts into one array if that was asked for; return the note."""
    paths = [_part(config.output, number) for number in range(parts)]
    counts = [pq.read_table(path, columns=["tokens"])["tokens"] for path in paths]
    rows = pq.read_schema(paths[0]).field(_columns(config)[0]).type
    width = (rows.value_type if config.pooling == "tokens" else rows).list_size
    numbers = {
        "sequences": sum(map(len, counts)),
        "tokens": sum(int(count.to_numpy().sum()) for count in counts),
        "width": width,
    }
    if config.format == "npy":
        _join(config, paths, numbers)
    description = json.loads((config.output / DESCRIPTION).read_text()) | numbers
    _write_json(config.output / DESCRIPTION, description)
    if config.format == "npy":
        for path in paths:
            path.unlink()
    logger.info(
        f"{config.output}: {numbers['sequences']:,} sequences, {numbers['tokens']:,} tokens, vectors of {width}"
    )
    return numbers


def _join(config: EmbedConfig, paths: Sequence[Path], numbers: dict[str, int]) -> None:
    """Write all embeddings as one array, [sequences, width], or [tokens, width] of all tokens, with an axis of layers
    before the last where there are several; and what its rows are."""
    layers = (len(config.layers),) if len(config.layers) > 1 else ()
    rows = numbers["tokens" if config.pooling == "tokens" else "sequences"]
    with (
        atomic_file(config.output / ARRAY) as partial,
        atomic_file(config.output / INDEX) as index,
        index.open("w", newline="") as file,
    ):
        array = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=(rows, *layers, numbers["width"]))
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["row", "name", "start", "end", "tokens"])
        first = 0
        for path in paths:
            table = pq.read_table(path)
            vectors = np.stack([_values(table[name], numbers["width"]) for name in _columns(config)], axis=1)
            array[first : first + len(vectors)] = vectors if layers else vectors[:, 0]
            row = first
            for name, start, end, tokens in zip(
                *(table[column].to_pylist() for column in ("name", "start", "end", "tokens")), strict=True
            ):
                writer.writerow([row, name, start, end, tokens])
                row += tokens if config.pooling == "tokens" else 1
            first += len(vectors)
        array.flush()


def _values(column: pa.ChunkedArray, width: int) -> Floats:
    """Return all vectors of a column, float32 [vectors, width]."""
    flat = column.combine_chunks()
    while not isinstance(flat, pa.FloatArray):
        flat = flat.flatten()
    values: Floats = flat.to_numpy().reshape(-1, width)
    return values
