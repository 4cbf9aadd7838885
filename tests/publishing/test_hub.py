"""Publishing to a stand-in of the Hugging Face hub."""

import os
import subprocess
import sys

import pytest

from cmgems.cli import main
from tests.support.hub import TOKEN, Hub


@pytest.fixture
def hub(monkeypatch):
    """A hub, where the library looks for it, with a token that may write."""
    hub = Hub()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield hub
    hub.close()


def refused(capsys, arguments):
    """Exit code and message of a command that fails."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    return stop.value.code, error


def test_what_arrives_is_what_a_folder_gets(hub, trained, publish, capsys):
    main(["publish", str(trained), "--to", "hub:me/model", "--license", "mit"])
    shown = capsys.readouterr().out.splitlines()
    folder = publish(trained, "--license", "mit")
    expected = {path.name: path.read_bytes() for path in folder.iterdir()}
    card = expected["README.md"].decode().replace("# published\n", "# me/model\n").replace('"published"', '"me/model"')
    assert hub.repositories == {"me/model": {**expected, "README.md": card.encode()}}
    assert hub.private == {"me/model": False}
    assert shown[0] == f"uploading to {hub.address}/me/model:"
    assert f"  model.safetensors, {len(expected['model.safetensors']):,} bytes" in shown
    assert shown[-1] == f"{hub.address}/me/model"


def test_a_private_model(hub, trained):
    main(["publish", str(trained), "--to", "hub:me/model", "--private"])
    assert hub.private == {"me/model": True}
    assert "model.safetensors" in hub.repositories["me/model"]


def test_a_model_that_is_to_be_private_does_not_go_where_all_can_see_it(hub, trained, capsys):
    hub.repositories["me/model"], hub.private["me/model"] = {}, False
    code, error = refused(capsys, ["publish", str(trained), "--to", "hub:me/model", "--private"])
    assert code == 2
    assert "/me/model is there already, and public" in error
    assert hub.repositories["me/model"] == {}


def test_another_model_in_the_same_place_is_another_commit(hub, trained):
    main(["publish", str(trained), "--to", "hub:me/model", "--step", "8"])
    before = hub.repositories["me/model"]["model.safetensors"]
    main(["publish", str(trained), "--to", "hub:me/model"])
    assert hub.repositories["me/model"]["model.safetensors"] != before


@pytest.mark.parametrize(
    ("status", "code", "why"),
    [
        (403, 2, "(403): the token may not write there; set HF_TOKEN to one that may"),
        (404, 2, "(404): there is no such place, or the token may not see it"),
        (400, 2, "(400): refused by the test"),
        (503, 69, "(503): refused by the test"),
    ],
)
def test_a_hub_that_refuses(hub, trained, capsys, status, code, why):
    hub.refuse = status
    found, error = refused(capsys, ["publish", str(trained), "--to", "hub:me/model"])
    assert found == code
    assert error == f"error: {hub.address}/me/model: the hub refuses it {why}\n"


def test_a_token_that_is_not_valid(hub, trained, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    code, error = refused(capsys, ["publish", str(trained), "--to", "hub:me/model"])
    assert code == 2
    assert "the hub refuses it (401): the token is not valid" in error
    assert hub.repositories == {}


def test_a_hub_that_does_not_answer(hub, trained, capsys):
    hub.close()
    code, error = refused(capsys, ["publish", str(trained), "--to", "hub:me/model"])
    assert code == 69
    assert "/me/model: the hub does not answer: " in error


def test_a_mistake_is_found_before_anything_is_asked_of_the_hub(hub, trained, capsys):
    code, error = refused(capsys, ["publish", str(trained), "--to", "hub:me/model", "--step", "9"])
    assert code == 2
    assert "no exported model of step 9" in error
    assert hub.requests == []


@pytest.mark.slow
def test_the_hub_of_the_environment(hub, trained):
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "cmgems", "publish", str(trained), "--to", "hub:me/model"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    weights = (trained / "models/step-00000012/model.safetensors").read_bytes()
    assert hub.repositories["me/model"]["model.safetensors"] == weights
