"""How runs become windows."""

from itertools import groupby
from operator import attrgetter

import numpy as np
import pytest

from cmgems.data.genomes import Piece, read_bases, read_runs
from cmgems.data.settings import PrepareConfig
from cmgems.data.windows import cut_chromosome, window_lengths


def config(**settings) -> PrepareConfig:
    return PrepareConfig(inputs=["genome.fa"], **settings)


def cut(pieces, settings: PrepareConfig):
    """Cut whole chromosomes, each into windows of its own lengths."""
    for chromosome, group in groupby(pieces, key=attrgetter("chromosome")):
        yield from cut_chromosome(group, window_lengths(chromosome, settings), settings)


def random_bases(length: int, seed: int = 0) -> bytes:
    return np.frombuffer(b"ACGT", dtype=np.uint8)[np.random.default_rng(seed).integers(0, 4, length)].tobytes()


def tokens(windows, k: int = 6) -> np.ndarray:
    return np.array([len(window.sequence) - k + 1 for window in windows])


def test_windows_follow_each_other_and_the_rest_is_a_window_if_it_is_long_enough():
    full = config(k=3, window_tokens=6, min_window_tokens=2, full_length_share=1)
    assert list(cut([Piece("chr1", 100, b"AAAAAAAACCCCCCCCGGGG")], full)) == [
        ("chr1", 100, "AAAAAAAA"),
        ("chr1", 108, "CCCCCCCC"),
        ("chr1", 116, "GGGG"),
    ]
    assert list(cut([Piece("chr1", 0, b"AAAAAAAAGGG")], full)) == [("chr1", 0, "AAAAAAAA")]
    assert list(cut([Piece("chr1", 0, b"AAA")], full)) == []


def test_no_window_reaches_over_an_interruption():
    full = config(k=3, window_tokens=6, min_window_tokens=2, full_length_share=1)
    pieces = [Piece("chr1", 0, b"AAAAA"), Piece("chr1", 6, b"CCCCC"), Piece("chr2", 11, b"GGGGG")]
    assert list(cut(pieces, full)) == [("chr1", 0, "AAAAA"), ("chr1", 6, "CCCCC"), ("chr2", 11, "GGGGG")]


@pytest.mark.parametrize("size", [1, 7, 100, 3333])
def test_piece_sizes_make_no_difference(size):
    bases = random_bases(20_000)
    pieces = [Piece("chr1", i, bases[i : i + size]) for i in range(0, len(bases), size)]
    assert list(cut(pieces, config())) == list(cut([Piece("chr1", 0, bases)], config()))


def test_regions_of_a_chromosome_go_on_with_the_next_lengths():
    """Short regions would otherwise all be cut at the same few lengths."""
    regions = [Piece("chr1", 1_000 * i, random_bases(999, i)) for i in range(1_000)]
    lengths = tokens(cut(regions, config(window_tokens=100)))
    assert (lengths == 100).mean() == pytest.approx(0.47, abs=0.03)


def test_a_chromosome_cut_in_parts_goes_on_with_the_next_lengths():
    first, second = Piece("chr1", 0, random_bases(20_000, 1)), Piece("chr1", 30_000, random_bases(20_000, 2))
    lengths = window_lengths("chr1", config())
    parts = [*cut_chromosome([first], lengths, config()), *cut_chromosome([second], lengths, config())]
    assert parts == list(cut([first, second], config()))


def test_an_overlapping_region_is_cut_on_its_own():
    full = config(k=3, window_tokens=6, min_window_tokens=2, full_length_share=1)
    pieces = [Piece("chr1", 0, b"AAAAAAAAAAAA"), Piece("chr1", 4, b"CCCCCCCCC"), Piece("chr1", 4, b"GGGG")]
    assert list(cut(pieces, full)) == [
        ("chr1", 0, "AAAAAAAA"),
        ("chr1", 8, "AAAA"),
        ("chr1", 4, "CCCCCCCC"),
        ("chr1", 4, "GGGG"),
    ]


def test_other_chromosomes_make_no_difference():
    first, second = Piece("chr1", 0, random_bases(20_000, 1)), Piece("chr2", 0, random_bases(20_000, 2))
    together = list(cut([first, second], config()))
    assert together == [*cut([first], config()), *cut([second], config())]
    assert [len(window.sequence) for window in cut([Piece("chr2", 0, first.bases)], config())] != [
        len(window.sequence) for window in cut([first], config())
    ]


def test_the_lengths_are_those_of_every_release():
    """A corpus prepared again is the same: a change here is a change of the format."""
    windows = list(cut([Piece("chr1", 0, random_bases(5_000))], config()))
    assert tokens(windows)[:8].tolist() == [48, 510, 197, 477, 510, 510, 265, 425]


def test_the_seed_changes_the_lengths():
    piece = Piece("chr1", 0, random_bases(20_000))
    assert list(cut([piece], config(seed=1))) != list(cut([piece], config(seed=2)))


def test_half_of_the_windows_are_full_and_the_others_uniform():
    lengths = tokens(cut([Piece("chr1", 0, random_bases(4_000_000))], config()))[:-1]
    assert lengths.min() == 5
    assert lengths.max() == 510
    # A full length is drawn with 1/2, and by one in 506 of the others; 5 standard errors.
    full_share = 0.5 + 0.5 / 506
    assert (lengths == 510).mean() == pytest.approx(full_share, abs=5 * 0.5 / len(lengths) ** 0.5)
    others = lengths[lengths < 510]
    observed = np.histogram(others, bins=np.linspace(5, 510, 11))[0]
    chi_square = ((observed - len(others) / 10) ** 2 / (len(others) / 10)).sum()
    assert chi_square < 35  # nine degrees of freedom: exceeded once in 17,000 by chance


@pytest.mark.parametrize("name", ["hg19_chr22_20-21M.fa", "hg38_chr2_1-2333275.fa.gz"])
def test_windows_are_the_genome_at_their_position(shared_data, name):
    source = str(shared_data / "genomes" / name)
    genome = b"".join(piece.bases for piece in read_bases(source)).decode()
    end = 0
    windows = list(cut(read_runs(source), config()))
    for window in windows:
        assert window.start >= end
        end = window.start + len(window.sequence)
        assert genome[window.start : end] == window.sequence
        assert "N" not in window.sequence
    covered = sum(len(window.sequence) for window in windows)
    assert covered == pytest.approx(len(genome) - genome.count("N"), rel=1e-3)
