"""The curriculum controller: rank 0 decides when the next masking stage begins, every rank follows.

The decision travels as one small tensor, only at steps where a decision can fall; those steps follow from the config
alone, so that all ranks know them without asking. A stage that begins "after step s" masks step s + 1 first (steps
are counted from 1), on every rank: masking happens at the point of consumption, behind the loader's queue.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from cmgems.curriculum.settings import CurriculumConfig, StageConfig
from cmgems.curriculum.triggers import StageProgress
from cmgems.errors import UserError


@dataclass(frozen=True, slots=True)
class Switch:
    """A change of stage after `step` optimizer steps, with the perplexities that caused it (none for a fixed step)."""

    step: int
    from_stage: str
    to_stage: str
    perplexities: tuple[float, ...]


@dataclass
class Controller:
    """State of the curriculum: the same on all ranks, but for the perplexities, which rank 0 alone needs."""

    config: CurriculumConfig
    total_steps: int
    unigram_perplexity: float
    broadcast: Callable[[int], int]
    """Gives every rank the integer that rank 0 passes."""
    is_decider: bool
    """Whether this is rank 0."""
    index: int = 0
    stage_start: int = 0
    perplexities: list[float] = field(default_factory=list)
    switches: list[Switch] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._fixed = {step for stage in self.config.stages for step in stage.until.fixed_steps(self.total_steps)}

    @property
    def stage(self) -> StageConfig:
        """The stage that masks the next optimizer step."""
        return self.config.stages[self.index]

    def observe(self, perplexity: float) -> None:
        """Take note of the validation perplexity under the current stage's masking."""
        self.perplexities.append(perplexity)

    def advance(self, step: int, evaluated: bool) -> Switch | None:
        """Go to the next stage if the current one ends after `step` steps; collective where a decision can fall.

        `evaluated` says whether there was an evaluation after this step. Returns the switch, or None.
        """
        if not (evaluated or step in self._fixed):
            return None
        return self._enter(self.broadcast(self._decide(step) if self.is_decider else self.index), step)

    def _decide(self, step: int) -> int:
        """Index of the stage from `step` on: a stage that should be over before it begins is passed over."""
        index, start, perplexities = self.index, self.stage_start, self.perplexities
        while self.config.stages[index].until.is_over(
            StageProgress(step, start, self.total_steps, perplexities, self.unigram_perplexity)
        ):
            index, start, perplexities = index + 1, step, []
        return index

    def _enter(self, index: int, step: int) -> Switch | None:
        if index == self.index:
            return None
        stages = self.config.stages
        cause = self.stage.until.causing_perplexities(self.perplexities)
        switch = Switch(step, stages[self.index].name, stages[index].name, cause)
        self.index, self.stage_start, self.perplexities = index, step, []
        self.switches.append(switch)
        return switch

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a checkpoint keeps, as JSON values."""
        return {
            "index": self.index,
            "stage_start": self.stage_start,
            "perplexities": self.perplexities,
            "switches": [asdict(switch) for switch in self.switches],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of a checkpoint.

        Raises
        ------
        UserError
            If it is in a stage that the curriculum has not.
        """
        if state["index"] >= len(self.config.stages):
            raise UserError(
                f"curriculum.stages: the checkpoint is in stage {state['index']} (counted from 0), "
                f"of which this curriculum has {len(self.config.stages)}"
            )
        self.index = state["index"]
        self.stage_start = state["stage_start"]
        self.perplexities = list(state["perplexities"])
        self.switches = [Switch(**{**s, "perplexities": tuple(s["perplexities"])}) for s in state["switches"]]
