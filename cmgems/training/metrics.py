"""Metrics by their names in MLflow: of training, from sums over the steps between two log lines, and of validation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator

from cmgems.masking.masker import STATISTICS
from cmgems.training.validation import Score


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over a log window and all ranks."""

    steps: int
    loss: float
    statistics: dict[str, int]
    flops: float
    gradient_norm: float
    learning_rate: float
    seconds: float

    @property
    def masked_tokens(self) -> int:
        """Number of masked tokens."""
        return self.statistics["masked_tokens"]

    def metrics(self) -> dict[str, float]:
        """Return the metrics by their name in MLflow; means over the window's steps."""
        counts = self.statistics
        masked = max(counts["masked_tokens"], 1)
        return {
            "train/loss": self.loss / masked,
            "train/learning_rate": self.learning_rate,
            "train/gradient_norm": self.gradient_norm / self.steps,
            "masking/masked_share": counts["masked_tokens"] / max(counts["valid_tokens"], 1),
            "masking/hidden_bases_share": counts["hidden_nucleotides"] / max(counts["nucleotides"], 1),
            "masking/top_decile_npmi_share": counts["masked_top_tenth_tokens"] / masked,
            "usage/tokens_per_second": counts["valid_tokens"] / self.seconds,
            "usage/seconds_per_step": self.seconds / self.steps,
        }


class LogWindow:
    """Sums since the last log line, kept on the device: counting costs a step no wait."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._clear()

    def _clear(self) -> None:
        self.steps = 0
        self.loss = torch.zeros((), dtype=torch.float64, device=self.device)
        self.statistics = torch.zeros(len(STATISTICS), dtype=torch.int64, device=self.device)
        self.flops, self.norm, self.rate, self.seconds = 0.0, 0.0, 0.0, 0.0

    def add(
        self, statistics: torch.Tensor, loss: torch.Tensor, norm: float, rate: float, flops: float, seconds: float
    ) -> None:
        """Take in one optimizer step of this rank; `loss` is the sum over its masked tokens."""
        self.steps += 1
        self.loss += loss.double()
        self.statistics += statistics
        self.flops += flops
        self.norm += norm
        self.rate = rate
        self.seconds += seconds

    def reduce(self, accelerator: Accelerator) -> Totals:
        """Totals over all ranks; collective. A new window begins."""
        own = torch.tensor([self.flops], dtype=torch.float64, device=self.device)
        sums = accelerator.reduce(torch.cat([self.loss[None], own]), "sum").tolist()
        counts = accelerator.reduce(self.statistics, "sum").tolist()
        totals = Totals(
            steps=self.steps,
            loss=sums[0],
            statistics=dict(zip(STATISTICS, counts, strict=True)),
            flops=sums[1],
            gradient_norm=self.norm,
            learning_rate=self.rate,
            seconds=self.seconds,
        )
        self._clear()
        return totals


def evaluation_metrics(
    scores: Mapping[str, Score], fixed: Mapping[str, Score], baselines: Mapping[str, Mapping[str, Any]]
) -> dict[str, float]:
    """Validation metrics of the scores by masking; those of hidden bases, beside their baselines, for the fixed ones.

    The baselines are constants, logged each time so that a chart shows them as lines.
    """
    metrics = {}
    for name, score in scores.items():
        metrics[f"ppl/{name}"] = score.perplexity
        metrics[f"ppl_vs_unigram/{name}"] = score.perplexity / score.unigram_perplexity
    for name, score in fixed.items():
        metrics[f"bits/{name}"] = score.bits
        metrics[f"bases_right/{name}"] = score.accuracy
        metrics |= {kind.format(name): bits for kind, bits in score.codons.items()}
        for kind, baseline in baselines[name].items():
            metrics[f"bits/{name}_{kind}"] = baseline["bits"]
            metrics[f"bases_right/{name}_{kind}"] = baseline["accuracy"]
        metrics[f"ppl/{name}_composition"] = baselines[name]["composition"]["perplexity"]
    return metrics
