"""The maskings as a data collator, for a training loop other than cmgems' own, such as transformers' Trainer."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import TrainerCallback

from cmgems.data.tokenization import Tokenization
from cmgems.data.tokenizer import PAD, vocabulary_size
from cmgems.errors import UserError
from cmgems.masking.corruption import CorruptionConfig
from cmgems.masking.masker import Masker
from cmgems.masking.npmi import NpmiTable
from cmgems.masking.strategies import MaskingStrategy

IGNORED = -100
"""Label of the tokens that are not predicted, which cross entropy leaves out."""


class MaskingCollator:
    """Pads rows of k-mer ids, masks them, and returns what `BertForMaskedLM` takes.

    A row's mask is a function of the seed, the epoch and the row's `sample_id`: it depends neither on the batch, nor on
    the order of the rows, nor on the number of loader workers or processes. Each epoch masks a row differently once
    `set_epoch` is called, for which `set_epochs_of` makes a callback for transformers' Trainer.

    Parameters
    ----------
    npmi
        NPMI of the k-mers, from `npmi_from_counts` or `read_npmi`.
    masking
        One masking, or several of which each row draws one by its weight.
    corruption
        What becomes of the masked tokens in the input.
    seed
        Seed of the masks.
    pad_to_multiple_of
        The padded length is a multiple of this number of tokens.
    tokens
        Which nucleotides a token covers, and the length of the words that `npmi` is of; without it, tokens are
        overlapping k-mers and words at the same time.

    Examples
    --------
    >>> import numpy as np
    >>> from cmgems.masking.strategies import Span
    >>> from cmgems.data.tokenizer import count_kmers, encode_batch
    >>> from cmgems.masking.npmi import npmi_from_counts
    >>> sequences = ["ACGTTGCAACGGT" * 3, "TTGACCAGT" * 3]
    >>> table = npmi_from_counts(count_kmers(sequences, k=3), k=3)
    >>> collate = MaskingCollator(table, [Span(rate=0.3)])
    >>> rows = [{"input_ids": encode_batch([s], k=3)[0], "sample_id": i} for i, s in enumerate(sequences)]
    >>> batch = collate(rows)
    >>> {name: tuple(values.shape) for name, values in batch.items()}
    {'input_ids': (2, 40), 'attention_mask': (2, 40), 'labels': (2, 40)}
    """

    def __init__(
        self,
        npmi: NpmiTable,
        masking: Sequence[MaskingStrategy],
        corruption: CorruptionConfig | None = None,
        seed: int = 42,
        pad_to_multiple_of: int = 8,
        tokens: Tokenization | None = None,
    ) -> None:
        if not masking:
            raise UserError("masking: give one masking at least")
        self.masking = list(masking)
        self.pad_to_multiple_of = pad_to_multiple_of
        self._masker = Masker(npmi, corruption or CorruptionConfig(), seed, tokens=tokens)
        self._size = vocabulary_size(self._masker.tokens.k)
        # Loader workers have copies of the collator, which read the same memory.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def set_epoch(self, epoch: int) -> None:
        """Mask every row differently from the next pass over the data on, in loader workers too."""
        self._epoch.fill_(epoch)

    def set_epochs_of(self) -> TrainerCallback:
        """Return a callback by which transformers' Trainer calls `set_epoch` as each epoch begins."""
        return _SetEpoch(self)

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Mask a batch.

        Parameters
        ----------
        features
            Rows with `input_ids` ([CLS] k-mers [SEP]; lists, arrays or tensors of any lengths) and `sample_id`, an
            integer that no other row has. A row with `epoch` is masked as in that epoch always, as validation rows
            should be. Other columns are left out.

        Returns
        -------
        dict
            `input_ids` with masked tokens corrupted, `attention_mask`, and `labels`, -100 for tokens that are not
            masked; int64 [B, T].

        Raises
        ------
        UserError
            If a row has no `sample_id`, or an id that is not of the vocabulary of these k-mers.
        """
        if any("sample_id" not in row for row in features):
            raise UserError(
                "a row has no sample_id: add an integer column, for example "
                "dataset.add_column('sample_id', range(len(dataset))), and with transformers' Trainer set "
                "remove_unused_columns=False"
            )
        ids = self._pad([torch.as_tensor(row["input_ids"], dtype=torch.int64) for row in features])
        k = self._masker.tokens.k
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self._size:
            raise UserError(
                f"input_ids go from {int(ids.min())} to {int(ids.max())}: the vocabulary of {k}-mers has "
                f"{self._size} tokens"
            )
        samples = torch.tensor([int(row["sample_id"]) for row in features])
        epochs = torch.tensor([int(row.get("epoch", self._epoch)) for row in features])
        masked = self._masker(ids, epochs, samples, self.masking)
        return {
            "input_ids": masked.input_ids,
            "attention_mask": masked.attention_mask.long(),
            "labels": masked.labels.where(masked.masked, IGNORED),
        }

    def _pad(self, rows: list[Tensor]) -> Tensor:
        ids = pad_sequence(rows, batch_first=True, padding_value=PAD)
        return torch.nn.functional.pad(ids, (0, -ids.shape[1] % self.pad_to_multiple_of), value=PAD)


class _SetEpoch(TrainerCallback):  # type: ignore[misc]  # transformers' class is not typed
    """Tells the collator which epoch begins; it is read only as rows are collated, which is after that."""

    def __init__(self, collator: MaskingCollator) -> None:
        self._collator = collator

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Set the epoch; a run resumed within an epoch is in that one."""
        self._collator.set_epoch(int(state.epoch or 0))
