"""The training loop."""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from accelerate.utils import gather_object
from torch.utils.data import DataLoader

from cmgems.config.schema import PretrainConfig
from cmgems.curriculum.controller import Controller
from cmgems.data.loader import MicroBatch, TrainingRows, iterating, make_loader
from cmgems.errors import DisagreementError, DivergedError, Interrupted
from cmgems.masking.masker import MaskedBatch
from cmgems.model.bert import learning_rate, training_flops
from cmgems.runtime.signals import StopRequest, noting_signals
from cmgems.tracking.run import Tracker
from cmgems.training.baselines import fit_baselines, score_baselines
from cmgems.training.checkpoint import CheckpointWriter, RunState, step_folder
from cmgems.training.display import Display
from cmgems.training.engine import Engine
from cmgems.training.metrics import LogWindow, evaluation_metrics
from cmgems.training.run_folder import Run
from cmgems.training.setup import TrainingData, open_masker
from cmgems.training.validation import Validation, fixed_maskings
from cmgems.training.weights import export_model

PLATEAU_STEPS = 1000
PLATEAU_SHARE = 0.5
"""A run whose perplexities are all above this share of the k-mer frequencies' own after so many steps has learned
little else, and says so."""
PLATEAU_REMEDIES = {
    True: "a variant of the recipe has none: --config RECIPE+nucleotides (docs/training.md, Initial weights)",
    False: "try another optimizer.learning_rate, or a longer optimizer.warmup_steps",
}
"""What helps, by whether there is a variant of the recipe with other initial weights."""


@dataclass
class Trainer:
    """One process's part of a pretraining run: `train` takes it from where it is to the last step."""

    config: PretrainConfig
    engine: Engine
    data: TrainingData
    validation: Validation
    controller: Controller
    run: Run
    tracker: Tracker

    def __post_init__(self) -> None:
        self.accelerator, self.plan = self.engine.accelerator, self.engine.plan
        self.model, self.optimizer = self.engine.model, self.engine.optimizer
        self.progress = self.run.progress
        self.masker = open_masker(self.data, self.config, self.accelerator.device, self.config.seed)
        self._window = LogWindow(self.accelerator.device)
        self._clock = time.perf_counter()

    def train(self) -> None:
        """Train to the last step, evaluating, switching stages and saving on the way; collective.

        Raises
        ------
        Interrupted
            , with a checkpoint written, at the end of the step in which a signal reached any rank.
        """
        if self.progress.step == 0 and 0 in self.config.checkpoint.milestones:
            self._export(0)
        with (
            Display(self.config.training.steps, self.progress.step, self.accelerator.is_main_process) as display,
            iterating(self._loader()) as micro_batches,
            noting_signals() as request,
            self._checkpoint_writer() as writer,
        ):
            while self.progress.step < self.config.training.steps:
                stop = self._train_step(micro_batches, request)
                self._after_step(display, writer, stop)
            writer.wait()

    def _checkpoint_writer(self) -> CheckpointWriter:
        parent, timeout = self.run.folder / "checkpoints", self.config.launch.timeout
        return CheckpointWriter(self.accelerator, self.model, self.optimizer, parent, self.config.checkpoint, timeout)

    def _loader(self) -> DataLoader[Any]:
        rows = TrainingRows(
            self.plan,
            self.data.training.lengths,
            self.config.seed,
            self.accelerator.process_index,
            self.progress.step,
        )
        corpus = self.config.corpus
        return make_loader(
            self.data.training,
            rows,
            corpus.workers,
            corpus.prefetch,
            pin_memory=self.accelerator.device.type == "cuda",
            timeout=self.config.launch.timeout,
        )

    def _train_step(self, micro_batches: Iterator[MicroBatch], request: StopRequest) -> bool:
        """Return one optimizer step; whether any rank has been asked to stop."""
        started = time.perf_counter()
        step, config = self.progress.step, self.config
        windows = [next(micro_batches).to(self.accelerator.device) for _ in range(self.plan.accumulation)]
        masked = [self.masker(w.ids, w.epoch, w.sample_id, self.controller.stage.masking) for w in windows]
        # The loss of a global batch is the sum over its masked tokens divided by their number, on all ranks together.
        # Both DeepSpeed and Accelerate divide by processes and micro-steps, which are therefore multiplied in.
        counts = torch.stack([m.masked.sum() for m in masked])
        tokens = self.accelerator.reduce(counts.sum(), "sum")
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
        stop = self._compare_ranks(torch.stack(losses), norm, windows, request)
        self.progress.step += 1
        statistics = torch.stack([self.masker.statistics(batch) for batch in masked]).sum(0)
        seconds = time.perf_counter() - started
        self._window.add(statistics, torch.stack(losses).sum(), norm, rate, self._flops(masked, counts), seconds)
        return stop

    def _seed_dropout(self, step: int, micro_step: int) -> None:
        if self.config.model.dropout:
            key = (self.config.seed, step, micro_step, self.accelerator.process_index)
            torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))

    def _compare_ranks(
        self, losses: torch.Tensor, norm: float, windows: list[MicroBatch], request: StopRequest
    ) -> bool:
        """Tell all ranks how the step went on each; whether any has been asked to stop.

        Raises on all ranks DivergedError if a micro-batch's loss or the gradient is not finite on any of them
        (in fp16 a gradient that overflows is part of the game: the loss scale is lowered, and the step left out), and
        DisagreementError if not all of them have masked the step under the same stage.
        """
        finite = torch.isfinite(losses)
        # DeepSpeed gives -1 where it has found an overflow and left the step out.
        bad_gradient = self.config.training.precision != "fp16" and not 0 <= norm < math.inf
        stages = [index == self.controller.index for index in range(len(self.config.curriculum.stages))]
        own = [int((~finite).sum()), bad_gradient, request.received is not None, *stages]
        counts = self.accelerator.reduce(torch.tensor(own, dtype=torch.int64, device=finite.device), "sum").tolist()
        bad_losses, bad_gradients, stop, *processes_in_stage = counts
        if max(processes_in_stage) < self.accelerator.num_processes:
            self._raise_disagreement(processes_in_stage)
        if bad_losses or bad_gradients:
            self._raise_not_finite(finite, bool(bad_losses), windows)
        return bool(stop)

    def _raise_disagreement(self, processes_in_stage: list[int]) -> NoReturn:
        names = [stage.name for stage in self.config.curriculum.stages]
        found = ", ".join(f"{n} in '{name}'" for name, n in zip(names, processes_in_stage, strict=True) if n)
        raise DisagreementError(
            f"the processes have masked step {self.progress.step + 1} under different stages: {found}. The run stops; "
            f"the newest checkpoint in {self.run.folder / 'checkpoints'} is from before"
        )

    def _raise_not_finite(self, finite: torch.Tensor, is_loss: bool, windows: list[MicroBatch]) -> NoReturn:
        if not is_loss:
            finite = torch.zeros_like(finite)  # the gradient is of all windows together
        concerned = [window.sample_id for window, fine in zip(windows, finite.tolist(), strict=True) if not fine]
        own = [sample for samples in concerned for sample in samples.tolist() if sample >= 0]
        samples = sorted(gather_object(own))
        raise DivergedError(
            f"the {'loss' if is_loss else 'gradient'} is not finite at step {self.progress.step + 1}; the "
            f"micro-batches concerned hold the training windows {samples}. Lower optimizer.learning_rate, or look at "
            f"these windows; the newest checkpoint in {self.run.folder / 'checkpoints'} is from before"
        )

    def _flops(self, masked: list[MaskedBatch], counts: torch.Tensor) -> float:
        config = self.accelerator.unwrap_model(self.model).bert.config
        return sum(
            training_flops(config, len(batch.masked), batch.masked.shape[1], count)
            for batch, count in zip(masked, counts.tolist(), strict=True)
        )

    def _after_step(self, display: Display, writer: CheckpointWriter, stop: bool) -> None:
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
            self.tracker.validation_picture(
                self.progress.evaluations,
                self.controller.switches,
                self.controller.unigram_perplexity,
                self.progress.baselines,
            )
        milestone = step in config.checkpoint.milestones
        if milestone or last:
            self._export(step)
        if step % config.checkpoint.every == 0 or milestone or last or stop:
            self._save(display, writer)
        if stop and not last:
            writer.wait()
            raise Interrupted(
                f"stopped by a signal after step {step}; the checkpoint of this step is in {writer.parent}: "
                "start again with --resume auto to continue"
            )

    def _log_training(self, display: Display) -> None:
        totals = self._window.reduce(self.accelerator)
        self.progress.flops += totals.flops
        metrics = totals.metrics()
        self._tick()
        metrics["curriculum/stage"] = self.controller.index
        metrics["usage/petaflop"] = self.progress.flops / 1e15
        metrics["usage/device_hours"] = self.progress.device_seconds / 3600
        self.tracker.metrics(self.progress.step, metrics)
        display.training(self.progress.step, metrics, self.controller.stage.name)

    def _evaluate(self, display: Display) -> None:
        """Score the model under the fixed maskings and under the current stage's, which is what the trigger reads."""
        maskings = fixed_maskings(self.config.evaluation.rate)
        if not self.progress.baselines:
            display.line("fitting Markov chains to the training split, once, as baselines of the hidden bases")
            self.progress.baselines = score_baselines(self.validation, fit_baselines(self.data.training), maskings)
        own = self.controller.stage.masking
        same = next((name for name, masking in maskings.items() if masking == own), None)
        scores = self.validation.score(self.model, maskings if same else {**maskings, "stage": own}, bases=maskings)
        fixed = {name: scores[name] for name in maskings}
        if same:
            scores["stage"] = scores[same]
        perplexity = {name: score.perplexity for name, score in scores.items()}
        bits = {name: score.bits for name, score in fixed.items()}
        accuracy = {name: score.accuracy for name, score in fixed.items()}
        codons = {kind.format(name): value for name, score in fixed.items() for kind, value in score.codons.items()}
        step, stage = self.progress.step, self.controller.stage.name
        found = {"step": step, "stage": stage, "perplexity": perplexity, "bits": bits, "accuracy": accuracy}
        self.progress.evaluations.append(found | ({"codons": codons} if codons else {}))
        if not math.isfinite(perplexity["stage"]):
            raise DivergedError(
                f"the validation perplexity under stage '{stage}' is {perplexity['stage']} after step "
                f"{step}: the run has diverged, or the stage masks no token of the validation windows"
            )
        self.controller.observe(perplexity["stage"])
        metrics = evaluation_metrics(scores, fixed, self.progress.baselines)
        self.tracker.metrics(step, {k: v for k, v in metrics.items() if math.isfinite(v)})
        display.evaluation(self.progress.evaluations[-1], self.progress.baselines)
        share = min(score.perplexity / score.unigram_perplexity for score in scores.values())
        overlap = self.data.corpus.tokens.overlaps  # tokens that share no bases have no such plateau
        if overlap and step >= PLATEAU_STEPS and share > PLATEAU_SHARE:
            model = self.config.model
            has_variant = model.embedding_init == "normal" and model.init_from is None
            display.plateau(step, share, PLATEAU_REMEDIES[has_variant])

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
        folder = step_folder(self.run.folder / "models", step)
        export_model(self.accelerator, self.model, self.data.corpus.tokens, folder)
        if step == self.config.training.steps:
            self.tracker.model(folder)

    def _save(self, display: Display, writer: CheckpointWriter) -> None:
        if self._window.steps:  # the checkpoint's totals cover all of its steps
            self._log_training(display)
        self._tick()
        state = RunState(
            identity=self.run.identity,
            environment=self.run.environment,
            processes=self.plan.processes,
            micro_batch=self.plan.micro_batch,
            mlflow_run=self.tracker.run_id,
            progress=asdict(self.progress),
            curriculum=self.controller.state_dict(),
        )
        writer.save(self.progress.step, state)

    def _tick(self) -> None:
        now = time.perf_counter()
        self.progress.seconds += now - self._clock
        self.progress.device_seconds += (now - self._clock) * self.accelerator.num_processes
        self._clock = now
