"""Sequences of genomes, BED files and tables, in the order of the file."""

import csv
import gzip

import pytest
from datasets import Dataset

from cmgems.errors import UserError
from cmgems.inference.sequences import Region, read_regions

GENOME = ">a\nACGTACGTAC\n>b\nGGGTTTNNAA\n"
BED = "track name=x\n#chrom\tstart\tend\nb\t0\t4\tfirst\t0\t-\na\t2\t6\nb\t4\t10\tlast\t.\t+\n"


@pytest.fixture
def write(tmp_path):
    def write_file(name, text):
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(tmp_path / name)

    return write_file


def test_records_are_sequences(write):
    genome = write("genome.fa", GENOME)
    assert list(read_regions(genome)) == [Region("a", 0, 10, "ACGTACGTAC"), Region("b", 0, 10, "GGGTTTNNAA")]
    assert list(read_regions(genome, tile=4))[:4] == [
        Region("a", 0, 4, "ACGT"),
        Region("a", 4, 8, "ACGT"),
        Region("a", 8, 10, "AC"),
        Region("b", 0, 4, "GGGT"),
    ]


@pytest.mark.parametrize("name", ["regions.bed", "regions.BED.gz"])
def test_regions_of_a_bed_file_keep_their_order_and_strand(write, name):
    bed = write(name, gzip.compress(BED.encode()) if name.endswith("gz") else BED)
    assert list(read_regions(bed, write("genome.fa", GENOME))) == [
        Region("first", 0, 4, "ACCC"),
        Region("a:2-6", 2, 6, "GTAC"),
        Region("last", 4, 10, "TTNNAA"),
    ]


def test_rows_of_a_table_are_sequences(write):
    table = write("rows.csv", "id,label,sequence\nx,1,ACGT\ny,0,ggu\n")
    assert list(read_regions(table)) == [Region("x", 0, 4, "ACGT"), Region("y", 0, 3, "ggu")]
    assert [region.name for region in read_regions(write("rows.tsv", "label\tsequence\n1\tACGT\n0\tGG\n"))] == [
        "0",
        "1",
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.bed", "a\t0\t11\n", "line 1: the region ends at 11, but a has 10"),
        ("x.bed", "a\t5\t5\n", "line 1: a region from 5 to 5"),
        ("x.bed", "a\t-1\t5\n", "line 1: not BED"),
        ("x.bed", "\na 0\n", "line 2: not BED"),
        ("x.bed", "a\t0\t5\tn\t0\t?\n", r"line 1: strand '\?'"),
        ("x.bed", "z\t0\t5\n", "genome.fa has no record z"),
        ("x.bed", "a\t0\t4\n\xff", "not BED|cannot be read"),
        ("x.csv", "name,seq\na,ACGT\n", "line 1: there is no column `sequence`; the columns are: name, seq"),
        ("x.csv", "sequence\nACGT\n\nAC-GT\n", "line 4: 'AC-GT' is no sequence"),
        ("x.csv", "", "line 1: the file is empty"),
        ("x.csv", "name,sequence\na\n", "line 2: 1 cells, but the header has 2"),
    ],
)
def test_a_damaged_file_is_an_error_of_its_line(write, name, text, message):
    genome = write("genome.fa", GENOME) if name.endswith("bed") else None
    with pytest.raises(UserError, match=message):
        list(read_regions(write(name, text), genome))


def test_a_long_sequence_in_a_table_is_read(write):
    before = csv.field_size_limit()
    [region] = read_regions(write("rows.csv", f"sequence\n{'ACGT' * 50_000}\n"))
    assert len(region.bases) == 200_000
    assert csv.field_size_limit() == before  # which is one of the whole process


def test_a_record_in_several_regions_is_no_record_of_a_bed_file(write, tmp_path):
    rows = {"chromosome": ["a", "a", "b"], "start": [0, 100, 0], "sequence": ["ACGT" * 5, "GGGG", "CCCC"]}
    Dataset.from_dict(rows).save_to_disk(tmp_path / "genome")
    assert [region[:3] for region in read_regions(str(tmp_path / "genome"))] == [
        ("a", 0, 20),
        ("a", 100, 104),
        ("b", 0, 4),
    ]
    with pytest.raises(UserError, match="a: a record in several regions"):
        list(read_regions(write("x.bed", "a\t2\t6\n"), str(tmp_path / "genome")))
    assert [region.bases for region in read_regions(write("x.bed", "b\t2\t4\n"), str(tmp_path / "genome"))] == ["CC"]


def test_a_genome_belongs_to_a_bed_file(write):
    genome = write("genome.fa", GENOME)
    with pytest.raises(UserError, match="genome belongs to a BED file"):
        read_regions(genome, genome)
    with pytest.raises(UserError, match="a BED file needs it"):
        read_regions(write("x.bed", BED))
    with pytest.raises(UserError, match="there is no such file"):
        list(read_regions(genome + ".bed", genome))
