"""Micro-batches of k-mer ids, NOT masked, read ahead by loader workers.

Masking comes after this queue, in the training process: a change of stage then takes effect at the next optimizer step
on every rank, however far ahead the workers have read.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import torch
from torch.utils.data import DataLoader, Dataset

from cmgems.data.order import BatchPlan, Int64, in_slots, longest_first, training_samples, validation_samples
from cmgems.data.tokenization import Tokenization
from cmgems.data.tokenizer import encode_batch
from cmgems.runtime.signals import leave_signals_to_the_parent

Lengths = npt.NDArray[np.int32]

SPECIAL_TOKENS_PER_WINDOW = 2
"""[CLS] and [SEP]."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Windows of one micro-step on one rank. Empty rows hold [CLS] [SEP] and have the sample id -1."""

    ids: torch.Tensor
    """Token ids, int64 [B, T], padded."""
    epoch: torch.Tensor
    """Epoch of each window, int64 [B]."""
    sample_id: torch.Tensor
    """Row of each window in its split, int64 [B]."""

    def to(self, device: torch.device) -> "MicroBatch":
        """Return the same on another device."""
        move = (tensor.to(device, non_blocking=True) for tensor in (self.ids, self.epoch, self.sample_id))
        return MicroBatch(*move)

    def pin_memory(self) -> "MicroBatch":
        """Return the same in page-locked memory (called by the loader when it feeds a GPU)."""
        return MicroBatch(*(tensor.pin_memory() for tensor in (self.ids, self.epoch, self.sample_id)))


class Windows(Dataset[Any]):
    """A split of the corpus: one item is a whole micro-batch, asked for by its epochs and sample ids.

    Parameters
    ----------
    split
        Rows with a column `sequence`.
    tokens
        Which nucleotides a token covers.
    max_positions
        Longest input of the model, in tokens, [CLS] and [SEP] included.
    """

    def __init__(self, split: datasets.Dataset, tokens: Tokenization, max_positions: int) -> None:
        self.split, self.tokens, self.max_tokens = split, tokens, max_positions - SPECIAL_TOKENS_PER_WINDOW

    @cached_property
    def lengths(self) -> Lengths:
        """Nucleotides of each window, int32 [windows]."""
        sequences = self.split.with_format("arrow")[:]["sequence"]
        lengths: Lengths = pc.binary_length(sequences).to_numpy()
        return lengths

    def __getitem__(self, rows: tuple[Int64, Int64]) -> MicroBatch:
        """Return the micro-batch of `rows`: epochs and sample ids, int64 [B] each; sample id -1 for an empty row.

        Raises
        ------
        ValueError
            If a window has more tokens than the model has positions.
        """
        epoch, samples = rows
        filled = samples >= 0
        sequences = np.full(len(samples), "", dtype=object)
        if filled.any():
            sequences[filled] = self.split[samples[filled].tolist()]["sequence"]
        ids = encode_batch(sequences.tolist(), self.tokens.k, self.max_tokens, stride=self.tokens.stride)
        return MicroBatch(torch.from_numpy(ids), torch.from_numpy(epoch), torch.from_numpy(samples))


class TrainingRows:
    """Sampler: the (epochs, sample ids), int64 [B] each, of one rank's micro-batches, without end.

    Parameters
    ----------
    plan
        How a global batch is laid over ranks and micro-batches.
    lengths
        Nucleotides of all windows of the split, int32 [windows].
    seed
        Seed of the order of the windows.
    rank
        The rank, from 0.
    first_step
        Optimizer step to begin with, from 0.
    """

    def __init__(self, plan: BatchPlan, lengths: Lengths, seed: int, rank: int, first_step: int) -> None:
        self.plan, self.lengths, self.seed, self.rank, self.first_step = plan, lengths, seed, rank, first_step

    def __iter__(self) -> Iterator[tuple[Int64, Int64]]:
        step = self.first_step
        while True:
            epoch, samples = training_samples(step, self.plan.global_batch, len(self.lengths), self.seed)
            order = longest_first(samples, self.lengths)
            for micro_step in range(self.plan.accumulation):
                slots = self.plan.slots(micro_step, self.rank)
                yield in_slots(epoch[order], slots), in_slots(samples[order], slots)
            step += 1


class ValidationRows:
    """Sampler: one rank's share of the fixed validation windows, (epochs, sample ids), int64 [B] each; all of epoch 0.

    Parameters
    ----------
    plan
        How the validation windows, as one global batch, are laid over ranks and micro-batches.
    lengths
        Nucleotides of all windows of the split, int32 [windows].
    seed
        Seed of the choice of the windows.
    rank
        The rank, from 0.
    """

    def __init__(self, plan: BatchPlan, lengths: Lengths, seed: int, rank: int) -> None:
        self.plan, self.lengths, self.seed, self.rank = plan, lengths, seed, rank

    def __iter__(self) -> Iterator[tuple[Int64, Int64]]:
        samples = validation_samples(self.plan.global_batch, len(self.lengths), self.seed)
        samples = samples[longest_first(samples, self.lengths)]
        for micro_step in range(self.plan.accumulation):
            slots = self.plan.slots(micro_step, self.rank)
            yield np.zeros_like(slots), in_slots(samples, slots)


@contextmanager
def iterating(loader: DataLoader[Any]) -> Iterator[Iterator[MicroBatch]]:
    """Give an iterator over a loader, whose workers have ended when this ends.

    Left to itself the iterator ends them when nothing refers to it any more. That can be after the interpreter has
    begun to wait for them at its exit: without end, as they pass over the SIGTERM that it sends.
    """
    iterator = iter(loader)
    try:
        yield iterator
    finally:
        if loader.num_workers:
            iterator._shutdown_workers()  # type: ignore[attr-defined]
            for worker in iterator._workers:  # type: ignore[attr-defined]
                worker.kill()  # one that hangs; no harm to those that have ended


def make_loader(
    windows: Windows,
    rows: TrainingRows | ValidationRows,
    workers: int,
    prefetch: int,
    pin_memory: bool,
    timeout: float = 0,
) -> DataLoader[Any]:
    """Return a loader of whole micro-batches, in the order of `rows`, whatever the number of workers.

    Parameters
    ----------
    windows
        Where the micro-batches come from.
    rows
        Which windows make each of them.
    workers
        Number of worker processes; with 0 the loader reads in its own.
    prefetch
        Micro-batches that each worker reads ahead.
    pin_memory
        Whether they go to page-locked memory, from which they are copied to a GPU faster.
    timeout
        Seconds after which workers that give nothing count as lost, and RuntimeError is raised; 0: never.
    """
    return DataLoader(
        windows,
        sampler=rows,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        worker_init_fn=leave_signals_to_the_parent,
        pin_memory=pin_memory,
        timeout=timeout if workers else 0,
        # A generator of its own: a loader otherwise draws its workers' seed from the global one, which moves dropout.
        generator=torch.Generator(),
    )
