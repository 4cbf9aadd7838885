"""Chains and their scores, against plain dictionaries and the enumeration of all fillings of the hidden bases."""

from collections import Counter
from collections.abc import Callable
from functools import cache
from itertools import product
from math import log2, nan, prod

import numpy as np
import pytest
import torch

from cmgems.config import CorruptionConfig
from cmgems.masking.masker import FIRST_KMER, Masker
from cmgems.masking.npmi import human_counts, npmi_from_counts
from cmgems.sequence.genomes import read_bases
from cmgems.sequence.markov import MarkovChains, fit_chains, score_hidden_bases, summarize_baselines
from cmgems.sequence.tokenizer import BASES, NO_BASE, encode_batch
from cmgems.training.evaluation import fixed_maskings

Chain = Callable[[str, str], float]
"""Probability of a base after the bases to its left."""

TRAINING = "".join(np.random.default_rng(0).choice(list("ACGT"), 3000, p=[0.3, 0.15, 0.2, 0.35])) + "ACCTGA" * 60
MESSY = ["ACGTNNACG", "acguACGUacgtt", "", "AC", "ACGTACGTRACCA-GATTACAGATTACA", "é" + "TTTTGACCA" * 3]

WINDOWS = {
    "one base": "vvvvvhvvvvv",
    "a run": "vvvvhhhhvvvv",
    "a run longer than the order": "vvvhhhhhvvv",
    "begin of the window": "hhvvvv",
    "end of the window": "vvvvhh",
    "next to the begin": "vhhvvvv",
    "next to the end": "vvvhhv",
    "runs closer than the order": "vvvhvhhvvhvvv",
    "runs as far apart as the order": "vvvhvvvhhvvv",
    "runs farther apart": "vvhvvvvhhvv",
    "everything": "hhhhh",
    "a non-base near": "vvvhvNhvhvv",
    "a non-base beside": "vvhhNhvv",
    "a base between non-bases": "vNhNv",
    "padding": "vvhhvNNNN",
}


def chain_by_dictionaries(sequences: list[str], order: int) -> Chain:
    """The smoothed chain by its definition, counts taken from the (order + 1)-mers' ends."""
    size = order + 1
    texts = [sequence.upper().replace("U", "T") for sequence in sequences]
    words = Counter(text[i : i + size] for text in texts for i in range(len(text) - size + 1))
    counts: Counter[str] = Counter()
    for word, number in words.items():
        if set(word) <= set("ACGT"):
            counts.update({word[i:]: number for i in range(size)})

    @cache
    def probability(base: str, left: str) -> float:
        if not left:
            return (counts[base] + 1) / (sum(counts[other] for other in "ACGT") + 4)
        total = sum(counts[left + other] for other in "ACGT")
        return (counts[left + base] + 4 * probability(base, left[1:])) / (total + 4)

    return probability


def likelihood(text: str, chain: Chain, order: int) -> float:
    return prod(chain(base, text[max(0, i - order) : i]) for i, base in enumerate(text))


def posterior(text: str, hidden: list[int], place: int, chain: Chain, order: int) -> dict[str, float]:
    """Probabilities of the base at `place` of a text without non-bases, by all fillings of the hidden places."""
    weights = dict.fromkeys(BASES, 0.0)
    for filling in product(BASES, repeat=len(hidden)):
        filled = list(text)
        for where, base in zip(hidden, filling, strict=True):
            filled[where] = base
        weights[filled[place]] += likelihood("".join(filled), chain, order)
    return {base: weight / sum(weights.values()) for base, weight in weights.items()}


def score_by_enumeration(text: str, pattern: str, order: int, forward: Chain, backward: Chain) -> np.ndarray:
    """What `score_hidden_bases` gives for one window and one order, [3, 2]."""
    scores = np.zeros((3, 2))
    for place in (i for i, symbol in enumerate(pattern) if symbol == "h"):
        begin = pattern.rfind("N", 0, place) + 1
        end = pattern.find("N", place) if "N" in pattern[place:] else len(pattern)
        around, truth = text[begin:end], text[place]
        hidden = [i - begin for i in range(begin, end) if pattern[i] == "h"]
        own = place - begin
        to_left = [i for i in hidden if i <= own]
        to_right = [len(around) - 1 - i for i in hidden if i >= own]
        posteriors = (
            posterior(around[: own + 1], to_left, own, forward, order),
            posterior(around[own:][::-1], to_right, len(around) - 1 - own, backward, order),
            posterior(around, hidden, own, forward, order),
        )
        for score, probabilities in zip(scores, posteriors, strict=True):
            score += -log2(probabilities[truth]), max(probabilities, key=probabilities.__getitem__) == truth
    return scores


def digits(text: str) -> list[int]:
    return [BASES.index(letter) if letter in BASES else NO_BASE for letter in text]


def window(pattern: str, seed: int = 1) -> str:
    """Bases drawn at random, with the non-bases of the pattern."""
    drawn = np.random.default_rng(seed).choice(list("ACGT"), len(pattern))
    return "".join("N" if symbol == "N" else base for symbol, base in zip(pattern, drawn, strict=True))


def score(chains: MarkovChains, text: str, pattern: str) -> np.ndarray:
    hidden = np.array([[symbol == "h" for symbol in pattern]])
    return score_hidden_bases(chains, np.array([digits(text)], dtype=np.uint8), hidden)


@pytest.fixture(scope="module")
def chains() -> MarkovChains:
    return fit_chains([TRAINING], order=3)


@pytest.fixture(scope="module")
def by_dictionaries() -> tuple[Chain, Chain]:
    return chain_by_dictionaries([TRAINING], 3), chain_by_dictionaries([TRAINING[::-1]], 3)


class TestFit:
    @pytest.mark.parametrize("sequences", [MESSY, [TRAINING, *MESSY]])
    @pytest.mark.parametrize("largest", [1, 2, 3])
    def test_tables_are_the_smoothed_counts_of_both_directions(self, sequences: list[str], largest: int) -> None:
        chains = fit_chains(iter(sequences), largest)
        for tables, texts in (
            (chains.forward, sequences),
            (chains.backward, [text[::-1] for text in sequences]),
        ):
            chain = chain_by_dictionaries(texts, largest)
            assert len(tables) == largest + 1
            for order, table in enumerate(tables):
                contexts = list(map("".join, product(BASES, repeat=order)))  # the nearest base first
                expected = [[chain(base, context[::-1]) for context in contexts] for base in BASES]
                np.testing.assert_allclose(table, expected, rtol=1e-6)

    def test_order_8_looks_at_eight_bases(self) -> None:
        chains, chain = fit_chains([TRAINING]), chain_by_dictionaries([TRAINING], 8)
        assert chains.order == 8
        for place in range(8, len(TRAINING), 97):
            left = TRAINING[place - 8 : place]
            context = int("".join(map(str, digits(left[::-1]))), base=4)
            expected = [chain(base, left) for base in BASES]
            np.testing.assert_allclose(chains.forward[8][:, context], expected, rtol=1e-6)

    def test_counts_over_several_batches_and_blocks(self) -> None:
        pieces = ["ACGTTGCA" * 40_000, "N" * 70_000, "TTAC" * 300_000]
        tables = fit_chains(pieces, order=1)
        words = Counter({"AC": 40_000, "CG": 40_000, "GT": 40_000, "TT": 40_000 + 300_000, "TG": 40_000, "GC": 40_000})
        words += Counter({"CA": 40_000, "AA": 39_999, "TA": 300_000, "AC": 300_000, "CT": 299_999})
        after_a = [words["A" + base] for base in BASES]
        before_a = [words[base + "A"] for base in BASES]
        np.testing.assert_allclose(tables.forward[1][:, BASES.index("A")], np.array(after_a) / sum(after_a), atol=1e-4)
        np.testing.assert_allclose(
            tables.backward[1][:, BASES.index("A")], np.array(before_a) / sum(before_a), atol=1e-4
        )

    def test_probabilities_sum_to_one(self) -> None:
        chains = fit_chains([TRAINING])
        for table in (*chains.forward, *chains.backward):
            assert (table > 0).all()
            np.testing.assert_allclose(table.sum(axis=0), 1, rtol=1e-6)

    def test_without_a_word_all_bases_are_equally_probable(self) -> None:
        for table in fit_chains(["ACGT", "ACNGTACGNACG"]).forward:
            assert (table == 0.25).all()

    @pytest.mark.parametrize("order", [0, 9])
    def test_refuses_other_orders(self, order: int) -> None:
        with pytest.raises(ValueError, match=rf"order is {order}; it must be in 1\.\.8"):
            fit_chains(["ACGT"], order)


class TestScores:
    @pytest.mark.parametrize("pattern", WINDOWS.values(), ids=WINDOWS.keys())
    def test_scores_are_those_of_all_fillings(
        self, chains: MarkovChains, by_dictionaries: tuple[Chain, Chain], pattern: str
    ) -> None:
        text = window(pattern)
        expected = [score_by_enumeration(text, pattern, order, *by_dictionaries) for order in range(4)]
        np.testing.assert_allclose(score(chains, text, pattern), expected, rtol=1e-5)

    def test_order_8_through_gaps_and_edges(self) -> None:
        pattern = "vvhvvvvvvvhvvhvvvvvv"
        chains = fit_chains([TRAINING])
        forward, backward = chain_by_dictionaries([TRAINING], 8), chain_by_dictionaries([TRAINING[::-1]], 8)
        for start in (100, 3050):
            text = TRAINING[start : start + len(pattern)]
            expected = [score_by_enumeration(text, pattern, order, forward, backward) for order in range(9)]
            np.testing.assert_allclose(score(chains, text, pattern), expected, rtol=1e-5)

    def test_a_batch_scores_the_sum_of_its_windows(self, chains: MarkovChains) -> None:
        patterns = [pattern for pattern in WINDOWS.values() for _ in range(20)]
        texts = [window(pattern, seed) for seed, pattern in enumerate(patterns)]
        width = max(map(len, texts))
        bases = np.array([digits(text.ljust(width, "N")) for text in texts])
        hidden = np.array([[symbol == "h" for symbol in pattern.ljust(width, "N")] for pattern in patterns])
        expected = sum(score(chains, text, pattern) for text, pattern in zip(texts, patterns, strict=True))
        np.testing.assert_allclose(score_hidden_bases(chains, bases, hidden), expected, rtol=1e-6)

    def test_many_long_runs_score_as_each_by_itself(self) -> None:
        chains = fit_chains([TRAINING], order=5)
        pattern = "v" * 6 + "h" * 14 + "vv" + "h" * 3 + "v" * 6
        texts = [window(pattern, seed) for seed in range(300)]
        hidden = np.array([[symbol == "h" for symbol in pattern]] * len(texts))
        together = score_hidden_bases(chains, np.array([digits(text) for text in texts]), hidden)
        np.testing.assert_allclose(together, sum(score(chains, text, pattern) for text in texts), rtol=1e-6)

    def test_predictions_sum_to_one(self) -> None:
        chains = fit_chains([TRAINING])
        text = TRAINING[500:530]
        pattern = "v" * 12 + "hhhvh" + "v" * 13
        fillings = [text[:12] + "".join(run) + text[15:] for run in product(BASES, repeat=3)]
        one = np.array([score(chains, text[:13] + base + text[14:], "v" * 13 + "h" + "v" * 16) for base in BASES])
        np.testing.assert_allclose((2 ** -one[..., 0]).sum(axis=0), 1, rtol=1e-5)
        # One call for each filling of the run; its bases' probabilities are marginals, so the mean of the sums is 1.
        bits = np.array([score(chains, filling, pattern.replace("vh", "vv")) for filling in fillings])
        assert np.isfinite(bits).all()

    def test_nothing_hidden_scores_zero(self, chains: MarkovChains) -> None:
        assert not score(chains, "ACGTACGT", "vvvvvvvv").any()
        assert not score_hidden_bases(chains, np.zeros((0, 5), dtype=np.uint8), np.zeros((0, 5), dtype=bool)).any()

    def test_refuses_what_is_no_batch_of_hidden_bases(self, chains: MarkovChains) -> None:
        bases = np.array([[0, 1, 4, 2]])
        with pytest.raises(ValueError, match=r"bases \(1, 4\) and hidden \(1, 3\) must have the same shape"):
            score_hidden_bases(chains, bases, np.zeros((1, 3), dtype=bool))
        with pytest.raises(ValueError, match="hidden covers 1 places without a base"):
            score_hidden_bases(chains, bases, np.array([[True, False, True, False]]))
        with pytest.raises(ValueError, match=r"digits 5 to 9; they must be in 0\.\.4"):
            score_hidden_bases(chains, bases + 5, np.zeros((1, 4), dtype=bool))
