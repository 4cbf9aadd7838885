"""Every damaged model is refused by its name, and nothing in it is run."""

import shutil

import pytest

from cmgems.data.tokenizer import build_tokenizer
from cmgems.downstream.classifier import Source, digest, load_classifier, load_encoder
from cmgems.errors import UserError
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
