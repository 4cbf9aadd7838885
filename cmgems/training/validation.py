"""Validation perplexity and bits per hidden base: always the same windows, with the same masks at every evaluation."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from accelerate import Accelerator

from cmgems.config.schema import EvaluationConfig
from cmgems.data.corpus import Corpus
from cmgems.data.genetic_code import CODON
from cmgems.data.loader import MicroBatch, ValidationRows, Windows, make_loader
from cmgems.data.order import BatchPlan
from cmgems.data.tokenizer import MASK, SPECIAL_TOKENS
from cmgems.masking.masker import MaskedBatch, Masker
from cmgems.masking.npmi import Counts
from cmgems.masking.strategies import GeneMask, GlobalPmi, MaskingStrategy, Span
from cmgems.model.bases import base_probabilities, bases_of_batch, hidden_base_probabilities
from cmgems.model.bert import MaskedLanguageModel
from cmgems.model.codons import CODON_BITS, codon_usage, score_codons

Mixture = Sequence[MaskingStrategy]


@dataclass(frozen=True, slots=True)
class Score:
    """How well the model predicts what one masking masks, over all ranks; not a number where nothing is scored."""

    perplexity: float
    """exp of the mean negative log-likelihood of the masked k-mers."""
    unigram_perplexity: float
    """The same under the training split's k-mer frequencies: what a model scores that has learned those alone."""
    bits: float = math.nan
    """Bits per hidden base: the mean of -log2 of the true base's probability, with [MASK] for every masked k-mer. Not a
    number either where bases are not scored."""
    accuracy: float = math.nan
    """Share of the hidden bases whose most probable base is the true one; or as `bits`."""
    codons: Mapping[str, float] = field(default_factory=dict)
    """Where tokens are codons and bases are scored: see `codons.score_codons`, as means over the hidden codons."""


def unigram_nll(counts: Counts) -> torch.Tensor:
    """Negative log-likelihood in nats, float64 [5 + 4^k], of each token id under the k-mer frequencies (each count one
    more than counted, so that none is impossible); 0 for the special tokens, which are never predicted."""
    nll = -np.log((counts + 1) / (counts + 1).sum())
    return torch.from_numpy(np.concatenate([np.zeros(len(SPECIAL_TOKENS)), nll]))


def unigram_perplexity(counts: Counts) -> float:
    """Return the perplexity of the k-mer frequencies themselves: exp of their entropy."""
    shares = counts[counts > 0] / counts.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def fixed_maskings(rate: float) -> dict[str, list[MaskingStrategy]]:
    """Return the maskings that every run is scored under, so that runs of different curricula can be compared."""
    return {"span": [Span(rate=rate)], "genemask": [GeneMask(rate=rate)], "global_pmi": [GlobalPmi(rate=rate)]}


class Validation:
    """One rank's share of the validation windows, kept in memory, with the masker that hides the same tokens always."""

    def __init__(
        self,
        windows: Windows,
        config: EvaluationConfig,
        masker: Masker,
        corpus: Corpus,
        accelerator: Accelerator,
    ) -> None:
        """`windows` are validation windows of `corpus`, whose training split has the frequencies to compare with."""
        number = min(config.windows, len(windows.split))
        plan = BatchPlan(number, accelerator.num_processes, config.micro_batch)
        rows = ValidationRows(plan, windows.lengths, config.seed, accelerator.process_index)
        self.batches: list[MicroBatch] = list(make_loader(windows, rows, workers=0, prefetch=1, pin_memory=False))
        self.masker, self.accelerator = masker, accelerator
        self.unigram_nll = unigram_nll(corpus.counts).to(accelerator.device)
        is_codon = (corpus.k, corpus.tokens.stride) == (CODON, CODON)
        self.usage = codon_usage(corpus.counts, corpus.genetic_code, accelerator.device) if is_codon else None

    @torch.no_grad()
    def score(
        self,
        model: MaskedLanguageModel,
        maskings: Mapping[str, Mixture],
        bases: Collection[str],
        bases_alone: bool = False,
    ) -> dict[str, Score]:
        """Score of the model under each masking, and of its hidden bases under those that `bases` names; collective.

        Bases cost as much again: a second forward pass. With `bases_alone` there is no other, and no perplexity.
        """
        sums = torch.zeros(len(maskings), 7 + len(CODON_BITS), dtype=torch.float64, device=self.accelerator.device)
        model.eval()
        for windows in self.windows():
            for row, (name, masking) in zip(sums, maskings.items(), strict=True):
                masked = self.masker(windows.ids, windows.epoch, windows.sample_id, masking)
                if not bases_alone:
                    nll = model(masked.input_ids, masked.attention_mask, masked.masked, masked.labels)
                    row[0] += nll.double().sum()
                    row[1] += self.unigram_nll[masked.labels[masked.masked]].sum()
                    row[2] += masked.masked.sum()
                if name in bases:
                    row[3:] += self._score_bases(model, masked)
        model.train()
        sums = self.accelerator.reduce(sums, "sum")
        return {name: self._mean_score(*row) for name, row in zip(maskings, sums.tolist(), strict=True)}

    def _mean_score(
        self, nll: float, unigram: float, tokens: float, bits: float, right: float, hidden: float, *codons: float
    ) -> Score:
        number, *of_codons = codons
        score = Score(perplexity(nll, tokens), perplexity(unigram, tokens), _mean(bits, hidden), _mean(right, hidden))
        if self.usage is None:
            return score
        means = (_mean(total, number) for total in of_codons)
        return replace(score, codons=dict(zip(CODON_BITS, means, strict=True)))

    def _score_bases(self, model: MaskedLanguageModel, batch: MaskedBatch) -> torch.Tensor:
        """Return the sums over a batch's hidden bases, float64 [4 + CODON_BITS]: bits, bases predicted right, their
        number; the number of hidden codons, and what `score_codons` returns of them.

        Every masked k-mer is [MASK] here: one that the corruption keeps would give hidden bases away.
        """
        tokens = self.masker.tokens
        ids = batch.labels.masked_fill(batch.masked, MASK)
        logits = model(ids, batch.attention_mask, batch.masked, batch.labels, return_logits=True)
        of_tokens = base_probabilities(logits, tokens.k)
        bases, hidden = bases_of_batch(batch, tokens)
        predicted, true = hidden_base_probabilities(of_tokens, batch.masked, hidden, tokens), bases[hidden]
        bits = -predicted.gather(1, true[:, None]).double().log2().sum()
        of_codons = bits.new_zeros(1 + len(CODON_BITS))
        if self.usage is not None:
            codons = batch.labels[batch.masked] - len(SPECIAL_TOKENS)
            of_codons[0], of_codons[1:] = len(codons), score_codons(logits, codons, self.usage)
        right = (predicted.argmax(dim=1) == true).sum().double()
        return torch.cat([torch.stack([bits, right, hidden.sum().double()]), of_codons])

    def windows(self) -> Iterator[MicroBatch]:
        """This rank's windows, on its device."""
        for batch in self.batches:
            yield batch.to(self.accelerator.device)


def _mean(total: float, number: float) -> float:
    return total / number if number else math.nan


def perplexity(nll: float, tokens: float) -> float:
    """exp of the mean negative log-likelihood; infinite where that overflows, not a number without any token."""
    mean = _mean(nll, tokens)
    return math.inf if mean > 700 else math.exp(mean)
