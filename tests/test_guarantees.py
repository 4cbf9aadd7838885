"""Each guarantee names tests that exist."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PAGE = (REPOSITORY / "docs" / "guarantees.md").read_text()


@pytest.mark.parametrize(("file", "test"), sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE))))
def test_the_test_of_a_guarantee_exists(file, test):
    assert re.search(rf"^\s*def {test}\(", (REPOSITORY / file).read_text(), re.MULTILINE)


def test_every_row_names_a_test():
    rows = [
        line for line in PAGE.splitlines() if line.startswith("|") and not re.match(r"\| (---|guarantee|fault)", line)
    ]
    assert len(rows) > 25
    for row in rows:
        assert re.search(r"`tests/[\w/]+\.py::\w+` \|$", row), row
