"""Long sequences are read as a whole, in windows, and what would be cut otherwise is known."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmgems.evaluation.lengths import LengthSummary, spans, summarise, windows


def test_what_is_longer_than_the_limit_is_counted():
    assert summarise([5, 10, 11, 30], limit=10) == LengthSummary(
        limit=10, sequences=4, longest=30, longer=2, tokens_beyond=21
    )
    assert summarise([], limit=10) == LengthSummary(limit=10, sequences=0, longest=0, longer=0, tokens_beyond=0)


def test_a_covid_sequence_is_two_windows_of_a_6_mer_model_with_510_tokens():
    assert spans(999, size=515, overlap=5) == [(0, 515), (484, 999)]


@pytest.mark.parametrize(
    ("length", "size", "overlap", "expected"),
    [
        (10, 10, 0, [(0, 10)]),
        (3, 10, 0, [(0, 3)]),
        (20, 10, 0, [(0, 10), (10, 20)]),
        (11, 10, 0, [(0, 10), (1, 11)]),
        (20, 10, 1, [(0, 10), (5, 15), (10, 20)]),
    ],
)
def test_windows(length, size, overlap, expected):
    assert spans(length, size, overlap) == expected


def test_windows_as_sequences():
    assert windows("ACGTAC", size=4) == ["ACGT", "GTAC"]


@given(st.integers(1, 3000), st.integers(1, 700), st.data())
def test_windows_cover_everything_and_no_fewer_would(length, size, data):
    overlap = data.draw(st.integers(0, size - 1))
    found = spans(length, size, overlap)
    assert found[0][0] == 0
    assert found[-1][1] == length
    assert all(end - start == min(size, length) for start, end in found)
    assert all(end - start >= overlap for (_, end), (start, _) in pairwise(found))
    assert len(found) == 1 or (len(found) - 1) * (size - overlap) + overlap < length


@given(st.integers(6, 2000), st.integers(6, 600))
def test_with_an_overlap_of_k_minus_1_no_k_mer_is_lost(length, size):
    k = 6
    seen = {t for start, end in spans(length, size, overlap=k - 1) for t in range(start, end - k + 1)}
    assert seen == set(range(length - k + 1))


def test_an_overlap_as_large_as_the_window_is_refused():
    with pytest.raises(ValueError, match="overlap must be in"):
        spans(100, size=10, overlap=10)
