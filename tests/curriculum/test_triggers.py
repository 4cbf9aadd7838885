"""What ends a stage."""

import pytest

from cmgems.curriculum.triggers import AtStep, Never, PerplexityDrop, RunShare, StageProgress


def over(trigger, step=1000, stage_start=0, perplexities=(), unigram=3000.0):
    return trigger.is_over(StageProgress(step, stage_start, 10_000, list(perplexities), unigram))


def drop(**settings):
    return PerplexityDrop(kind="perplexity_drop", **settings)


def test_never_never_ends():
    assert not over(Never(), step=10_000, perplexities=[5.0, 5.0, 5.0])


@pytest.mark.parametrize(("step", "expected"), [(499, False), (500, True), (501, True)])
def test_a_step(step, expected):
    assert over(AtStep(kind="step", at=500), step) is expected


@pytest.mark.parametrize(("step", "expected"), [(999, False), (1000, True)])
def test_a_share_of_the_run(step, expected):
    assert over(RunShare(kind="share", at=0.1), step) is expected


@pytest.mark.parametrize(
    ("perplexities", "expected"),
    [
        ([], False),
        ([100.0], False),  # a drop takes two evaluations
        ([100.0, 98.5], False),
        ([100.0, 99.0], False),  # exactly the threshold is not below it
        ([100.0, 99.1], True),
        ([100.0, 120.0], True),  # a rise is no drop
        ([100.0, 99.5, 50.0], False),  # only the last evaluations count
    ],
)
def test_the_published_trigger_fires_when_perplexity_drops_by_less_than_one(perplexities, expected):
    assert over(drop(below=1), perplexities=perplexities) is expected


@pytest.mark.parametrize(("last", "expected"), [(94.0, False), (96.0, True)])
def test_a_drop_in_per_cent_is_of_the_previous_perplexity(last, expected):
    assert over(drop(below=5, unit="percent"), perplexities=[100.0, last]) is expected


def test_patience_asks_for_several_plateau_evaluations_in_a_row():
    trigger = drop(below=1, patience=2)
    assert not over(trigger, perplexities=[100.0, 99.9])
    assert over(trigger, perplexities=[100.0, 99.9, 99.8])
    assert not over(trigger, perplexities=[100.0, 99.9, 90.0, 89.9])


def test_minimum_steps_count_from_the_start_of_the_stage():
    trigger = drop(below=1, min_steps=500)
    assert not over(trigger, step=1000, stage_start=501, perplexities=[9.0, 9.0])
    assert over(trigger, step=1000, stage_start=500, perplexities=[9.0, 9.0])


def test_the_guard_holds_on_the_early_plateau_of_composition():
    trigger = drop(below=1, below_unigram=0.5)
    assert not over(trigger, perplexities=[2060.0, 2059.9], unigram=3000)
    assert over(trigger, perplexities=[390.0, 389.9], unigram=3000)


def test_plateau_length_counts_back_from_the_last_evaluation():
    assert drop(below=1).plateau_length([100.0, 50.0, 49.9, 49.8, 49.7]) == 3
