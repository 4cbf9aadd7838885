"""The examples in docstrings."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

import cmgems

PACKAGE = Path(cmgems.__file__).parent
MODULES = sorted(
    ".".join(("cmgems", *path.relative_to(PACKAGE).with_suffix("").parts))
    for path in PACKAGE.rglob("*.py")
    if ">>>" in path.read_text()
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_show(name):
    results = doctest.testmod(import_module(name))
    assert results.attempted > 0
    assert results.failed == 0
