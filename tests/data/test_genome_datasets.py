"""How Hugging Face datasets are read as genomes, and what is said of one that is none."""

from pathlib import Path

import datasets
import pytest

from cmgems.data import genome_datasets, genome_text
from cmgems.data.genomes import read_bases, read_runs
from cmgems.errors import UserError
from tests.data.runs import joined


def save(folder: Path, **columns) -> str:
    datasets.Dataset.from_dict(columns).save_to_disk(str(folder))
    return str(folder)


def test_dataset_with_chromosome_names(tmp_path, monkeypatch):
    source = save(tmp_path / "genome", sequence=["acgtNNac", "GG"], chromosome=["chr1", "chr2"])
    expected = [("chr1", 0, b"ACGT"), ("chr1", 6, b"AC"), ("chr2", 0, b"GG")]
    assert list(read_runs(source)) == expected
    monkeypatch.setattr(genome_text, "BLOCK", 3)
    assert joined(read_runs(source)) == expected


def test_dataset_rows_without_names_are_numbered(tmp_path):
    source = save(tmp_path / "genome", sequence=["AC", "GT"])
    assert [piece.chromosome for piece in read_runs(source)] == ["genome:0", "genome:1"]


def test_dataset_with_splits(tmp_path):
    part = datasets.Dataset.from_dict({"sequence": ["AC"]})
    datasets.DatasetDict({"train": part, "test": part}).save_to_disk(str(tmp_path / "genome"))
    assert [piece.chromosome for piece in read_runs(str(tmp_path / "genome"))] == ["genome/train:0", "genome/test:0"]


def test_dataset_rows_of_one_chromosome_are_regions_with_a_break_between_them(tmp_path):
    source = save(tmp_path / "genome", sequence=["ACG", "GG", " T\n", "CCN"], chromosome=["a", "b", "a", "a"])
    assert list(read_bases(source)) == [("a", 0, b"ACG"), ("a", 4, b"T"), ("a", 6, b"CCN"), ("b", 0, b"GG")]


SHUFFLED = {
    "sequence": ["TTTT", "GG", "ACGT", "CC", "AAA"],
    "chromosome": ["a", "b", "a", "b", "a"],
    "start": [104, 7, 100, 0, 200],
}


@pytest.mark.parametrize("rows", [1, 2, 1000])
@pytest.mark.parametrize("block", [1, 3, 1 << 20])
def test_dataset_regions_stand_at_their_start_in_any_order(tmp_path, monkeypatch, rows, block):
    source = save(tmp_path / "genome", **SHUFFLED)
    monkeypatch.setattr(genome_datasets, "_ROWS", rows)
    monkeypatch.setattr(genome_text, "BLOCK", block)
    # What adjoins is one run.
    assert joined(read_runs(source)) == [("a", 100, b"ACGTTTTT"), ("a", 200, b"AAA"), ("b", 0, b"CC"), ("b", 7, b"GG")]


def test_dataset_regions_may_overlap(tmp_path):
    source = save(tmp_path / "genome", sequence=["CCC", "AAAA", "AAAA"], chromosome=["a"] * 3, start=[2, 0, 0])
    assert list(read_runs(source)) == [("a", 0, b"AAAA"), ("a", 0, b"AAAA"), ("a", 2, b"CCC")]


def test_a_chromosome_may_stand_in_several_splits_of_a_dataset(tmp_path):
    train = datasets.Dataset.from_dict({"sequence": ["AC", "GG"], "chromosome": ["a", "b"], "start": [0, 0]})
    test = datasets.Dataset.from_dict({"sequence": ["GT"], "chromosome": ["a"], "start": [2]})
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(str(tmp_path / "genome"))
    assert joined(read_runs(str(tmp_path / "genome"))) == [("a", 0, b"ACGT"), ("b", 0, b"GG")]


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ({"sequence": ["A?"], "chromosome": ["a"]}, r"genome \(splits train, test\), row 2: '\?' is not a nucleotide"),
        ({"sequence": ["AC"]}, "genome: some splits of this dataset have a column `chromosome` or `start`, others"),
        ({"sequence": ["AC"], "chromosome": [1]}, "genome: the splits of this dataset have columns of different types"),
    ],
)
def test_errors_of_datasets_with_splits(tmp_path, test, message):
    parts = {"train": {"sequence": ["AC", "GG"], "chromosome": ["a", "b"]}, "test": test}
    loaded = datasets.DatasetDict({name: datasets.Dataset.from_dict(columns) for name, columns in parts.items()})
    loaded.save_to_disk(str(tmp_path / "genome"))
    with pytest.raises(UserError, match=message):
        list(read_runs(str(tmp_path / "genome")))


def test_one_chromosome_in_two_datasets_or_in_a_dataset_and_a_file(tmp_path, write):
    first = save(tmp_path / "first", sequence=["AC", "GT"], chromosome=["a", "a"])
    second = save(tmp_path / "second", sequence=["AC", "GT"], chromosome=["b", "a"])
    with pytest.raises(UserError, match=r"second, row 1: record a has the name of another: .*first, row 0"):
        list(read_runs(first, second))
    with pytest.raises(UserError, match=r"genome.fa, line 1: record a has the name of another: .*first, row 0"):
        list(read_runs(first, write(b">a\nAC\n")))


def test_folder_that_load_dataset_takes(tmp_path, monkeypatch):
    (tmp_path / "genome").mkdir()
    (tmp_path / "genome" / "data.csv").write_text("chromosome,sequence\nchr1,ACGT\n")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    assert list(read_runs(str(tmp_path / "genome"))) == [("chr1", 0, b"ACGT")]


def regions(start: list) -> dict:
    return {"sequence": ["AC", "AC"], "chromosome": ["a", "a"], "start": start}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["AC"]}, "genome: this dataset has no column `sequence`; its columns are: text"),
        ({"sequence": [1, 2]}, "genome: the column `sequence` is not text but int64"),
        ({"sequence": ["AC", None]}, "genome, row 1: record genome:1 has no sequence"),
        ({"sequence": ["AC", "A?"]}, r"genome, row 1: '\?' is not a nucleotide"),
        ({"sequence": ["AC", "AC"], "chromosome": ["a", None]}, "genome, row 1: a record without a name"),
        ({"sequence": ["AC", ""], "chromosome": ["a", "a"]}, "genome, row 1: record a has no sequence"),
        (regions([0, -1]), "genome, row 1: start is -1; it must be an integer in 0..4611686018427387904"),
        (regions([0, None]), "genome, row 1: start is None; it must be an integer"),
        (regions([0.5, 1.0]), "genome, row 0: start is 0.5; it must be an integer"),
        (regions(["0", "1"]), "genome, row 0: start is '0'; it must be an integer"),
        (regions([True, False]), "genome, row 0: start is True; it must be an integer"),
        (regions([2**62, 2**62 + 1]), "genome, row 1: start is 4611686018427387905; it must be an integer"),
        ({"sequence": []}, "genome: this folder is not a Hugging Face dataset that can be read"),
    ],
)
def test_dataset_errors(tmp_path, columns, message):
    source = save(tmp_path / "genome", **columns)
    with pytest.raises(UserError, match=message):
        list(read_runs(source))


def test_folder_that_is_no_dataset(tmp_path):
    with pytest.raises(UserError, match="this folder is not a Hugging Face dataset"):
        list(read_runs(str(tmp_path)))


def test_hub_name_that_is_not_there(monkeypatch):
    def not_found(name):
        raise datasets.exceptions.DatasetNotFoundError(name)

    monkeypatch.setattr(datasets, "load_dataset", not_found)
    with pytest.raises(
        UserError, match="no-such-owner/genome: there is no such file or folder, and it is not a Hugging"
    ):
        list(read_runs("no-such-owner/genome"))
