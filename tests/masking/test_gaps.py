"""Isolated gaps: as many bases as they say are hidden, where a plain loop hides them."""

import pytest
import torch

from cmgems.data.tokenization import Tokenization
from cmgems.data.tokenizer import encode_batch
from cmgems.masking.corruption import CorruptionConfig
from cmgems.masking.counters import Counters, Stream
from cmgems.masking.gaps import Gaps
from cmgems.masking.masker import Masker
from cmgems.model.bases import bases_of_batch


def masked_by(gaps, table, ids):
    zeros, samples = torch.zeros(len(ids), dtype=torch.long), torch.arange(len(ids))
    return Masker(table, CorruptionConfig(), 7)(ids, zeros, samples, [gaps])


@pytest.mark.parametrize("k", [4, 6])
@pytest.mark.parametrize(("bases", "number"), [(1, 2), (6, 2), (12, 2), (3, 5)])
def test_each_window_has_its_gaps_with_visible_bases_on_either_side(mixed_windows, table_of, k, bases, number):
    ids = mixed_windows(k)
    batch = masked_by(Gaps(bases=bases, number=number), table_of(k), ids)
    _, hidden = bases_of_batch(batch, Tokenization(k))
    found = 0
    for row, window in zip(hidden, ids, strict=True):
        tokens = int((window >= 5).sum())
        if not (window[1 : 1 + tokens] >= 5).all():
            continue  # an N inside: a gap may then lie on both sides of it
        runs = [run for run in "".join("x" if h else " " for h in row.tolist()).split(" ") if run]
        if tokens // number > bases + k:
            assert [len(run) for run in runs] == [bases] * number
            found += 1
        else:
            assert not runs
    assert found > 10


def test_gaps_are_where_a_plain_loop_puts_them(table_of):
    ids = torch.from_numpy(encode_batch(["ACGTTGCA" * 8, "GATTACAT" * 8], 6))
    draws = Counters(7, torch.zeros(2, dtype=torch.long), torch.arange(2)).bits(Stream.CENTRE, 2).tolist()
    masked = masked_by(Gaps(bases=3, number=2), table_of(6), ids).masked
    tokens, width = 59, 8  # 64 bases; a gap of 3 is in 8 tokens
    for row, own in zip(masked, draws, strict=True):
        expected = set()
        for number, draw in enumerate(own):
            start = number * (tokens // 2) + 1 + draw * (tokens // 2 - width - 1) // 2**32
            expected |= {1 + token for token in range(start, start + width)}  # column 0 is [CLS]
        assert set(row.nonzero()[:, 0].tolist()) == expected


def test_the_masked_share_is_that_of_real_windows(full_windows, human_table):
    for bases in (1, 6, 12):
        gaps = Gaps(bases=bases)
        batch = masked_by(gaps, human_table, full_windows)
        tokens = int((full_windows[0] >= 5).sum())
        share = batch.masked.sum() / (full_windows >= 5).sum()
        assert share == pytest.approx(gaps.masked_share(Tokenization(6), tokens))
    assert Gaps(bases=12).masked_share(Tokenization(6), 30) == 0
