"""`python -m benchmarks` as a user calls it, and whether what it compares does the same work."""

import json

import pytest
import torch

from benchmarks.__main__ import Benchmark, Value, benchmarks, main
from benchmarks.measure import Rates
from benchmarks.peers import genemask_loop
from benchmarks.pieces import CENTRE_PROBABILITY, TOKENS, K, random_windows
from benchmarks.runs import batches_before
from cmgems.data.corpus import load_corpus
from cmgems.data.loader import TrainingRows, Windows
from cmgems.data.prepare import prepare_corpus
from cmgems.data.settings import PrepareConfig
from cmgems.data.tokenization import Tokenization
from cmgems.data.tokenizer import build_tokenizer, encode_batch, vocabulary
from cmgems.masking.corruption import CorruptionConfig
from cmgems.masking.masker import Masker
from cmgems.masking.npmi import human_counts, npmi_from_counts
from cmgems.masking.strategies import GeneMask


def test_a_benchmark_prints_its_row_and_writes_all_rounds(tmp_path, capsys):
    # Before anything is timed this compares the ids of both ways.
    main(["--only", "tokenizing", "--rounds", "1", "--work", str(tmp_path), "--output", str(tmp_path / "x.json")])
    [_, header, row] = capsys.readouterr().out.splitlines()
    assert header.split() == ["what", "unit", "ours", "beside", "ours", "to", "that", "target"]
    assert row.startswith("nucleotides to padded 6-mer ids, one core")
    assert "P1: " in row
    assert row.endswith(">= 100 x P1, >= 20 M")
    [ours], [peer] = json.loads((tmp_path / "x.json").read_text())["rates"]["tokenizing"].values()
    assert ours > peer > 0


def test_a_row_has_ours_beside_each_peer_and_the_ratio_round_by_round():
    values = {"fast": Value("tokens/s", ">= 100 x P", ("P",)), "alone": Value("s", "<= 5 s")}
    rates = {"fast": Rates([3e6, 4e6, 5e6]), "P": Rates([2e4, 2e4, 5e4]), "alone": Rates([1.5, 1.25, 2])}
    assert list(Benchmark("masks", values, lambda rounds: rates).rows(rates)) == [
        (
            *("masks: fast", "tokens/s", "4 M (3 M to 5 M)"),
            *("P: 20,000 (20,000 to 50,000)", "150 (100 to 200)", ">= 100 x P"),
        ),
        ("masks: alone", "s", "1.5 (1.25 to 2)", "", "", "<= 5 s"),
    ]


def test_an_unknown_name_is_refused_with_those_that_there_are(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--only", "tokenising", "--work", str(tmp_path / "work")])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "--only tokenising: there are tokenizing, masking, " in error
    assert all(name in error for name in benchmarks(tmp_path))
    assert not (tmp_path / "work").exists()


def test_p2_masks_about_as_much_as_genemask():
    ids = torch.from_numpy(encode_batch(random_windows(200, TOKENS + K - 1), K))
    table = npmi_from_counts(human_counts()[1], K)
    npmi = dict(zip(vocabulary(K), table.by_token_id("cpu").tolist(), strict=True))
    torch.manual_seed(0)
    inputs, masked = genemask_loop(ids, build_tokenizer(K, TOKENS + 2), npmi, CENTRE_PROBABILITY, K)
    masker = Masker(table, CorruptionConfig(), seed=0)
    setting = GeneMask(rate=0.15)
    ours = masker(ids, torch.zeros(200, dtype=torch.int64), torch.arange(200), [setting])
    assert share(masked) == pytest.approx(share(ours.masked), rel=0.05)
    assert share((inputs != ids)[masked]) == pytest.approx(share((ours.input_ids != ids)[ours.masked]), rel=0.02)


def share(tokens):
    return tokens.double().mean().item()


def test_a_loader_that_reads_too_much_is_seen(tmp_path, monkeypatch):
    (tmp_path / "genome.fa").write_text("".join(f">{name}\n{random_windows(1, 100_000)[0]}\n" for name in "abc"))
    prepare_corpus(PrepareConfig(inputs=[str(tmp_path / "genome.fa")], k=K), tmp_path / "corpus", progress=False)
    windows = Windows(load_corpus(tmp_path / "corpus").train, Tokenization(K), TOKENS + 2)
    assert batches_before(windows, 100_000) == 0

    class FromTheStart(TrainingRows):
        def __init__(self, plan, lengths, seed, rank, first_step):
            super().__init__(plan, lengths, seed, rank, 0)

    monkeypatch.setattr("benchmarks.runs.TrainingRows", FromTheStart)
    assert batches_before(windows, 3) == 3 * 8
