"""Micro-batches and masks are the same for any number of processes and loader workers, and any division."""

import pytest
import torch

from cmgems.data.loader import TrainingRows, ValidationRows, Windows, make_loader
from cmgems.data.order import BatchPlan
from cmgems.data.tokenizer import CLS, PAD, SEP, encode
from cmgems.masking.corruption import CorruptionConfig
from cmgems.masking.masker import Masker
from cmgems.masking.npmi import npmi_from_counts
from cmgems.masking.strategies import GeneMask, GlobalPmi

MIX = [GeneMask(rate=0.15), GlobalPmi(rate=0.15)]
STEPS, BATCH, SEED = 3, 25, 11


@pytest.fixture(scope="module")
def windows(tiny_corpus):
    return Windows(tiny_corpus.train, tiny_corpus.tokens, max_positions=64)


@pytest.fixture(scope="module")
def masker(tiny_corpus):
    return Masker(npmi_from_counts(tiny_corpus.counts, tiny_corpus.k), CorruptionConfig(), SEED)


def masked_rows(windows, masker, processes, micro_batch, workers):
    """(step, epoch, sample id) -> input ids, masked positions and labels of each row, over all ranks."""
    plan = BatchPlan(BATCH, processes, micro_batch)
    rows = {}
    for rank in range(processes):
        sampler = TrainingRows(plan, windows.lengths, SEED, rank, first_step=0)
        batches = iter(make_loader(windows, sampler, workers, prefetch=2, pin_memory=False))
        for step in range(STEPS):
            for _ in range(plan.accumulation):
                batch = next(batches)
                masked = masker(batch.ids, batch.epoch, batch.sample_id, MIX)
                for i, sample in enumerate(batch.sample_id.tolist()):
                    if sample < 0:
                        assert not masked.masked[i].any()
                        continue
                    length = int((batch.ids[i] != PAD).sum())
                    key = (step, batch.epoch[i].item(), sample)
                    assert key not in rows
                    rows[key] = (masked.input_ids[i, :length], masked.masked[i, :length], masked.labels[i, :length])
    return rows


@pytest.fixture(scope="module")
def one_process(windows, masker):
    return masked_rows(windows, masker, processes=1, micro_batch=BATCH, workers=0)


@pytest.mark.parametrize(
    ("processes", "micro_batch", "workers"), [(1, 25, 2), (2, 25, 0), (2, 4, 0), (2, 4, 2), (3, 7, 0), (1, 1, 0)]
)
def test_masks_and_windows_do_not_depend_on_the_division(windows, masker, one_process, processes, micro_batch, workers):
    rows = masked_rows(windows, masker, processes, micro_batch, workers)
    assert rows.keys() == one_process.keys()
    assert len(rows) == STEPS * BATCH
    for key, tensors in rows.items():
        assert all(torch.equal(a, b) for a, b in zip(tensors, one_process[key], strict=True))


def test_a_window_is_masked_anew_in_each_epoch(windows, masker):
    batch = windows[(torch.zeros(8, dtype=torch.int64).numpy(), torch.arange(8).numpy())]
    first = masker(batch.ids, batch.epoch, batch.sample_id, MIX[:1])
    second = masker(batch.ids, batch.epoch + 1, batch.sample_id, MIX[:1])
    assert not torch.equal(first.masked, second.masked)


def test_a_loader_can_begin_at_any_step(windows):
    plan = BatchPlan(BATCH, 1, 25)
    from_start = iter(make_loader(windows, TrainingRows(plan, windows.lengths, SEED, 0, 0), 0, 1, False))
    from_two = iter(make_loader(windows, TrainingRows(plan, windows.lengths, SEED, 0, 2), 0, 1, False))
    third = [next(from_start) for _ in range(3)][2]
    assert torch.equal(next(from_two).ids, third.ids)


def test_rows_are_the_windows_of_the_corpus(windows, tiny_corpus):
    plan = BatchPlan(BATCH, 1, 25)
    batch = next(iter(make_loader(windows, TrainingRows(plan, windows.lengths, SEED, 0, 0), 0, 1, False)))
    for row, sample in zip(batch.ids, batch.sample_id.tolist(), strict=True):
        expected = encode(tiny_corpus.train[sample]["sequence"], tiny_corpus.k).tolist()
        assert row[row != PAD].tolist() == [CLS, *expected, SEP]


def test_iterating_a_loader_leaves_the_global_random_state_alone(windows):
    plan = BatchPlan(BATCH, 1, 25)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    next(iter(make_loader(windows, TrainingRows(plan, windows.lengths, SEED, 0, 0), 2, 1, False)))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(("processes", "micro_batch"), [(1, 20), (2, 7), (3, 100)])
def test_validation_windows_are_divided_without_loss(tiny_corpus, processes, micro_batch):
    windows = Windows(tiny_corpus.validation, tiny_corpus.tokens, max_positions=64)
    wanted = min(30, len(windows.split))
    plan = BatchPlan(wanted, processes, micro_batch)
    seen = []
    for rank in range(processes):
        for batch in make_loader(windows, ValidationRows(plan, windows.lengths, 5, rank), 0, 1, False):
            assert (batch.epoch == 0).all()
            seen += [sample for sample in batch.sample_id.tolist() if sample >= 0]
    assert len(seen) == len(set(seen)) == wanted
