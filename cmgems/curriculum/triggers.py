"""What ends a masking stage: settings, and pure functions of the steps done and of the validation perplexities.

To add a trigger, write a class here, and enter it in `Trigger`.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from cmgems.settings import OpenShare, Settings


@dataclass(frozen=True, slots=True)
class StageProgress:
    """How far a run is in a stage."""

    step: int
    """Optimizer steps done, of the run."""
    stage_start: int
    """Optimizer steps after which the stage began."""
    total_steps: int
    """Optimizer steps of the whole run."""
    perplexities: Sequence[float]
    """Under the stage's own masking, at the evaluations since its start, the last one at `step`."""
    unigram_perplexity: float
    """That of the corpus' k-mers."""


class _Trigger(Settings):
    """What ends a stage."""

    is_never: ClassVar[bool] = False
    """Whether the stage lasts to the end of the run."""

    @abstractmethod
    def is_over(self, progress: StageProgress) -> bool:
        """Return whether the stage ends now."""

    @abstractmethod
    def earliest_end(self, start: int, total_steps: int, evaluate_every: int) -> int:
        """Return the first step at which a stage that begins after `start` steps can end."""

    def fixed_steps(self, total_steps: int) -> list[int]:
        """Return the steps at which the stage ends whatever the perplexity is: none or one."""
        return []

    def causing_perplexities(self, perplexities: Sequence[float]) -> tuple[float, ...]:
        """Return those of a stage's perplexities that its end was decided by."""
        return ()


class PerplexityDrop(_Trigger):
    """Ends a stage when the validation perplexity under the stage's own masking stops falling."""

    kind: Literal["perplexity_drop"]
    """The drop between two successive evaluations of the stage falls below a threshold."""
    below: float = Field(gt=0)
    """The threshold: a smaller drop (or a rise) counts as a plateau."""
    unit: Literal["perplexity", "percent"] = "perplexity"
    """Unit of `below`: perplexity, or per cent of the previous evaluation's perplexity."""
    patience: int = Field(default=1, ge=1)
    """Number of plateau evaluations in a row that end the stage."""
    min_steps: int = Field(default=0, ge=0)
    """Optimizer steps the stage lasts at least."""
    below_unigram: OpenShare | None = None
    """Guard: only once the perplexity is below this share of the corpus' unigram perplexity."""

    def is_over(self, progress: StageProgress) -> bool:
        """Return whether the stage is on a plateau."""
        perplexities = progress.perplexities
        if progress.step - progress.stage_start < self.min_steps or not perplexities:
            return False
        if self.below_unigram and perplexities[-1] >= self.below_unigram * progress.unigram_perplexity:
            return False
        return self.plateau_length(perplexities) >= self.patience

    def plateau_length(self, perplexities: Sequence[float]) -> int:
        """Return the number of evaluations in a row, up to the last, whose drop is below the threshold."""
        length = 0
        for before, after in zip(perplexities[-2::-1], perplexities[:0:-1], strict=True):
            drop = before - after if self.unit == "perplexity" else 100 * (before - after) / before
            if drop >= self.below:
                break
            length += 1
        return length

    def earliest_end(self, start: int, total_steps: int, evaluate_every: int) -> int:
        """Return the first evaluation that can find a plateau."""
        # A drop needs two evaluations under the stage's own masking, and decisions fall at evaluations only.
        evaluations = max(start // evaluate_every + 1 + self.patience, -(-(start + self.min_steps) // evaluate_every))
        return evaluations * evaluate_every

    def causing_perplexities(self, perplexities: Sequence[float]) -> tuple[float, ...]:
        """Return those of the plateau, and of the evaluation before it."""
        return tuple(perplexities[-self.patience - 1 :])


class RunShare(_Trigger):
    """Ends a stage at a share of the run's steps."""

    kind: Literal["share"]
    """A share of the run is over."""
    at: OpenShare
    """Share of the run's optimizer steps, counted from the start of the run."""

    def end(self, total_steps: int) -> int:
        """Return the number of optimizer steps done when the share is over, rounded to the nearest."""
        return round(self.at * total_steps)

    def is_over(self, progress: StageProgress) -> bool:
        """Return whether the share is over."""
        return progress.step >= self.end(progress.total_steps)

    def earliest_end(self, start: int, total_steps: int, evaluate_every: int) -> int:
        """Return the step at which the share is over."""
        return self.end(total_steps)

    def fixed_steps(self, total_steps: int) -> list[int]:
        """Return the step at which the share is over."""
        return [self.end(total_steps)]


class AtStep(_Trigger):
    """Ends a stage at an optimizer step."""

    kind: Literal["step"]
    """An optimizer step is reached."""
    at: int = Field(gt=0)
    """Optimizer steps done when the next stage begins, counted from the start of the run."""

    def is_over(self, progress: StageProgress) -> bool:
        """Return whether the step is reached."""
        return progress.step >= self.at

    def earliest_end(self, start: int, total_steps: int, evaluate_every: int) -> int:
        """Return the step."""
        return self.at

    def fixed_steps(self, total_steps: int) -> list[int]:
        """Return the step."""
        return [self.at]


class Never(_Trigger):
    """The stage lasts to the end of the run."""

    is_never: ClassVar[bool] = True
    kind: Literal["never"] = "never"
    """The stage does not end."""

    def is_over(self, progress: StageProgress) -> bool:
        """Return False."""
        return False

    def earliest_end(self, start: int, total_steps: int, evaluate_every: int) -> int:
        """Return the end of the run."""
        return total_steps


Trigger = Annotated[PerplexityDrop | RunShare | AtStep | Never, Field(discriminator="kind")]
