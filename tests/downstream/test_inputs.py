"""What a tokenizer wants is found out from the tokenizer, and nothing of a sequence is cut off or read twice."""

import json
import random
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers import models as tokenizer_models
from transformers import AutoTokenizer, BertConfig, PreTrainedConfig, PreTrainedTokenizerFast

from cmgems.data.tokenizer import build_tokenizer, encode
from cmgems.downstream.data import Split
from cmgems.downstream.inputs import LengthSummary, Rows, collate, summarise, summarise_lengths
from cmgems.errors import UserError
from cmgems.inference.encoder import Encoder, as_kmers, make_encoder
from cmgems.inference.source import Source, load_encoder
from tests.downstream import models

SEQUENCE = "".join(random.Random(1).choices("ACGT", k=50))


@pytest.fixture(scope="module")
def encoder_of(tmp_path_factory):
    """The encoder of a kind of model, by name."""
    folder = tmp_path_factory.mktemp("models")
    return {name: load_encoder(Source(str(make(folder / name)))) for name, make in models.NATIVE.items()}


def tokens(encoder, sequence):
    (ids,) = encoder.encode([sequence])
    return encoder.tokenizer.convert_ids_to_tokens(ids.tolist())


def split(*sequences):
    return Split("data/toy/train.csv", list(sequences), np.arange(len(sequences)) % 2, [0] * len(sequences))


@pytest.mark.parametrize(
    ("kind", "k", "limit", "before", "after", "padding"),
    [
        ("ours", 3, 62, ["[CLS]"], ["[SEP]"], "[PAD]"),
        ("dnabert", 6, 62, ["[CLS]"], ["[SEP]"], "[PAD]"),
        # 66 positions, of which those up to the padding's are never used, less one for <cls>.
        ("nucleotide_transformer", None, 63, ["<cls>"], [], "<pad>"),
        ("byte_pairs", None, 62, ["[CLS]"], ["[SEP]"], "[PAD]"),
    ],
)
def test_each_kind_of_tokenizer_is_recognised(encoder_of, kind, k, limit, before, after, padding):
    encoder = encoder_of[kind]
    name = encoder.tokenizer.convert_ids_to_tokens
    assert (encoder.k, encoder.limit) == (k, limit)
    assert (name(encoder.before), name(encoder.after), name(encoder.padding)) == (before, after, padding)


@pytest.mark.parametrize("do_lower_case", [None, True], ids=["not-said", "said-wrongly"])
def test_a_k_mer_tokenizer_that_would_lower_the_case_is_kept_from_it(tmp_path, encoder_of, do_lower_case):
    encoder = load_encoder(Source(str(models.dnabert(tmp_path, do_lower_case=do_lower_case))))
    assert encoder.k == 6
    assert encoder.encode([SEQUENCE])[0].tolist() == encoder_of["dnabert"].encode([SEQUENCE])[0].tolist()


def test_tokens_of_overlapping_k_mers(encoder_of):
    assert tokens(encoder_of["ours"], "ACGTT") == ["ACG", "CGT", "GTT"]
    assert tokens(encoder_of["ours"], "ACGNTTA") == ["ACG", "[UNK]", "[UNK]", "[UNK]", "TTA"]
    assert tokens(encoder_of["dnabert"], "ACGTACGN") == ["ACGTAC", "CGTACG", "[UNK]"]


def test_tokens_of_k_mers_side_by_side(encoder_of):
    assert tokens(encoder_of["nucleotide_transformer"], "ACGTACGTACGTAC") == ["ACGTAC", "GTACGT", "A", "C"]
    assert tokens(encoder_of["nucleotide_transformer"], "ACNACGTACG") == ["A", "C", "N", "ACGTAC", "G"]


def test_tokens_of_byte_pairs(encoder_of):
    found = tokens(encoder_of["byte_pairs"], SEQUENCE)
    assert "".join(found) == SEQUENCE
    assert len(found) < len(SEQUENCE)
    assert "[UNK]" in tokens(encoder_of["byte_pairs"], "ACGTNACGT")


@pytest.mark.parametrize("k", [3, 6])
def test_ids_for_our_models_are_those_of_pretraining(k):
    encoder = make_encoder(build_tokenizer(k, 512), BertConfig(max_position_embeddings=512), "ours")
    sequence = SEQUENCE[:20] + "NN" + SEQUENCE[20:]
    assert encoder.encode([sequence])[0].tolist() == encode(sequence, k).tolist()


def test_a_sequence_is_encoded_at_full_length_and_without_a_warning(encoder_of, caplog):
    assert len(encoder_of["ours"].encode([SEQUENCE * 20])[0]) == 50 * 20 - 2
    assert caplog.text == ""


def test_as_kmers():
    assert as_kmers("ACGTT", 3) == "ACG CGT GTT"
    assert as_kmers("AC", 3) == ""


@given(st.integers(1, 400), st.integers(1, 70))
def test_every_token_is_in_exactly_one_window_and_windows_are_as_long_as_each_other(length, limit):
    encoder = Encoder(None, None, limit, before=[7], after=[8, 9], padding=0)
    windows = encoder.windows(np.arange(100, 100 + length, dtype=np.int32))
    inside = [window[1:-2] for window in windows]
    assert all(window[:1] == [7] and window[-2:] == [8, 9] for window in windows)
    assert list(chain(*inside)) == list(range(100, 100 + length))
    lengths = [len(ids) for ids in inside]
    assert max(lengths) <= limit
    assert max(lengths) - min(lengths) <= 1
    assert len(windows) == -(-length // limit)


def test_rows_have_their_windows_label_and_number():
    encoder = make_encoder(build_tokenizer(3, 6), BertConfig(max_position_embeddings=6), "ours")
    rows = Rows(split("ACGTA", "ACGTACG"), encoder)
    assert len(rows) == 2
    acg, cgt, gta, tac = encode("ACGTAC", 3).tolist()
    assert rows[0] == {"windows": [[2, acg, cgt, gta, 3]], "label": 0, "row": 0}
    assert rows[1] == {"windows": [[2, acg, cgt, gta, 3], [2, tac, acg, 3]], "label": 1, "row": 1}


def test_lengths_are_compared_with_the_limit_in_tokens():
    encoder = make_encoder(build_tokenizer(3, 6), BertConfig(max_position_embeddings=6), "ours")
    splits = [Rows(split("ACGTA", "ACGTACG"), encoder), Rows(split("ACGTACGTA"), encoder)]
    assert summarise_lengths(splits, encoder.limit) == LengthSummary(
        limit=4, sequences=3, longest=7, longer=2, tokens_beyond=4
    )


def test_a_sequence_without_a_token_is_an_error_that_names_the_file(encoder_of):
    with pytest.raises(UserError, match=r"data/toy/train.csv: 'AC' is too short for the model: it makes no token"):
        Rows(split("ACGT", "AC"), encoder_of["ours"])


def test_a_batch_says_which_window_is_of_which_row():
    rows = [
        {"windows": [[2, 5, 6, 3], [2, 7, 3]], "label": 1, "row": 8},
        {"windows": [[2, 5, 3]], "label": 0, "row": 4},
    ]
    batch = collate(rows, padding=9)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[2, 5, 6, 3], [2, 7, 3, 9], [2, 5, 3, 9]],
        "attention_mask": [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 0]],
        "row_of_window": [0, 0, 1],
        "labels": [1, 0],
        "rows": [8, 4],
    }


def test_the_longest_input_may_be_set_lower(tmp_path):
    source = str(models.ours(tmp_path))
    assert load_encoder(Source(source, max_tokens=20)).limit == 20
    assert load_encoder(Source(source, max_tokens=62)).limit == 62
    with pytest.raises(UserError, match=r"--max_tokens is 63, but model .* takes 62 \(special tokens not counted\)"):
        load_encoder(Source(source, max_tokens=63))


def test_the_shorter_of_what_model_and_tokenizer_say_counts():
    config = BertConfig(max_position_embeddings=100)
    assert make_encoder(build_tokenizer(3, 50), config, "ours").limit == 48
    assert make_encoder(build_tokenizer(3, 200), config, "ours").limit == 98


def test_a_model_that_does_not_say_how_long_its_input_may_be_needs_to_be_told(tmp_path):
    tokenizer, config = AutoTokenizer.from_pretrained(models.byte_pairs(tmp_path)), PreTrainedConfig()
    with pytest.raises(UserError, match="model mine does not say how long its input may be: give --max_tokens"):
        make_encoder(tokenizer, config, "mine")
    assert make_encoder(tokenizer, config, "mine", max_tokens=1000).limit == 1000


def test_a_tokenizer_without_padding_is_refused(tmp_path):
    settings = tmp_path / "tokenizer_config.json"
    models.ours(tmp_path)
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"pad_token": None}))
    with pytest.raises(UserError, match="its tokenizer has no padding token"):
        load_encoder(Source(str(tmp_path)))


def test_a_tokenizer_for_something_else_is_refused():
    words = tokenizer_models.WordLevel({"[UNK]": 0, "[PAD]": 1, "the": 2, "GATTACA": 3}, unk_token="[UNK]")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), unk_token="[UNK]", pad_token="[PAD]")
    with pytest.raises(UserError, match="model bert: its tokenizer knows neither nucleotides nor k-mers"):
        make_encoder(tokenizer, BertConfig(), "bert")


def test_what_is_longer_than_the_limit_is_counted():
    assert summarise([5, 10, 11, 30], limit=10) == LengthSummary(
        limit=10, sequences=4, longest=30, longer=2, tokens_beyond=21
    )
    assert summarise([], limit=10) == LengthSummary(limit=10, sequences=0, longest=0, longer=0, tokens_beyond=0)
