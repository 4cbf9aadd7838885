"""Nucleotides to k-mer ids, and the same encoding for users of the transformers library."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, BertConfig

from cmgems.data.tokenization import Tokenization
from cmgems.data.tokenizer import (
    CLS,
    MASK,
    PAD,
    SEP,
    SPECIAL_TOKENS,
    UNK,
    count_kmers,
    encode,
    encode_batch,
    save_tokenizer,
    vocabulary,
    vocabulary_size,
)
from cmgems.inference.bases import tokens_of
from cmgems.inference.encoder import make_encoder

DNA = st.text("ACGT", max_size=60)
MESSY = st.text("ACGTUNacgtun-é", max_size=60)


def kmers(sequence: str, k: int) -> list[str]:
    return [sequence[i : i + k] for i in range(len(sequence) - k + 1)]


def look_up(sequence: str, k: int) -> list[int]:
    """The encoding, one k-mer after the other."""
    ids = {token: i for i, token in enumerate(vocabulary(k))}
    return [ids.get(kmer, UNK) for kmer in kmers(sequence.upper().replace("U", "T"), k)]


def test_vocabulary_is_dnaberts():
    assert vocabulary(3)[:10] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "AAA", "AAT", "AAC", "AAG", "ATA"]
    assert vocabulary(3)[-1] == "GGG"
    assert tuple(map(vocabulary(3).index, SPECIAL_TOKENS)) == (PAD, UNK, CLS, SEP, MASK)
    assert len(vocabulary(6)) == vocabulary_size(6) == 4101  # the size published for DNABERT-6


@pytest.mark.parametrize("k", range(2, 9))
@given(sequence=MESSY)
def test_encode_is_the_look_up_of_every_kmer(k, sequence):
    assert encode(sequence, k).tolist() == look_up(sequence, k)


@pytest.mark.parametrize("k", range(2, 9))
def test_encode_reaches_the_whole_vocabulary(k):
    ids = encode("N".join(vocabulary(k)[5:]), k)[:: k + 1]
    assert ids.dtype == np.int64
    assert ids.tolist() == list(range(5, vocabulary_size(k)))


def test_encode_takes_bytes_and_short_sequences():
    assert encode(b"ACGTAC", 6).tolist() == encode("ACGTAC", 6).tolist()
    assert encode("ACGTA", 6).shape == encode("", 6).shape == (0,)


@pytest.mark.parametrize("k", [0, 9])
def test_encode_refuses_other_k(k):
    with pytest.raises(ValueError, match=rf"k is {k}; it must be in 1\.\.8"):
        encode("ACGT", k)
    with pytest.raises(ValueError, match=rf"k is {k}; it must be in 1\.\.8"):
        encode_batch(["ACGT"], k)


def test_batch_layout():
    batch = encode_batch(["ATCGA", "ATC", "AT", ""], k=3)
    assert batch.dtype == np.int64
    assert batch.tolist() == [
        [CLS, 11, 32, 49, SEP, PAD, PAD, PAD],
        [CLS, 11, SEP, PAD, PAD, PAD, PAD, PAD],
        [CLS, SEP, PAD, PAD, PAD, PAD, PAD, PAD],
        [CLS, SEP, PAD, PAD, PAD, PAD, PAD, PAD],
    ]


@pytest.mark.parametrize("k", [3, 6, 8])
@given(sequences=st.lists(MESSY, max_size=8))
def test_batch_rows_are_the_single_encodings(k, sequences):
    batch = encode_batch(sequences, k)
    assert batch.shape[0] == len(sequences)
    assert batch.shape[1] % 8 == 0
    for row, sequence in zip(batch.tolist(), sequences, strict=True):
        ids = [CLS, *encode(sequence, k).tolist(), SEP]
        assert row == ids + [PAD] * (len(row) - len(ids))


def test_batch_never_cuts_and_never_pads_beyond_the_model():
    assert encode_batch(["A" * 100], k=3, max_tokens=98).shape == (1, 100)
    with pytest.raises(ValueError, match="sequence 1 of the batch has 99 3-mers, more than 98"):
        encode_batch(["ACGT", "A" * 101], k=3, max_tokens=98)


@given(sequences=st.lists(MESSY, max_size=5))
def test_counts_are_in_the_order_of_the_ids(sequences):
    expected = Counter(i for sequence in sequences for i in look_up(sequence, 3) if i != UNK)
    counts = count_kmers(iter(sequences), 3)
    assert counts.dtype == np.int64
    assert counts.tolist() == [expected[i] for i in range(5, vocabulary_size(3))]


def test_counts_over_several_batches():
    counts = count_kmers(("ACGT" * 1000 for _ in range(600)), k=2)
    by_kmer = dict(zip(vocabulary(2)[5:], counts.tolist(), strict=True))
    assert by_kmer["AC"] == by_kmer["CG"] == by_kmer["GT"] == 600_000
    assert by_kmer["TA"] == 599_400
    assert counts.sum() == 600 * 3999


@pytest.fixture(scope="module")
def saved_tokenizers(tmp_path_factory):
    """AutoTokenizer's reading of what stands beside an exported model, for each k."""
    tokenizers = {}
    for k in range(3, 9):
        folder = tmp_path_factory.mktemp(f"model{k}")
        BertConfig(vocab_size=vocabulary_size(k)).save_pretrained(folder)
        save_tokenizer(folder, Tokenization(k), max_positions=512)
        tokenizers[k] = AutoTokenizer.from_pretrained(folder)
    return tokenizers


@pytest.mark.parametrize("k", range(3, 9))
@given(sequences=st.lists(MESSY.filter(lambda text: "é" not in text), min_size=1, max_size=4))
def test_autotokenizer_gives_the_same_ids(saved_tokenizers, k, sequences):
    texts = [" ".join(kmers(sequence, k)) for sequence in sequences]
    encoded = saved_tokenizers[k](texts, padding=True, pad_to_multiple_of=8, return_tensors="np")
    ours = encode_batch(sequences, k)
    assert encoded["input_ids"].tolist() == ours.tolist()
    assert encoded["attention_mask"].tolist() == (ours != PAD).astype(int).tolist()
    assert not encoded["token_type_ids"].any()


@pytest.mark.parametrize("k", range(3, 9))
def test_autotokenizer_knows_the_special_tokens(saved_tokenizers, k):
    tokenizer = saved_tokenizers[k]
    ids = [
        tokenizer.pad_token_id,
        tokenizer.unk_token_id,
        tokenizer.cls_token_id,
        tokenizer.sep_token_id,
        tokenizer.mask_token_id,
    ]
    assert ids == [PAD, UNK, CLS, SEP, MASK]
    assert tokenizer.model_max_length == 512
    assert len(tokenizer) == vocabulary_size(k)
    kmer = vocabulary(k)[77 % 4**k]
    assert tokenizer(f"{kmer} [MASK] [UNK] {kmer}")["input_ids"] == [CLS, 77 % 4**k, MASK, UNK, 77 % 4**k, SEP]
    assert tokenizer(kmer, kmer)["token_type_ids"] == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("alphabet", ["dna", "rna"])
@pytest.mark.parametrize(("k", "stride"), [(1, 1), (3, 3), (6, 6)])
def test_autotokenizer_reads_plain_sequences_where_tokens_do_not_overlap(tmp_path, k, stride, alphabet):
    BertConfig(vocab_size=vocabulary_size(k)).save_pretrained(tmp_path)
    save_tokenizer(tmp_path, Tokenization(k, stride, alphabet=alphabet), max_positions=64)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    written = [token.replace("T", "U") if alphabet == "rna" else token for token in vocabulary(k)[5:]]
    assert tokenizer.convert_ids_to_tokens(list(range(5, len(tokenizer)))) == written
    sequences = ["ACGTACGTACGTAA", "acguacguacgu", "ACGTNACGTTTGGG", "AC" if k > 2 else "A", ""]
    encoded = tokenizer(sequences, padding=True, pad_to_multiple_of=8, return_tensors="np")
    assert encoded["input_ids"].tolist() == encode_batch(sequences, k, stride=stride).tolist()
    word = vocabulary(k)[5]
    assert tokenizer(f"{word}[MASK]{word} {word}")["input_ids"] == [CLS, 5, MASK, 5, 5, SEP]
    encoder = make_encoder(tokenizer, BertConfig(max_position_embeddings=64), "ours")
    assert encoder.encode(["ACGTACGTACGTAA"])[0].tolist() == encode("ACGTACGTACGTAA", k, stride).tolist()


@pytest.mark.parametrize(("k", "stride"), [(6, 1), (4, 2), (6, 3), (3, 3)])
def test_a_saved_tokenizer_says_at_every_how_many_nucleotides_its_tokens_begin(tmp_path, k, stride):
    save_tokenizer(tmp_path, Tokenization(k, stride), 64)
    encoder = make_encoder(AutoTokenizer.from_pretrained(tmp_path), BertConfig(max_position_embeddings=64), "ours")
    sequence = "ACGTTGCATCATGACCAGTTA"
    assert encoder.encode([sequence])[0].tolist() == encode(sequence, k, stride).tolist()
    tokens = tokens_of(encoder, "ours")
    assert (tokens.k, tokens.stride) == (k, stride)


@given(sequence=st.text("ACGTNacgu", max_size=60), shape=st.sampled_from([(1, 1), (3, 3), (6, 6), (4, 2), (6, 3)]))
def test_a_stride_leaves_tokens_out(sequence, shape):
    k, stride = shape
    expected = encode(sequence, k)[::stride].tolist()
    assert encode(sequence, k, stride).tolist() == expected
    row = encode_batch([sequence, "ACGT" * 30], k, stride=stride)[0]
    assert row[: len(expected) + 2].tolist() == [CLS, *expected, SEP]
    assert (row[len(expected) + 2 :] == PAD).all()
