"""A short soak: faults of several kinds, one after the other, on one run."""

import pytest

from tests.soak.__main__ import soak


@pytest.mark.slow
def test_a_run_comes_through_random_faults_as_if_nothing_had_happened(tmp_path):
    only = ("kill -9 of all processes", "SIGUSR1 to a rank", "newest checkpoint: a byte changed")
    summary, problems = soak(tmp_path, faults=3, minutes=10, seed=0, only=only)
    assert problems == []
    assert "3 faults in " in summary
