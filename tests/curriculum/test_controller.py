"""Rank 0 decides, all ranks enter the new stage after the same step."""

import json

import pytest

from cmgems.curriculum.controller import Controller, Switch
from cmgems.curriculum.settings import CurriculumConfig

SPAN = [{"strategy": "span", "rate": 0.15}]


def curriculum(*until):
    stages = [{"name": f"s{i}", "masking": SPAN, "until": u} for i, u in enumerate(until)]
    return CurriculumConfig.model_validate({"stages": [*stages, {"name": "last", "masking": SPAN}]})


class Ranks:
    """Controllers of two ranks whose broadcast passes rank 0's decision on; rank 1 sees no perplexities."""

    def __init__(self, config, total_steps=1000):
        self.broadcasts = 0
        self.controllers = [
            Controller(config, total_steps, 3000.0, broadcast=self._broadcast, is_decider=rank == 0) for rank in (0, 1)
        ]

    def _broadcast(self, value):
        if self.broadcasts % 2 == 0:
            self.decision = value
        self.broadcasts += 1
        return self.decision

    def after(self, step, perplexity=None):
        if perplexity is not None:
            self.controllers[0].observe(perplexity)
        return [controller.advance(step, perplexity is not None) for controller in self.controllers]


def test_a_perplexity_plateau_switches_both_ranks_after_the_same_step():
    ranks = Ranks(curriculum({"kind": "perplexity_drop", "below": 1}))
    assert ranks.after(100, 50.0) == [None, None]
    assert ranks.after(200, 40.0) == [None, None]
    first, second = ranks.after(300, 39.9)
    assert first == Switch(300, "s0", "last", (40.0, 39.9))
    assert second.step == 300
    assert [c.stage.name for c in ranks.controllers] == ["last", "last"]


def test_a_step_trigger_fires_between_evaluations():
    ranks = Ranks(curriculum({"kind": "step", "at": 150}))
    ranks.after(100, 50.0)
    assert [switch.step for switch in ranks.after(150)] == [150, 150]


def test_a_switch_at_a_fixed_step_has_no_perplexities_for_a_cause():
    ranks = Ranks(curriculum({"kind": "step", "at": 200}))
    ranks.after(100, 50.0)
    assert ranks.after(200, 40.0)[0].perplexities == ()


def test_a_stage_that_should_be_over_before_it_begins_is_passed_over():
    ranks = Ranks(curriculum({"kind": "perplexity_drop", "below": 1}, {"kind": "step", "at": 250}))
    ranks.after(100, 50.0)
    ranks.after(200, 40.0)
    ranks.after(250)
    first, second = ranks.after(300, 39.9)
    assert (first.from_stage, first.to_stage) == ("s0", "last")
    assert second.step == 300


def test_nothing_is_broadcast_where_no_decision_can_fall():
    ranks = Ranks(curriculum({"kind": "step", "at": 150}))
    for step in range(1, 150):
        ranks.after(step)
    assert ranks.broadcasts == 0


def test_a_drop_is_measured_within_a_stage_only():
    plateau = {"kind": "perplexity_drop", "below": 1}
    ranks = Ranks(curriculum(plateau, plateau))
    for step, perplexity in ((100, 50.0), (200, 49.9)):
        ranks.after(step, perplexity)
    # The first perplexity under the second stage's masking has nothing to be compared with.
    assert ranks.after(300, 49.8) == [None, None]
    assert ranks.after(400, 49.7)[0] == Switch(400, "s1", "last", (49.8, 49.7))


def test_the_state_comes_back_from_a_checkpoint():
    config = curriculum({"kind": "perplexity_drop", "below": 1}, {"kind": "perplexity_drop", "below": 1})
    ranks = Ranks(config)
    for step, perplexity in ((100, 50.0), (200, 49.9), (300, 40.0)):
        ranks.after(step, perplexity)
    saved = json.loads(json.dumps(ranks.controllers[0].state_dict()))
    fresh = Ranks(config)
    for controller in fresh.controllers:
        controller.load_state_dict(saved)
    assert fresh.controllers[0].switches == ranks.controllers[0].switches
    assert fresh.after(400, 39.9)[0] == Switch(400, "s1", "last", (40.0, 39.9))


@pytest.mark.parametrize("share", [0.1, 0.25, 0.333])
def test_a_share_of_the_run_is_a_step_all_ranks_know(share):
    ranks = Ranks(curriculum({"kind": "share", "at": share}))
    fired = [step for step in range(1, 1000) if ranks.after(step)[0]]
    assert fired == [round(share * 1000)]
