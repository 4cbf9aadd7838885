"""`cmgems embed`: parts that are complete or absent, the same by any number of processes."""

import csv
import json
import random
import subprocess

import numpy as np
import pyarrow.parquet as pq
import pytest

import cmgems
from cmgems.cli import main
from cmgems.inference import embedding
from tests.data.corpora import write_fasta
from tests.downstream import models
from tests.training.launching import ACCELERATE, DDP, ENVIRONMENT, REPOSITORY

LENGTHS = (30, 200, 64, 7, 90, 500)


@pytest.fixture
def folder(tmp_path):
    return models.ours(tmp_path / "model", k=3, max_positions=66)


@pytest.fixture
def sequences():
    return {f"s{i}": "".join(random.Random(i).choices("ACGT", k=n)) for i, n in enumerate(LENGTHS)}


@pytest.fixture
def genome(tmp_path, sequences):
    return str(write_fasta(tmp_path / "genome.fa", **sequences))


def embed(*arguments):
    main(["embed", *map(str, arguments)])


def vectors(output, column="embedding"):
    return np.stack(pq.read_table(output)[column].to_pylist())


def test_a_row_for_each_sequence(tmp_path, folder, genome, sequences, capsys):
    embed(genome, "--model", folder, "--output", tmp_path / "out")
    assert "6 sequences, 879 tokens, vectors of 16" in capsys.readouterr().out
    table = pq.read_table(tmp_path / "out")
    assert table["name"].to_pylist() == list(sequences)
    assert table["end"].to_pylist() == list(LENGTHS)
    assert table["tokens"].to_pylist() == [length - 2 for length in LENGTHS]
    expected = cmgems.load(folder).embed(list(sequences.values()))
    np.testing.assert_allclose(vectors(tmp_path / "out"), expected, atol=1e-6)


def test_layers_and_tokens_as_arrays(tmp_path, folder, genome, sequences):
    model = cmgems.load(folder)
    options = ("--model", folder, "--format", "npy", "--overlap", 8)
    embed(genome, *options, "--output", tmp_path / "layers", "--layers", "0,-1")
    array = np.load(tmp_path / "layers/embeddings.npy")
    assert array.shape == (6, 2, 16)
    for place, layer in enumerate((0, -1)):
        expected = model.embed(list(sequences.values()), layer, overlap=8)
        np.testing.assert_allclose(array[:, place], expected, atol=1e-6)
    assert not list((tmp_path / "layers").glob("*.parquet"))

    embed(genome, *options, "--output", tmp_path / "tokens", "--pooling", "tokens")
    array = np.load(tmp_path / "tokens/embeddings.npy")
    expected = model.embed(list(sequences.values()), pooling="tokens", overlap=8)
    np.testing.assert_allclose(array, np.concatenate(expected), atol=1e-6)
    with (tmp_path / "tokens/sequences.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["row"]) for row in rows] == np.cumsum([0, *map(len, expected[:-1])]).tolist()


def test_stretches_of_a_genome(tmp_path, folder, genome, sequences):
    embed(genome, "--model", folder, "--output", tmp_path / "out", "--tile", 50, "--pooling", "cls")
    table = pq.read_table(tmp_path / "out")
    places = list(zip(*(table[name].to_pylist() for name in ("name", "start", "end")), strict=True))
    assert places[:5] == [("s0", 0, 30), ("s1", 0, 50), ("s1", 50, 100), ("s1", 100, 150), ("s1", 150, 200)]
    texts = [sequences[name][start:end] for name, start, end in places]
    np.testing.assert_allclose(vectors(tmp_path / "out"), cmgems.load(folder).embed(texts, pooling="cls"), atol=1e-6)


def test_what_is_there_is_not_computed_again(tmp_path, folder, genome, monkeypatch, capsys):
    monkeypatch.setattr(embedding, "_PART_NUCLEOTIDES", 100)
    out = tmp_path / "out"
    embed(genome, "--model", folder, "--output", out)
    parts = sorted(out.glob("part-*.parquet"))
    assert len(parts) == 3
    whole = vectors(out)
    # As an interruption leaves it.
    description = json.loads((out / "_description.json").read_text())
    (out / "_description.json").write_text(
        json.dumps({k: v for k, v in description.items() if k not in ("sequences", "tokens", "width")})
    )
    parts[1].unlink()
    kept = [path.stat().st_mtime_ns for path in parts if path.exists()]
    embed(genome, "--model", folder, "--output", out)
    assert [path.stat().st_mtime_ns for path in parts if path != parts[1]] == kept
    assert (vectors(out) == whole).all()
    capsys.readouterr()
    embed(genome, "--model", folder, "--output", out)
    assert "6 embeddings, there already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--layers", "0"), "has embeddings of another layers: [-1] there, [0] here"),
        (("--layers", "3"), "has no layer 3; its layers are 0 (embeddings) to 1"),
        (("--tile", "2"), "s0, 0-2: "),
        (("--genome", "x.fa"), "genome belongs to a BED file"),
    ],
)
def test_a_mistake_is_one_message(tmp_path, folder, genome, options, message, capsys):
    if "another" in message:
        embed(genome, "--model", folder, "--output", tmp_path / "out")
    with pytest.raises(SystemExit) as stop:
        embed(genome, "--model", folder, "--output", tmp_path / "out", *options)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_another_folder_is_left_alone(tmp_path, folder, genome, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    with pytest.raises(SystemExit):
        embed(genome, "--model", folder, "--output", tmp_path / "out")
    assert "has something else in it" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]


@pytest.mark.slow
def test_two_processes_share_the_parts(tmp_path, folder):
    long = write_fasta(tmp_path / "long.fa", **{f"s{i}": "ACGGTTCAAC" * 60_000 for i in range(8)})
    arguments = [str(long), "--model", str(folder), "--tile", "6000", "--output"]
    main(["embed", *arguments, str(tmp_path / "one")])
    finished = subprocess.run(
        [ACCELERATE, "launch", *DDP, "-m", "cmgems", "embed", *arguments, str(tmp_path / "two")],
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert len(list((tmp_path / "two").glob("part-*.parquet"))) == 3
    assert (vectors(tmp_path / "one") == vectors(tmp_path / "two")).all()
    one, two = (json.loads((tmp_path / name / "_description.json").read_text()) for name in ("one", "two"))
    assert one == two
