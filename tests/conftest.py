"""Fixtures that all rooms share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real development data: `$CMGEMS_SHARED_DATA`, or `shared/data` beside the repository."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("CMGEMS_SHARED_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"the development data is not at {folder} (set CMGEMS_SHARED_DATA)")
    return folder
