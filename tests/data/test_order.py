"""Data order as a pure function of (seed, step): complete, equal however divided, free to begin anywhere."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmgems.data.order import BatchPlan, in_slots, longest_first, permute, training_samples, validation_samples

GOLDEN_ORDER = [2, 3, 1, 0, 6, 7, 8, 5, 4, 9]
GOLDEN_SAMPLES = [3503, 1256, 2276, 1114, 297, 2109]


def epoch_order(size, seed=7, epoch=0):
    return permute(np.arange(size), size, seed, np.full(size, epoch))


@given(size=st.integers(1, 3000), seed=st.integers(0, 2**31 - 1), epoch=st.integers(0, 10_000))
def test_an_epoch_holds_every_window_once(size, seed, epoch):
    assert sorted(epoch_order(size, seed, epoch)) == list(range(size))


def test_epochs_and_seeds_have_orders_of_their_own():
    # Seed and epoch do not trade places, and are not only told apart by their difference.
    keys = [(0, 0), (0, 1), (1, 0), (1, 1), (7, 0), (7, 1), (8, 0), (8, 1), (1, 7)]
    orders = [epoch_order(1000, seed, epoch) for seed, epoch in keys]
    for i, first in enumerate(orders):
        for second in orders[i + 1 :]:
            assert (first == second).sum() < 10  # one place in a thousand agrees by chance


def test_an_order_looks_shuffled():
    order = epoch_order(10_000)
    assert abs(np.corrcoef(np.arange(10_000), order)[0, 1]) < 0.03
    # The distance of neighbours is that of two random places, a third of the size on average.
    assert np.abs(np.diff(order)).mean() == pytest.approx(10_000 / 3, rel=0.03)


def test_the_order_stays_as_it_is():
    """A change here changes every run: golden values."""
    assert epoch_order(10).tolist() == GOLDEN_ORDER
    _, samples = training_samples(step=123, global_batch=250, size=5000, seed=42)
    assert samples[:6].tolist() == GOLDEN_SAMPLES


def test_a_late_step_costs_what_the_first_one_costs():
    def seconds(step):
        started = time.perf_counter()
        for _ in range(20):
            training_samples(step, 250, 10_000_000, 42)
        return time.perf_counter() - started

    seconds(0)
    assert seconds(10_000_000) < 20 * seconds(0)  # not a timing: a walk through ten million steps would be 10^6 times


PLANS = [
    BatchPlan(batch, processes, micro) for batch in (1, 7, 250) for processes in (1, 2, 3, 16) for micro in (1, 32, 500)
]


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_every_window_of_a_global_batch_is_in_one_micro_batch(plan):
    slots = np.concatenate([plan.slots(a, rank) for a in range(plan.accumulation) for rank in range(plan.processes)])
    assert sorted(slots[slots >= 0]) == list(range(plan.global_batch))
    assert plan.micro_batch <= plan.largest_micro_batch
    # Fewer empty rows than one a micro-batch: the rows are spread evenly.
    assert (slots < 0).sum() < plan.processes * plan.accumulation


def test_a_global_batch_may_hold_the_end_of_one_epoch_and_the_start_of_the_next():
    epoch, samples = training_samples(1, 8, 10, 1)
    assert epoch.tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
    first = training_samples(0, 8, 10, 1)[1]
    assert sorted([*first, *samples[:2]]) == list(range(10))


def test_empty_slots_have_no_window():
    assert in_slots(np.array([7, 8, 9]), np.array([2, -1, 0])).tolist() == [9, -1, 7]


def test_windows_stand_from_the_longest_to_the_shortest():
    lengths = np.array([5, 9, 2, 9, 7], dtype=np.int32)
    samples = np.array([2, 3, 0, 1, 4])
    assert samples[longest_first(samples, lengths)].tolist() == [3, 1, 4, 0, 2]


def test_validation_windows_are_distinct_and_fewer_are_the_first_of_more():
    samples = validation_samples(15, 100, 9)
    assert len(set(samples)) == 15
    assert (validation_samples(10, 100, 9) == samples[:10]).all()
