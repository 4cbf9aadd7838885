"""Tokens and words of any length: nucleotides, codons, k-mers that overlap in part or not at all."""

import numpy as np
import pytest
import torch
from torch import Tensor

from cmgems.data.tokenization import Tokenization
from cmgems.data.tokenizer import count_kmers, encode_batch
from cmgems.errors import UserError
from cmgems.masking.centre_probability import genemask_centre_probabilities
from cmgems.masking.corruption import CorruptionConfig
from cmgems.masking.counters import Counters, Stream
from cmgems.masking.masker import STATISTICS, Masker
from cmgems.masking.npmi import NpmiTable, npmi_from_counts
from cmgems.masking.strategies import STRATEGIES
from cmgems.masking.words import Words, words_of
from tests.masking import reference

QUICK = [(3, 3, 6), (4, 2, 4)]
SHAPES = [
    *((1, 1, word) for word in range(3, 9)),
    *((3, 3, word) for word in (3, 6)),
    (6, 6, 6),
    *((6, 1, word) for word in range(3, 9)),
    *((4, 2, word) for word in (4, 6, 8)),
]
"""k, stride, word."""

LETTERS = np.array(list("ATCG"))


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(shape, marks=() if shape in QUICK else pytest.mark.matrix, id="-".join(map(str, shape)))
        for shape in SHAPES
    ],
)
def tokens(request: pytest.FixtureRequest) -> Tokenization:
    return Tokenization(*request.param)


@pytest.fixture(scope="module")
def table(tokens: Tokenization, chromosome_3: str) -> NpmiTable:
    counts = count_kmers([chromosome_3[:300_000]], tokens.word, tokens.stride)
    return npmi_from_counts(counts, tokens.word, stride=tokens.stride)


@pytest.fixture(scope="module", params=["exact", pytest.param("with ties", marks=pytest.mark.matrix)])
def words(tokens: Tokenization, table: NpmiTable, request: pytest.FixtureRequest) -> Words:
    exact = words_of(table, tokens)
    return exact if request.param == "exact" else Words(tokens, (exact.npmi * 3).round())


@pytest.fixture(scope="module")
def ids(tokens: Tokenization, chromosome_3: str) -> Tensor:
    """Human windows of many lengths, tiny ones, some with N inside, repeats, one without a token."""
    random = np.random.default_rng(tokens.k)
    lengths = [*range(1, 20), *random.integers(20, 250, size=12).tolist(), 510]
    starts = random.integers(len(chromosome_3) - 4000, size=len(lengths))
    sequences = [
        chromosome_3[s : s + tokens.nucleotides(n) + int(n % tokens.stride)]
        for s, n in zip(starts, lengths, strict=True)
    ]
    sequences += [s[: len(s) // 2] + "N" + s[len(s) // 2 + 1 :] for s in sequences[::3]]
    sequences += ["A" * 100, "CA" * 60, "GGGTTA" * 50, ""]
    return torch.from_numpy(encode_batch(sequences, tokens.k, stride=tokens.stride))


def random_of(ids: Tensor) -> Counters:
    return Counters(42, torch.zeros(len(ids), dtype=torch.long), torch.arange(len(ids)))


def valid_columns(row: list[int]) -> set[int]:
    return {column for column, token in enumerate(row) if token >= 5}


def scores(ids: Tensor, words: Words) -> list[reference.Score]:
    """NPMI of the words that begin in each column and are whole, spelled out letter by letter."""
    tokens, found = words.tokens, []
    lowest = torch.finfo(torch.float32).min
    for row in ids.tolist():
        letters = {}
        for column in valid_columns(row):
            for place in range(tokens.k):
                digit = (row[column] - 5) // 4 ** (tokens.k - 1 - place) % 4
                assert letters.setdefault(column * tokens.stride + place, digit) == digit
        score = {}
        for column in valid_columns(row):
            word = [letters.get(column * tokens.stride + place) for place in range(tokens.word)]
            needed = range(column, column + max(1, (tokens.word - tokens.k) // tokens.stride + 1))
            if None not in word and set(needed) <= valid_columns(row):
                index = sum(digit * 4**place for place, digit in enumerate(reversed(word)))
                score[column] = max(float(words.npmi[5 + index]), lowest)
        found.append(score)
    return found


def assert_masks(words: Words, ids: Tensor, expected: list[set[int]], **setting) -> None:
    strategy = STRATEGIES[setting["strategy"]](**setting)
    masked = strategy.select(ids, ids >= 5, words, random_of(ids))
    assert [set(row.nonzero()[:, 0].tolist()) for row in masked] == expected


class TestPlainReading:
    """Equal to plain loops over nucleotides, window for window."""

    def test_span(self, ids: Tensor, words: Words) -> None:
        shared = words.tokens.k // words.tokens.stride
        probability = 1 - (1 - 0.15) ** (1 / shared)
        draws = random_of(ids).bits(Stream.CENTRE, ids.shape[1]).tolist()
        expected = [
            reference.span(valid_columns(row), probability, [shared], draw, [0] * ids.shape[1])
            for row, draw in zip(ids.tolist(), draws, strict=True)
        ]
        assert_masks(words, ids, expected, strategy="span", rate=0.15)

    @pytest.mark.parametrize("rate", [0.15, 0.4])
    def test_genemask(self, ids: Tensor, words: Words, rate: float) -> None:
        by_length = genemask_centre_probabilities(rate, words.tokens)
        draws = random_of(ids).bits(Stream.CENTRE, ids.shape[1]).tolist()
        expected = []
        for row, score, draw in zip(ids.tolist(), scores(ids, words), draws, strict=True):
            columns = valid_columns(row)
            probability = by_length[len(columns)]
            expected.append(reference.genemask(columns, score, shape_of(words), probability, draw))
        assert_masks(words, ids, expected, strategy="genemask", rate=rate)

    @pytest.mark.parametrize("rate", [0.05, 0.15, 0.5])
    def test_global_pmi(self, ids: Tensor, words: Words, rate: float) -> None:
        expected = [
            reference.global_pmi(valid_columns(row), score, shape_of(words), rate)
            for row, score in zip(ids.tolist(), scores(ids, words), strict=True)
        ]
        assert_masks(words, ids, expected, strategy="global_pmi", rate=rate)

    def test_statistics(self, ids: Tensor, tokens: Tokenization, table: NpmiTable) -> None:
        masker = Masker(table, CorruptionConfig(), 42, tokens=tokens)
        batch = masker(ids, torch.zeros(len(ids), dtype=torch.long), torch.arange(len(ids)), [global_pmi(0.15)])
        hidden = of = 0
        for row, chosen in zip(ids.tolist(), batch.masked.tolist(), strict=True):
            columns = valid_columns(row)
            masked = {column for column in columns if chosen[column]}
            hides, there = reference.hidden_nucleotides(columns, masked, shape_of(masker.words))
            hidden, of = hidden + hides, of + there
        found = dict(zip(STATISTICS, masker.statistics(batch).tolist(), strict=True))
        assert (found["hidden_nucleotides"], found["nucleotides"]) == (hidden, of)


def shape_of(words: Words) -> reference.Shape:
    return reference.Shape(words.tokens.k, words.tokens.stride, words.tokens.word)


def global_pmi(rate: float):
    return STRATEGIES["global_pmi"](strategy="global_pmi", rate=rate)


@pytest.mark.parametrize("name", ["span", "genemask", "global_pmi"])
def test_the_masked_share_of_full_windows_is_the_rate(
    tokens: Tokenization, table: NpmiTable, chromosome_3: str, name: str
) -> None:
    size = tokens.nucleotides(510)
    windows = [chromosome_3[start : start + size] for start in range(0, min(400 * size, 1_900_000), size)]
    ids = torch.from_numpy(encode_batch(windows, tokens.k, stride=tokens.stride))
    strategy = STRATEGIES[name](strategy=name, rate=0.15)
    masked = strategy.select(ids, ids >= 5, words_of(table, tokens), random_of(ids))
    assert float(masked.sum() / (ids >= 5).sum()) == pytest.approx(0.15, abs=0.01)


def test_words_that_are_tokens_are_the_published_case() -> None:
    tokens = Tokenization()
    assert (tokens.k, tokens.stride, tokens.word) == (6, 1, 6)
    assert (tokens.around, tokens.near, tokens.hiding) == (range(-2, 4), range(-2, 4), range(-5, 6))


@pytest.mark.parametrize(
    ("k", "stride", "word", "around", "near", "hiding"),
    [
        (1, 1, 0, range(1), range(-5, 1), range(6)),
        (3, 3, 0, range(1), range(-1, 1), range(2)),
        (6, 6, 0, range(1), range(1), range(1)),
        (4, 2, 0, range(2), range(2), range(-1, 2)),
    ],
)
def test_ranges(k: int, stride: int, word: int, around: range, near: range, hiding: range) -> None:
    tokens = Tokenization(k, stride, word)
    assert (tokens.around, tokens.near, tokens.hiding) == (around, near, hiding)
    assert tokens.word == (k if stride < k else 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((9,), "a token of 9 nucleotides: it can have 1 to 8"),
        ((6, 4), "tokens of 6 nucleotides at every 4: 6 must be a multiple of it"),
        ((6, 0), "tokens of 6 nucleotides at every 0"),
        ((3, 3, 5), "a word of 5 nucleotides: it can have 2 to 8, a multiple of 3, at which tokens begin"),
        ((6, 1, 9), "a word of 9 nucleotides"),
    ],
)
def test_what_is_no_tokenization_is_refused(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Tokenization(*arguments)


@pytest.mark.parametrize("shape", [(1, 1, 6), (3, 3, 6), (6, 6, 6), (4, 2, 4)])
def test_npmi_of_blocks_equals_its_definition(shape: tuple[int, int, int], chromosome_3: str) -> None:
    """Of words of several blocks pieces begin at blocks; of a word that is one block, anywhere."""
    _, stride, word = shape
    counts = count_kmers([chromosome_3[:200_000]], word, stride)
    unit = stride if word > stride else 1
    table = npmi_from_counts(counts, word, stride=stride)
    share = counts / counts.sum()
    names = np.array([[value // 4 ** (word - 1 - i) % 4 for i in range(word)] for value in range(4**word)])

    def log_p(piece: np.ndarray) -> float:
        places = range(0, word - len(piece) + 1, unit)
        found = [share[(names[:, at : at + len(piece)] == piece).all(axis=1)].sum() for at in places]
        return float(np.log(np.mean(found)))

    def best(letters: np.ndarray, whole: bool) -> float:
        ways = [] if whole else [log_p(letters)]
        cuts = range(unit, len(letters), unit)
        return max(ways + [log_p(letters[:cut]) + best(letters[cut:], False) for cut in cuts])

    for index in np.random.default_rng(1).choice(np.flatnonzero(counts > 2), 4):
        expected = float(np.log(share[index])) - best(names[index], True)
        assert table.pmi[index] == pytest.approx(expected, abs=1e-9)


def test_counts_with_a_stride_equal_slicing(chromosome_3: str) -> None:
    sequences: list[str] = [chromosome_3[:1000], chromosome_3[2000:2301] + "N" + chromosome_3[2400:2500], "AC", ""]
    for k, stride in ((3, 3), (6, 3), (4, 2), (6, 6), (1, 1)):
        expected: dict[str, int] = {}
        for s in sequences:
            for start in range(0, len(s) - k + 1, stride):
                expected[s[start : start + k]] = expected.get(s[start : start + k], 0) + 1
        counts = count_kmers(sequences, k, stride)
        names = ["".join(LETTERS[value // 4 ** (k - 1 - i) % 4] for i in range(k)) for value in range(4**k)]
        assert {name: int(n) for name, n in zip(names, counts, strict=True) if n} == {
            name: n for name, n in expected.items() if "N" not in name
        }
