"""What a run notes of itself."""

import pytest

from cmgems.config.command_line import load_config
from cmgems.errors import UserError
from cmgems.training.record import RECORD, read_record, write_record


def write(folder, recipe, corpus, *overrides):
    write_record(folder, load_config(["--config", str(recipe), *overrides]), corpus, {"cmgems": "1"})
    return read_record(folder)


def test_settings_and_corpus_are_noted(tmp_path, tiny_recipe, tiny_corpus):
    record = write(tmp_path, tiny_recipe, tiny_corpus)
    assert record.recipe == load_config(["--config", str(tiny_recipe)]).model_dump(mode="json")
    assert {**tiny_corpus.manifest, **record.corpus} == tiny_corpus.manifest
    assert record.corpus["fingerprint"] == tiny_corpus.fingerprint
    assert record.environment == {"cmgems": "1"}


def test_a_password_is_not_noted(tmp_path, tiny_recipe, tiny_corpus):
    record = write(tmp_path, tiny_recipe, tiny_corpus, "--tracking.uri", "https://me:secret@host")
    assert record.recipe["tracking"]["uri"] == "https://me:***@host"
    assert "secret" not in (tmp_path / RECORD).read_text()


def test_a_resumed_run_keeps_the_initial_weights_that_it_began_with(tmp_path, tiny_recipe, tiny_corpus):
    write(tmp_path, tiny_recipe, tiny_corpus, "--model.embedding_init", "nucleotides")
    record = write(tmp_path, tiny_recipe, tiny_corpus, "--training.steps", "20")
    assert record.recipe["model"]["embedding_init"] == "nucleotides"
    assert record.recipe["training"]["steps"] == 20


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "has no run.json"), ("{", "is not what a run has written"), ('{"recipe": {}}', "is not what a run has")],
)
def test_a_record_that_cannot_be_read_is_named(tmp_path, text, message):
    if text is not None:
        (tmp_path / RECORD).write_text(text)
    with pytest.raises(UserError, match=message):
        read_record(tmp_path)
