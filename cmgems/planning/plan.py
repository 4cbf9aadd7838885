"""What a recipe costs on a number of GPUs of one kind: a pure function of the recipe and the kind's datasheet."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import BertConfig

from cmgems.config.command_line import load_config
from cmgems.config.recipes import read_named_recipe
from cmgems.config.schema import PretrainConfig
from cmgems.data.order import BatchPlan
from cmgems.errors import UserError
from cmgems.model.bert import bert_config, repeatable_flops, training_flops
from cmgems.planning.activations import Arithmetic, activations
from cmgems.planning.gpus import GpuKind, find_gpu
from cmgems.planning.launches import LAUNCHES, Launch, ModelSize, Place, buffers, model_size, model_states, sent_bytes
from cmgems.planning.windows import Windows, full_width, mask_rate, read_windows, widths

STEPS = (1_000, 10_000, 120_000)
"""Lengths of a run, in optimizer steps, that the papers compare: CM-GEMS at 1,000 and 10,000, DNABERT at 120,000."""

UTILISATION = 0.3
"""Default share of a GPU's peak that training sustains: between the 0.21 (GPT-3) and 0.46 (PaLM) that Chowdhery et al.
2022, "PaLM", table 3, give for large models. DeepSpeed reports 0.52 for BERT with kernels of its own on V100
(deepspeed.ai, "The Fastest and Most Efficient BERT Training through Optimized Transformer Kernels", 2020). An
assumption for the models here: narrow ones such as LOGO, whose products are small, can be expected to stay below."""

USABLE_SHARE = 0.9
"""Share of a GPU's memory that is planned with; the rest is for what the allocator cannot use, being in pieces. An
assumption, the same as vLLM's (`gpu_memory_utilization`)."""

CONTEXT_BYTES = 1_300_000_000
"""What CUDA's kernels occupy before any tensor is there (transformers 4.49 documentation, "Model training anatomy")."""

NO_CORPUS = "(none)"
"""Stands for `corpus.path` where neither the recipe nor its overrides name one."""


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """One way to launch the run. Memory in bytes, at the recipe's micro-batch of full windows."""

    name: str
    """File of deepspeed_configs/, without its ending."""
    model_states: int
    """Weights, gradients and optimizer on a GPU."""
    buffers: int
    """What a GPU holds to send and receive."""
    activations: int
    """Peak of a micro-batch's activations on a GPU."""
    memory: int
    """All of these together."""
    fits: bool
    """Whether they fit into the GPU."""
    largest_micro_batch: int
    """The largest `training.micro_batch` that fits; no larger than a GPU's part of the global batch. 0: none."""
    node_memory: int
    """Memory of a node for what is offloaded, or for loading the model, as DeepSpeed estimates it."""
    sent_per_step: int
    """Bytes that each GPU sends in an optimizer step."""
    seconds_to_send: float
    """Time for that at the full bandwidth between GPUs of a machine; between machines it takes longer."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will cost."""

    recipe: str
    """Name of the run in the recipe."""
    gpu: str
    """GPU kind."""
    gpu_kind: dict[str, Any]
    """Its datasheet."""
    gpus: int
    """GPUs on all nodes together, one process each."""
    nodes: int
    """Machines."""
    precision: str
    """`training.precision`."""
    windows: Windows
    """Lengths of the windows."""
    mean_width: float
    """Tokens of a row of a micro-batch, padding included, on average."""
    mask_rate: float
    """Share of the tokens that are masked, in the stage that masks most."""
    parameters: int
    """Of the model, head included."""
    global_batch: int
    """Windows an optimizer step."""
    micro_batch: int
    """Windows a GPU computes at once."""
    micro_steps: int
    """Micro-batches of a GPU an optimizer step."""
    flops_per_step: float
    """Model operations of an optimizer step on all GPUs, as `usage/petaflop` counts them."""
    executed_flops_per_step: float
    """The same with the operations that activation checkpointing repeats."""
    utilisation: float
    """Share of the peak that is assumed."""
    seconds_per_step: float
    """Of training alone: evaluations, checkpoints and waiting for the network come on top."""
    steps: int
    """`training.steps`."""
    hours: dict[int, float]
    """Hours of training alone, by optimizer steps."""
    usable_memory: int
    """Bytes of a GPU's memory that are planned with."""
    launches: list[LaunchPlan]
    """The ways to launch it."""


def read_plan_recipe(recipe: str, overrides: list[str]) -> PretrainConfig:
    """Return a recipe with its overrides, as cmgems/pretrain.py reads it, but that it need not name a corpus."""
    arguments = ["--config", recipe, *overrides]
    named = "path" in (read_named_recipe(recipe).get("corpus") or {})
    if not named and not any(argument.split("=")[0] == "--corpus.path" for argument in overrides):
        arguments += ["--corpus.path", NO_CORPUS]
    return load_config(arguments, program="cmgems plan RECIPE")


def make_plan(config: PretrainConfig, gpu: str, gpus: int, nodes: int = 1, utilisation: float = UTILISATION) -> Plan:
    """Return the plan of a recipe on `gpus` GPUs of kind `gpu`, on `nodes` machines.

    Raises
    ------
    UserError
        If there is no such kind of GPU, if the nodes do not divide the GPUs, or if the windows do not fit the model.
    """
    if gpus % nodes:
        raise UserError(f"--gpus {gpus}: not a multiple of --nodes {nodes}; it is the number on all nodes together")
    name, kind = find_gpu(gpu)
    peak = _peak_flops(config, name, kind)
    windows = read_windows(config.corpus, config.model)
    job = _Job(
        config=config,
        kind=kind,
        place=Place(gpus, nodes),
        windows=windows,
        mask_rate=mask_rate(config.curriculum.stages, windows),
        bert=bert_config(config.model, windows.tokens),
        batch=BatchPlan(config.training.global_batch, gpus, config.training.micro_batch),
    )
    size = model_size(job.bert)
    of_ranks = [job.flops(rank) for rank in range(gpus)]
    flops, repeated = (sum(part) for part in zip(*of_ranks, strict=True))
    seconds = sum(of_ranks[0]) / (peak * utilisation)  # all wait for the first rank, which has the longest windows
    return Plan(
        recipe=config.name,
        gpu=name,
        gpu_kind=kind.model_dump(),
        gpus=gpus,
        nodes=nodes,
        precision=config.training.precision,
        windows=windows,
        mean_width=job.mean_width(),
        mask_rate=job.mask_rate,
        parameters=size.parameters,
        global_batch=job.batch.global_batch,
        micro_batch=job.batch.micro_batch,
        micro_steps=job.batch.accumulation,
        flops_per_step=flops,
        executed_flops_per_step=flops + repeated,
        utilisation=utilisation,
        seconds_per_step=seconds,
        steps=config.training.steps,
        hours={steps: steps * seconds / 3600 for steps in sorted({*STEPS, config.training.steps})},
        usable_memory=job.usable_memory(),
        launches=[job.launched(launch, size) for launch in LAUNCHES],
    )


def _peak_flops(config: PretrainConfig, name: str, kind: GpuKind) -> float:
    precision = config.training.precision
    tflops: float | None = getattr(kind.tflops, precision)
    if tflops is None:
        raise UserError(f"training.precision {precision}: {name} has none; plan with --training.precision fp16")
    return tflops * 1e12


@dataclass(frozen=True, slots=True)
class _Job:
    """A recipe on its GPUs, before it is known how it is launched."""

    config: PretrainConfig
    kind: GpuKind
    place: Place
    windows: Windows
    mask_rate: float
    bert: BertConfig
    batch: BatchPlan

    def widths(self, rank: int) -> list[int]:
        """Widths of a rank's micro-batches."""
        return widths(self.windows, self.batch, rank, self.config.model.max_positions)

    def mean_width(self) -> float:
        """Mean width over all micro-batches that have windows."""
        found = [width for rank in range(self.place.gpus) for width in self.widths(rank) if width]
        return sum(found) / len(found)

    def flops(self, rank: int) -> tuple[float, float]:
        """Model operations of an optimizer step on one GPU, for rows that fill gaps, too; and those that activation
        checkpointing repeats."""
        once, repeated, rows = 0.0, 0.0, self.batch.micro_batch
        for micro_step, width in enumerate(self.widths(rank)):
            windows = int((self.batch.slots(micro_step, rank) >= 0).sum())
            once += training_flops(self.bert, rows, width, self.mask_rate * self.windows.mean * windows)
            repeated += repeatable_flops(self.bert, rows, width)
        return once, repeated if self.config.model.activation_checkpointing else 0.0

    def usable_memory(self) -> int:
        """Return the bytes of a GPU's memory that are planned with."""
        return round(USABLE_SHARE * self.kind.memory_gb * 1e9) - CONTEXT_BYTES

    def launched(self, launch: Launch, size: ModelSize) -> LaunchPlan:
        """Return the plan of one launch."""
        precision, batch = self.config.training.precision, self.batch
        states, node_memory = model_states(launch, size, precision, self.place)
        fixed = states + buffers(launch, size, precision, self.place)
        peak = self._activation_peak(launch, batch.micro_batch)
        usable = self.usable_memory()
        most = -(-batch.global_batch // self.place.gpus)
        sent = sent_bytes(launch, size, precision, self.place.gpus, batch.accumulation)
        return LaunchPlan(
            name=launch.name,
            model_states=states,
            buffers=fixed - states,
            activations=peak,
            memory=fixed + peak,
            fits=fixed + peak <= usable,
            largest_micro_batch=_largest(most, lambda rows: fixed + self._activation_peak(launch, rows) <= usable),
            node_memory=node_memory,
            sent_per_step=sent,
            seconds_to_send=sent / (self.kind.interconnect_gbs / 2 * 1e9),
        )

    def _activation_peak(self, launch: Launch, rows: int) -> int:
        """Return the bytes on a GPU for a micro-batch of `rows` full windows."""
        precision, model = self.config.training.precision, self.config.model
        arithmetic: Arithmetic = "fp32" if precision == "fp32" else "autocast" if launch.stage is None else "16-bit"
        width = full_width(self.windows, model.max_positions)
        masked = round(self.mask_rate * rows * self.windows.full)
        return activations(self.bert, rows, width, masked, arithmetic, model.activation_checkpointing).peak


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """Return the largest of 0..most that fits, if all below one that fits do, by bisection; 0 always fits."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
