"""Chains and their scores, against plain dictionaries and the enumeration of all fillings of the hidden bases."""

from collections import Counter
from collections.abc import Callable
from functools import cache
from itertools import product
from math import log2, nan, prod

import numpy as np
import pytest
import torch

from cmgems.data.alphabet import BASES
from cmgems.data.genomes import read_bases
from cmgems.data.markov import MarkovChains, fit_chains
from cmgems.data.markov_scores import score_hidden_bases, summarize_baselines
from cmgems.data.tokenizer import NO_BASE, encode_batch
from cmgems.masking.corruption import CorruptionConfig
from cmgems.masking.masker import FIRST_KMER, Masker
from cmgems.masking.npmi import human_counts, npmi_from_counts
from cmgems.training.validation import fixed_maskings

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
        return (counts[left + base] + 64 * probability(base, left[1:])) / (total + 64)

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

    def test_no_word_is_lost_between_blocks_and_batches(self) -> None:
        sequences = ["A" * (2**20 - before) + "CGTCTGATC" for before in (2, 4, 6, 8)]
        sequences = [sequences[0] + sequences[1][10:], *sequences[2:]]
        chains, chain = fit_chains(sequences, order=3), chain_by_dictionaries(sequences, 3)
        for left in ("CGT", "GTC", "TCT", "CTG", "TGA", "GAT", "ACG", "AAC", "TCA"):
            context = int("".join(map(str, digits(left[::-1]))), base=4)
            expected = [chain(base, left) for base in BASES]
            np.testing.assert_allclose(chains.forward[3][:, context], expected, rtol=1e-6)

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
        patterns = [pattern for pattern in WINDOWS.values() for _ in range(5)]
        texts = [window(pattern, seed) for seed, pattern in enumerate(patterns)]
        width = max(map(len, texts))
        bases = np.array([digits(text.ljust(width, "N")) for text in texts])
        hidden = np.array([[symbol == "h" for symbol in pattern.ljust(width, "N")] for pattern in patterns])
        expected = sum(score(chains, text, pattern) for text, pattern in zip(texts, patterns, strict=True))
        np.testing.assert_allclose(score_hidden_bases(chains, bases, hidden), expected, rtol=1e-6)

    def test_many_long_runs_score_as_each_by_itself(self) -> None:
        chains = fit_chains([TRAINING], order=4)
        pattern = "v" * 6 + "h" * 14 + "vv" + "h" * 3 + "v" * 6
        texts = [window(pattern, seed) for seed in range(600)]
        bases = np.array([digits(text) for text in texts])
        hidden = np.array([[symbol == "h" for symbol in pattern]] * len(texts))
        parts = sum(score_hidden_bases(chains, bases[rows], hidden[rows]) for rows in np.split(np.arange(600), 40))
        np.testing.assert_allclose(score_hidden_bases(chains, bases, hidden), parts, rtol=1e-6)

    def test_predictions_sum_to_one(self) -> None:
        chains = fit_chains([TRAINING])
        text = TRAINING[500:530]
        predictions = [score(chains, text[:13] + base + text[14:], "v" * 13 + "h" + "v" * 16)[..., 0] for base in BASES]
        np.testing.assert_allclose(sum(2**-bits for bits in predictions), 1, rtol=1e-5)

    def test_what_is_next_to_impossible_has_exact_bits(self) -> None:
        repeat, text, pattern = "A" * 2_000_000, "AAAAAAAACAAAAAAAA", "vvvvvvvvhvvvvvvvv"
        chain = chain_by_dictionaries([repeat], 8)
        expected = [score_by_enumeration(text, pattern, order, chain, chain) for order in range(9)]
        assert np.max(expected) > 130  # a probability too small for single precision
        np.testing.assert_allclose(score(fit_chains([repeat]), text, pattern), expected, rtol=1e-6)

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

    def test_order_0_is_the_composition_from_every_side(self) -> None:
        bases = np.array([digits(TRAINING)])
        bits, right = score_hidden_bases(fit_chains([TRAINING], order=1), bases, np.ones(bases.shape, dtype=bool))[0].T
        shares = np.array([TRAINING.count(base) for base in BASES]) / len(TRAINING)
        np.testing.assert_allclose(bits / len(TRAINING), -(shares * np.log2(shares)).sum(), rtol=1e-4)
        np.testing.assert_allclose(right / len(TRAINING), shares.max(), rtol=1e-9)


@pytest.fixture(scope="module")
def source() -> np.ndarray:
    """A chain of order 3: probabilities of the next digit, [4, 4, 4, 4]."""
    return np.random.default_rng(3).dirichlet([0.7] * 4, size=(4, 4, 4))


@pytest.fixture(scope="module")
def drawn(source: np.ndarray) -> np.ndarray:
    """Digits drawn from it, independently for 400 sequences, [400, 2020] with what was not yet stationary left out."""
    random = np.random.default_rng(4)
    digits = np.zeros((400, 2050), dtype=np.int64)
    for i in range(3, digits.shape[1]):
        before = source[digits[:, i - 3], digits[:, i - 2], digits[:, i - 1]]
        digits[:, i] = (random.random((400, 1)) > before.cumsum(axis=1)[:, :3]).sum(axis=1)
    return digits[:, 30:]


def conditional_entropy(source: np.ndarray, right: int) -> float:
    """Entropy in bits of a base of the source under the three bases before it and `right` bases behind it."""
    words = np.full((4, 4, 4), 4.0**-3)
    for _ in range(500):
        words = (words[..., None] * source).sum(axis=0)
    for _ in range(1 + right):
        words = words[..., None] * source[(None,) * (words.ndim - 3)]
    return -(words * np.log2(words / words.sum(axis=3, keepdims=True))).sum()


class TestBaselines:
    def test_an_order_3_source_is_predicted_as_well_as_it_can_be(self, source: np.ndarray, drawn: np.ndarray) -> None:
        training, test = drawn[:300], drawn[300:]
        chains = fit_chains(["".join(map(BASES.__getitem__, row)) for row in training.tolist()])
        hidden = np.zeros(test.shape, dtype=bool)
        hidden[:, 10:-10:17] = True
        number = int(hidden.sum())
        sums = score_hidden_bases(chains, test, hidden)
        bits = sums[..., 0] / number

        # The standard deviation of -log2 p is about a bit, and there are 11,800 hidden bases: 0.03 is three errors.
        assert bits[3, 0] == pytest.approx(conditional_entropy(source, right=0), abs=0.03)
        assert bits[3, 2] == pytest.approx(conditional_entropy(source, right=3), abs=0.03)
        assert bits[:3, 2].min() > bits[3, 2] + 0.03  # lower orders miss something
        assert bits[4:, 2].min() > bits[3, 2] - 0.005  # and there is nothing more to know
        composition, best = summarize_baselines(sums, number)
        assert best == ("order 3, both flanks", bits[3, 2], sums[3, 2, 1] / number)
        assert composition == ("base composition", bits[0, 0], sums[0, 0, 1] / number)

    def test_without_hidden_bases_there_is_no_number(self) -> None:
        composition, best = summarize_baselines(np.zeros((9, 3, 2)), 0)
        np.testing.assert_equal([composition[1:], best[1:]], [(nan, nan)] * 2)

    def test_real_masks_on_human_windows(self, human_masks: dict[str, np.ndarray], human_text: str) -> None:
        bases, hidden = human_masks["bases"], human_masks["span"]
        sums = score_hidden_bases(fit_chains([human_text]), bases, hidden)
        composition, best = summarize_baselines(sums, int(hidden.sum()))
        assert best.name == "order 8, both flanks"
        assert best.bits < composition.bits - 0.1
        assert best.accuracy > composition.accuracy + 0.1

    @pytest.mark.parametrize("masking", ["span", "genemask", "global_pmi"])
    def test_read_backwards_left_is_right(
        self, human_masks: dict[str, np.ndarray], human_text: str, masking: str
    ) -> None:
        bases, hidden = human_masks["bases"], human_masks[masking]
        forward = score_hidden_bases(fit_chains([human_text], order=5), bases, hidden)
        backward = score_hidden_bases(fit_chains([human_text[::-1]], order=5), bases[:, ::-1], hidden[:, ::-1])
        np.testing.assert_allclose(backward[:, [1, 0]], forward[:, [0, 1]], rtol=1e-6)


@pytest.fixture(scope="module")
def human_text(shared_data) -> str:
    """hg19 chr4:103-105M."""
    path = shared_data / "genomes" / "hg19_chr4_103-105M.fa"
    return b"".join(piece.bases for piece in read_bases(str(path))).decode("ascii")


@pytest.fixture(scope="module")
def human_masks(human_text: str) -> dict[str, np.ndarray]:
    """Digits of windows as "bases", and the nucleotides that each masking of the evaluation hides, by its name."""
    k, counts = human_counts()
    masker = Masker(npmi_from_counts(counts, k), CorruptionConfig(), seed=1)
    windows = [human_text[start : start + 400 + start // 1000 % 115] for start in range(0, 60 * 31_000, 31_000)]
    ids = torch.from_numpy(encode_batch(windows, k))
    width = ids.shape[1] + k - 1  # token t, of which [CLS] is the first, covers columns t to t + k - 1
    masks = {"bases": np.array([digits(f"N{text}".ljust(width, "N")) for text in windows], dtype=np.uint8)}
    for name, masking in fixed_maskings(0.15).items():
        batch = masker(ids, torch.zeros(len(ids), dtype=torch.int64), torch.arange(len(ids)), masking)
        valid = (batch.labels >= FIRST_KMER).numpy()
        masks[name] = covered(valid, k) & ~covered(valid & ~batch.masked.numpy(), k)
        assert masks[name].sum() == masker.statistics(batch)[2] > 0
    return masks


def covered(tokens: np.ndarray, k: int) -> np.ndarray:
    """Nucleotides that are in one of the tokens."""
    return np.array([np.convolve(row, np.ones(k, dtype=np.int64)) > 0 for row in tokens])
