"""Which part of a genome is for validation: whole chromosomes, or the end of the only one."""

from array import array
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Literal

import numpy as np

from cmgems.data.genomes import Piece
from cmgems.data.settings import PrepareConfig
from cmgems.errors import UserError

Split = Literal["train", "validation"]
SPLITS: tuple[Split, Split] = ("train", "validation")

_NAMES_SHOWN = 30


@dataclass(slots=True)
class Chromosome:
    """The size of a record, and where it has nucleotides."""

    length: int = 0
    """All its nucleotides; where regions overlap, those of each."""
    ambiguous: int = 0
    """How many of them are anything but A, C, G, T."""
    regions: "array[int]" = field(default_factory=lambda: array("q"))
    """Position of the first nucleotide of its first region, position after the last; the same of the second; ..."""

    @property
    def unambiguous(self) -> int:
        """How many of its nucleotides are A, C, G or T."""
        return self.length - self.ambiguous

    def add(self, piece: Piece) -> None:
        """Count one more piece."""
        self.length += len(piece.bases)
        self.ambiguous += piece.bases.count(b"N")
        if self.regions and self.regions[-1] == piece.start:
            self.regions[-1] = piece.end
        else:
            self.regions.extend((piece.start, piece.end))


def measure(pieces: Iterable[Piece]) -> dict[str, Chromosome]:
    """Return the sizes of the chromosomes that `pieces`, as `read_bases` yields them, are made of."""
    chromosomes: dict[str, Chromosome] = {}
    for piece in pieces:
        if piece.chromosome not in chromosomes:
            chromosomes[piece.chromosome] = Chromosome()
        chromosomes[piece.chromosome].add(piece)
    return chromosomes


def validation_starts(
    chromosomes: Mapping[str, Chromosome], config: PrepareConfig, family_of: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Return the position from which each chromosome with validation data is for validation: 0 if it is so as a whole.

    The chromosomes named in `validation_chromosomes`; without names, chromosomes in an order that the seed gives, each
    taken if that brings the validation nucleotides nearer to `validation_share`, at least one and never all; of a
    genome that is a single chromosome, the last `validation_share` of its nucleotides by position.

    Parameters
    ----------
    chromosomes
        Their sizes.
    config
        How to choose.
    family_of
        Number of the family of each chromosome: families are chosen instead of single chromosomes, all of one family
        together.

    Raises
    ------
    UserError
        If a named chromosome does not exist, if all are named, or if all are of one family.
    """
    if config.validation_chromosomes:
        _check_names(chromosomes, config.validation_chromosomes)
        return dict.fromkeys(config.validation_chromosomes, 0)
    if family_of and len(chromosomes) > 1:
        return dict.fromkeys(_choose_families(chromosomes, config, family_of), 0)
    if len(chromosomes) == 1:
        [(name, chromosome)] = chromosomes.items()
        return {name: _border(chromosome, round(chromosome.length * config.validation_share))}
    return dict.fromkeys(_nearest({name: size.unambiguous for name, size in chromosomes.items()}, config), 0)


def assign(pieces: Iterable[Piece], starts: Mapping[str, int]) -> Iterator[tuple[Split, Piece]]:
    """Yield each piece with its split; a piece on both sides of a border becomes two."""
    for piece in pieces:
        border = starts.get(piece.chromosome, piece.end) - piece.start
        if border > 0:
            yield "train", piece._replace(bases=piece.bases[:border])
        if border < len(piece.bases):
            begin = max(border, 0)
            yield "validation", piece._replace(start=piece.start + begin, bases=piece.bases[begin:])


def _border(chromosome: Chromosome, nucleotides: int) -> int:
    """Return the last position that has at least this many nucleotides from there on."""
    starts, ends = np.array(chromosome.regions).reshape(-1, 2).T

    def shortfall(position: int) -> int:
        return -int(np.maximum(ends - np.maximum(starts, position), 0).sum())

    return bisect_right(range(int(ends.max()) + 1), -nucleotides, key=shortfall) - 1


def _check_names(chromosomes: Mapping[str, Chromosome], names: list[str]) -> None:
    existing = ", ".join(list(chromosomes)[:_NAMES_SHOWN]) + (", ..." if len(chromosomes) > _NAMES_SHOWN else "")
    unknown = [name for name in names if name not in chromosomes]
    if unknown:
        raise UserError(f"validation_chromosomes: no chromosome is named {', '.join(unknown)}; there are: {existing}")
    if set(names) == set(chromosomes):
        raise UserError(f"validation_chromosomes: leave some for training; these are all that there are: {existing}")


def _choose_families(
    chromosomes: Mapping[str, Chromosome], config: PrepareConfig, family_of: Mapping[str, int]
) -> list[str]:
    families: defaultdict[int, list[str]] = defaultdict(list)
    for name in chromosomes:
        families[family_of[name]].append(name)
    if len(families) == 1:
        raise UserError(
            "all sequences are similar, so that none can be kept apart for validation; "
            "name those for validation (validation_chromosomes)"
        )
    members = {names[0]: names for names in families.values()}
    sizes = {first: sum(chromosomes[name].unambiguous for name in names) for first, names in members.items()}
    return [name for first in _nearest(sizes, config) for name in members[first]]


def _nearest(sizes: Mapping[str, int], config: PrepareConfig) -> list[str]:
    """Return some of the names, together as near to `validation_share` of all sizes as their order lets them."""
    sizes = {name: size for name, size in sizes.items() if size > 0}
    target = config.validation_share * sum(sizes.values())
    order = sorted(sizes, key=lambda name: blake2b(f"{config.seed}\t{name}".encode(), digest_size=16).digest())
    chosen: list[str] = []
    total = 0
    for name in order:
        is_nearer = abs(total + sizes[name] - target) < abs(total - target)
        if is_nearer and len(chosen) < len(order) - 1:
            chosen.append(name)
            total += sizes[name]
    # Where every chromosome is more than twice the target, the smallest is the nearest.
    return chosen or sorted(order, key=sizes.__getitem__)[:1]
