"""Masks batches of windows: chooses the tokens to predict, and corrupts them in the model's input.

Works where the ids are, CPU or GPU, and waits for the device only to learn how many tokens are masked. No state: the
result is a pure function of the ids, the seed, the epoch, the sample ids and the masking, and each row's is independent
of the batch it stands in.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from cmgems.data.tokenization import Tokenization
from cmgems.data.tokenizer import MASK, PAD, SPECIAL_TOKENS
from cmgems.masking.corruption import CorruptionConfig
from cmgems.masking.counters import Counters, Stream, threshold
from cmgems.masking.npmi import NpmiTable
from cmgems.masking.strategies import MaskingStrategy
from cmgems.masking.tokens import places, spread
from cmgems.masking.words import words_of

FIRST_KMER = len(SPECIAL_TOKENS)
"""Smallest token id of a k-mer."""

STATISTICS = ("masked_tokens", "valid_tokens", "hidden_nucleotides", "nucleotides", "masked_top_tenth_tokens")
"""Names of the entries of `Masker.statistics`."""


@dataclass(frozen=True)
class MaskedBatch:
    """What the model gets and has to predict; all [B, T]."""

    input_ids: Tensor
    """int64, the ids with the masked tokens corrupted."""
    labels: Tensor
    """int64, the original ids of all tokens; the loss is on the masked ones."""
    masked: Tensor
    """bool, the tokens to predict."""
    attention_mask: Tensor
    """bool, False for [PAD]."""


class Masker:
    """Masks batches with the words, the seed and the corruption of one run."""

    def __init__(
        self,
        table: NpmiTable,
        corruption: CorruptionConfig,
        seed: int,
        device: torch.device | str = "cpu",
        tokens: Tokenization | None = None,
    ) -> None:
        """Put the tables on `device`, where the batches will be. Without `tokens` they are overlapping k-mers, k that
        of the table."""
        self.words = words_of(table, tokens, device)
        self.tokens = self.words.tokens
        self.corruption = corruption
        self.seed = seed
        best = self.words.npmi.argsort(descending=True, stable=True)[: max(1, 4**table.k // 10)]
        self.in_top_tenth = torch.zeros_like(self.words.npmi, dtype=torch.bool)
        self.in_top_tenth[best] = True

    def __call__(
        self, ids: Tensor, epoch: Tensor, sample_id: Tensor, masking: Sequence[MaskingStrategy]
    ) -> MaskedBatch:
        """Mask a batch.

        Parameters
        ----------
        ids : int64 [B, T], rows [CLS] tokens [SEP] [PAD]...; a row without nucleotides gets nothing masked.
        epoch : int64 [B].
        sample_id : int64 [B]; the same sample gets other masks in another epoch.
        masking : one strategy, or several of which each row draws one by weight.
        """
        random = Counters(self.seed, epoch, sample_id)
        with torch.inference_mode():  # 7 % less time; what leaves it is copied, as autograd would not keep it
            masked = self._choose(ids, masking, random)
            place = places(masked)
            corrupted = self._corrupt(ids, place, random)
        input_ids = ids.flatten().scatter(0, place, corrupted).view_as(ids)
        return MaskedBatch(input_ids=input_ids, labels=ids, masked=masked.clone(), attention_mask=ids != PAD)

    def statistics(self, batch: MaskedBatch) -> Tensor:
        """Return the sums named in STATISTICS, int64 [5], on the batch's device; add them over batches and processes.

        A nucleotide counts if a token contains it, and is hidden if all tokens that contain it are masked. Tokens count
        as of the top tenth by the word that begins there.
        """
        valid = batch.labels >= FIRST_KMER
        seen = blocks_of(valid & ~batch.masked, self.tokens)
        blocks = blocks_of(valid, self.tokens)
        word, _ = self.words.ids(batch.labels, valid)
        top_tenth = batch.masked & self.in_top_tenth[word]
        stride = self.tokens.stride
        counts = (batch.masked.sum(), valid.sum(), (blocks & ~seen).sum() * stride, blocks.sum() * stride)
        return torch.stack([*counts, top_tenth.sum()])

    def _choose(self, ids: Tensor, masking: Sequence[MaskingStrategy], random: Counters) -> Tensor:
        """Return the tokens to predict, bool [B, T]: each row by one strategy of the mix."""
        valid = ids >= FIRST_KMER
        if len(masking) == 1:
            return masking[0].select(ids, valid, self.words, random)

        masked = torch.zeros_like(valid)
        draw = random.bits(Stream.MIXTURE, 1)
        for setting, low, high in _intervals(masking):
            rows = (draw >= low) & (draw < high)
            masked |= rows & setting.select(ids, valid, self.words, random)
        return masked

    def _corrupt(self, ids: Tensor, place: Tensor, random: Counters) -> Tensor:
        """Return what stands in the places of the masked tokens, int64 [M]: [MASK], a random k-mer, or the token
        itself."""
        row = place // ids.shape[1]
        column = place - row * ids.shape[1]
        unit = _run_starts(row, column) if self.corruption.unit == "run" else column
        draw, replacement = random.bits_at((Stream.CORRUPTION, Stream.REPLACEMENT), row, torch.stack([unit, column]))
        to_mask = draw < threshold(self.corruption.mask_share)
        to_change = draw < threshold(self.corruption.mask_share + self.corruption.random_share)

        # The number of k-mers is a power of two: the highest bits of a word are exactly uniform over them.
        kmer = FIRST_KMER + (replacement >> (32 - 2 * self.tokens.k))
        corrupted: Tensor = kmer.where(to_change, ids.take(place)).masked_fill(to_mask, MASK)
        return corrupted


def blocks_of(chosen: Tensor, tokens: Tokenization) -> Tensor:
    """Blocks of `tokens.stride` nucleotides that the set tokens [B, T] contain, bool [B, T + tokens that share one -
    1]; the token in column t begins with block t."""
    further = tokens.token_blocks - 1
    return spread(pad(chosen, (0, further)), 0, further)


def _intervals(masking: Sequence[MaskingStrategy]) -> Iterator[tuple[MaskingStrategy, int, int]]:
    """Yield each setting with its share of the 2^32 random words, from the first to before the second number."""
    total = sum(setting.weight for setting in masking)
    low, weight = 0, 0.0
    for setting in masking:
        weight += setting.weight
        high = threshold(weight / total)
        yield setting, low, high
        low = high


def _run_starts(row: Tensor, column: Tensor) -> Tensor:
    """For each masked token, in order of rows and columns, where its run of adjacent ones starts; all int64 [M]."""
    follows = torch.zeros_like(row, dtype=torch.bool)
    follows[1:] = (row[1:] == row[:-1]) & (column[1:] == column[:-1] + 1)
    start = torch.arange(len(row), device=row.device).masked_fill(follows, 0).cummax(dim=0).values
    return column[start]
