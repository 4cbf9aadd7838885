"""A corpus as it is loaded, and what is said of one that is broken."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cmgems.data import corpus as corpora
from cmgems.data.corpus import file_checksum, file_sample, load_corpus, verify_corpus
from cmgems.errors import UserError
from tests.data.corpora import prepare


def test_load_corpus_gives_back_what_was_prepared(tmp_path, fasta):
    manifest = prepare(tmp_path / "corpus", fasta, k=4)
    corpus = load_corpus(tmp_path / "corpus")
    assert corpus.manifest == manifest
    assert (corpus.k, corpus.fingerprint, corpus.path) == (4, manifest["fingerprint"], tmp_path / "corpus")
    assert len(corpus.train) == manifest["splits"]["train"]["windows"]
    assert len(corpus.validation) == manifest["splits"]["validation"]["windows"]


def remove_train(folder: Path) -> None:
    shutil.rmtree(folder / "train")


def cut_validation(folder: Path) -> None:
    [data] = (folder / "validation").glob("*.arrow")
    data.write_bytes(data.read_bytes()[:100])


def change_a_base(folder: Path) -> None:
    [data] = (folder / "train").glob("*.arrow")
    content = bytearray(data.read_bytes())
    middle = content.index(b"ACGT", len(content) // 2)
    content[middle] = ord("T")
    data.write_bytes(content)


def change_a_count(folder: Path) -> None:
    lines = (folder / "kmer_counts.csv").read_text().splitlines()
    kmer, count = lines[1].split(",")
    lines[1] = f"{kmer},{int(count) + 1}"
    (folder / "kmer_counts.csv").write_text("\n".join(lines) + "\n")


def break_state(folder: Path) -> None:
    (folder / "train" / "state.json").write_text('{"_data_files": 3}')


def swap_splits(folder: Path) -> None:
    (folder / "train").rename(folder / "other")
    (folder / "validation").rename(folder / "train")
    (folder / "other").rename(folder / "validation")


def without_checksums(folder: Path, damage: Callable[[Path], None]) -> None:
    """Damage a corpus of the version before checksums."""
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    damage(folder)


def other_format(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format": 99}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "there is no corpus here; make one with `cmgems prepare`"),
        (lambda folder: (folder / "manifest.json").unlink(), "not a corpus"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "not a corpus"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "not a corpus"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "not a corpus"),
        (other_format, "format 99 is not 1"),
        (remove_train, r"corpus/train/data-\S+.arrow: missing or damaged"),
        (cut_validation, r"corpus/validation/data-\S+.arrow: not the file that `cmgems prepare` wrote"),
        (lambda folder: (folder / "kmer_counts.csv").write_text("kmer,count\nAAAAAA,1\n"), "kmer_counts.csv: not the"),
        (change_a_base, r"corpus/train/data-\S+.arrow: not the file"),
        (break_state, "the train split is missing or damaged"),
        (lambda folder: without_checksums(folder, cut_validation), "the validation split is missing or damaged"),
        (lambda folder: without_checksums(folder, change_a_count), "kmer_counts.csv: occurrences: .* instead of"),
        (lambda folder: without_checksums(folder, lambda f: (f / "kmer_counts.csv").unlink()), "counts.csv: missing"),
        (lambda folder: without_checksums(folder, swap_splits), "train split: windows: .* instead of"),
    ],
)
def test_a_broken_corpus_is_named(tmp_path, fasta, damage, message):
    prepare(tmp_path / "corpus", fasta)
    damage(tmp_path / "corpus")
    with pytest.raises(UserError, match=message) as error:
        load_corpus(tmp_path / "corpus")
    assert str(tmp_path / "corpus") in str(error.value)


def test_a_large_file_is_sampled_and_verified_as_a_whole(tmp_path, fasta, monkeypatch):
    monkeypatch.setattr(corpora, "_BLOCK", 64)
    monkeypatch.setattr(corpora, "_SAMPLED", 4)
    prepare(tmp_path / "corpus", fasta)
    data = tmp_path / "corpus" / "train" / corpora.DATA
    assert file_sample(data) != file_checksum(data)
    verify_corpus(tmp_path / "corpus")
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1  # between two of the blocks
    data.write_bytes(content)
    load_corpus(tmp_path / "corpus")
    with pytest.raises(UserError, match=r"train/data-\S+.arrow: not the file that `cmgems prepare` wrote"):
        verify_corpus(tmp_path / "corpus")
    content[-1] ^= 1  # in the last block
    data.write_bytes(content)
    with pytest.raises(UserError, match=r"train/data-\S+.arrow: not the file that `cmgems prepare` wrote"):
        load_corpus(tmp_path / "corpus")


def test_a_corpus_without_checksums_cannot_be_verified(tmp_path, fasta):
    prepare(tmp_path / "corpus", fasta)
    without_checksums(tmp_path / "corpus", lambda folder: None)
    load_corpus(tmp_path / "corpus")
    with pytest.raises(UserError, match="it has no checksums"):
        verify_corpus(tmp_path / "corpus")
