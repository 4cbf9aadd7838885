"""What a corpus is made of: chromosomes, or sequences of their own such as transcripts and coding sequences.

Sequences that cannot be used are dropped and counted by their reason: `Dropped`.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from xxhash import xxh3_128_intdigest

from cmgems.data.annotation import Feature, Unreadable, read_genbank, read_gff
from cmgems.data.genetic_code import CODON, has_stop_inside
from cmgems.data.genomes import Piece, read_bases, whole
from cmgems.data.settings import PrepareConfig
from cmgems.errors import UserError

Dropped = Counter[str]
"""Numbers of sequences that were dropped, by their reason."""


def read_sequences(config: PrepareConfig, dropped: Dropped) -> Iterator[Piece]:
    """Yield what the corpus is made of: chromosomes in pieces, each sequence of its own in one.

    Raises
    ------
    UserError
        As `read_bases` and the readers of annotations; if a coding sequence lies outside its record, or a record is in
        several regions.
    """
    pieces = read_bases(*config.inputs)
    if config.records == "chromosomes":
        yield from pieces
        return
    found = whole(pieces) if config.records == "transcripts" else _coding_sequences(pieces, config, dropped)
    seen: set[int] = set()
    for sequence in found:
        digest = xxh3_128_intdigest(sequence.bases)
        reason = "same as another" if digest in seen else _fault(sequence.bases, config)
        if reason:
            dropped[reason] += 1
            continue
        seen.add(digest)
        yield sequence


def _fault(sequence: bytes, config: PrepareConfig) -> str:
    """Return why a sequence cannot be used; empty if it can."""
    if config.tokenization.tokens(len(sequence)) < config.min_window_tokens:
        return "shorter than min_window_tokens"
    if config.tokenization.stride != CODON:  # tokens that begin elsewhere have no reading frame
        return ""
    if len(sequence) % CODON:
        return "length not a multiple of 3"
    return "stop codon inside" if has_stop_inside(sequence, config.genetic_code) else ""


def _coding_sequences(pieces: Iterable[Piece], config: PrepareConfig, dropped: Dropped) -> Iterator[Piece]:
    """Yield the coding sequences of all chromosomes, spliced, as they are read."""
    features: defaultdict[str, list[Feature]] = defaultdict(list)
    for feature in _annotated(config):
        if isinstance(feature, Unreadable):
            dropped["location on both strands or in another record"] += 1
        elif feature.is_pseudo:
            dropped["pseudogene"] += 1
        else:
            features[feature.chromosome].append(feature)
    names: Counter[str] = Counter()
    for chromosome in whole(pieces):
        for coding in features.pop(chromosome.chromosome, ()):
            name = coding.name or f"{coding.chromosome}:{coding.left + 1}-{coding.right}"
            if coding.right > len(chromosome.bases):
                raise UserError(
                    f"{coding.chromosome}: the coding sequence {name} ends at {coding.right:,}, but the record has "
                    f"{len(chromosome.bases):,} nucleotides; are annotation and genome of the same assembly?"
                )
            names[name] += 1
            number = f":{names[name]}" if names[name] > 1 else ""
            yield Piece(name + number, 0, coding.spliced(chromosome.bases)[coding.phase :])
    if features:
        raise UserError(
            f"annotation: coding sequences on {', '.join(sorted(features)[:5])}, which the inputs do not have; "
            "records have to have the same names in both"
        )


def _annotated(config: PrepareConfig) -> Iterator[Feature | Unreadable]:
    for source in config.annotation or config.inputs:
        try:
            yield from read_gff(Path(source)) if config.annotation else read_genbank(source, kinds=["CDS"])
        except OSError as error:
            raise UserError(f"{source}: cannot be read ({error})") from error
