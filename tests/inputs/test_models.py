"""Every damaged model is refused by its name, and nothing in it is run."""

import shutil

import pytest
import torch

from cmgems.config.schema import ModelConfig
from cmgems.data.tokenization import Tokenization
from cmgems.data.tokenizer import build_tokenizer
from cmgems.downstream.classifier import load_classifier
from cmgems.errors import UserError
from cmgems.inference.source import Source, digest, load_encoder
from cmgems.model.bert import build_model, check_init_from
from tests.inputs.models import FAULTS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A small model with its tokenizer, as a run exports it."""
    from transformers import BertConfig, BertForMaskedLM

    folder = tmp_path_factory.mktemp("model")
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertForMaskedLM(BertConfig(vocab_size=69, max_position_embeddings=64, **size)).save_pretrained(folder)
    build_tokenizer(3, 64).save_pretrained(folder)
    return folder


def load(folder):
    """Load all that is loaded of a model before it is scored."""
    source = Source(str(folder))
    source.check()
    digest(source)
    load_encoder(source)
    return load_classifier(source, 2, None, 1)


def test_the_sound_one_is_loaded(sound):
    assert load(sound).config.num_labels == 2


@pytest.mark.parametrize(("fault", "message"), list(FAULTS.values()), ids=list(FAULTS))
def test_it_is_refused(sound, tmp_path, monkeypatch, fault, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shutil.copytree(sound, tmp_path / "model")
    fault(tmp_path / "model")
    with pytest.raises(UserError) as error:
        load(tmp_path / "model")
    assert any(part in str(error.value) for part in message.split("|")), error.value
    assert str(tmp_path / "model") in str(error.value)
    assert not (tmp_path / "made-by-a-pickle").exists()


def initialize_from(folder):
    """Load all that a run takes from the model that it begins with."""
    size = {"hidden": 32, "layers": 2, "heads": 2, "intermediate": 64, "max_positions": 64}
    config = ModelConfig(init_from=str(folder), **size)
    check_init_from(config, Tokenization(3))
    return build_model(config, Tokenization(3), 0, torch.device("cpu"))


def test_a_run_begins_with_the_sound_one(sound):
    assert initialize_from(sound).bert.config.hidden_size == 32


NOT_FOR_INIT_FROM = [name for name in FAULTS if "tokenizer" in name or name == "code of its own"]
"""What is not read, as the tokenizer and the class of the model are the run's own."""


@pytest.mark.parametrize("name", [name for name in FAULTS if name not in NOT_FOR_INIT_FROM])
def test_no_run_begins_with_it(sound, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shutil.copytree(sound, tmp_path / "model")
    FAULTS[name][0](tmp_path / "model")
    with pytest.raises(UserError, match=f"model.init_from {tmp_path / 'model'}"):
        initialize_from(tmp_path / "model")
    assert not (tmp_path / "made-by-a-pickle").exists()
