"""Windows of a genome: consecutive stretches without overlap, half of them at full length, as DNABERT's."""

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

from cmgems.data.genomes import Piece
from cmgems.data.settings import PrepareConfig
from cmgems.data.tokenization import Tokenization

_DRAWS = 4096


class Window(NamedTuple):
    """A training example."""

    chromosome: str
    """Name of the record it comes from."""
    start: int
    """Position of its first nucleotide in the record, from 0."""
    sequence: str
    """Its nucleotides: A, C, G and T only."""


def cut_chromosome(pieces: Iterable[Piece], lengths: Iterator[int], config: PrepareConfig) -> Iterator[Window]:
    """Cut runs of A, C, G and T of one chromosome into consecutive windows.

    No window reaches over an interruption of a run; what is left at the end of a run is a window if it has
    `min_window_tokens` tokens at least.

    Parameters
    ----------
    pieces
        Pieces of a chromosome as `split_runs` yields them. Their sizes make no difference.
    lengths
        Lengths of the next windows, in nucleotides, as `window_lengths` yields them.
    config
        Length of the shortest window, in tokens, and the tokens.
    """
    tokens = config.tokenization
    shortest = tokens.nucleotides(config.min_window_tokens)
    length = next(lengths)
    chromosome, start, rest = "", 0, ""
    for piece in pieces:
        if piece.start != start + len(rest):
            if len(rest) >= shortest:
                yield Window(chromosome, start, _whole(rest, tokens))
                length = next(lengths)
            start, rest = piece.start, ""
        chromosome = piece.chromosome
        rest += piece.bases.decode("ascii")
        if out_of_frame := -start % tokens.stride:  # windows begin where tokens of the whole record would
            rest = rest[out_of_frame:]
            start += out_of_frame
        begin = 0
        while len(rest) - begin >= length:
            yield Window(chromosome, start + begin, rest[begin : begin + length])
            begin += length
            length = next(lengths)
        start, rest = start + begin, rest[begin:]
    if len(rest) >= shortest:
        yield Window(chromosome, start, _whole(rest, tokens))


def _whole(rest: str, tokens: Tokenization) -> str:
    """Return a stretch without the nucleotides at its end that are in no token."""
    return rest[: tokens.nucleotides(tokens.tokens(len(rest)))]


def window_lengths(chromosome: str, config: PrepareConfig) -> Iterator[int]:
    """Yield the lengths, in nucleotides, of windows 0, 1, 2, ... of a chromosome, without end.

    A window of L tokens is (L - 1) * stride + k nucleotides long. L is `window_tokens` with probability
    `full_length_share`, else uniform in `min_window_tokens`..`window_tokens`.

    Parameters
    ----------
    chromosome
        Its name: the lengths depend on it, on the seed and on the window's number, and not on other chromosomes.
    config
        The lengths, in tokens, the tokens, and the seed.
    """
    key = blake2b(f"{config.seed}\t{chromosome}".encode(), digest_size=16).digest()
    philox = np.random.Philox(key=int.from_bytes(key, "little"))
    span = config.window_tokens - config.min_window_tokens + 1
    k, stride = config.tokenization.k, config.tokenization.stride
    while True:
        # The raw bits are the same in every release of NumPy; what Generator makes of them may change.
        uniform = (philox.random_raw(2 * _DRAWS) >> np.uint64(11)) * 2.0**-53
        full, short = uniform[0::2], config.min_window_tokens + (uniform[1::2] * span).astype(np.int64)
        tokens = np.where(full < config.full_length_share, config.window_tokens, short)
        yield from ((tokens - 1) * stride + k).tolist()
