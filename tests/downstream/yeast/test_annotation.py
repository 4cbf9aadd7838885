"""Which of yeast's coding sequences are complete."""

from cmgems.data.annotation import Feature
from cmgems.downstream.yeast.annotation import is_complete


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
