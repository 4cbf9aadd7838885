"""Every genome of the table is read to the last base, or refused by its name."""

import os
import re

import pytest

from cmgems.data import genome_text
from cmgems.data.genomes import read_runs
from cmgems.errors import UserError
from tests.data.runs import joined
from tests.inputs.genomes import NOT_FILES, READ, REFUSED, SAID

pytestmark = pytest.mark.slow


def cases(table):
    return pytest.mark.parametrize(("content", "expected"), list(table.values()), ids=list(table))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "input"


@cases(READ)
@pytest.mark.parametrize("block", [5, 1 << 20])
def test_it_is_read(path, monkeypatch, content, expected, block):
    monkeypatch.setattr(genome_text, "BLOCK", block)
    path.write_bytes(content)
    assert joined(read_runs(str(path))) == expected


@cases(SAID)
def test_what_is_not_read_is_said_once(path, capsys, content, expected):
    path.write_bytes(content)
    list(read_runs(str(path)))
    list(read_runs(str(path)))
    said = capsys.readouterr().err
    assert len(said.splitlines()) <= 1
    assert re.search(expected, said)


@cases(REFUSED)
@pytest.mark.parametrize("block", [16, 1 << 20])
def test_it_is_refused(path, monkeypatch, content, expected, block):
    monkeypatch.setattr(genome_text, "BLOCK", block)
    path.write_bytes(content)
    with pytest.raises(UserError, match=expected) as error:
        list(read_runs(str(path)))
    assert str(error.value).startswith(str(path))
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(("argument", "expected"), list(NOT_FILES.values()), ids=list(NOT_FILES))
def test_what_is_no_file_is_refused(tmp_path, monkeypatch, argument, expected):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=expected):
        list(read_runs(argument.format(folder=tmp_path)))


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="a pipe or a device, which can be read only once"):
        list(read_runs(str(tmp_path / "pipe")))
