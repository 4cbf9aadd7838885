"""Validation perplexity: always the same windows, with the same masks at every evaluation of every run."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator

from cmgems.config import EvaluationConfig, MaskingConfig
from cmgems.masking.masker import Masker
from cmgems.masking.npmi import Counts
from cmgems.sequence.tokenizer import SPECIAL_TOKENS
from cmgems.training.loader import MicroBatch, ValidationRows, Windows, make_loader
from cmgems.training.model import MaskedLanguageModel
from cmgems.training.order import BatchPlan

Masking = Sequence[MaskingConfig]


@dataclass(frozen=True, slots=True)
class Score:
    """Perplexities of one masking's masked tokens over all ranks: exp(sum of negative log-likelihoods / number)."""

    perplexity: float
    unigram_perplexity: float
    """The same under the training split's k-mer frequencies: what a model scores that has learned those alone."""


def unigram_nll(counts: Counts) -> torch.Tensor:
    """Negative log-likelihood in nats, float64 [5 + 4^k], of each token id under the k-mer frequencies (each count one
    more than counted, so that none is impossible); 0 for the special tokens, which are never predicted."""
    nll = -np.log((counts + 1) / (counts + 1).sum())
    return torch.from_numpy(np.concatenate([np.zeros(len(SPECIAL_TOKENS)), nll]))


def unigram_perplexity(counts: Counts) -> float:
    """Perplexity of the k-mer frequencies themselves: exp of their entropy."""
    shares = counts[counts > 0] / counts.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def fixed_maskings(rate: float) -> dict[str, list[MaskingConfig]]:
    """The maskings that every run is scored under, so that runs of different curricula can be compared."""
    return {name: [MaskingConfig(strategy=name, rate=rate)] for name in ("span", "genemask", "global_pmi")}


class Validation:
    """One rank's share of the validation windows, kept in memory, with the masker that hides the same tokens always."""

    def __init__(
        self,
        windows: Windows,
        config: EvaluationConfig,
        masker: Masker,
        counts: Counts,
        accelerator: Accelerator,
    ) -> None:
        """`counts`, int64 [4^k], are those of the training split's k-mers."""
        number = min(config.windows, len(windows.split))
        plan = BatchPlan(number, accelerator.num_processes, config.micro_batch)
        rows = ValidationRows(plan, windows.lengths, config.seed, accelerator.process_index)
        self.batches: list[MicroBatch] = list(make_loader(windows, rows, workers=0, prefetch=1, pin_memory=False))
        self.masker, self.accelerator = masker, accelerator
        self.unigram_nll = unigram_nll(counts).to(accelerator.device)

    @torch.no_grad()
    def score(self, model: MaskedLanguageModel, maskings: Mapping[str, Masking]) -> dict[str, Score]:
        """Score of the model under each masking; collective."""
        device = self.accelerator.device
        sums = torch.zeros(len(maskings), 3, dtype=torch.float64, device=device)
        model.eval()
        for batch in self.batches:
            windows = batch.to(device)
            for row, masking in zip(sums, maskings.values(), strict=True):
                masked = self.masker(windows.ids, windows.epoch, windows.sample_id, masking)
                nll = model(masked.input_ids, masked.attention_mask, masked.masked, masked.labels)
                row[0] += nll.double().sum()
                row[1] += self.unigram_nll[masked.labels[masked.masked]].sum()
                row[2] += masked.masked.sum()
        model.train()
        sums = self.accelerator.reduce(sums, "sum")
        return {
            name: Score(_perplexity(nll, tokens), _perplexity(unigram, tokens))
            for name, (nll, unigram, tokens) in zip(maskings, sums.tolist(), strict=True)
        }


def _perplexity(nll: float, tokens: float) -> float:
    """exp of the mean negative log-likelihood; infinite where that overflows, not a number without any token."""
    if tokens == 0:
        return math.nan
    mean = nll / tokens
    return math.inf if mean > 700 else math.exp(mean)
