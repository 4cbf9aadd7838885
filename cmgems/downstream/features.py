"""What a frozen model makes of sequences: the means of its hidden states, which a probe is fitted to."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import PartialState

from cmgems.downstream.classifier import load_classifier
from cmgems.downstream.data import TaskData
from cmgems.downstream.finetuning import ComputeConfig, check_precision
from cmgems.downstream.inputs import Rows, collate, summarise_lengths
from cmgems.downstream.regression import kmer_shares
from cmgems.downstream.tfidf import tfidf
from cmgems.errors import UserError
from cmgems.inference.encoder import Encoder
from cmgems.inference.hidden_states import precision_context
from cmgems.inference.source import Source, load_encoder
from cmgems.runtime.progress import ProgressLines

Values = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Features:
    """Features of all rows of a task."""

    splits: dict[str, Values]
    """Features [rows, features] of each split, by its name."""
    layers: int
    """Hidden states that they are taken of: the embeddings and each layer of a model; 0: they are of k-mers."""
    lengths: dict[str, int]
    """How long the sequences are for the model (`cmgems.downstream.inputs.LengthSummary`); empty for k-mers."""


class FeatureReader:
    """Computes features, and keeps those of the last model and task: the seeds of a task follow one another."""

    def __init__(self, machine: ComputeConfig) -> None:
        self._machine = machine
        self._of: tuple[Any, TaskData] | None = None
        self._last: Features | None = None

    def of_model(self, source: Source, data: TaskData, seed: int, title: str) -> Features:
        """Return the means of a model's hidden states. `seed` draws random weights; `title` is shown with the
        progress."""
        key = (source, seed if source.random_weights else None)
        return self._read(key, data, lambda: model_features(source, data, self._machine, seed, title))

    def of_kmers(self, data: TaskData, k: int) -> Features:
        """Return the shares of the k-mers."""
        return self._read(f"{k}-mers", data, lambda: kmer_features(data, k))

    def of_tfidf(self, data: TaskData, k: int, codons: bool) -> Features:
        """Return the TF-IDF of the k-mers, or of the codons."""
        return self._read(f"TF-IDF, {k}, {codons}", data, lambda: Features({**tfidf(data, k, codons)}, 0, {}))

    def _read(self, key: Any, data: TaskData, compute: Callable[[], Features]) -> Features:
        if self._last is None or self._of is None or self._of[0] != key or self._of[1] is not data:
            self._last = None  # the memory is free before more is taken
            self._last, self._of = compute(), (key, data)
        return self._last


def kmer_features(data: TaskData, k: int) -> Features:
    """Return the shares of the k-mers in all rows of a task."""
    return Features({name: kmer_shares(split.sequences, k) for name, split in data.splits.items()}, 0, {})


def model_features(source: Source, data: TaskData, machine: ComputeConfig, seed: int, title: str) -> Features:
    """Return the means of a model's hidden states for all rows of a task.

    Parameters
    ----------
    source
        The model. Its weights are checked as for a fine-tuning.
    data
        The task's splits.
    machine
        Batch and precision.
    seed
        Seed of the weights where `source` wants random ones; else it changes nothing.
    title
        What progress calls the model and task.

    Raises
    ------
    UserError
        If the model cannot be had, or returns no hidden states, or some that are not finite.
    """
    check_precision(machine.precision)
    encoder = load_encoder(source)
    model = load_classifier(source, data.task.outputs, None, seed).to(PartialState().device).eval()
    rows = {name: Rows(split, encoder) for name, split in data.splits.items()}
    means = {
        name: mean_hidden_states(model, encoder, split, machine, f"{title}, features of {name}", source.model)
        for name, split in rows.items()
    }
    layers = next(iter(means.values())).shape[1]
    flat: dict[str, Values] = {name: of_split.reshape(len(of_split), -1) for name, of_split in means.items()}
    return Features(flat, layers, asdict(summarise_lengths(list(rows.values()), encoder.limit)))


@torch.inference_mode()
def mean_hidden_states(
    model: Any, encoder: Encoder, rows: Rows, machine: ComputeConfig, title: str, name: str
) -> npt.NDArray[np.float32]:
    """Return the means of the hidden states over each sequence's tokens [rows, layers, width], embeddings first.

    Special tokens and padding do not count; of a sequence in several windows all tokens count alike. A model that
    returns the hidden states of its last layer alone has one layer. `name` is what errors call the model.

    Raises
    ------
    UserError
        If the model returns no hidden states, or values that are not finite.
    """
    device = next(model.parameters()).device
    longest_first = sorted(range(len(rows)), key=lambda row: -len(rows.ids[row]))
    progress = ProgressLines(title, len(rows), "sequence")
    means: npt.NDArray[np.float32] | None = None
    for start in range(0, len(rows), machine.evaluation_batch):
        batch = longest_first[start : start + machine.evaluation_batch]
        inputs = {
            key: value.to(device) for key, value in collate([rows[row] for row in batch], encoder.padding).items()
        }
        with precision_context(machine.precision, device):
            hidden = _hidden_states(model, inputs, name)
        found = _means(hidden, encoder.own_tokens(inputs["attention_mask"]), inputs["row_of_window"], len(batch))
        if means is None:
            means = np.empty((len(rows), *found.shape[1:]), dtype=np.float32)
        means[batch] = found.cpu().numpy()
        progress.update(start + len(batch))
    progress.close()
    assert means is not None
    if not np.isfinite(means).all():
        raise UserError(f"model {name}: its hidden states are not finite in precision {machine.precision}")
    return means


def _hidden_states(model: Any, inputs: Mapping[str, torch.Tensor], name: str) -> tuple[torch.Tensor, ...]:
    """Hidden states [windows, tokens, width] of every layer."""
    try:
        output = model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], output_hidden_states=True
        )
    except TypeError as error:
        if "output_hidden_states" not in str(error):
            raise
        output = None
    hidden = getattr(output, "hidden_states", None)
    if hidden is None:
        raise UserError(f"model {name} returns no hidden states: it can be fine-tuned, but not probed")
    return (hidden,) if isinstance(hidden, torch.Tensor) else tuple(hidden)


def _means(
    hidden: tuple[torch.Tensor, ...], counts: torch.Tensor, row_of_window: torch.Tensor, rows: int
) -> torch.Tensor:
    """Return the means [rows, layers, width] over the tokens that count."""
    weights = counts.float()
    of_windows = torch.stack([torch.einsum("wth,wt->wh", layer.float(), weights) for layer in hidden], dim=1)
    sums = of_windows.new_zeros(rows, *of_windows.shape[1:]).index_add(0, row_of_window, of_windows)
    tokens = weights.new_zeros(rows).index_add(0, row_of_window, weights.sum(dim=1))
    return sums / tokens[:, None, None]
