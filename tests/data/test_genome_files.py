"""How FASTA and GenBank files and archives of them are read, and what is said of a file that is none."""

import gzip
import zipfile

import pytest

from cmgems.data import genome_files, genome_text
from cmgems.data.genomes import read_runs
from cmgems.errors import UserError
from tests.data.runs import joined

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
