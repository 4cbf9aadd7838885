"""Genes and coding sequences of GenBank files."""

import zipfile

import pytest

from cmgems.downstream.yeast.annotation import Feature, is_complete, read_features
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
        archive.writestr("notes.txt", text)
        archive.writestr("a.gb", text)
    return path


def test_locations_are_read_in_the_order_of_the_gene(tmp_path):
    assert list(read_features(write_archive(tmp_path / "genome.zip", GENBANK))) == [
        Feature("gene", "chrA", ((100, 200),), False),
        Feature("CDS", "chrA", ((100, 200),), False),
        Feature("gene", "chrA", ((300, 400),), True),
        Feature("CDS", "chrA", ((349, 400), (330, 331), (300, 320)), True),
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
        "join(7..9,complement(11..12))",
        "complement(complement(7..9))",
        "",
    ],
)
def test_a_location_that_cannot_be_read_is_an_error_of_its_line(tmp_path, location):
    path = write_archive(tmp_path / "genome.zip", GENBANK.replace("complement(<301..>400)", location))
    with pytest.raises(UserError, match=r"a\.gb, line 9: a gene whose location cannot be read: ") as error:
        list(read_features(path))
    assert str(error.value).endswith(f": {location}")


def coding(*parts: tuple[int, int], is_reverse: bool = False) -> Feature:
    return Feature("CDS", "chr", parts, is_reverse)


def test_a_coding_sequence_is_complete_from_atg_to_its_only_stop_codon():
    assert is_complete(coding((2, 11)), b"CCATGCGTTAACC")
    assert is_complete(coding((2, 11), is_reverse=True), b"CCTTAACGCATCC")
    assert not is_complete(coding((2, 10)), b"CCATGCGTTAACC")
    assert not is_complete(coding((2, 11)), b"CCATCCGTTAACC")
    assert not is_complete(coding((2, 11)), b"CCATGCGTTACCC")
    assert not is_complete(coding((2, 14)), b"CCATGTGATTATAACC")
    assert not is_complete(coding((2, 11)), b"CCATGCNTTAACC")


def test_introns_are_spliced_and_frame_shifts_are_not():
    intron = b"GTATGTCCCCCCCCCCCCCCCCAG"
    assert is_complete(coding((0, 4), (28, 33)), b"ATGC" + intron + b"GTTAA")
    other_strand = b"TTAAC" + b"CTGGGGGGGGGGGGGGGGACATAC" + b"GCAT"
    assert is_complete(coding((29, 33), (0, 5), is_reverse=True), other_strand)
    assert not is_complete(coding((0, 4), (5, 10)), b"ATGCAGTTAA")
    assert not is_complete(coding((0, 5), (4, 8)), b"ATGCTTAA")
