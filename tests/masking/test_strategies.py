"""The batched strategies mask, token for token, what the plain loops of reference.py mask with the same draws."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cmgems.data.tokenization import Tokenization
from cmgems.data.tokenizer import SPECIAL_TOKENS, encode_batch, vocabulary
from cmgems.masking import strategies
from cmgems.masking.centre_probability import (
    LONGEST_SOLVED,
    genemask_centre_probabilities,
    span_centre_probability,
)
from cmgems.masking.counters import Counters, Stream
from cmgems.masking.npmi import NpmiTable
from cmgems.masking.strategies import STRATEGIES
from cmgems.masking.words import Words
from tests.masking import reference

ALL_K = [2, 3, 4, 5, 6, 7]
NAMES = list(STRATEGIES)
CPU = torch.device("cpu")


def random_of(ids: Tensor, seed: int = 42) -> Counters:
    return Counters(seed, torch.zeros(len(ids), dtype=torch.long), torch.arange(len(ids)))


def select(ids: Tensor, npmi: Tensor, random: Counters | None = None, **setting) -> Tensor:
    chosen = STRATEGIES[setting["strategy"]](**setting)
    return chosen.select(ids, ids >= 5, words(npmi), random or random_of(ids))


def words(npmi: Tensor) -> Words:
    """Overlapping k-mers with these values, by token id."""
    return Words(Tokenization(((len(npmi) - 5).bit_length() - 1) // 2), npmi)


def scores(ids: Tensor, npmi: Tensor) -> list[reference.Score]:
    """NPMI of the k-mer tokens of each row, by column."""
    return [
        {t: npmi[token].item() for t, token in enumerate(row) if token >= len(SPECIAL_TOKENS)} for row in ids.tolist()
    ]


def assert_masks(masked: Tensor, expected: list[set[int]]) -> None:
    assert [set(row.nonzero()[:, 0].tolist()) for row in masked] == expected


@pytest.fixture(scope="module", params=ALL_K)
def k(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture(scope="module")
def ids(k: int, mixed_windows: Callable[[int], Tensor]) -> Tensor:
    return mixed_windows(k)


@pytest.fixture(scope="module", params=["exact", "with ties"])
def npmi(k: int, table_of: Callable[[int], NpmiTable], request: pytest.FixtureRequest) -> Tensor:
    values = table_of(k).by_token_id()
    return values if request.param == "exact" else (values * 3).round()


class TestPlainReading:
    """Real windows of all lengths, with N inside, repeats and padding."""

    @pytest.mark.parametrize("amount", [{"rate": 0.15}, {"rate": 0.5}, {"centre_probability": 0.025}])
    def test_span(self, k: int, ids: Tensor, npmi: Tensor, amount: dict[str, float]) -> None:
        probability = amount.get("centre_probability") or 1 - (1 - amount["rate"]) ** (1 / k)
        centre = random_of(ids).bits(Stream.CENTRE, ids.shape[1]).tolist()
        zeros = [0] * ids.shape[1]
        expected = [
            reference.span(set(score), probability, [k], draws, zeros)
            for score, draws in zip(scores(ids, npmi), centre, strict=True)
        ]
        assert_masks(select(ids, npmi, strategy="span", **amount), expected)

    @pytest.mark.parametrize("lengths", [[1], [6, 8, 10], [3, 24]])
    def test_span_with_lengths(self, ids: Tensor, npmi: Tensor, lengths: list[int]) -> None:
        centre = random_of(ids).bits(Stream.CENTRE, ids.shape[1]).tolist()
        length = random_of(ids).bits(Stream.LENGTH, ids.shape[1]).tolist()
        expected = [
            reference.span(set(score), 0.03, lengths, c, drawn)
            for score, c, drawn in zip(scores(ids, npmi), centre, length, strict=True)
        ]
        assert_masks(select(ids, npmi, strategy="span", centre_probability=0.03, lengths=lengths), expected)

    @pytest.mark.parametrize("probability", [0.0176, 0.05, 0.2])
    def test_genemask(self, k: int, ids: Tensor, npmi: Tensor, probability: float) -> None:
        centre = random_of(ids).bits(Stream.CENTRE, ids.shape[1]).tolist()
        expected = [
            reference.genemask(set(score), score, reference.overlapping(k), probability, draws)
            for score, draws in zip(scores(ids, npmi), centre, strict=True)
        ]
        assert_masks(select(ids, npmi, strategy="genemask", centre_probability=probability), expected)

    def test_genemask_with_a_rate(self, k: int, ids: Tensor, npmi: Tensor) -> None:
        by_length = genemask_centre_probabilities(0.15, Tokenization(k))
        centre = random_of(ids).bits(Stream.CENTRE, ids.shape[1]).tolist()
        expected = [
            reference.genemask(set(score), score, reference.overlapping(k), by_length[len(score)], draws)
            for score, draws in zip(scores(ids, npmi), centre, strict=True)
        ]
        assert_masks(select(ids, npmi, strategy="genemask", rate=0.15), expected)

    def test_genemask_by_position(self, k: int, ids: Tensor, npmi: Tensor) -> None:
        lowest = torch.finfo(torch.float32).min
        by_column = [max(value, lowest) for value in npmi.tolist()] + [lowest] * ids.shape[1]
        centre = random_of(ids).bits(Stream.CENTRE, ids.shape[1]).tolist()
        expected = [
            reference.genemask(set(score), {t: by_column[t] for t in score}, reference.overlapping(k), 0.05, draws)
            for score, draws in zip(scores(ids, npmi), centre, strict=True)
        ]
        assert_masks(select(ids, npmi, strategy="genemask_by_position", centre_probability=0.05), expected)

    @pytest.mark.parametrize("rate", [0.05, 0.15, 0.3, 0.8])
    def test_global_pmi(self, k: int, ids: Tensor, npmi: Tensor, rate: float) -> None:
        expected = [
            reference.global_pmi(set(score), score, reference.overlapping(k), rate) for score in scores(ids, npmi)
        ]
        assert_masks(select(ids, npmi, strategy="global_pmi", rate=rate), expected)

    def test_global_pmi_with_a_temperature(self, k: int, ids: Tensor, npmi: Tensor) -> None:
        draws = random_of(ids).bits(Stream.GUMBEL, ids.shape[1]).tolist()
        noisy = [
            {
                t: float(np.float32(value) + np.float32(0.5 * np.float32(reference.gumbel(row[t]))))
                for t, value in score.items()
            }
            for score, row in zip(scores(ids, npmi), draws, strict=True)
        ]
        expected = [reference.global_pmi(set(score), score, reference.overlapping(k), 0.15) for score in noisy]
        assert_masks(select(ids, npmi, strategy="global_pmi", rate=0.15, temperature=0.5), expected)


class TestByHand:
    """Small windows whose masks can be worked out by eye. Column 0 is [CLS]; token t stands in column t."""

    @staticmethod
    def values(k: int, **npmi: float) -> Tensor:
        """NPMI 0 for all k-mers but those named."""
        table = torch.zeros(len(vocabulary(k)))
        table[:5] = -torch.inf
        for kmer, value in npmi.items():
            table[vocabulary(k).index(kmer)] = value
        return table

    def test_global_hides_a_6mer_by_11_tokens(self) -> None:
        sequence = "C" * 20 + "GATTAC" + "C" * 20
        ids = torch.from_numpy(encode_batch([sequence], 6))
        masked = select(ids, self.values(6, GATTAC=1), strategy="global_pmi", rate=11 / 41)
        assert_masks(masked, [set(range(21 - 5, 21 + 6))])

    def test_global_with_a_small_budget_hides_one_nucleotide_by_6_tokens(self) -> None:
        sequence = "C" * 20 + "GATTAC" + "C" * 20
        ids = torch.from_numpy(encode_batch([sequence], 6))
        masked = select(ids, self.values(6, GATTAC=1), strategy="global_pmi", rate=0.1)
        assert_masks(masked, [{19, 20, 21, 22, 23, 24}])

    def test_genemask_hides_the_best_6mer_near_the_centre(self) -> None:
        sequence = "C" * 20 + "GATTAC" + "C" * 20
        ids = torch.from_numpy(encode_batch([sequence] * 2000, 6))
        draws = random_of(ids).bits(Stream.CENTRE, ids.shape[1])[:, 1:42]
        p = 0.01
        alone = (draws < int(p * 2**32)).sum(dim=1) == 1
        centre = 1 + draws.argmin(dim=1)
        masked = select(ids, self.values(6, GATTAC=1), strategy="genemask", centre_probability=p)
        for column, row in zip(centre[alone].tolist(), masked[alone], strict=True):
            hidden = 21 if column - 2 <= 21 <= column + 3 else column
            assert set(row.nonzero()[:, 0].tolist()) == set(range(hidden - 5, hidden + 6)) & set(range(1, 42))

    def test_kmers_of_unknown_npmi_are_masked_like_any_other(self) -> None:
        ids = torch.from_numpy(encode_batch(["ACGT" * 10], 3))
        unknown = torch.full((69,), -torch.inf)
        assert select(ids, unknown, strategy="global_pmi", rate=0.5).sum() == 19
        assert select(ids, unknown, strategy="genemask", rate=0.5).any()


class TestMaskedShare:
    @pytest.mark.parametrize("rate", [0.15, 0.30])
    @pytest.mark.parametrize("name", NAMES)
    def test_of_real_full_windows_is_the_rate(
        self, full_windows: Tensor, human_table: NpmiTable, name: str, rate: float
    ) -> None:
        masked = select(full_windows, human_table.by_token_id(), strategy=name, rate=rate)
        assert masked.sum() / (full_windows >= 5).sum() == pytest.approx(rate, abs=0.005)

    @pytest.mark.parametrize("rate", [0.15, 0.30])
    @pytest.mark.parametrize("lengths", [[1], [6, 8, 10], [6, 12, 24]])
    def test_of_spans_with_lengths_is_the_rate(
        self, full_windows: Tensor, human_table: NpmiTable, lengths: list[int], rate: float
    ) -> None:
        masked = select(full_windows, human_table.by_token_id(), strategy="span", rate=rate, lengths=lengths)
        assert masked.sum() / (full_windows >= 5).sum() == pytest.approx(rate, abs=0.005)

    def test_of_the_published_span_centre_probability_is_14_per_cent(
        self, full_windows: Tensor, human_table: NpmiTable
    ) -> None:
        masked = select(full_windows, human_table.by_token_id(), strategy="span", centre_probability=0.025)
        assert masked.sum() / (full_windows >= 5).sum() == pytest.approx(0.140, abs=0.003)

    def test_of_the_published_genemask_centre_probability_is_15_per_cent(
        self, full_windows: Tensor, human_table: NpmiTable
    ) -> None:
        masked = select(full_windows, human_table.by_token_id(), strategy="genemask", centre_probability=0.0176)
        assert masked.sum() / (full_windows >= 5).sum() == pytest.approx(0.152, abs=0.005)

    @pytest.mark.parametrize("tokens", [6, 12, 25, 60, 150, 300])
    def test_of_genemask_is_the_rate_at_every_length(
        self, full_windows: Tensor, human_table: NpmiTable, tokens: int
    ) -> None:
        ids = full_windows[:, : tokens + 1]
        masked = select(ids, human_table.by_token_id(), strategy="genemask", rate=0.3)
        assert masked.sum() / (ids >= 5).sum() == pytest.approx(0.3, abs=0.02)


class TestCentreProbability:
    def test_of_a_fixed_span_is_the_closed_form(self) -> None:
        assert span_centre_probability(0.15, (6,)) == pytest.approx(1 - 0.85 ** (1 / 6), abs=1e-10)

    def test_of_equal_lengths_is_that_of_one(self) -> None:
        assert span_centre_probability(0.15, (8, 8)) == pytest.approx(span_centre_probability(0.15, (8,)), abs=1e-12)

    def test_longer_spans_need_fewer_centres(self) -> None:
        assert span_centre_probability(0.15, (6, 12)) < span_centre_probability(0.15, (6,))

    def test_of_genemask_in_a_window_of_one_token_is_the_rate(self) -> None:
        assert genemask_centre_probabilities(0.15, Tokenization(6))[1] == pytest.approx(0.15, abs=1e-10)

    def test_of_genemask_is_near_the_published_one_at_full_length(self) -> None:
        assert genemask_centre_probabilities(0.15, Tokenization(6))[510] == pytest.approx(0.0172, abs=0.0001)

    @pytest.mark.parametrize("rate", [0.01, 0.15, 0.5, 0.9, 0.99])
    @pytest.mark.parametrize("k", [2, 6, 8])
    def test_of_genemask_is_a_probability_at_every_length(self, rate: float, k: int) -> None:
        p = genemask_centre_probabilities(rate, Tokenization(k))
        assert p.shape == (LONGEST_SOLVED + 1,)
        assert ((p[1:] > 0) & (p <= 1)[1:]).all()


@pytest.mark.parametrize("name", NAMES)
class TestRows:
    """What a row is masked like depends on that row alone."""

    @pytest.fixture
    def ids(self, mixed_windows: Callable[[int], Tensor]) -> Tensor:
        return mixed_windows(6)

    @pytest.fixture
    def npmi(self, human_table: NpmiTable) -> Tensor:
        return human_table.by_token_id()

    def test_only_kmers_are_masked(self, ids: Tensor, npmi: Tensor, name: str) -> None:
        assert not select(ids, npmi, strategy=name, rate=0.8)[ids < 5].any()

    def test_padding_changes_nothing(self, ids: Tensor, npmi: Tensor, name: str) -> None:
        wider = torch.nn.functional.pad(ids, (0, 64))
        narrow = select(ids, npmi, strategy=name, rate=0.3)
        assert torch.equal(select(wider, npmi, strategy=name, rate=0.3)[:, : ids.shape[1]], narrow)

    def test_order_and_split_of_the_batch_change_nothing(self, ids: Tensor, npmi: Tensor, name: str) -> None:
        together = select(ids, npmi, strategy=name, rate=0.3)
        order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))
        for rows in order.split(7):
            random = Counters(42, torch.zeros(len(rows), dtype=torch.long), rows)
            assert torch.equal(select(ids[rows], npmi, random, strategy=name, rate=0.3), together[rows])


def test_windows_longer_than_the_solved_lengths_are_masked_at_the_rate(
    chromosome_3: str, human_table: NpmiTable
) -> None:
    pieces = [chromosome_3[start : start + 5000] for start in range(0, 500_000, 5000)]
    ids = torch.from_numpy(encode_batch(pieces, 6))
    for name in NAMES:
        masked = select(ids, human_table.by_token_id(), strategy=name, rate=0.15)
        assert masked.sum() / (ids >= 5).sum() == pytest.approx(0.15, abs=0.005)


def test_global_pmi_masks_the_same_whatever_the_seed_until_it_has_a_temperature(
    full_windows: Tensor, human_table: NpmiTable
) -> None:
    ids, npmi = full_windows[:20], human_table.by_token_id()
    for temperature, equal in ((0, True), (0.3, False)):
        masks = [
            select(ids, npmi, random_of(ids, seed), strategy="global_pmi", rate=0.15, temperature=temperature)
            for seed in (1, 2)
        ]
        assert torch.equal(*masks) == equal


def test_the_strategy_of_the_how_to_page_masks_a_block_at_a_random_place(ids, npmi):
    page = (Path(__file__).parents[2] / "docs/how-to/add-a-strategy.md").read_text()
    code = "from __future__ import annotations\n" + re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
    names = dict(vars(strategies))
    exec(compile(code, "add-a-strategy.md", "exec"), names)
    block = names["Block"](tokens=4)
    masked = block.select(ids, ids >= 5, words(npmi), random_of(ids))
    assert torch.equal(masked, block.select(ids, ids >= 5, words(npmi), random_of(ids)))
    firsts = set()
    for row, valid in zip(masked, ids >= 5, strict=True):
        places = [i for i, is_masked in enumerate(row[valid].tolist()) if is_masked]
        assert len(places) == min(4, int(valid.sum()))
        assert places == list(range(places[0], places[0] + len(places))) if places else True
        firsts.add(places[0] if places else 0)
    assert len(firsts) > 3
    assert block.masked_share(Tokenization(6), 100) == 0.04
