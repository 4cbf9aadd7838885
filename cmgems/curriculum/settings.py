"""Settings of the curriculum: the masking stages, and what ends each of them."""

from pydantic import Field, model_validator

from cmgems.curriculum.triggers import Never, Trigger
from cmgems.masking.corruption import CorruptionConfig
from cmgems.masking.strategies import Masking
from cmgems.settings import Settings


class StageConfig(Settings):
    """One stage of the curriculum."""

    name: str = Field(min_length=1)
    """Name in logs and plots."""
    masking: list[Masking] = Field(min_length=1)
    """One masking strategy, or a weighted mix of several."""
    until: Trigger = Never()
    """What ends the stage."""


class CurriculumConfig(Settings):
    """The masking stages, in order."""

    stages: list[StageConfig] = Field(min_length=1)
    """Stages; the last one lasts to the end of the run."""
    corruption: CorruptionConfig = CorruptionConfig()
    """What becomes of the masked tokens, in training and in validation."""

    @model_validator(mode="after")
    def _names_differ(self) -> "CurriculumConfig":
        names = [stage.name for stage in self.stages]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"stages: two stages are named '{name}'")
        return self


def check_stages(stages: list[StageConfig], steps: int, evaluate_every: int) -> None:
    """Raise ValueError, naming the stage, if a stage before the last can never end or the last one is to end."""
    if not stages[-1].until.is_never:
        raise ValueError(f"curriculum.stages: the last stage, '{stages[-1].name}', needs until: never")
    reached = 0
    for stage in stages[:-1]:
        where = f"curriculum.stages: stage '{stage.name}' can never end before the last"
        if stage.until.is_never:
            raise ValueError(f"{where}: its until is 'never'")
        first = stage.until.earliest_end(reached, steps, evaluate_every)
        if first >= steps:
            raise ValueError(f"{where}: it ends after step {first} at the earliest, and training.steps is {steps}")
        if first <= reached:
            raise ValueError(f"curriculum.stages: stage '{stage.name}' ends at step {first}, before it begins")
        reached = first
