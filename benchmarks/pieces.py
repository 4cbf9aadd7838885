"""One core: nucleotides to ids, masking, counting, preparing a corpus."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import cost, repeated
from benchmarks.peers import feature_means, genemask_loop, separated
from benchmarks.training import K, write_genome
from cmgems.api import load
from cmgems.config.command_line import read_config
from cmgems.data.tokenization import Tokenization
from cmgems.data.tokenizer import build_tokenizer, count_kmers, encode_batch, save_tokenizer, vocabulary
from cmgems.masking.corruption import CorruptionConfig
from cmgems.masking.counters import Counters
from cmgems.masking.masker import FIRST_KMER, Masker
from cmgems.masking.npmi import human_counts, npmi_from_counts
from cmgems.masking.strategies import GeneMask, GlobalPmi
from cmgems.model.bert import build_model

ROWS, TOKENS = 32, 510
EMBEDDED = 256
CENTRE_PROBABILITY = 0.0176
"""GeneMask's share of centres for a mask rate of 15 % of 6-mers."""


def random_windows(number: int, nucleotides: int) -> list[str]:
    """Windows of random nucleotides."""
    letters = np.frombuffer(b"ACGT", np.uint8)
    drawn = np.random.default_rng(0).choice(letters, (number, nucleotides))
    return [row.tobytes().decode() for row in drawn]


def tokenizing() -> dict[str, Callable[[], float]]:
    """Windows to padded ids: ours, and P1's tokenizer on text with blanks between the k-mers."""
    windows = random_windows(ROWS, TOKENS + K - 1)
    texts = [separated(window, K) for window in windows]
    tokenizer = build_tokenizer(K, TOKENS + 2)
    assert (np.asarray(tokenizer(texts)["input_ids"]) == encode_batch(windows, K)[:, : TOKENS + 2]).all()
    tokens = ROWS * TOKENS
    return {
        "ours": repeated(lambda: encode_batch(windows, K, TOKENS), tokens),
        "P1": repeated(lambda: tokenizer(texts, padding=True, return_tensors="np"), tokens, 2),
    }


def masking() -> dict[str, Callable[[], float]]:
    """Batches of ids to model inputs: ours by genemask and by global_pmi, and P2 by GeneMask; and ours without the
    corruption, the choice of the tokens alone."""
    torch.set_num_threads(1)
    table = npmi_from_counts(human_counts()[1], K)
    masker = Masker(table, CorruptionConfig(), seed=0)
    ids = torch.from_numpy(encode_batch(random_windows(ROWS, TOKENS + K - 1), K))
    epoch, sample_id = torch.zeros(ROWS, dtype=torch.int64), torch.arange(ROWS)
    tokenizer = build_tokenizer(K, TOKENS + 2)
    npmi = dict(zip(vocabulary(K), table.by_token_id("cpu").tolist(), strict=True))

    settings = {
        "genemask": GeneMask(centre_probability=CENTRE_PROBABILITY),
        "global_pmi": GlobalPmi(rate=0.15),
    }

    def ours(strategy: str) -> Callable[[], object]:
        return lambda: masker(ids, epoch, sample_id, [settings[strategy]])

    def choice(strategy: str) -> Callable[[], object]:
        valid, random = ids >= FIRST_KMER, Counters(0, epoch, sample_id)
        return lambda: settings[strategy].select(ids, valid, masker.words, random)

    return {
        "genemask": repeated(ours("genemask"), ROWS * TOKENS),
        "global_pmi": repeated(ours("global_pmi"), ROWS * TOKENS),
        "genemask, choice alone": repeated(choice("genemask"), ROWS * TOKENS),
        "global_pmi, choice alone": repeated(choice("global_pmi"), ROWS * TOKENS),
        "P2": repeated(lambda: genemask_loop(ids, tokenizer, npmi, CENTRE_PROBABILITY, K), ROWS * TOKENS, 2),
    }


def embedding(work: Path) -> dict[str, Callable[[], float]]:
    """Means of LOGO's last hidden states of windows of all lengths, in 6-mers a second; ours, and P3's."""
    folder = work / "logo-model"
    settings = read_config("logo-span-15", {"corpus": {"path": str(work)}}).model
    model = build_model(settings, Tokenization(K), seed=0).bert
    model.save_pretrained(folder)
    save_tokenizer(folder, Tokenization(K), settings.max_positions)
    lengths = np.random.default_rng(1).integers(5 + K - 1, TOKENS + K, EMBEDDED)
    windows = [
        window[:length] for window, length in zip(random_windows(EMBEDDED, TOKENS + K - 1), lengths, strict=True)
    ]
    texts = [separated(window, K) for window in windows]
    ours = load(folder, device="cpu")
    assert np.allclose(ours.embed(windows[:8]), feature_means(folder, texts[:8], 8), atol=1e-5)
    tokens = int((lengths - K + 1).sum())
    return {
        "ours": repeated(lambda: ours.embed(windows), tokens),
        "P3": repeated(lambda: feature_means(folder, texts, 8), tokens),
    }


def counting() -> dict[str, Callable[[], float]]:
    """6-mers of windows in memory, in bases a second."""
    windows = random_windows(16_000, TOKENS + K - 1)
    return {"ours": repeated(lambda: count_kmers(windows, K), sum(map(len, windows)), 3)}


def preparing(work: Path, megabases: int) -> Callable[[], float]:
    """`cmgems prepare` of a random genome in a process of its own, in bases a second of its time on the processor."""
    genome, output = work / f"{megabases}.fa", work / f"prepared-{megabases}"
    if not genome.exists():
        write_genome(genome, megabases * 1_000_000)

    def run() -> float:
        shutil.rmtree(output, ignore_errors=True)
        return megabases * 1e6 / cost("prepare", str(genome), "-k", str(K), "--output", str(output)).seconds

    return run
