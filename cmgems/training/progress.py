"""What a run has behind it."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Progress:
    """What a run has behind it; part of every checkpoint."""

    step: int = 0
    """Optimizer steps done."""
    seconds: float = 0
    """Wall-clock time, evaluation and checkpoints included, before and after every resume."""
    device_seconds: float = 0
    """The same, of all processes together."""
    flops: float = 0
    """Floating-point operations of the training steps, over all processes."""
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    """Step and stage of each evaluation, and by masking `perplexity`, `bits` and `accuracy` of the hidden bases; where
    tokens are codons, `codons` has the metrics of CODON_BITS."""
    baselines: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What the base composition and the best Markov chain score, by fixed masking; see `baselines.score_baselines`."""
