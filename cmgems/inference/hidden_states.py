"""Hidden states of sequences of any length: windows that overlap, batches without padding to speak of, no head."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cmgems.errors import UserError
from cmgems.inference.encoder import Encoder, Ids
from cmgems.inference.settings import Pooling, Precision

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a sequence that the model reads at once."""

    row: int
    """Number of the sequence."""
    start: int
    """Its first token."""
    end: int
    """The token after its last."""
    own_start: int
    """The first of the tokens whose hidden states are taken from this window, and not from a neighbour."""
    own_end: int
    """The token after the last of them."""


def overlapping_windows(row: int, tokens: int, limit: int, overlap: int) -> list[Window]:
    """Cut a sequence into as few windows as can be, of at most `limit` tokens, with `overlap` or more in common.

    Each token belongs to one window: where two overlap, to the one in which it is farther from an end.

    Examples
    --------
    >>> [(w.start, w.end, w.own_start, w.own_end) for w in overlapping_windows(0, 20, limit=10, overlap=4)]
    [(0, 10, 0, 7), (5, 15, 7, 12), (10, 20, 12, 20)]
    """
    if tokens <= limit:
        return [Window(row, 0, tokens, 0, tokens)]
    number = -(-(tokens - overlap) // (limit - overlap))
    starts = [(tokens - limit) * i // (number - 1) for i in range(number)]
    borders = [0, *((left + limit + right) // 2 for left, right in pairwise(starts)), tokens]
    return [
        Window(row, start, start + limit, own_start, own_end)
        for start, (own_start, own_end) in zip(starts, pairwise(borders), strict=True)
    ]


class HiddenStates:
    """Reads the hidden states of a model's encoder, some of its layers."""

    def __init__(self, encoder: Encoder, model: Any, layers: Sequence[int], precision: Precision, name: str) -> None:
        """`model` is the encoder without a head; `layers` count from 0, the embeddings, or from -1, the last; `name` is
        what errors call the model.

        Raises
        ------
        UserError
            If the model has no such layer.
        """
        self._encoder, self._model, self._precision, self._name = encoder, model, precision, name
        self._device = next(model.parameters()).device
        number = model.config.num_hidden_layers
        beyond = [layer for layer in layers if not -number - 1 <= layer <= number]
        if beyond:
            raise UserError(f"layers: model {name} has no layer {beyond[0]}; its layers are 0 (embeddings) to {number}")
        self._layers = [layer % (number + 1) for layer in layers]
        self._number = number

    def pooled(self, ids: Sequence[Ids], pooling: Pooling, overlap: int, batch_tokens: int) -> list[Floats]:
        """Return the embedding of each sequence, float32 [layers, width]; with `tokens` [tokens, layers, width].

        Parameters
        ----------
        ids
            Tokens of the sequences, without special ones; at least one each.
        pooling
            What to return. Of a sequence in several windows, `mean` is the mean of all its tokens, and `cls` that of
            the windows' [CLS].
        overlap
            Tokens that neighbouring windows have in common, at least.
        batch_tokens
            Tokens computed at once, padding included.
        """
        windows = [
            window
            for row, tokens in enumerate(ids)
            for window in overlapping_windows(row, len(tokens), self._encoder.limit, overlap)
        ]
        found: list[Any] = [None] * len(ids)
        for batch in _batches(windows, batch_tokens):
            for window, states in zip(batch, self._read(batch, ids, pooling), strict=True):
                _add(found, window, states, len(ids[window.row]), pooling)
        if pooling == "tokens":
            return found
        terms = Counter(window.row for window in windows) if pooling == "cls" else dict(enumerate(map(len, ids)))
        return [(total / terms[row]).astype(np.float32) for row, total in enumerate(found)]

    @torch.inference_mode()
    def _read(self, batch: Sequence[Window], ids: Sequence[Ids], pooling: Pooling) -> Iterator[npt.NDArray[Any]]:
        """Yield what is taken of each window: sums over its own tokens, [CLS], or all of its own tokens."""
        before, after = self._encoder.before, self._encoder.after
        if pooling == "cls" and not before:
            raise UserError(f"pooling cls: the tokenizer of model {self._name} puts no special token before a sequence")
        inputs = [[*before, *ids[window.row][window.start : window.end].tolist(), *after] for window in batch]
        width = max(map(len, inputs))
        tokens = torch.tensor([row + [self._encoder.padding] * (width - len(row)) for row in inputs])
        is_token = torch.arange(width) < torch.tensor([len(row) for row in inputs])[:, None]
        hidden = self._hidden(tokens.to(self._device), is_token.long().to(self._device))
        offset = torch.tensor([len(before) - window.start for window in batch])
        place = torch.arange(width)
        own = (place >= (torch.tensor([window.own_start for window in batch]) + offset)[:, None]) & (
            place < (torch.tensor([window.own_end for window in batch]) + offset)[:, None]
        )
        if pooling == "mean":
            weights = own.to(self._device, torch.float32)
            sums = torch.stack([torch.einsum("wth,wt->wh", layer.float(), weights) for layer in hidden], dim=1)
            yield from self._finite(sums)
        elif pooling == "cls":
            yield from self._finite(torch.stack([layer[:, 0].float() for layer in hidden], dim=1))
        else:
            states = self._finite(torch.stack([layer.float() for layer in hidden], dim=2))
            yield from (of_window[row.numpy()] for of_window, row in zip(states, own, strict=True))

    def _hidden(self, tokens: Tensor, attention_mask: Tensor) -> list[Tensor]:
        """Hidden states [windows, tokens, width] of each wanted layer."""
        only_last = self._layers == [self._number]
        with precision_context(self._precision, self._device):
            output = self._model(
                input_ids=tokens, attention_mask=attention_mask, output_hidden_states=not only_last, return_dict=True
            )
        return [output.last_hidden_state] if only_last else [output.hidden_states[layer] for layer in self._layers]

    def _finite(self, states: Tensor) -> npt.NDArray[np.float32]:
        if not bool(states.isfinite().all()):
            raise UserError(f"model {self._name}: its hidden states are not finite in precision {self._precision}")
        array: npt.NDArray[np.float32] = states.cpu().numpy()
        return array


def precision_context(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context in which a forward pass has a precision."""
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(device.type, kinds[precision]) if precision in kinds else nullcontext()


def _batches(windows: Sequence[Window], batch_tokens: int) -> Iterator[list[Window]]:
    """Yield windows of similar lengths together, the longest first, so that a lack of memory shows at once."""
    batch: list[Window] = []
    for window in sorted(windows, key=lambda window: window.start - window.end):
        width = batch[0].end - batch[0].start if batch else 0
        if batch and (len(batch) + 1) * width > batch_tokens:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def _add(found: list[Any], window: Window, states: npt.NDArray[Any], tokens: int, pooling: Pooling) -> None:
    """Add what was taken of a window to what there is of its sequence."""
    if pooling == "tokens":
        if found[window.row] is None:
            found[window.row] = np.empty((tokens, *states.shape[1:]), dtype=np.float32)
        found[window.row][window.own_start : window.own_end] = states
    elif found[window.row] is None:
        found[window.row] = states.astype(np.float64)
    else:
        found[window.row] += states
