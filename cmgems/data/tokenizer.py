"""k-mers as token ids: token t of a sequence covers its nucleotides t * stride..t * stride + k - 1.

Ids follow DNABERT's vocabulary: five special tokens, then the k-mers over A, T, C, G in that order. A k-mer's id is
thus 5 plus its value as a number in base 4, and encoding is arithmetic instead of a look-up.
"""

import json
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from cmgems.data.alphabet import BASES, Alphabet
from cmgems.data.tokenization import LONGEST_K, SHORTEST_K, Tokenization

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, UNK, CLS, SEP, MASK = range(5)
NO_BASE = 4
"""What stands for anything but a nucleotide where nucleotides are digits; as a digit of two bits, its third one."""

KMER_STRIDE = "kmer_stride"
"""Entry of tokenizer_config.json where k-mers overlap and begin at every second nucleotide or fewer."""

_COUNT_BATCH = 1 << 20  # nucleotides
_COUNT_BLOCK = 1 << 14  # words looked at together: they fit into a processor's cache

_DIGITS = bytearray([NO_BASE]) * 256
for _letters, _digit in zip((b"Aa", b"TtUu", b"Cc", b"Gg"), range(4), strict=True):
    for _letter in _letters:
        _DIGITS[_letter] = _digit


def vocabulary(k: int) -> list[str]:
    """Return all tokens in the order of their ids: the special tokens, then the 4**k k-mers."""
    return [*SPECIAL_TOKENS, *map("".join, product(BASES, repeat=k))]


def vocabulary_size(k: int) -> int:
    """Return the number of tokens, special tokens included."""
    return len(SPECIAL_TOKENS) + int(4**k)


def kmer_digits(k: int) -> npt.NDArray[np.int64]:
    """Return the nucleotides of all k-mers as digits 0..3 of BASES, int64 [4**k, k]; row i is the token id i + 5."""
    return np.arange(4**k)[:, None] >> 2 * np.arange(k)[::-1] & 3


def encode(sequence: str | bytes, k: int, stride: int = 1) -> npt.NDArray[np.int64]:
    """Return the ids of the k-mers of `sequence`, without special tokens.

    Parameters
    ----------
    sequence
        Nucleotides in upper or lower case; U counts as T.
    k
        Length of a k-mer, 1..8.
    stride
        Nucleotides from the start of a k-mer to that of the next one; what is left at the end has no token.

    Returns
    -------
    int64 array [max((len(sequence) - k) // stride + 1, 0)]
        `UNK` for a k-mer that contains anything but A, C, G, T.

    Raises
    ------
    ValueError
        If k is out of range.

    Examples
    --------
    >>> encode("ATCGN", k=3).tolist()
    [11, 32, 1]
    >>> encode("ATGGCATC", k=3, stride=3).tolist()
    [12, 61]
    """
    _check_k(k)
    return _encode_digits(sequence_digits(sequence)[None], k).ravel()[::stride]


def sequence_digits(sequence: str | bytes) -> npt.NDArray[np.uint8]:
    """Return the nucleotides of a sequence as digits 0..3 of BASES, else `NO_BASE`, uint8 [nucleotides]."""
    text = sequence.encode("ascii", "replace") if isinstance(sequence, str) else sequence
    return np.frombuffer(text.translate(_DIGITS), dtype=np.uint8)


def _encode_digits(digits: npt.NDArray[np.uint8], k: int) -> npt.NDArray[np.int64]:
    """Return the ids of the k-mers in sequences of equal length, one in each row."""
    # Words of one digit, and from those of m digits the ones of 2m, or of 2m + 1, as the bits of k say.
    words: npt.NDArray[np.integer[Any]] = digits.astype(np.uint16)
    length = 1
    for bit in f"{k:b}"[1:]:
        words, length = (words[:, :-length] << 2 * length) + words[:, length:], 2 * length
        if bit == "1":
            words, length = (words[:, :-1] << 2) + digits[:, length:], length + 1
    ids = words.astype(np.int64)
    ids += len(SPECIAL_TOKENS)
    invalid = digits == NO_BASE
    if ids.size and invalid.any():
        ids[sliding_window_view(invalid, k, axis=1).any(axis=2)] = UNK
    return ids


def _check_k(k: int) -> None:
    if not SHORTEST_K <= k <= LONGEST_K:
        raise ValueError(f"k is {k}; it must be in {SHORTEST_K}..{LONGEST_K}")


def encode_batch(
    sequences: list[str], k: int, max_tokens: int | None = None, pad_to_multiple_of: int = 8, stride: int = 1
) -> npt.NDArray[np.int64]:
    """Return the ids of a batch of sequences as rows `[CLS] k-mers [SEP] [PAD]...`

    Parameters
    ----------
    sequences
        B sequences of nucleotides, as `encode` takes them. One shorter than k gives the row `[CLS] [SEP]`.
    k
        Length of a k-mer, 1..8.
    max_tokens
        Largest allowed number of k-mers in a sequence, special tokens not counted.
    pad_to_multiple_of
        T is rounded up to a multiple of this, but not beyond max_tokens + 2.
    stride
        Nucleotides from the start of a k-mer to that of the next one.

    Returns
    -------
    int64 array [B, T]

    Raises
    ------
    ValueError
        If k is out of range, or a sequence has more than `max_tokens` k-mers; nothing is ever cut off.
    """
    _check_k(k)
    lengths = np.fromiter(map(len, sequences), dtype=np.int64, count=len(sequences))
    tokens = np.maximum((lengths - k) // stride + 1, 0)
    longest = int(tokens.max(initial=0))
    width = -(-(longest + 2) // pad_to_multiple_of) * pad_to_multiple_of
    if max_tokens is not None:
        if longest > max_tokens:
            raise ValueError(f"sequence {tokens.argmax()} of the batch has {longest} {k}-mers, more than {max_tokens}")
        width = min(width, max_tokens + 2)

    # Nucleotides before and behind each sequence take the places of what is no k-mer.
    nucleotides, before = (width - 1) * stride + k, "A" * stride
    text = "".join([(before + sequence).ljust(nucleotides, "A")[:nucleotides] for sequence in sequences])
    ids = _encode_digits(sequence_digits(text).reshape(len(sequences), nucleotides), k)
    ids = np.ascontiguousarray(ids[:, ::stride])
    ids[:, 0] = CLS
    ids[np.arange(width) > tokens[:, None]] = PAD
    np.put_along_axis(ids, tokens[:, None] + 1, SEP, axis=1)
    return ids


def count_kmers(sequences: Iterable[str], k: int, stride: int = 1) -> npt.NDArray[np.int64]:
    """Count the k-mers of all sequences; those with anything but A, C, G, T are left out.

    Counted are (k+3)-mers, one at every fourth nucleotide, which takes a quarter of the look-ups. Each holds four
    k-mers; those with a non-base in them are looked at k-mer by k-mer.

    Parameters
    ----------
    sequences
        Sequences of nucleotides, as `encode` takes them.
    k
        Length of a k-mer, 1..8.
    stride
        Nucleotides from the start of a k-mer to that of the next one, from the first nucleotide of each sequence.

    Returns
    -------
    int64 array [4**k]
        In the order of the ids: entry i counts the k-mer with id i + 5.

    Raises
    ------
    ValueError
        If k is out of range.
    """
    _check_k(k)
    if stride > 1:
        return _count_with_stride(sequences, k, stride)
    words = np.zeros(4 ** (k + 3) + 1, dtype=np.int64)
    counts = np.zeros(4**k, dtype=np.int64)
    for text in digit_batches(sequences):
        invalid = _count_words(text, k, words)
        counts += _count_one_by_one(text, invalid, k)
    for before in range(4):
        counts += words[:-1].reshape(4**before, 4**k, 4 ** (3 - before)).sum(axis=(0, 2))
    return counts


def _count_with_stride(sequences: Iterable[str], k: int, stride: int) -> npt.NDArray[np.int64]:
    counts = np.zeros(4**k, dtype=np.int64)
    # With the one that is put between two sequences, so many N that each begins at a multiple of the stride.
    in_frame = (sequence + "N" * (-(len(sequence) + 1) % stride) for sequence in sequences)
    for text in digit_batches(in_frame):
        ids = _encode_digits(np.frombuffer(text, dtype=np.uint8)[None], k)[0, ::stride]
        counts += np.bincount(ids[ids != UNK] - len(SPECIAL_TOKENS), minlength=4**k)
    return counts


def digit_batches(sequences: Iterable[str]) -> Iterator[bytes]:
    """Yield all sequences as digits, joined to texts of about _COUNT_BATCH bytes.

    A `NO_BASE` stands between two sequences, and at least twelve at the end of a text, whose length is a multiple of 4.
    """
    batch: list[str] = []
    nucleotides = 0
    for sequence in sequences:
        batch.append(sequence)
        nucleotides += len(sequence)
        if nucleotides >= _COUNT_BATCH:
            yield _count_text(batch)
            batch, nucleotides = [], 0
    yield _count_text(batch)


def _count_text(sequences: list[str]) -> bytes:
    text = "N".join(sequences).encode("ascii", "replace").translate(_DIGITS)
    return text + bytes([NO_BASE]) * (12 + -len(text) % 4)


def _count_words(text: bytes, k: int, words: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Count the (k+3)-mers at every fourth digit into `words` [4**(k+3) + 1]; return the places of those that are none.

    These are counted in the last entry.
    """
    fours = np.frombuffer(text, dtype="<u4")
    found = np.empty(len(fours) - 2, dtype=np.int64)
    for start in range(0, len(found), _COUNT_BLOCK):
        block = fours[start : start + _COUNT_BLOCK + 2]
        packed = (block << 6) & 0xC0 | (block >> 4) & 0x30 | (block >> 14) & 0x0C | (block >> 24) & 0x03
        word = (packed[:-2] << 16 | packed[1:-1] << 8 | packed[2:]) >> (24 - 2 * (k + 3))
        invalid = block & (0x01010101 * NO_BASE) != 0
        word[invalid[:-2] | invalid[1:-1] | invalid[2:]] = len(words) - 1
        found[start : start + _COUNT_BLOCK] = word
    words += np.bincount(found, minlength=len(words))
    return np.flatnonzero(found == len(words) - 1) * 4


def _count_one_by_one(text: bytes, places: npt.NDArray[np.int64], k: int) -> npt.NDArray[np.int64]:
    """Count the four k-mers that begin at each of `places` and at the three digits behind it."""
    ids = _encode_digits(np.frombuffer(text, dtype=np.uint8)[places[:, None] + np.arange(k + 3)], k)
    return np.bincount(ids[ids != UNK] - len(SPECIAL_TOKENS), minlength=4**k)


def build_tokenizer(k: int, max_positions: int, stride: int = 1, alphabet: Alphabet = "dna") -> PreTrainedTokenizerFast:
    """Return the same encoding as a tokenizer of the transformers library: for plain sequences where k-mers do not
    overlap (nucleotides, codons), else for blank-separated k-mers.

    Saved beside a model (`save_tokenizer`), it is loaded by `AutoTokenizer` without any code of this project.

    Parameters
    ----------
    k
        Length of a k-mer, 1..8.
    max_positions
        Longest input of the model, in tokens, [CLS] and [SEP] included.
    stride
        Nucleotides from the start of a k-mer to that of the next one. Fewer than k nucleotides at the end of a plain
        sequence have no token.
    alphabet
        Letters that the tokens are written with. Sequences of either are read, to the same ids.

    Examples
    --------
    >>> build_tokenizer(k=3, max_positions=512)("ATC TCG")["input_ids"]
    [2, 11, 32, 3]
    >>> build_tokenizer(k=3, max_positions=512, stride=3)("AUGGCAUC")["input_ids"]
    [2, 12, 61, 3]
    """
    other, letter = ("T", "U") if alphabet == "rna" else ("U", "T")
    kmers = (token.replace(other, letter) for token in vocabulary(k)[len(SPECIAL_TOKENS) :])
    ids = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *kmers])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=SPECIAL_TOKENS[UNK]))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(old, new) for old, new in zip(f"acgtu{other}", f"ACG{letter * 3}", strict=True)]
    )
    if stride == k:
        # Only what matches is kept. A written-out special token has been taken out of the text before.
        whole = pre_tokenizers.Split(Regex(f"\\S{{{k}}}"), "removed", invert=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), whole])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    # Not normalized: the letters of a written-out [UNK] stay as they are.
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_positions,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **dict(zip(names, SPECIAL_TOKENS, strict=True)),
    )


def save_tokenizer(folder: Path, tokens: Tokenization, max_positions: int) -> None:
    """Write the tokenizer of `build_tokenizer` beside a model, for `AutoTokenizer`.

    The class is written down under the name that it has in transformers 4, which version 5 knows too; version 5 would
    write its own, which version 4 does not know.

    Raises
    ------
    OSError
        If the files cannot be written.
    """
    build_tokenizer(tokens.k, max_positions, tokens.stride, tokens.alphabet).save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if tokens.overlaps and tokens.stride > 1:
        config[KMER_STRIDE] = tokens.stride
    path.write_text(json.dumps(config, indent=2) + "\n")
