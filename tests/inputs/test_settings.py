"""Every bad recipe and command line ends with one message and exit code 2, and leaves nothing behind."""

import re

import pytest

from cmgems.cli import main
from cmgems.config.command_line import load_config
from cmgems.errors import UserError
from tests.inputs.settings import COMMANDS, RECIPES

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("text", "message"), list(RECIPES.values()), ids=list(RECIPES))
def test_a_recipe_is_refused(tmp_path, text, message):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        load_config(["--config", str(tmp_path / "recipe.yaml")])
    assert message in str(error.value)
    assert "recipe.yaml" in str(error.value)


@pytest.mark.parametrize(("words", "message"), list(COMMANDS.values()), ids=list(COMMANDS))
def test_a_command_is_refused(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "genome.fa").write_text(f">a\n{'ACGTTGCA' * 20}\n>b\n{'CATTGACC' * 20}\n")
    with pytest.raises(SystemExit) as stop:
        main([word.format(genome="genome.fa") for word in words])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert any(part in said for part in message.split("|")), said
    assert not words or re.match("error: ", said.splitlines()[-1]) or said.startswith("error: ")
    assert "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["genome.fa"]
