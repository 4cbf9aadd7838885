"""Fixtures that all rooms share."""

import os
from pathlib import Path

import pytest

from tests.container import Image, require_buildah
from tests.slurm_cluster import Cluster, require_slurm

SHARED_DATA = Path(os.environ.get("CMGEMS_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real development data: `$CMGEMS_SHARED_DATA`, or `shared/data` beside the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the development data is not at {SHARED_DATA} (set CMGEMS_SHARED_DATA)")
    return SHARED_DATA


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """A SLURM cluster of two nodes."""
    require_slurm()
    with Cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def image(tmp_path_factory):
    """The image of docker/Dockerfile."""
    require_buildah()
    with Image(tmp_path_factory.mktemp("image")) as built:
        yield built
