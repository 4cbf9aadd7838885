"""Fine-tunes a model on one task and scores it, by the Trainer of transformers.

Batches are counted in sequences over all processes, as the task's recipe says. A sequence that is read in several
windows has the mean of their logits. The loss is the sum over the sequences of a global batch divided by their number,
whatever the number of processes and of micro-steps; where the last batch of an epoch does not divide by the processes,
some of its sequences count twice.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from transformers import (
    EvalPrediction,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from cmgems.downstream.inputs import Rows, collate
from cmgems.downstream.objectives import CLASSIFICATION, Objective
from cmgems.downstream.scores import Estimates, Predictions, score
from cmgems.downstream.tasks import Recipe
from cmgems.errors import DivergedError, UserError
from cmgems.inference.encoder import Encoder
from cmgems.runtime.process import world_size
from cmgems.runtime.progress import ProgressLines
from cmgems.training.launch import launched_with_deepspeed


@dataclass(frozen=True)
class ComputeConfig:
    """How a fine-tuning is computed. Without dropout, the first two change its result by rounding alone."""

    micro_batch: int = 32
    """Sequences a process computes at once in training, at most."""
    evaluation_batch: int = 64
    """Sequences a process scores at once."""
    precision: str = "fp32"
    """`fp32`, `bf16` or `fp16`."""


@dataclass(frozen=True)
class Outcome:
    """What came of a fine-tuning."""

    test: Predictions | Estimates
    dev: Predictions | Estimates | None
    best_step: int
    """Optimizer step whose weights were scored."""
    history: list[dict[str, float]]
    """`step` with `loss` and `learning_rate`, or with metrics of the validation split."""
    seconds: float
    """Wall-clock time of training and scoring."""


def start_processes() -> PartialState:
    """Let the processes of a launch find each other: NCCL on GPUs, else gloo.

    Raises
    ------
    UserError
        If the launcher asked for DeepSpeed, or the processes do not find each other.
    """
    if launched_with_deepspeed():
        raise UserError("fine-tuning runs without DeepSpeed: launch with --config_file deepspeed_configs/ddp.yaml")
    on_cpu = not torch.cuda.is_available()
    several = world_size() > 1
    state = PartialState(cpu=True, backend="gloo") if on_cpu and several else PartialState()
    if state.num_processes != world_size():
        raise UserError(
            f"{world_size()} processes were launched, but each is on its own: launch with "
            "--config_file deepspeed_configs/ddp.yaml"
        )
    return state


def fine_tune(
    model: Any,
    encoder: Encoder,
    splits: Mapping[str, Rows],
    recipe: Recipe,
    machine: ComputeConfig,
    seed: int,
    folder: Path,
    title: str,
    objective: Objective = CLASSIFICATION,
) -> Outcome:
    """Train `model` on the split `train`, and score `test`; collective.

    `recipe` has a single learning rate. With a split `dev` and `recipe.evaluate_every`, the weights of the highest MCC
    on it, or Spearman's correlation of values, are scored, of equal ones the earliest; else those of the last step.
    `folder` is for checkpoints meanwhile, the same on all processes; `title` is shown with the progress. Afterwards
    `model` has the weights that were scored.

    Raises
    ------
    DivergedError
        If outputs are no longer finite.
    """
    began = time.monotonic()
    arguments = _arguments(recipe, machine, seed, folder, "dev" in splits, objective.best_by)
    trainer = _WindowTrainer(
        objective,
        model=model,
        args=arguments,
        data_collator=partial(collate, padding=encoder.padding),
        train_dataset=splits["train"],
        eval_dataset=splits.get("dev"),
        compute_metrics=partial(_metrics, objective),
        callbacks=[_Progress(title)],
    )
    # Their bars and lines are for a notebook with one training; a suite has hundreds.
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    trainer.train()
    dev = splits.get("dev")
    return Outcome(
        test=trainer.predictions(splits["test"]),
        dev=trainer.predictions(dev) if dev else None,
        best_step=(trainer.state.best_global_step if arguments.load_best_model_at_end else None)
        or trainer.state.global_step,
        history=_history(trainer.state.log_history),
        seconds=time.monotonic() - began,
    )


def _arguments(
    recipe: Recipe, machine: ComputeConfig, seed: int, folder: Path, has_dev: bool, best_by: str = "mcc"
) -> TrainingArguments:
    [learning_rate] = recipe.learning_rates
    at_once, micro_steps = _micro_batches(recipe.batch, PartialState().num_processes, machine.micro_batch)
    evaluate_every = recipe.evaluate_every if has_dev else None
    check_precision(machine.precision)
    # What the launcher, or a config file of Accelerate's, says about precision would take the place of ours.
    os.environ["ACCELERATE_MIXED_PRECISION"] = {"fp32": "no"}.get(machine.precision, machine.precision)
    arguments = TrainingArguments(
        output_dir=str(folder),
        seed=seed,
        learning_rate=learning_rate,
        weight_decay=recipe.weight_decay,
        lr_scheduler_type="linear",
        warmup_steps=_warmup(recipe),
        num_train_epochs=recipe.epochs or 1,
        max_steps=recipe.steps or -1,
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=micro_steps,
        per_device_eval_batch_size=machine.evaluation_batch,
        eval_strategy="steps" if evaluate_every else "no",
        eval_steps=evaluate_every,
        save_strategy="steps" if evaluate_every else "no",
        save_steps=evaluate_every or 500,
        save_total_limit=1,
        save_only_model=True,
        load_best_model_at_end=evaluate_every is not None,
        metric_for_best_model=best_by,
        greater_is_better=True,
        label_names=["labels", "rows"],
        remove_unused_columns=False,
        logging_steps=20,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        use_cpu=PartialState().device.type == "cpu",
        ddp_backend=PartialState().backend,
        ddp_find_unused_parameters=PartialState().num_processes > 1,
        bf16=machine.precision == "bf16",
        fp16=machine.precision == "fp16",
        optim="adamw_torch",
    )
    # One process takes one device: DataParallel would tear the windows of a sequence apart.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def check_precision(precision: str) -> None:
    """Raise UserError if there is no hardware for it here."""
    if precision == "fp16" and not torch.cuda.is_available():
        raise UserError("precision fp16 needs a GPU; on the CPU take fp32 or bf16")


def _micro_batches(batch: int, processes: int, at_most: int) -> tuple[int, int]:
    """Sequences a process computes at once, and how often in an optimizer step."""
    if batch % processes:
        raise UserError(f"the recipe's batch of {batch} sequences does not divide by {processes} processes")
    share = batch // processes
    at_once = max(size for size in range(1, min(share, at_most) + 1) if share % size == 0)
    return at_once, share // at_once


def _warmup(recipe: Recipe) -> float:
    """Warm-up as the Trainer takes it: a number of steps, or below 1 a share of all."""
    return recipe.warmup_share if recipe.warmup_steps is None else recipe.warmup_steps  # type: ignore[return-value]


class _WindowTrainer(Trainer):  # type: ignore[misc]  # transformers is not typed
    """The Trainer, for batches in which a sequence can have several windows."""

    loss_is_scaled_for_ga = True

    def __init__(self, objective: Objective, **settings: Any) -> None:
        super().__init__(**settings)
        self._objective = objective
        self.model_accepts_loss_kwargs = True  # it then counts the sequences of a global batch

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Loss of the mean outputs of each sequence's windows."""
        of_windows = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits.float()
        row, labels = inputs["row_of_window"], inputs["labels"]
        sums = of_windows.new_zeros(len(labels), of_windows.shape[1]).index_add(0, row, of_windows)
        outputs = sums / torch.bincount(row, minlength=len(labels))[:, None]
        # The processes' gradients are averaged: each has to count for all.
        scale = self.accelerator.num_processes / num_items_in_batch
        loss = self._objective.loss(outputs, labels) * scale
        return (loss, {"loss": loss, "logits": outputs}) if return_outputs else loss

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """Count the sequences by their numbers: a label of -100 is none to the Trainer, but it can be a value."""
        return super()._get_num_items_in_batch([{"labels": batch["rows"]} for batch in batch_samples], device)

    def predictions(self, rows: Rows) -> Predictions | Estimates:
        """Score all rows of a split, each once; collective."""
        scored = self.predict(rows)
        return _predictions(self._objective, EvalPrediction(scored.predictions, scored.label_ids))


def _metrics(objective: Objective, scored: EvalPrediction) -> dict[str, float]:
    """Return all metrics of a split, and its loss: the Trainer's own counts rows twice where processes do not divide
    them."""
    labels, _ = scored.label_ids
    return {
        **score(_predictions(objective, scored)),
        "mean_loss": objective.mean_loss(scored.predictions, labels),
    }


def _predictions(objective: Objective, scored: EvalPrediction) -> Predictions | Estimates:
    """Outputs of all processes as predictions, after a check that each row is there once and in its place."""
    labels, rows = scored.label_ids
    if not np.array_equal(rows, np.arange(len(rows))):
        raise RuntimeError("rows of a split were lost or scored twice")
    if not np.isfinite(scored.predictions).all():
        raise DivergedError(
            "the fine-tuning diverged: the model's outputs are no longer finite; lower the learning rate"
        )
    return objective.predictions(scored.predictions, labels)


class _Progress(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Shows how far a fine-tuning is: a bar on a terminal, else a line now and then."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._lines: ProgressLines | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Begin."""
        self._lines = ProgressLines(self._title, state.max_steps, "step", is_shown=state.is_world_process_zero)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Count a step."""
        assert self._lines
        self._lines.update(state.global_step)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """End."""
        assert self._lines
        self._lines.close()


def _history(logged: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Return what the Trainer logged, with the validation's metrics named `dev/...`."""
    history = []
    for entry in logged:
        if "loss" in entry:
            history.append({name: entry[name] for name in ("step", "loss", "learning_rate")})
        elif "eval_mean_loss" in entry:
            metrics = {
                f"dev/{name.removeprefix('eval_')}": value
                for name, value in entry.items()
                if name.startswith("eval_")
                and name.split("_")[1] not in ("runtime", "samples", "steps", "model", "loss")
            }
            metrics["dev/loss"] = metrics.pop("dev/mean_loss")
            history.append({"step": entry["step"], **metrics})
    return history
