"""Which nucleotides a token covers: token t has nucleotides t * stride to t * stride + k - 1 of its window.

    k  stride
    6  1       overlapping 6-mers, as DNABERT's
    1  1       nucleotides, as RNABERT's
    3  3       codons, as CodonBERT's and CaLM's
    6  6       6-mers that do not overlap, as Nucleotide Transformer's

A stretch of `stride` nucleotides is a block. As k is a multiple of the stride, each token covers k / stride blocks, and
each block is in as many tokens: tokens over blocks are what overlapping k-mers are over nucleotides.
"""

from dataclasses import dataclass

from cmgems.data.alphabet import Alphabet
from cmgems.errors import UserError

SHORTEST_K, LONGEST_K = 1, 8
"""Lengths of a token, in nucleotides."""

SHORTEST_WORD, LONGEST_WORD = 2, 8
"""Lengths of a word, in nucleotides."""

USUAL_WORD = 6
"""Length of a word where tokens do not overlap, in nucleotides."""


@dataclass(frozen=True, slots=True)
class Tokenization:
    """Tokens, and the words that maskings hide.

    Raises
    ------
    UserError
        If k is out of range or no multiple of the stride, or the word is out of range or no multiple of the stride.
    """

    k: int = 6
    """Length of a token, in nucleotides."""
    stride: int = 1
    """Nucleotides from the start of a token to that of the next one."""
    word: int = 0
    """Length of a word, in nucleotides, which begins where a token does; 0: k if tokens overlap, else 6."""
    alphabet: Alphabet = "dna"
    """Letters of the vocabulary of exported tokenizers. Ids, corpora and tables are the same for both."""

    def __post_init__(self) -> None:
        if not self.word:
            object.__setattr__(self, "word", self.k if self.overlaps else USUAL_WORD)
        if not SHORTEST_K <= self.k <= LONGEST_K:
            raise UserError(f"a token of {self.k} nucleotides: it can have {SHORTEST_K} to {LONGEST_K}")
        if self.stride < 1 or self.k % self.stride:
            raise UserError(f"tokens of {self.k} nucleotides at every {self.stride}: {self.k} must be a multiple of it")
        if not SHORTEST_WORD <= self.word <= LONGEST_WORD or self.word % self.stride:
            raise UserError(
                f"a word of {self.word} nucleotides: it can have {SHORTEST_WORD} to {LONGEST_WORD}, "
                f"a multiple of {self.stride}, at which tokens begin"
            )

    @property
    def overlaps(self) -> bool:
        """Whether tokens share nucleotides."""
        return self.stride < self.k

    @property
    def token_blocks(self) -> int:
        """Blocks of a token, and tokens that contain a block."""
        return self.k // self.stride

    @property
    def word_blocks(self) -> int:
        """Blocks of a word."""
        return self.word // self.stride

    def tokens(self, nucleotides: int) -> int:
        """Return the number of tokens of a window of so many nucleotides."""
        return max((nucleotides - self.k) // self.stride + 1, 0)

    def nucleotides(self, tokens: int) -> int:
        """Return the length of a window of so many tokens (1 or more), in nucleotides."""
        return (tokens - 1) * self.stride + self.k

    # ---- ranges of columns, from a token's own

    @property
    def around(self) -> range:
        """The tokens around a centre that share one block with it."""
        return range(-((self.token_blocks - 1) // 2), self.token_blocks // 2 + 1)

    @property
    def near(self) -> range:
        """The tokens at which a word begins that contains the block that those `around` a centre share."""
        shared = self.token_blocks // 2
        return range(shared - self.word_blocks + 1, shared + 1)

    @property
    def hiding(self) -> range:
        """The tokens that contain any block of the word that begins at a token."""
        return range(1 - self.token_blocks, self.word_blocks)

    @property
    def in_word(self) -> range:
        """The tokens that contain the middle block of the word that begins at a token."""
        middle = self.word_blocks // 2
        return range(middle - self.token_blocks + 1, middle + 1)
