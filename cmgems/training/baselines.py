"""What can be predicted of the validation windows without a model, under each masking: worked out once a run.

Perplexity and bits mean something beside these numbers only. They are of the same windows with the same masks, but for
the corruption: the k-mers that it keeps give a few bases away, which no baseline makes use of.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numpy.lib.stride_tricks import sliding_window_view

from cmgems.data.loader import Windows
from cmgems.data.markov import MarkovChains, fit_chains
from cmgems.data.markov_scores import FLANKS, score_hidden_bases, summarize_baselines
from cmgems.data.tokenization import Tokenization
from cmgems.masking.masker import MaskedBatch
from cmgems.model.bases import bases_of_batch
from cmgems.training.validation import Mixture, Validation, perplexity

COUNTED_BASES = 64_000_000
"""Nucleotides of the training split that the Markov chains are fitted to, about."""

_WINDOWS_AT_ONCE = 2000


def fit_baselines(training: Windows) -> MarkovChains:
    """Markov chains fitted to the training split, or to every n-th window of one that is larger than COUNTED_BASES."""
    every = -(-int(training.lengths.sum()) // COUNTED_BASES)
    split = training.split.select(range(0, len(training.split), every)) if every > 1 else training.split
    batches = split.with_format("arrow").iter(_WINDOWS_AT_ONCE)
    return fit_chains(sequence for batch in batches for sequence in batch["sequence"].to_pylist())


def score_baselines(
    validation: Validation, chains: MarkovChains, maskings: Mapping[str, Mixture]
) -> dict[str, dict[str, Any]]:
    """For each masking what the base `composition` and the best Markov `chain` score, as JSON values; collective.

    Both have the fields of `markov_scores.Baseline`. The composition also has a `perplexity` of the masked k-mers: that
    of reading every visible base off the other k-mers, and knowing the composition alone for the hidden ones.
    """
    accelerator = validation.accelerator
    shape = (chains.order + 1, len(FLANKS), 2)
    sums = np.zeros((len(maskings), np.prod(shape) + 3))
    for windows in validation.windows():
        for own, masking in zip(sums, maskings.values(), strict=True):
            batch = validation.masker(windows.ids, windows.epoch, windows.sample_id, masking)
            own += _score_batch(chains, batch, validation.masker.tokens)
    sums = accelerator.reduce(torch.from_numpy(sums).to(accelerator.device), "sum").cpu().numpy()
    return {name: _summarize(own, shape) for name, own in zip(maskings, sums, strict=True)}


def _score_batch(chains: MarkovChains, batch: MaskedBatch, tokens: Tokenization) -> npt.NDArray[np.float64]:
    """Return the sums over a batch: those of `score_hidden_bases`, flat; hidden bases; masked k-mers' nats by the
    composition, and the number of these k-mers."""
    bases, hidden = (tensor.cpu().numpy() for tensor in bases_of_batch(batch, tokens))
    masked = batch.masked.cpu().numpy()
    nats = np.zeros(bases.shape)
    nats[hidden] = -np.log(chains.forward[0][bases[hidden], 0])
    of_tokens = sliding_window_view(nats, tokens.k, axis=1)[:, :: tokens.stride].sum(axis=2)
    scores = score_hidden_bases(chains, bases, hidden)
    return np.append(scores.ravel(), [hidden.sum(), of_tokens[masked].sum(), masked.sum()])


def _summarize(sums: npt.NDArray[np.float64], shape: tuple[int, ...]) -> dict[str, Any]:
    *scores, hidden, nats, tokens = sums.tolist()
    composition, chain = summarize_baselines(np.reshape(scores, shape), int(hidden))
    return {
        "composition": {**composition._asdict(), "perplexity": perplexity(nats, tokens)},
        "chain": chain._asdict(),
    }
