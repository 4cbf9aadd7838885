"""Masking in a training loop other than cmgems' own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from cmgems.data.tokenizer import PAD, SPECIAL_TOKENS, count_kmers, encode_batch
from cmgems.errors import UserError
from cmgems.masking.collator import IGNORED, MaskingCollator
from cmgems.masking.corruption import CorruptionConfig
from cmgems.masking.masker import Masker
from cmgems.masking.npmi import npmi_from_counts
from cmgems.masking.strategies import GeneMask

PAGE = Path(__file__).parents[2] / "docs/how-to/mask-in-your-own-trainer.md"
K = 4
MASKING = [GeneMask(rate=0.15)]


@pytest.fixture(scope="module")
def sequences():
    random = np.random.default_rng(1)
    return ["".join(random.choice(list("ACGT"), length)) for length in (60, 41, 60, 12, 33, 60, 25, 60)]


@pytest.fixture(scope="module")
def table(sequences):
    return npmi_from_counts(count_kmers(sequences, K), K)


@pytest.fixture(scope="module")
def rows(sequences):
    return [{"input_ids": encode_batch([s], K)[0].tolist(), "sample_id": 10 + i} for i, s in enumerate(sequences)]


def by_sample(batches, samples):
    """Inputs and labels of each sample without its padding."""
    found = {}
    for batch, own in zip(batches, samples, strict=True):
        for row, sample in enumerate(own):
            real = batch["attention_mask"][row].bool()
            found[sample] = (batch["input_ids"][row][real].tolist(), batch["labels"][row][real].tolist())
    return found


def test_inputs_and_labels_are_those_of_the_masker_token_for_token(rows, table):
    collator = MaskingCollator(table, MASKING, seed=7)
    collator.set_epoch(3)
    batch = collator(rows)
    ids = torch.full_like(batch["input_ids"], PAD)
    for i, row in enumerate(rows):
        ids[i, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
    samples = torch.tensor([row["sample_id"] for row in rows])
    masked = Masker(table, CorruptionConfig(), 7)(ids, torch.full_like(samples, 3), samples, MASKING)
    assert torch.equal(batch["input_ids"], masked.input_ids)
    assert torch.equal(batch["labels"] != IGNORED, masked.masked)
    assert torch.equal(batch["labels"][masked.masked], ids[masked.masked])
    assert torch.equal(batch["attention_mask"].bool(), ids != PAD)
    assert masked.masked.any()


def test_special_tokens_and_padding_are_never_predicted(rows, table):
    labels = MaskingCollator(table, MASKING)(rows)["labels"]
    assert labels[labels != IGNORED].min() >= len(SPECIAL_TOKENS)


def test_a_mask_depends_neither_on_order_nor_on_batches_nor_on_workers(rows, table):
    collator = MaskingCollator(table, MASKING)
    numbers = [row["sample_id"] for row in rows]
    whole = by_sample([collator(rows)], [numbers])
    backwards = by_sample([collator([row]) for row in rows[::-1]], [[n] for n in numbers[::-1]])
    assert backwards == whole
    for workers in (0, 2):
        loader = DataLoader(rows, batch_size=3, collate_fn=collator, num_workers=workers)
        assert by_sample(loader, [numbers[:3], numbers[3:6], numbers[6:]]) == whole


def test_workers_that_live_on_follow_the_epoch(rows, table):
    collator = MaskingCollator(table, MASKING)
    loader = DataLoader(rows, batch_size=8, collate_fn=collator, num_workers=1, persistent_workers=True)
    for epoch in (0, 1, 2, 1):
        collator.set_epoch(epoch)
        [batch] = loader
        assert torch.equal(batch["labels"], collator(rows)["labels"])
    first, second = ((collator.set_epoch(epoch), collator(rows)["labels"])[1] for epoch in (0, 1))
    assert not torch.equal(first, second)


def test_a_row_with_an_epoch_of_its_own_is_always_masked_alike(rows, table):
    collator = MaskingCollator(table, MASKING)
    fixed = [{**row, "epoch": 0} for row in rows]
    before = collator(fixed)["labels"]
    collator.set_epoch(5)
    assert torch.equal(collator(fixed)["labels"], before)
    assert not torch.equal(collator(rows)["labels"], before)


def test_rows_may_be_arrays_or_tensors_and_are_padded_to_a_multiple(rows, table):
    collator = MaskingCollator(table, MASKING, pad_to_multiple_of=16)
    as_arrays = [{**row, "input_ids": np.array(row["input_ids"])} for row in rows]
    as_tensors = [{**row, "input_ids": torch.tensor(row["input_ids"])} for row in rows]
    expected = collator(rows)
    assert expected["input_ids"].shape == (8, 64)
    for other in (as_arrays, as_tensors):
        assert all(torch.equal(values, expected[name]) for name, values in collator(other).items())


def test_a_row_without_a_sample_id_is_refused_with_the_remedy(rows, table):
    with pytest.raises(UserError, match=r"no sample_id: add an integer column.*remove_unused_columns=False"):
        MaskingCollator(table, MASKING)([{"input_ids": rows[0]["input_ids"]}])


def test_ids_of_another_vocabulary_are_refused(rows, table):
    other = [{"input_ids": [2, 5000, 3], "sample_id": 0}]
    with pytest.raises(UserError, match="input_ids go from 0 to 5000: the vocabulary of 4-mers has 261 tokens"):
        MaskingCollator(table, MASKING)(other)


def test_no_masking_is_refused(table):
    with pytest.raises(UserError, match="masking: give one masking at least"):
        MaskingCollator(table, [])


@pytest.mark.slow
def test_the_example_of_the_page_trains(tmp_path):
    [code] = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # so small a model is fastest with one
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    [before, after] = re.findall(r"validation loss (\d+\.\d+)", run.stdout)
    assert float(after) < float(before)
