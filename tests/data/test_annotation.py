"""Genes and coding sequences of GenBank and GFF3 files."""

import gzip
import re
import zipfile

import pytest

from cmgems.data.annotation import Feature, Unreadable, read_genbank, read_gff
from cmgems.errors import UserError

GENBANK = """\
LOCUS       chrA                     500 bp    DNA
FEATURES             Location/Qualifiers
     gene            101..200
                     /gene="one"
     mRNA            101..200
     CDS             101..200
                     /note="as long as a CDS is, and a
                     gene            1..2"
     gene            complement(<301..>400)
     CDS             complement(join(<301..320,331,
                     350..>400))
                     /gene="two"
LOCUS       chrB                     500 bp    DNA
     gene            join(7..9,
                     11..12,20..
                     30)
     CDS             join(complement(20..30),complement(7..9))
ORIGIN
        1 acgtacgtac
"""


def write_archive(path, text):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "of chromosome A")
        archive.writestr("a.gb", text)
    return str(path)


def test_locations_are_read_in_the_order_of_the_gene(tmp_path):
    assert list(read_genbank(write_archive(tmp_path / "genome.zip", GENBANK))) == [
        Feature("gene", "chrA", ((100, 200),), False, "one"),
        Feature("CDS", "chrA", ((100, 200),), False),
        Feature("gene", "chrA", ((300, 400),), True),
        Feature("CDS", "chrA", ((349, 400), (330, 331), (300, 320)), True, "two"),
        Feature("gene", "chrB", ((6, 9), (10, 12), (19, 30)), False),
        Feature("CDS", "chrB", ((19, 30), (6, 9)), True),
    ]


def test_ends_and_introns_of_a_feature():
    forward = Feature("CDS", "chr", ((10, 20), (50, 60), (80, 90)), False)
    assert (forward.left, forward.right, forward.first) == (10, 90, 10)
    assert forward.introns == [(20, 50), (60, 80)]
    backward = Feature("CDS", "chr", ((80, 90), (50, 60), (10, 20)), True)
    assert (backward.left, backward.right, backward.first) == (10, 90, 89)
    assert backward.introns == [(60, 80), (20, 50)]


@pytest.mark.parametrize(
    "location",
    [
        "102^103",
        "order(7..9,11..12)",
        "chrA:7..9",
        "7..9,11..12",
        "join(7..9",
        "9..7",
        "0..7",
        f"7..{'9' * 5000}",
        "join(7..9,complement(11..12))",
        "complement(complement(7..9))",
        "",
    ],
)
def test_a_location_that_cannot_be_read_is_named_with_its_line(tmp_path, location):
    path = write_archive(tmp_path / "genome.zip", GENBANK.replace("complement(<301..>400)", location))
    unreadable = [feature for feature in read_genbank(path) if isinstance(feature, Unreadable)]
    assert unreadable == [Unreadable(f"{path}/a.gb, line 9", "gene", location)]


QUALIFIED = """\
LOCUS       chrA                     500 bp    DNA
     CDS             101..200
                     /gene="g"
                     /locus_tag="t"
                     /codon_start=3
                     /protein_id="p.1"
     CDS             101..200
                     /gene="g"
                     /pseudo
                     /locus_tag="t2"
     CDS             101..200
                     /pseudogene="unprocessed"
     gene            1..4
"""


def test_names_frames_and_pseudogenes_are_read_from_the_qualifiers(tmp_path):
    (tmp_path / "a.gb").write_text(QUALIFIED)
    part = ((100, 200),)
    assert list(read_genbank(str(tmp_path / "a.gb"), kinds=["CDS"])) == [
        Feature("CDS", "chrA", part, False, "p.1", 2),
        Feature("CDS", "chrA", part, False, "t2", 0, True),
        Feature("CDS", "chrA", part, False, "", 0, True),
    ]
    assert list(read_genbank(str(tmp_path / "a.gb"), kinds=["gene"])) == [
        Feature("gene", "chrA", ((0, 4),), False)  # which is at the end of the file
    ]


def test_what_is_no_genbank_file_is_refused(tmp_path):
    (tmp_path / "a.gb").write_text(QUALIFIED.replace("codon_start=3", "codon_start=4"))
    with pytest.raises(UserError, match=r"a\.gb, line 2: a CDS whose codon_start is 4"):
        list(read_genbank(str(tmp_path / "a.gb")))
    (tmp_path / "a.fa").write_text(">a\nACGT\n")
    with pytest.raises(UserError, match=r"a\.fa: no GenBank record.*--annotation"):
        list(read_genbank(str(tmp_path / "a.fa")))
    with pytest.raises(UserError, match="no file; coding sequences"):
        list(read_genbank(str(tmp_path / "b.gb")))


GFF = """\
##gff-version 3
##sequence-region chr%201 1 1000
chr%201\t.\tgene\t1\t90\t.\t+\t.\tID=g1
chr%201\t.\tCDS\t1\t10\t.\t+\t0\tID=c1;Parent=t1
chr%201\t.\tCDS\t201\t205\t.\t-\t1\tID=c2;Parent=t2
chr%201\t.\tCDS\t31\t38\t.\t+\t2\tID=c1;Parent=t1

# parts on the reverse strand may stand in any order
chr%201\t.\tCDS\t221\t225\t.\t-\t2\tID=c2;Parent=t2
b\t.\tCDS\t5\t7\t.\t+\t0\tParent=t3,t4; pseudo=true
b\t.\tCDS\t11\t16\t.\t+\t0\tParent=t4
###
##FASTA
>b
ACGT
"""


def test_lines_of_gff_are_joined_by_id_and_parent(tmp_path):
    path = tmp_path / "a.gff3"
    path.write_text(GFF)
    assert list(read_gff(path)) == [
        Feature("CDS", "chr 1", ((0, 10), (30, 38)), False, "c1", 0),
        Feature("CDS", "chr 1", ((220, 225), (200, 205)), True, "c2", 2),
        Feature("CDS", "b", ((4, 7),), False, "t3", 0, True),
        Feature("CDS", "b", ((4, 7), (10, 16)), False, "t4", 0, True),
    ]


def test_a_gzipped_gff_file_is_read_too(tmp_path):
    (tmp_path / "a.gff3").write_text(GFF)
    (tmp_path / "a.gff3.gz").write_bytes(gzip.compress(GFF.encode()))
    assert list(read_gff(tmp_path / "a.gff3.gz")) == list(read_gff(tmp_path / "a.gff3"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("##gff-version 3", "chr1", "line 1: not GFF3"),
        ("\tCDS\t1\t10\t", "\tCDS\t1\t", "line 4: 8 columns instead of 9"),
        ("\tCDS\t1\t10\t", "\tCDS\t0\t10\t", "line 4: a CDS from 0 to 10"),
        ("\tCDS\t1\t10\t", "\tCDS\t11\t10\t", "line 4: a CDS from 11 to 10"),
        ("\tCDS\t1\t10\t", f"\tCDS\t1\t{'9' * 5000}\t", f"line 4: a CDS from 1 to {'9' * 20};"),
        ("205\t.\t-\t1", "205\t.\t.\t1", "line 5: a CDS on strand '.' with phase '1'"),
        ("205\t.\t-\t1", "205\t.\t-\t.", "line 5: a CDS on strand '-' with phase '.'"),
        ("205\t.\t-\t1", "205\t.\t+\t1", "line 5: c2 has parts on different records or strands"),
        ("ID=c2;Parent=t2\n", "Name=c2\n", "line 5: a CDS with neither ID nor Parent"),
    ],
)
def test_a_damaged_gff_file_is_an_error_of_its_line(tmp_path, old, new, message):
    (tmp_path / "a.gff3").write_text(GFF.replace(old, new, 1))
    with pytest.raises(UserError, match=re.escape(f"a.gff3, {message}")):
        list(read_gff(tmp_path / "a.gff3"))


def test_a_gff_file_without_coding_sequences_is_an_error(tmp_path):
    (tmp_path / "a.gff3").write_text("##gff-version 3\n")
    with pytest.raises(UserError, match=r"no coding sequences \(CDS\)"):
        list(read_gff(tmp_path / "a.gff3"))
