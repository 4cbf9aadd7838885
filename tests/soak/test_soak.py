"""A short soak: faults of several kinds, one after the other, on one run."""

import pytest

from tests.soak.__main__ import soak


@pytest.mark.slow
def test_a_run_comes_through_random_faults_as_if_nothing_had_happened(tmp_path):
    only = ("kill -9 of all processes", "Ctrl-C", "newest checkpoint: a byte changed", "MLflow answers garbage")
    summary, problems = soak(tmp_path, faults=4, minutes=10, seed=0, only=only)
    assert problems == []
    assert "4 faults in " in summary
