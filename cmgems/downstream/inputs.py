"""Rows of a task as batches of a model's inputs.

A sequence with more tokens than a model takes is read in several windows, of which every token is in exactly one:
nothing is cut off.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from cmgems.downstream.data import Split
from cmgems.errors import UserError
from cmgems.inference.encoder import Encoder


@dataclass(frozen=True)
class LengthSummary:
    """How the lengths of some sequences compare with the longest input of a model."""

    limit: int
    """Longest input, in tokens (special tokens not counted)."""
    sequences: int
    """Number of sequences."""
    longest: int
    """Length of the longest, in tokens."""
    longer: int
    """Number of sequences that are longer than the limit."""
    tokens_beyond: int
    """Tokens beyond the limit, in all sequences: what would be lost if they were cut."""


class Rows(Dataset[dict[str, Any]]):
    """The rows of a split, encoded: for each its windows, label or value, and number."""

    def __init__(self, split: Split, encoder: Encoder) -> None:
        self._encoder, self.labels = encoder, split.labels
        self.ids = encoder.encode(split.sequences)
        empty = next((row for row, ids in enumerate(self.ids) if not len(ids)), None)
        if empty is not None:
            sequence = split.sequences[empty]
            raise UserError(f"{split.source}: '{sequence}' is too short for the model: it makes no token")

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"windows": self._encoder.windows(self.ids[row]), "label": self.labels[row], "row": row}


def summarise_lengths(splits: Sequence[Rows], limit: int) -> LengthSummary:
    """Compare the lengths of all rows, in tokens, with the longest input of the model."""
    return summarise([len(ids) for rows in splits for ids in rows.ids], limit)


def summarise(lengths: Sequence[int], limit: int) -> LengthSummary:
    """Compare the lengths of sequences, in tokens of whatever kind, with a limit.

    Examples
    --------
    >>> summarise([100, 510, 994], limit=510)
    LengthSummary(limit=510, sequences=3, longest=994, longer=1, tokens_beyond=484)
    """
    beyond = [length - limit for length in lengths if length > limit]
    return LengthSummary(limit, len(lengths), max(lengths, default=0), len(beyond), sum(beyond))


def collate(rows: list[dict[str, Any]], padding: int) -> dict[str, torch.Tensor]:
    """Make a batch of B rows that have W windows in all.

    Returns
    -------
    dict
        `input_ids` and `attention_mask` [W, T], `row_of_window` [W] in 0..B-1, `labels` [B] and `rows` [B].
    """
    windows = [window for row in rows for window in row["windows"]]
    width = max(map(len, windows))
    return {
        "input_ids": torch.tensor([window + [padding] * (width - len(window)) for window in windows]),
        "attention_mask": torch.tensor([[1] * len(window) + [0] * (width - len(window)) for window in windows]),
        "row_of_window": torch.tensor([place for place, row in enumerate(rows) for _ in row["windows"]]),
        "labels": torch.from_numpy(np.array([row["label"] for row in rows])),  # values in double precision
        "rows": torch.tensor([row["row"] for row in rows]),
    }
