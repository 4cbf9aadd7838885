"""A corpus as it is loaded, and what is said of one that is broken."""

import json
import shutil
from pathlib import Path

import pytest

from cmgems.data.corpus import load_corpus
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
        (remove_train, "the train split is missing or damaged"),
        (cut_validation, "the validation split is missing or damaged"),
        (lambda folder: (folder / "kmer_counts.csv").write_text("kmer,count\nAAAAAA,1\n"), "kmer_counts.csv: missing"),
    ],
)
def test_a_broken_corpus_is_named(tmp_path, fasta, damage, message):
    prepare(tmp_path / "corpus", fasta)
    damage(tmp_path / "corpus")
    with pytest.raises(UserError, match=message) as error:
        load_corpus(tmp_path / "corpus")
    assert str(tmp_path / "corpus") in str(error.value)
