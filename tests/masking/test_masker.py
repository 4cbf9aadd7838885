from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from cmgems.data.tokenizer import CLS, MASK, PAD, SEP, encode_batch
from cmgems.masking.corruption import CorruptionConfig
from cmgems.masking.counters import Counters, Stream
from cmgems.masking.masker import STATISTICS, MaskedBatch, Masker
from cmgems.masking.npmi import NpmiTable
from cmgems.masking.strategies import GeneMask, GlobalPmi, MaskingStrategy, Span
from tests.masking import reference
from tests.support.waits import Waits

SPAN = Span(rate=0.15)
GENEMASK = GeneMask(rate=0.15)
GLOBAL = GlobalPmi(rate=0.15)
CM_STEP = [
    GeneMask(rate=0.15, weight=2),
    GlobalPmi(rate=0.15, weight=1),
]


def masker(table: NpmiTable, seed: int = 42, **corruption) -> Masker:
    return Masker(table, CorruptionConfig(**corruption), seed)


def apply(
    masker: Masker, ids: Tensor, masking: list[MaskingStrategy], epoch: int = 0, first_id: int = 0
) -> MaskedBatch:
    return masker(ids, torch.full((len(ids),), epoch), torch.arange(first_id, first_id + len(ids)), masking)


def runs(masked: Tensor) -> list[tuple[int, int, int]]:
    """Row, first column and column after the last of each run of adjacent masked tokens."""
    edges = pad(masked.int(), (1, 1)).diff(dim=1)
    starts, ends = (edges == 1).nonzero().tolist(), (edges == -1).nonzero().tolist()
    return [(row, start, end) for (row, start), (_, end) in zip(starts, ends, strict=True)]


def share(tokens: Tensor, of: Tensor) -> float:
    return (tokens & of).sum().item() / of.sum().item()


class TestMasking:
    def test_the_rest_of_the_window_stays_as_it_is(self, full_windows: Tensor, human_table: NpmiTable) -> None:
        batch = apply(masker(human_table), full_windows, [GENEMASK])
        assert torch.equal(batch.labels, full_windows)
        assert torch.equal(batch.input_ids[~batch.masked], full_windows[~batch.masked])

    def test_attention_is_on_everything_but_padding(self, human_table: NpmiTable) -> None:
        ids = torch.from_numpy(encode_batch(["ACGTACGTAC", "ACNTACGT"], 6))
        assert torch.equal(apply(masker(human_table), ids, [SPAN]).attention_mask, ids != PAD)

    @pytest.mark.parametrize("masking", [[SPAN], [GENEMASK], [GLOBAL], CM_STEP])
    def test_a_row_does_not_depend_on_its_batch(
        self, mixed_windows: Callable[[int], Tensor], human_table: NpmiTable, masking: list[MaskingStrategy]
    ) -> None:
        ids, mask = mixed_windows(6), masker(human_table)
        together = apply(mask, ids, masking)
        for rows in torch.randperm(len(ids), generator=torch.Generator().manual_seed(1)).split(9):
            wider = pad(ids[rows], (0, 40))
            part = mask(wider, torch.zeros(len(rows), dtype=torch.long), rows, masking)
            for name in ("input_ids", "labels", "masked", "attention_mask"):
                assert torch.equal(getattr(part, name)[:, : ids.shape[1]], getattr(together, name)[rows])

    def test_another_epoch_seed_or_sample_is_masked_elsewhere(
        self, full_windows: Tensor, human_table: NpmiTable
    ) -> None:
        ids = full_windows[:32]
        first = apply(masker(human_table), ids, [SPAN]).masked
        assert torch.equal(first, apply(masker(human_table), ids, [SPAN]).masked)
        others = [
            apply(masker(human_table), ids, [SPAN], epoch=1),
            apply(masker(human_table, seed=43), ids, [SPAN]),
            apply(masker(human_table), ids, [SPAN], first_id=32),
        ]
        for other in others:
            both = (first & other.masked).sum() / first.sum()
            assert both == pytest.approx(0.15, abs=0.03)  # as often as by chance

    @pytest.mark.parametrize(("masking", "lookups"), [([SPAN], 1), ([GENEMASK], 2), ([GLOBAL], 1), (CM_STEP, 2)])
    def test_the_device_is_waited_for_once_or_twice_a_batch(
        self, full_windows: Tensor, human_table: NpmiTable, masking: list[MaskingStrategy], lookups: int
    ) -> None:
        mask = masker(human_table, unit="run")
        with Waits() as waits:
            mask.statistics(apply(mask, full_windows, masking))
        assert waits.found == ["aten::nonzero"] * lookups

    def test_autograd_can_keep_what_a_batch_consists_of(self, full_windows: Tensor, human_table: NpmiTable) -> None:
        batch = apply(masker(human_table), full_windows, CM_STEP)
        assert not any(tensor.is_inference() for tensor in vars(batch).values())

    def test_empty_rows_and_windows_without_a_centre_are_fine(self, human_table: NpmiTable) -> None:
        empty = torch.tensor([[CLS, SEP, PAD, PAD]])
        for masking in ([SPAN], [GENEMASK], [GLOBAL], CM_STEP):
            batch = apply(masker(human_table), empty, masking, first_id=-1)
            assert not batch.masked.any()
            assert torch.equal(batch.input_ids, empty)
        rarely = GeneMask(centre_probability=1e-9)
        ids = torch.from_numpy(encode_batch(["ACGTACGTACGT"], 6))
        assert not apply(masker(human_table), ids, [rarely]).masked.any()


class TestMixture:
    def test_each_row_is_masked_by_one_strategy_in_proportion_to_the_weights(
        self, full_windows: Tensor, human_table: NpmiTable
    ) -> None:
        mask, ids = masker(human_table), full_windows[:, :100]
        mixed = apply(mask, ids, CM_STEP).masked
        by_genemask = (mixed == apply(mask, ids, [GENEMASK]).masked).all(dim=1)
        by_global = (mixed == apply(mask, ids, [GLOBAL]).masked).all(dim=1)
        assert (by_genemask | by_global).all()  # both in the rare row that the two mask alike
        assert by_genemask.double().mean() == pytest.approx(2 / 3, abs=0.04)

    def test_every_row_gets_a_strategy_whatever_the_weights(self, full_windows: Tensor, human_table: NpmiTable) -> None:
        thirds = [GlobalPmi(rate=rate, weight=0.1) for rate in (0.1, 0.2, 0.3)]
        masked = apply(masker(human_table), full_windows[:200], thirds).masked
        assert set((masked.double().mean(dim=1) * 10).round().tolist()) == {1.0, 2.0, 3.0}


class TestCorruption:
    @pytest.mark.parametrize("unit", ["token", "run"])
    def test_80_10_10(self, full_windows: Tensor, human_table: NpmiTable, unit: str) -> None:
        batch = apply(masker(human_table, unit=unit), full_windows, [SPAN])
        kept = batch.input_ids == batch.labels
        masks = batch.input_ids == MASK
        assert share(masks, batch.masked) == pytest.approx(0.8, abs=0.01)
        assert share(kept, batch.masked) == pytest.approx(0.1, abs=0.007)
        assert share(~masks & ~kept, batch.masked) == pytest.approx(0.1, abs=0.007)

    def test_shares_are_settings(self, full_windows: Tensor, human_table: NpmiTable) -> None:
        all_masked = apply(masker(human_table, mask_share=1, random_share=0), full_windows[:50], [SPAN])
        assert (all_masked.input_ids[all_masked.masked] == MASK).all()
        all_kept = apply(masker(human_table, mask_share=0, random_share=0), full_windows[:50], [SPAN])
        assert torch.equal(all_kept.input_ids, all_kept.labels)

    def test_replacements_are_uniform_over_the_kmers_and_never_special(
        self, full_windows: Tensor, table_of: Callable[[int], NpmiTable]
    ) -> None:
        ids = torch.where(full_windows >= 5, (full_windows - 5) % 64 + 5, full_windows)  # as if k were 3
        batch = apply(masker(table_of(3), mask_share=0, random_share=1), ids, [SPAN])
        drawn = batch.input_ids[batch.masked]
        assert drawn.min() == 5
        assert drawn.max() == 5 + 63
        expected = len(drawn) / 64
        chi_square = ((torch.bincount(drawn - 5) - expected) ** 2 / expected).sum().item()
        assert chi_square < 63 + 5 * (2 * 63) ** 0.5

    @pytest.mark.parametrize("k", [2, 8])
    def test_replacements_reach_the_first_and_last_kmers_of_any_k(
        self, k: int, chromosome_3: str, table_of: Callable[[int], NpmiTable]
    ) -> None:
        ids = torch.from_numpy(encode_batch([chromosome_3[i : i + 500] for i in range(0, 400_000, 500)], k))
        batch = apply(masker(table_of(k), mask_share=0, random_share=1), ids, [Span(rate=0.9)])
        drawn = batch.input_ids[batch.masked] - 5
        assert drawn.min() == 0
        assert drawn.max() == 4**k - 1

    def test_per_run_a_run_shares_its_first_tokens_fate(self, full_windows: Tensor, human_table: NpmiTable) -> None:
        ids = full_windows[:200]
        batch = apply(masker(human_table, unit="run"), ids, [SPAN])
        draws = Counters(42, torch.zeros(200, dtype=torch.long), torch.arange(200)).bits(Stream.CORRUPTION, 512)
        for row, start, end in runs(batch.masked):
            run, original = batch.input_ids[row, start:end], ids[row, start:end]
            draw = draws[row, start].item() / 2**32
            if draw < 0.8:
                assert (run == MASK).all()
            elif draw < 0.9:
                assert (run != MASK).all()
                assert len(run) == 1 or len(run.unique()) > 1  # a k-mer is drawn for each token
            else:
                assert torch.equal(run, original)

    def test_per_token_fates_within_a_run_differ(self, full_windows: Tensor, human_table: NpmiTable) -> None:
        batch = apply(masker(human_table, unit="token"), full_windows[:200], [SPAN])
        uniform = [
            (batch.input_ids[row, start:end] == MASK).all().item()
            for row, start, end in runs(batch.masked)
            if end - start == 6
        ]
        assert sum(uniform) / len(uniform) == pytest.approx(0.8**6, abs=0.06)

    def test_no_draw_is_used_twice(self, full_windows: Tensor, human_table: NpmiTable, monkeypatch) -> None:
        used: list[Stream] = []
        bits, bits_at = Counters.bits, Counters.bits_at

        def spy(self: Counters, stream: Stream, columns: int) -> Tensor:
            used.append(stream)
            return bits(self, stream, columns)

        def spy_at(self: Counters, streams: Sequence[Stream], row: Tensor, column: Tensor) -> Tensor:
            used.extend(streams)
            return bits_at(self, streams, row, column)

        monkeypatch.setattr(Counters, "bits", spy)
        monkeypatch.setattr(Counters, "bits_at", spy_at)
        everything = Span(rate=0.15, lengths=[6, 8])
        noisy = GlobalPmi(rate=0.15, temperature=0.1)
        apply(masker(human_table), full_windows[:4], [everything, noisy])
        assert sorted(used) == sorted(Stream)


class TestStatistics:
    @pytest.mark.parametrize("masking", [[SPAN], [GENEMASK], [GLOBAL]])
    def test_equal_counting_by_hand(
        self, mixed_windows: Callable[[int], Tensor], human_table: NpmiTable, masking: list[MaskingStrategy]
    ) -> None:
        ids, mask = mixed_windows(6), masker(human_table)
        batch = apply(mask, ids, masking)
        top_tenth = set((5 + (-torch.from_numpy(human_table.npmi)).argsort()[:409]).tolist())
        masked = valid = hidden = nucleotides = masked_top = 0
        for row, chosen in zip(ids.tolist(), batch.masked.tolist(), strict=True):
            tokens = {t: float(token) for t, token in enumerate(row) if token >= 5}
            columns = {t for t in tokens if chosen[t]}
            hides, of = reference.hidden_nucleotides(set(tokens), columns, reference.overlapping(6))
            masked, valid = masked + len(columns), valid + len(tokens)
            hidden, nucleotides = hidden + hides, nucleotides + of
            masked_top += sum(row[t] in top_tenth for t in columns)
        assert dict(zip(STATISTICS, mask.statistics(batch).tolist(), strict=True)) == {
            "masked_tokens": masked,
            "valid_tokens": valid,
            "hidden_nucleotides": hidden,
            "nucleotides": nucleotides,
            "masked_top_tenth_tokens": masked_top,
        }

    def test_add_up_over_batches(self, full_windows: Tensor, human_table: NpmiTable) -> None:
        mask = masker(human_table)
        parts = [apply(mask, full_windows[i : i + 50], [SPAN], first_id=i) for i in (0, 50)]
        whole = apply(mask, full_windows[:100], [SPAN])
        assert torch.equal(sum(mask.statistics(part) for part in parts), mask.statistics(whole))

    def test_global_prefers_the_top_tenth_far_more_than_genemask_and_genemask_more_than_span(
        self, full_windows: Tensor, human_table: NpmiTable
    ) -> None:
        mask, ids = masker(human_table), full_windows[:500]
        shares = []
        for strategy in (SPAN, GENEMASK, GLOBAL):
            sums = dict(zip(STATISTICS, mask.statistics(apply(mask, ids, [strategy])).tolist(), strict=True))
            shares.append(sums["masked_top_tenth_tokens"] / sums["masked_tokens"])
        span, genemask, global_pmi = shares
        assert span + 0.01 < genemask
        assert genemask + 0.1 < global_pmi
