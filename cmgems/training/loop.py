"""The training loop."""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from cmgems.config import PretrainConfig
from cmgems.curriculum.controller import Controller
from cmgems.errors import UserError
from cmgems.masking.masker import MaskedBatch, Masker
from cmgems.tracking import Tracker
from cmgems.training import checkpoint
from cmgems.training.display import Display
from cmgems.training.evaluation import Validation, fixed_maskings
from cmgems.training.loader import MicroBatch, TrainingRows, Windows, make_loader
from cmgems.training.metrics import LogWindow
from cmgems.training.model import encoder_flops, head_flops, learning_rate
from cmgems.training.order import BatchPlan


class NonFiniteLossError(UserError):
    """The loss became infinite or not a number: most often the learning rate is too high."""


@dataclass
class Progress:
    """What a run has behind it; part of every checkpoint."""

    step: int = 0
    """Optimizer steps done."""
    seconds: float = 0
    """Wall-clock time, evaluation and checkpoints included, before and after every resume."""
    flops: float = 0
    """Floating-point operations of the training steps, over all processes."""
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    """Step, stage and perplexities (by masking) of each evaluation."""


@dataclass
class Trainer:
    """One process's part of a pretraining run: `run()` takes it from `progress` to the last step."""

    config: PretrainConfig
    accelerator: Accelerator
    plan: BatchPlan
    model: Any
    optimizer: Any
    windows: Windows
    masker: Masker
    controller: Controller
    validation: Validation
    tracker: Tracker
    folder: Path
    identity: dict[str, Any]
    """What a resumed run must have in common with this one."""
    progress: Progress

    def run(self) -> None:
        """Train to the last step, evaluating, switching stages and saving on the way; collective."""
        self._window = LogWindow(self.accelerator.device)
        self._clock = time.perf_counter()
        micro_batches = self._micro_batches()
        with Display(self.config.training.steps, self.progress.step, self.accelerator.is_main_process) as display:
            while self.progress.step < self.config.training.steps:
                self._train_step(micro_batches)
                self._after_step(display)

    def _micro_batches(self) -> Iterator[MicroBatch]:
        rows = TrainingRows(
            self.plan, len(self.windows.split), self.config.seed, self.accelerator.process_index, self.progress.step
        )
        corpus = self.config.corpus
        return iter(
            make_loader(self.windows, rows, corpus.workers, corpus.prefetch, self.accelerator.device.type == "cuda")
        )

    def _train_step(self, micro_batches: Iterator[MicroBatch]) -> None:
        started = time.perf_counter()
        step, config = self.progress.step, self.config
        windows = [next(micro_batches).to(self.accelerator.device) for _ in range(self.plan.accumulation)]
        masked = [self.masker(w.ids, w.epoch, w.sample_id, self.controller.stage.masking) for w in windows]
        # The loss of a global batch is the sum over its masked tokens divided by their number, on all ranks together.
        # Both DeepSpeed and Accelerate divide by processes and micro-steps, which are therefore multiplied in.
        tokens = self.accelerator.reduce(torch.stack([m.masked.sum() for m in masked]).sum(), "sum")
        scale = self.accelerator.num_processes * self.plan.accumulation / tokens.clamp(min=1)
        rate = learning_rate(config.optimizer, step, config.training.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        losses = []
        for micro_step, batch in enumerate(masked):
            self._seed_dropout(step, micro_step)
            with self.accelerator.accumulate(self.model):
                loss = self.model(batch.input_ids, batch.attention_mask, batch.masked, batch.labels).sum()
                self.accelerator.backward(loss * scale)
                if self.accelerator.sync_gradients:
                    norm = float(self.accelerator.clip_grad_norm_(self.model.parameters(), config.optimizer.clip_norm))
                self.optimizer.step()
                self.optimizer.zero_grad()
            losses.append(loss.detach())
        self._check_finite(torch.stack(losses), norm, windows)
        self.progress.step += 1
        statistics = torch.stack([self.masker.statistics(batch) for batch in masked]).sum(0)
        seconds = time.perf_counter() - started
        self._window.add(statistics, torch.stack(losses).sum(), norm, rate, self._flops(masked), seconds)

    def _seed_dropout(self, step: int, micro_step: int) -> None:
        if self.config.model.dropout:
            key = (self.config.seed, step, micro_step, self.accelerator.process_index)
            torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))

    def _check_finite(self, losses: torch.Tensor, norm: float, windows: list[MicroBatch]) -> None:
        """Raise NonFiniteLossError on all ranks if a micro-batch's loss or the gradient is not finite on any of them.

        In fp16 a gradient that overflows is part of the game: the loss scale is lowered, and the step left out.
        """
        finite = torch.isfinite(losses)
        bad_gradient = self.config.training.precision != "fp16" and not math.isfinite(norm)
        found = torch.stack([(~finite).sum(), torch.tensor(bad_gradient, device=finite.device)])
        bad_losses, bad_gradients = self.accelerator.reduce(found, "sum").tolist()
        if not (bad_losses or bad_gradients):
            return
        if not bad_losses:
            finite = torch.zeros_like(finite)  # the gradient is of all windows together
        concerned = [window.sample_id for window, fine in zip(windows, finite.tolist(), strict=True) if not fine]
        own = [sample for samples in concerned for sample in samples.tolist() if sample >= 0]
        samples = sorted(gather_object(own))
        raise NonFiniteLossError(
            f"the {'loss' if bad_losses else 'gradient'} is not finite at step {self.progress.step + 1}; the "
            f"micro-batches concerned hold the training windows {samples}. Lower optimizer.learning_rate, or look at "
            f"these windows; the newest checkpoint in {self.folder / 'checkpoints'} is from before"
        )

    def _flops(self, masked: list[MaskedBatch]) -> int:
        config = self.accelerator.unwrap_model(self.model).bert.config
        return sum(encoder_flops(config, *m.input_ids.shape) for m in masked)

    def _after_step(self, display: Display) -> None:
        step, config = self.progress.step, self.config
        last = step == config.training.steps
        if step % config.tracking.log_every == 0 or last:
            self._log_training(display)
        evaluated = step % config.evaluation.every == 0 or last
        if evaluated:
            self._evaluate(display)
        if not last:
            self._advance_curriculum(evaluated, display)
        if evaluated:
            self.tracker.perplexity_curve(
                self.progress.evaluations, self.controller.switches, self.controller.unigram_perplexity
            )
        if step in config.checkpoint.milestones or last:
            self._export(step)
        if step % config.checkpoint.every == 0 or last:
            self._save(display)

    def _log_training(self, display: Display) -> None:
        bert = self.accelerator.unwrap_model(self.model).bert.config
        totals = self._window.reduce(self.accelerator)
        self.progress.flops += totals.encoder_flops + head_flops(bert, totals.masked_tokens)
        metrics = totals.metrics()
        self._tick()
        metrics["curriculum/stage"] = self.controller.index
        metrics["usage/petaflop"] = self.progress.flops / 1e15
        metrics["usage/device_hours"] = self.progress.seconds * self.accelerator.num_processes / 3600
        self.tracker.metrics(self.progress.step, metrics)
        display.training(self.progress.step, metrics, self.controller.stage.name)

    def _evaluate(self, display: Display) -> None:
        """Score the model under the fixed maskings and under the current stage's, which is what the trigger reads."""
        maskings = fixed_maskings(self.config.evaluation.rate)
        own = self.controller.stage.masking
        same = next((name for name, masking in maskings.items() if masking == own), None)
        scores = self.validation.score(self.model, maskings if same else {**maskings, "stage": own})
        if same:
            scores["stage"] = scores[same]
        perplexity = {name: score.perplexity for name, score in scores.items()}
        stage = self.controller.stage.name
        self.progress.evaluations.append({"step": self.progress.step, "stage": stage, "perplexity": perplexity})
        if not math.isfinite(perplexity["stage"]):
            raise NonFiniteLossError(
                f"the validation perplexity under stage '{stage}' is {perplexity['stage']} after step "
                f"{self.progress.step}: the run has diverged, or the stage masks no token of the validation windows"
            )
        self.controller.observe(perplexity["stage"])
        metrics = {f"ppl/{name}": value for name, value in perplexity.items()}
        for name, score in scores.items():
            metrics[f"ppl_vs_unigram/{name}"] = score.perplexity / score.unigram_perplexity
        self.tracker.metrics(self.progress.step, {k: v for k, v in metrics.items() if math.isfinite(v)})
        display.evaluation(self.progress.step, perplexity, stage)

    def _advance_curriculum(self, evaluated: bool, display: Display) -> None:
        switch = self.controller.advance(self.progress.step, evaluated)
        if switch is None:
            return
        display.line(
            f"rank {self.accelerator.process_index}: stage '{switch.to_stage}' masks from step {switch.step + 1} on",
            every_rank=True,
        )
        self.tracker.switch(len(self.controller.switches), switch)
        self.tracker.metrics(self.progress.step, {"curriculum/stage": self.controller.index})

    def _export(self, step: int) -> None:
        folder = checkpoint.step_folder(self.folder / "models", step)
        checkpoint.export_model(self.accelerator, self.model, self.windows.k, folder)
        if step == self.config.training.steps:
            self.tracker.model(folder)

    def _save(self, display: Display) -> None:
        if self._window.steps:  # the checkpoint's totals cover all of its steps
            self._log_training(display)
        self._tick()
        state = checkpoint.RunState(
            identity=self.identity,
            mlflow_run=self.tracker.run_id,
            progress=asdict(self.progress),
            curriculum=self.controller.state_dict(),
        )
        parent = self.folder / "checkpoints"
        checkpoint.save_checkpoint(self.accelerator, checkpoint.step_folder(parent, self.progress.step), state)
        checkpoint.drop_old_checkpoints(self.accelerator, parent, self.config.checkpoint.keep)

    def _tick(self) -> None:
        now = time.perf_counter()
        self.progress.seconds += now - self._clock
        self._clock = now
