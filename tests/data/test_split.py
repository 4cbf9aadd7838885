"""Which chromosomes validate."""

import pytest

from cmgems.data.genomes import Piece
from cmgems.data.settings import PrepareConfig
from cmgems.data.split import SPLITS, Chromosome, assign, measure, validation_starts
from cmgems.errors import UserError


def config(**settings) -> PrepareConfig:
    return PrepareConfig(inputs=["genome.fa"], **settings)


def test_measure_counts_all_positions_and_the_ambiguous_ones():
    pieces = [Piece("a", 0, b"NNAC"), Piece("a", 4, b"GTN"), Piece("b", 0, b"A")]
    sizes = measure(pieces)
    assert {name: (size.length, size.ambiguous) for name, size in sizes.items()} == {"a": (7, 3), "b": (1, 0)}


def test_measure_counts_the_nucleotides_of_regions_and_not_what_is_between_them():
    pieces = [Piece("a", 100, b"AC"), Piece("a", 102, b"GN"), Piece("a", 500, b"ACGT"), Piece("a", 502, b"GTN")]
    size = measure(pieces)["a"]
    assert (size.length, size.ambiguous) == (11, 2)
    assert size.regions.tolist() == [100, 104, 500, 504, 502, 505]


def test_named_chromosomes_validate():
    sizes = {"a": Chromosome(10, 0), "b": Chromosome(10, 0), "c": Chromosome(10, 0)}
    assert validation_starts(sizes, config(validation_chromosomes=["c", "a"])) == {"c": 0, "a": 0}


def test_unknown_names_are_an_error_that_lists_the_names():
    sizes = {"a": Chromosome(10, 0), "b": Chromosome(10, 0)}
    with pytest.raises(UserError, match="no chromosome is named chr1; there are: a, b"):
        validation_starts(sizes, config(validation_chromosomes=["a", "chr1"]))
    with pytest.raises(UserError, match="leave some for training"):
        validation_starts(sizes, config(validation_chromosomes=["a", "b"]))


@pytest.mark.parametrize("seed", range(20))
def test_the_share_is_met_with_whole_chromosomes(seed):
    sizes = {f"chr{i}": Chromosome(1000 + i, 0) for i in range(100)}
    chosen = validation_starts(sizes, config(validation_share=0.1, seed=seed))
    total = sum(size.length for size in sizes.values())
    assert sum(sizes[name].length for name in chosen) / total == pytest.approx(0.1, abs=0.006)
    assert set(chosen.values()) == {0}


def test_the_seed_chooses_and_the_order_of_the_input_does_not():
    sizes = {f"chr{i}": Chromosome(1000, 0) for i in range(100)}
    backwards = dict(reversed(sizes.items()))
    assert set(validation_starts(sizes, config())) == set(validation_starts(backwards, config()))
    assert set(validation_starts(sizes, config(seed=1))) != set(validation_starts(sizes, config(seed=2)))


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("seed", range(5))
def test_at_least_one_chromosome_validates_and_never_all(share, seed):
    sizes = {"a": Chromosome(100, 0), "b": Chromosome(90, 0)}
    assert len(validation_starts(sizes, config(validation_share=share, seed=seed))) == 1
    assert validation_starts(sizes, config(validation_share=0.01, seed=seed)) == {"b": 0}


def test_a_stretch_of_n_is_no_share_of_the_genome():
    sizes = {"all_n": Chromosome(1000, 1000), "a": Chromosome(1000, 0), "b": Chromosome(500, 0)}
    assert validation_starts(sizes, config(validation_share=0.1)) == {"b": 0}


def test_the_end_of_the_only_chromosome_validates():
    sizes = measure([Piece("a", 0, b"A" * 600), Piece("a", 600, b"C" * 400)])
    assert validation_starts(sizes, config(validation_share=0.05)) == {"a": 950}


@pytest.mark.parametrize(
    ("regions", "border"),
    [
        ([(20_000, 1000)], 20_900),
        ([(0, 500), (9_000, 500)], 9_400),
        ([(0, 900), (9_000, 100)], 9_000),
        ([(0, 950), (9_000, 50)], 900),
        ([(0, 500), (0, 500)], 450),
        ([(0, 500), (250, 500)], 650),
        ([(0, 1000), (400, 100)], 890),
    ],
    ids=["far-out", "gap", "last-region", "both-regions", "repeated", "overlapping", "inside-another"],
)
def test_the_end_of_the_only_chromosome_is_a_share_of_its_nucleotides_not_of_its_positions(regions, border):
    pieces = [Piece("a", start, b"A" * length) for start, length in regions]
    starts = validation_starts(measure(pieces), config(validation_share=0.1))
    assert starts == {"a": border}
    nucleotides = dict.fromkeys(SPLITS, 0)
    for split, piece in assign(pieces, starts):
        nucleotides[split] += len(piece.bases)
    assert nucleotides["validation"] / sum(nucleotides.values()) == pytest.approx(0.1, abs=0.001)


def test_a_piece_on_both_sides_of_the_border_becomes_two():
    pieces = [Piece("a", 0, b"AAAA"), Piece("a", 4, b"CCGG"), Piece("a", 8, b"TTTT"), Piece("b", 0, b"AC")]
    assert list(assign(pieces, {"a": 6})) == [
        ("train", ("a", 0, b"AAAA")),
        ("train", ("a", 4, b"CC")),
        ("validation", ("a", 6, b"GG")),
        ("validation", ("a", 8, b"TTTT")),
        ("train", ("b", 0, b"AC")),
    ]
    assert [split for split, _ in assign(pieces, {"a": 0})] == ["validation"] * 3 + ["train"]
    assert [split for split, _ in assign(pieces, {"a": 8})] == ["train", "train", "validation", "train"]
