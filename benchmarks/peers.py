"""What a user would pick instead, written from its published behaviour.

P1: the Trainer of transformers with its collator for masked language models, and a fast tokenizer over k-mers that are
separated by blanks, as the DNABERT scripts prepare them.
P2: GeneMask's selection as a loop over sequences and centres that looks up each candidate's k-mer (Roy et al. 2023,
"GeneMask: Fast Pretraining of Gene Sequences to Enable Few-Shot Learning", section 3, and the released script).
P3: the pipeline of transformers for features, in batches, and the mean over each sequence's own tokens.
L: a bare loop over batches that are already masked and in memory.
"""

import tempfile
import time
from itertools import pairwise
from pathlib import Path

import datasets
import numpy as np
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    pipeline,
)

from cmgems.masking.masker import MaskedBatch
from cmgems.model.bert import MaskedLanguageModel


def separated(sequence: str, k: int) -> str:
    """A sequence's overlapping k-mers, separated by blanks."""
    return " ".join(sequence[i : i + k] for i in range(len(sequence) - k + 1))


def genemask_loop(
    ids: torch.Tensor, tokenizer: PreTrainedTokenizerFast, npmi: dict[str, float], probability: float, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """P2: model inputs, and which tokens are masked, of a batch of ids [B, T]."""
    special = [tokenizer.get_special_tokens_mask(row, already_has_special_tokens=True) for row in ids.tolist()]
    probabilities = torch.full(ids.shape, probability).masked_fill(torch.tensor(special, dtype=torch.bool), 0.0)
    masked = torch.bernoulli(probabilities).bool()
    last = ids.shape[1] - 2
    for row, centres in enumerate(masked):
        scored = []
        for centre in torch.where(centres)[0].tolist():
            nearby = range(max(1, centre - (k - 1) // 2), min(last, centre + k // 2) + 1)
            scores = [(npmi[tokenizer.convert_ids_to_tokens(ids[row, column].item())], column) for column in nearby]
            scored.append((*max(scores), centre))
        scored.sort(reverse=True)
        columns: set[int] = set()
        for rank, (_, best, centre) in enumerate(scored):
            columns.update(range(centre - (k - 1) // 2, centre + k // 2 + 1))
            if rank < (len(scored) + 1) // 2:
                columns.update(range(best - k + 1, best + k))
        masked[row, [column for column in columns if 1 <= column <= last]] = True
    inputs = ids.clone()
    inputs[torch.bernoulli(torch.full(ids.shape, 0.8)).bool() & masked] = tokenizer.mask_token_id
    changed = torch.bernoulli(torch.full(ids.shape, 0.5)).bool() & masked & (inputs != tokenizer.mask_token_id)
    inputs[changed] = torch.randint(len(tokenizer), ids.shape)[changed]
    return inputs, masked


class _Clock(TrainerCallback):  # type: ignore[misc]
    """Time after each optimizer step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *_: object, **__: object) -> None:
        self.times.append(time.perf_counter())


def train_by_trainer(
    windows: list[str],
    tokenizer: PreTrainedTokenizerFast,
    bert: BertConfig,
    global_batch: int,
    micro_batch: int,
    bf16: bool,
) -> list[float]:
    """P1: one pass over the windows, in their order; seconds of each optimizer step but the first."""
    k = len(tokenizer.convert_ids_to_tokens(5))
    texts = datasets.Dataset.from_dict({"text": [separated(window, k) for window in windows]})
    tokens = texts.map(lambda rows: tokenizer(rows["text"]), batched=True, remove_columns="text")
    clock = _Clock()
    trainer = _InOrder(
        model=BertForMaskedLM(bert),
        args=TrainingArguments(
            output_dir=tempfile.mkdtemp(),  # nothing is written there
            use_cpu=not torch.cuda.is_available(),
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=-(-global_batch // micro_batch),
            max_steps=len(windows) // global_batch,
            learning_rate=4e-4,
            bf16=bf16,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
        ),
        train_dataset=tokens,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15),
        callbacks=[clock],
    )
    trainer.train()
    return [later - earlier for earlier, later in pairwise(clock.times)]


class _InOrder(Trainer):  # type: ignore[misc]
    """A Trainer that does not shuffle: the same windows as the others, in the same batches."""

    def _get_train_sampler(self, *_: object) -> torch.utils.data.Sampler[int]:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def train_bare(
    model: MaskedLanguageModel, optimizer: torch.optim.Optimizer, steps: list[list[MaskedBatch]], bf16: bool
) -> list[float]:
    """L: seconds of each optimizer step but the first."""
    times = []
    for batches in steps:
        for batch in batches:
            with torch.autocast(batch.labels.device.type, torch.bfloat16, enabled=bf16):
                loss = model(batch.input_ids, batch.attention_mask, batch.masked, batch.labels).sum()
            (loss / 1000).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter())
    return [later - earlier for earlier, later in pairwise(times)]


def feature_means(model: Path, texts: list[str], batch: int) -> np.ndarray:
    """P3: the mean of the last hidden states over the k-mers of each text [texts, width]."""
    features = pipeline("feature-extraction", model=str(model), device="cpu")
    found = features(texts, batch_size=batch)
    return np.stack(
        [np.mean(states[0][1 : len(text.split()) + 1], axis=0) for text, states in zip(texts, found, strict=True)]
    )
