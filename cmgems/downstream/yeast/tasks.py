"""Labelled tasks from the yeast genome's own annotation: which sequences they have, and what their classes are.

Sequences of `promoters` have 300 nucleotides, all others `LENGTH`. No sequence occurs twice in a task, in whichever
splits: genes have copies, of which the first counts. For windows a sequence's reverse complement is a copy too.

Gene starts and splice sites are set against sequences from elsewhere with the same nucleotides in the place of the
start codon, or of the first or last two of the intron: else those alone would tell the classes apart.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cmgems.data.annotation import Feature, reverse_complement
from cmgems.data.genetic_code import CODON
from cmgems.downstream.yeast.annotation import Chromosome
from cmgems.downstream.yeast.places import Chooser, Place, draw_bits, find_word, shuffle
from cmgems.errors import UserError

LENGTH = 131
"""Nucleotides of a sequence in all tasks but `promoters`: 126 overlapping 6-mers."""

WINDOWS_PER_GENE = {"train": 1, "dev": 2, "test": 2}
"""Windows that are drawn from a coding sequence, by split: more where there are few genes."""

_DONORS, _ACCEPTOR = (b"GT", b"GC"), b"AG"


class Example(NamedTuple):
    """A labelled sequence."""

    sequence: str
    """Its nucleotides, on its own strand."""
    label: int
    """Index of its class in the task's list."""


class Flanks(NamedTuple):
    """What surrounds a site in a sequence."""

    upstream: int
    """Nucleotides before the site's first one."""
    downstream: int
    """Nucleotides after the site's first one."""

    @property
    def length(self) -> int:
        """Nucleotides in all."""
        return self.upstream + 1 + self.downstream

    def place(self, site: "Site") -> Place:
        """Return where the sequence around a site lies."""
        return Place(site.position - (self.downstream if site.is_reverse else self.upstream), site.is_reverse)


class Site(NamedTuple):
    """A position that means something on one strand."""

    position: int
    """Position of its first nucleotide, from 0 on the forward strand."""
    is_reverse: bool
    """Whether it is read on the reverse strand."""


PROMOTER = Flanks(249, 50)
START = Flanks(80, 50)
SPLICE = Flanks(65, 65)


def is_task(name: str) -> bool:
    """Return whether `make_examples` knows a task of this name."""
    return _parse(name)[0] in TASKS


def make_examples(name: str, chromosomes: list[Chromosome], seed: int) -> dict[str, list[Example]]:
    """Return the examples of a task in `TASKS`, by split; of `NAME-SHOTS` with so many training examples of each class.

    They are in the order of the genome, class after class in turn, and depend on the genome and the seed alone.
    """
    task, shots = _parse(name)
    splits: dict[str, list[Example]] = {"train": [], "dev": [], "test": []}
    seen: set[str] = set()
    for chromosome in chromosomes:
        splits[chromosome.split].extend(TASKS[task](chromosome, seed, seen))
    if shots is not None:
        splits["train"] = _few(splits["train"], shots, f"{seed}\t{name}")
    return splits


def _parse(name: str) -> tuple[str, int | None]:
    """Return the task and the number of its training examples of each class, if they are not all there are."""
    task, _, shots = name.partition("-")
    return (task, int(shots)) if shots.isdecimal() else (name, None)


def _few(examples: list[Example], shots: int, key: str) -> list[Example]:
    """Return `shots` examples of each class, in their order.

    Raises
    ------
    UserError
        If a class has fewer.
    """
    labels = np.array([example.label for example in examples])
    most = int(np.bincount(labels).min())
    if not 1 <= shots <= most:
        raise UserError(f"{shots} training sequences of each class are asked for; there are 1 to {most}")
    order = shuffle(len(examples), key)
    chosen = np.concatenate([order[labels[order] == label][:shots] for label in np.unique(labels)])
    return [examples[index] for index in np.sort(chosen).tolist()]


def promoters(chromosome: Chromosome, seed: int, seen: set[str]) -> list[Example]:
    """Return 300 nucleotides around the start of every gene, of RNA too (1), and around the same codon elsewhere (0).

    The annotation has no transcription starts: a gene begins with its start codon.
    """
    sites = [Site(gene.first, gene.is_reverse) for gene in chromosome.genes]
    return site_examples(chromosome, sites, PROMOTER, CODON, seed, seen)


def starts(chromosome: Chromosome, seed: int, seen: set[str]) -> list[Example]:
    """Return what is around the start of every complete coding sequence (1), and around ATG elsewhere (0)."""
    sites = [Site(coding.first, coding.is_reverse) for coding in chromosome.complete_coding]
    return site_examples(chromosome, sites, START, CODON, seed, seen)


def coding(chromosome: Chromosome, seed: int, seen: set[str]) -> list[Example]:
    """Return the windows of coding sequences as they read (1), and, of either strand, windows that overlap no gene
    (0)."""
    is_genic = np.zeros(len(chromosome.bases), dtype=bool)
    for feature in (*chromosome.genes, *chromosome.coding):
        is_genic[feature.left : feature.right] = True
    key = f"{seed}\tintergenic\t{chromosome.name}"
    lefts = _all_true(~is_genic)
    is_reverse = draw_bits(len(lefts), key + "\tstrand") % 2 == 1
    free = (Place(int(lefts[i]), bool(is_reverse[i])) for i in shuffle(len(lefts), key))
    chooser = Chooser(chromosome.strands, LENGTH, seen)
    examples: list[Example] = []
    for inside in gene_windows(chromosome, "coding", seed, seen):
        outside = chooser.take(free)
        if outside is None:
            break  # the chromosome has no room left, and the classes stay equal
        seen.add(_reverse_complement(outside))
        examples += [Example(inside, 1), Example(outside, 0)]
    return examples


def strand(chromosome: Chromosome, seed: int, seen: set[str]) -> list[Example]:
    """Return the windows of coding sequences, in turn as they read (1) and as the other strand reads (0)."""
    windows = gene_windows(chromosome, "strand", seed, seen)
    examples = [
        Example(window, 1) if index % 2 == 0 else Example(_reverse_complement(window), 0)
        for index, window in enumerate(windows)
    ]
    return _equal_classes(examples, 2)


def frame(chromosome: Chromosome, seed: int, seen: set[str]) -> list[Example]:
    """Return the windows of coding sequences as they read; the class is the phase of the first nucleotide (0, 1, 2)."""
    windows = gene_windows(chromosome, "frame", seed, seen, frames=range(CODON))
    return _equal_classes([Example(window, index % CODON) for index, window in enumerate(windows)], CODON)


def splice(chromosome: Chromosome, seed: int, seen: set[str]) -> list[Example]:
    """Return the ends of introns, donors and acceptors (1), and the same two nucleotides elsewhere in genes (0)."""
    is_genic = (np.zeros(len(chromosome.bases), dtype=bool), np.zeros(len(chromosome.bases), dtype=bool))
    for gene in chromosome.genes:
        is_genic[gene.is_reverse][gene.left : gene.right] = True
    sites = [site for feature in chromosome.complete_coding for site in _splice_sites(feature, chromosome)]
    return site_examples(chromosome, sites, SPLICE, len(_ACCEPTOR), seed, seen, within=is_genic)


TASKS: dict[str, Callable[[Chromosome, int, set[str]], list[Example]]] = {
    "promoters": promoters,
    "starts": starts,
    "coding": coding,
    "strand": strand,
    "frame": frame,
    "splice": splice,
}
"""Each task's examples on a chromosome, from the seed and the sequences seen so far, to which they are added."""


def site_examples(
    chromosome: Chromosome,
    sites: Sequence[Site],
    flanks: Flanks,
    word_length: int,
    seed: int,
    seen: set[str],
    within: tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]] | None = None,
) -> list[Example]:
    """Return the sequences around sites (1), each followed by one from elsewhere (0) with the same word in its place.

    Parameters
    ----------
    chromosome
        Where the sites are.
    sites
        The sites. One too near to an end for a whole sequence, or with an N in it, gives none.
    flanks
        What surrounds a site.
    word_length
        Nucleotides from the site on that both sequences have in common.
    seed
        Seed of the choice of the negatives. They overlap no positive, nor each other.
    seen
        Sequences that do not count any more; what is returned is added.
    within
        Which positions of the forward strand negatives may have, on the forward and on the reverse strand; None: all.
    """
    chooser = Chooser(chromosome.strands, flanks.length, seen)
    for site in sites:
        chooser.occupy(flanks.place(site).left)
    examples: list[Example] = []
    candidates: dict[str, Iterator[Place]] = {}
    for site in sites:
        positive = chooser.read_new(flanks.place(site))
        if positive is None:
            continue
        word = positive[flanks.upstream : flanks.upstream + word_length]
        if word not in candidates:
            key = f"{seed}\t{chromosome.name}\t{word}"
            places = find_word(chromosome.strands, word.encode(), flanks.upstream, flanks.length, key)
            candidates[word] = places if within is None else _inside(places, within, flanks.length)
        negative = chooser.take(candidates[word])
        if negative is not None:  # else the chromosome has no room left, and the classes stay equal
            examples += [Example(positive, 1), Example(negative, 0)]
    return examples


def gene_windows(
    chromosome: Chromosome, task: str, seed: int, seen: set[str], frames: Sequence[int] | None = None
) -> list[str]:
    """Return the windows of the complete coding sequences, each inside one exon, as the gene reads, without stop
    codons.

    They overlap neither each other nor any other coding sequence.

    Parameters
    ----------
    chromosome
        Where the coding sequences are.
    task, seed
        What the choice depends on.
    seen
        Sequences that do not count any more; what is returned is added, and its reverse complement.
    frames
        Phases of the first nucleotide (its position in its codon, from 0) that the windows have in turn; None: any.
    """
    depth = np.zeros(len(chromosome.bases), dtype=np.int64)
    for feature in chromosome.coding:
        for begin, end in feature.parts:
            depth[begin:end] += 1
    is_free = np.zeros(len(chromosome.bases) + 1, dtype=bool)
    is_free[_all_true(depth == 1)] = True
    chooser = Chooser(chromosome.strands, LENGTH, seen)
    windows: list[str] = []
    for feature in chromosome.complete_coding:
        lefts, phases = _places_inside(feature)
        lefts, phases = lefts[is_free[lefts]], phases[is_free[lefts]]
        order = shuffle(len(lefts), f"{seed}\t{task}\t{chromosome.name}\t{feature.first}")
        for _ in range(WINDOWS_PER_GENE[chromosome.split]):
            wanted = order if frames is None else order[phases[order] == frames[len(windows) % len(frames)]]
            window = chooser.take(Place(int(lefts[i]), feature.is_reverse) for i in wanted)
            if window is not None:
                seen.add(_reverse_complement(window))
                windows.append(window)
    return windows


def _places_inside(coding: Feature) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the left ends of all windows inside an exon, and the phases of the nucleotides that they read first."""
    translated = sum(end - begin for begin, end in coding.parts) - CODON
    lefts, phases = [], []
    before = 0
    for begin, end in coding.parts:
        offsets = np.arange(max(min(end - begin, translated - before) - LENGTH + 1, 0))
        lefts.append(end - LENGTH - offsets if coding.is_reverse else begin + offsets)
        phases.append((before + offsets) % CODON)
        before += end - begin
    return np.concatenate(lefts), np.concatenate(phases)


def _splice_sites(coding: Feature, chromosome: Chromosome) -> Iterator[Site]:
    """Yield the first of the two nucleotides at either end of each intron that begins and ends as introns do."""
    for begin, end in coding.introns:
        intron = chromosome.bases[begin:end]
        intron = reverse_complement(intron) if coding.is_reverse else intron
        if intron.startswith(_DONORS) and intron.endswith(_ACCEPTOR):
            for offset in (0, len(intron) - len(_ACCEPTOR)):
                yield Site(end - 1 - offset if coding.is_reverse else begin + offset, coding.is_reverse)


def _inside(
    places: Iterator[Place], within: tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]], length: int
) -> Iterator[Place]:
    return (place for place in places if within[place.is_reverse][place.left : place.left + length].all())


def _all_true(flags: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Return all positions from which on `LENGTH` flags are true."""
    total = np.concatenate([[0], np.cumsum(flags)])
    return np.flatnonzero(total[LENGTH:] - total[:-LENGTH] == LENGTH)


def _reverse_complement(sequence: str) -> str:
    return reverse_complement(sequence.encode()).decode()


def _equal_classes(examples: list[Example], classes: int) -> list[Example]:
    """Return the examples, of which each class has its turn, without those of a last round that is not complete."""
    return examples[: len(examples) - len(examples) % classes]
