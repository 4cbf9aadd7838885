"""What ends a masking stage: pure functions of the steps done and of the stage's validation perplexities."""

from collections.abc import Sequence

from cmgems.config import AtStep, Never, PerplexityDrop, RunShare, Trigger, share_step


def is_over(
    trigger: Trigger,
    step: int,
    stage_start: int,
    total_steps: int,
    perplexities: Sequence[float],
    unigram_perplexity: float,
) -> bool:
    """Whether a stage ends after `step` optimizer steps of the run.

    `perplexities` are those of the stage's own masking at the evaluations since its start, the last one at `step`;
    the stage began after `stage_start` steps. `unigram_perplexity` is that of the corpus' k-mers.
    """
    match trigger:
        case Never():
            return False
        case AtStep(at=at):
            return step >= at
        case RunShare(at=share):
            return step >= share_step(share, total_steps)
        case PerplexityDrop():
            if step - stage_start < trigger.min_steps or not perplexities:
                return False
            if trigger.below_unigram and perplexities[-1] >= trigger.below_unigram * unigram_perplexity:
                return False
            return plateau_length(trigger, perplexities) >= trigger.patience


def plateau_length(trigger: PerplexityDrop, perplexities: Sequence[float]) -> int:
    """Number of evaluations in a row, up to the last, whose drop is below the trigger's threshold."""
    length = 0
    for before, after in zip(perplexities[-2::-1], perplexities[:0:-1], strict=True):
        drop = before - after if trigger.unit == "perplexity" else 100 * (before - after) / before
        if drop >= trigger.below:
            break
        length += 1
    return length


def causing_perplexities(trigger: Trigger, perplexities: Sequence[float]) -> tuple[float, ...]:
    """Of a stage's perplexities those that its end was decided by: the plateau, and the evaluation before it."""
    return tuple(perplexities[-trigger.patience - 1 :]) if isinstance(trigger, PerplexityDrop) else ()


def fixed_steps(trigger: Trigger, total_steps: int) -> list[int]:
    """Steps at which the trigger fires whatever the perplexity is: none or one."""
    match trigger:
        case AtStep(at=at):
            return [at]
        case RunShare(at=share):
            return [share_step(share, total_steps)]
        case _:
            return []
