import csv
import math
from collections import Counter
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmgems.data.genetic_code import amino_acids
from cmgems.data.tokenizer import SPECIAL_TOKENS, vocabulary
from cmgems.errors import UserError
from cmgems.masking.npmi import (
    NpmiTable,
    human_counts,
    npmi_from_counts,
    read_npmi,
    write_npmi,
)


@pytest.fixture(scope="module")
def published(shared_data: Path) -> np.ndarray:
    """The column norm_dp_true_pmi of GeneMask's table, in the order of the token ids."""
    with (shared_data / "reference" / "genemask_published_npmi.csv").open() as file:
        values = {row["ngram"]: float(row["norm_dp_true_pmi"]) for row in csv.DictReader(file)}
    return np.array([values[kmer] for kmer in kmers(6)])


def kmers(k: int) -> list[str]:
    return vocabulary(k)[len(SPECIAL_TOKENS) :]


def some_counts(k: int, seed: int = 0) -> np.ndarray:
    """Counts with zeros and ones among them."""
    rng = np.random.default_rng(seed)
    return rng.geometric(0.02, size=4**k) * (rng.random(4**k) < 0.8)


def plain_pmi(counts: np.ndarray, k: int, kmer: str) -> float:
    """Minimum over all 2^(k-1) - 1 segmentations, each written out; probabilities by counting pieces in k-mers."""
    words = dict(zip(kmers(k), counts.tolist(), strict=True))
    total = sum(words.values())

    def probability(piece: str) -> float:
        places = range(k - len(piece) + 1)
        found = sum(n for word, n in words.items() for i in places if word[i : i + len(piece)] == piece)
        return found / (total * len(places))

    cuts = [c for number in range(1, k) for c in combinations(range(1, k), number)]
    assert len(cuts) == 2 ** (k - 1) - 1
    sums = []
    for cut in cuts:
        edges = [0, *cut, k]
        sums.append(sum(math.log(probability(kmer[a:b])) for a, b in pairwise(edges)))
    return math.log(words[kmer] / total) - max(sums)


def test_the_published_method_gives_the_published_table(published: np.ndarray) -> None:
    k, counts = human_counts()
    table = npmi_from_counts(counts, k, method="published", c=101)
    difference = abs(table.npmi - published)
    assert difference.max() < 2.5e-3
    assert (difference < 1e-3).sum() >= 4075
    assert set(np.argsort(-table.npmi)[:100]) == set(np.argsort(-published)[:100])


def test_the_method_all_ranks_kmers_differently_from_the_published_table(
    human_table: NpmiTable, published: np.ndarray
) -> None:
    ranks = [np.argsort(np.argsort(values)) for values in (human_table.npmi, published)]
    assert np.corrcoef(*ranks)[0, 1] == pytest.approx(0.888, abs=0.001)
    top = [set(np.argsort(-values)[:410]) for values in (human_table.npmi, published)]
    assert len(top[0] & top[1]) / 410 == pytest.approx(0.58, abs=0.01)


@pytest.mark.parametrize("k", [2, 3, 4])
def test_pmi_is_the_minimum_over_all_segmentations(k: int) -> None:
    counts = some_counts(k)
    table = npmi_from_counts(counts, k)
    for i, kmer in enumerate(kmers(k)):
        if counts[i]:
            assert table.pmi[i] == pytest.approx(plain_pmi(counts, k, kmer), abs=1e-12)


@pytest.mark.parametrize("kmer", ["AAAAAA", "TATAAA", "CGCGCG", "GATTAC", "CCTCCC"])
def test_pmi_of_a_human_6mer_is_the_minimum_over_31_segmentations(human_table: NpmiTable, kmer: str) -> None:
    assert human_table.pmi[kmers(6).index(kmer)] == pytest.approx(plain_pmi(human_table.counts, 6, kmer), abs=1e-12)


@pytest.mark.parametrize("genetic_code", [1, 4])
def test_pmi_of_codon_pairs_given_their_amino_acids(genetic_code: int) -> None:
    counts, letters = some_counts(6, seed=4), amino_acids(genetic_code)
    table = npmi_from_counts(counts, 6, "synonymous", c=50, stride=3, genetic_code=genetic_code)
    pairs = {(i // 64, i % 64): n / counts.sum() for i, n in enumerate(counts.tolist())}
    codons = [sum(pairs[u, v] + pairs[v, u] for v in range(64)) / 2 for u in range(64)]

    def among_synonyms(codon: int) -> float:
        return codons[codon] / sum(codons[other] for other in range(64) if letters[other] == letters[codon])

    of_amino_acids: Counter[tuple[str, str]] = Counter()
    for (u, v), share in pairs.items():
        of_amino_acids[letters[u], letters[v]] += share
    for i in np.random.default_rng(5).choice(np.flatnonzero(counts > 1), 300, replace=False):
        u, v = divmod(int(i), 64)
        expected = of_amino_acids[letters[u], letters[v]] * among_synonyms(u) * among_synonyms(v)
        pmi = math.log(pairs[u, v] / expected)
        assert table.pmi[i] == pytest.approx(pmi, rel=1e-9, abs=1e-12)
        assert table.npmi[i] == pytest.approx(pmi * math.log(counts[i]) / math.log(50 * counts[i]), rel=1e-9, abs=1e-12)


def test_synonyms_are_of_pairs_of_codons_only() -> None:
    with pytest.raises(UserError, match="for words of two codons, not of 6 nucleotides at every 1"):
        npmi_from_counts(some_counts(6), 6, "synonymous")


def test_npmi_of_a_dinucleotide_by_hand() -> None:
    counts = np.ones(16, dtype=np.int64)
    counts[kmers(2).index("CG")] = 17
    table = npmi_from_counts(counts, 2, c=3)
    p_c = p_g = (4 + 4 + 16) / 2 / 32  # C first in 4 + 16 of 32, second in 4; averaged. G the other way round
    pmi = math.log(17 / 32) - math.log(p_c) - math.log(p_g)
    assert table.pmi[kmers(2).index("CG")] == pytest.approx(pmi)
    assert table.npmi[kmers(2).index("CG")] == pytest.approx(pmi * math.log(17) / (math.log(17) + math.log(3)))


@pytest.mark.parametrize("method", ["all", "published"])
@pytest.mark.parametrize("k", range(2, 9))
def test_every_kmer_has_a_value_and_those_counted_less_than_twice_rank_lowest(k: int, method: str) -> None:
    counts = some_counts(k)
    table = npmi_from_counts(counts, k, method)
    assert np.isfinite(table.npmi[counts >= 2]).all()
    assert (table.npmi[counts < 2] == -np.inf).all()
    assert not np.isnan(table.pmi).any()


def test_counts_of_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="all 64 3-mers have count 0"):
        npmi_from_counts(np.zeros(64, dtype=np.int64), 3)


def test_by_token_id_special_tokens_come_first_and_rank_lowest(human_table: NpmiTable) -> None:
    values = human_table.by_token_id()
    assert values.shape == (5 + 4096,)
    assert values.dtype == torch.float32
    assert (values[:5] == -torch.inf).all()
    assert values[vocabulary(6).index("TATAAA")] == pytest.approx(human_table.npmi[kmers(6).index("TATAAA")])


def test_the_fingerprint_follows_the_values() -> None:
    counts = some_counts(3)
    assert npmi_from_counts(counts, 3).fingerprint == npmi_from_counts(counts, 3).fingerprint
    assert npmi_from_counts(counts, 3).fingerprint != npmi_from_counts(counts, 3, c=102).fingerprint


@settings(deadline=None, max_examples=20)
@given(k=st.integers(2, 5), seed=st.integers(0, 1000))
def test_a_written_table_is_read_back_value_for_value(
    tmp_path_factory: pytest.TempPathFactory, k: int, seed: int
) -> None:
    path = tmp_path_factory.mktemp("npmi") / "table.csv"
    table = npmi_from_counts(some_counts(k, seed), k)
    write_npmi(table, path)
    again = read_npmi(path)
    assert again.k == k
    for name in ("counts", "pmi", "npmi"):
        np.testing.assert_array_equal(getattr(again, name), getattr(table, name))
    assert again.fingerprint == table.fingerprint


def test_a_written_table_is_sorted_and_leaves_no_other_file(tmp_path: Path, human_table: NpmiTable) -> None:
    write_npmi(human_table, tmp_path / "npmi.csv")
    with (tmp_path / "npmi.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["kmer", "count", "pmi", "npmi"]
    values = [float(row["npmi"]) for row in rows]
    assert values == sorted(values, reverse=True)
    assert [path.name for path in tmp_path.iterdir()] == ["npmi.csv"]


def test_the_best_kmers_are_the_first_of_the_written_table(tmp_path: Path) -> None:
    table = npmi_from_counts(some_counts(3), 3)  # with k-mers of equal rank: those counted less than twice
    write_npmi(table, tmp_path / "npmi.csv")
    written = [line.split(",")[0] for line in (tmp_path / "npmi.csv").read_text().splitlines()[1:]]
    for number in (0, 1, 5, 64):
        assert table.best(number) == written[:number]
    assert table.best(1000) == written


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("folder", "folder: this is a folder"),
        ("absent/npmi.csv", "absent/npmi.csv: there is no folder .*absent"),
        ("file/npmi.csv", "file/npmi.csv: there is no folder .*file"),
        ("x" * 300, "x: cannot be written"),
    ],
)
def test_a_table_that_cannot_be_written_is_named_and_leaves_nothing_behind(
    tmp_path: Path, human_table: NpmiTable, path: str, message: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=message):
        write_npmi(human_table, tmp_path / path)
    assert sorted(found.name for found in tmp_path.rglob("*")) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_leaves_the_table_that_was_there(
    tmp_path: Path, human_table: NpmiTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "npmi.csv").write_text("mine")
    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(UserError, match=r"npmi\.csv: cannot be written .*No space left"):
        write_npmi(human_table, tmp_path / "npmi.csv")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("npmi.csv", "mine")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace(",npmi", ",rank"), "line 1: the header has no column 'npmi'"),
        (lambda text: "\n".join(text.splitlines()[:-1]), "1 of the 16 2-mers are missing, the first is [ATCG]{2}"),
        (lambda text: text.rsplit(",", 1)[0] + ",high", "line 17: npmi is 'high'; it must be a number or -inf"),
        (lambda text: text.rsplit(",", 1)[0] + ",nan", "line 17: npmi is 'nan'"),
    ],
)
def test_mistakes_in_tables_are_named_with_file_and_line(tmp_path: Path, change, message: str) -> None:
    path = tmp_path / "npmi.csv"
    write_npmi(npmi_from_counts(some_counts(2), 2), path)
    path.write_text(change(path.read_text()))
    with pytest.raises(UserError, match=message):
        read_npmi(path)
