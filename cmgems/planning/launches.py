"""The ways a run can be launched, and what each of them keeps on a GPU and sends over the network.

"Weights" here are what the forward pass computes with: 2 bytes each in bf16 and fp16, 4 in fp32. AdamW keeps two
moments in fp32 of each parameter (8 bytes), and steps weights in fp32 (4 bytes).
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass

import torch
from transformers import BertConfig, BertForMaskedLM

BUCKET_PARAMETERS = 10_000_000
"""`reduce_bucket_size` in deepspeed_configs/: 20 MB in bf16, about as much as DDP sends at a time. DeepSpeed's default,
fifty times that, is for models far larger than these: its buckets do not shrink with the model."""
REDUCED_AT_ONCE = 500_000_000
"""Parameters in a bucket of ZeRO-0 at most (`MEMORY_OPT_ALLREDUCE_SIZE` in deepspeed/runtime/engine.py)."""
GATHERED_PARAMETERS = 1_000_000_000
"""DeepSpeed's defaults of `stage3_max_live_parameters` and `stage3_max_reuse_distance` (the same file): the weights of
a model below this number stay gathered from their first use in the forward pass to their last in the backward pass."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One file of deepspeed_configs/."""

    name: str
    """The file's name without its ending."""
    stage: int | None = None
    """ZeRO stage; None: torch's DDP, without DeepSpeed."""
    offload: bool = False
    """Whether the optimizer (ZeRO-3: and the weights) is in the machine's memory."""


LAUNCHES = (
    Launch("ddp"),
    Launch("zero0", 0),
    Launch("zero1", 1),
    Launch("zero2", 2),
    Launch("zero2_offload", 2, offload=True),
    Launch("zero3", 3),
    Launch("zero3_offload", 3, offload=True),
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run runs."""

    gpus: int
    """GPUs on all nodes together."""
    nodes: int
    """Machines; each has gpus / nodes GPUs."""


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Numbers of parameters; the vocabulary's matrix, which the head shares, counts once."""

    parameters: int
    """All."""
    matrices: int
    """Those in tensors of two dimensions: embeddings and projections."""
    largest_layer: int
    """Those of the module that has the most of its own."""


def model_size(bert: BertConfig) -> ModelSize:
    """Counted on the model itself, built without memory for its weights."""
    with torch.device("meta"):
        model = BertForMaskedLM(bert)
    parameters = list(model.parameters())
    return ModelSize(
        parameters=sum(p.numel() for p in parameters),
        matrices=sum(p.numel() for p in parameters if p.ndim > 1),
        largest_layer=max(sum(p.numel() for p in m.parameters(recurse=False)) for m in model.modules()),
    )


def weight_bytes(precision: str) -> int:
    """Return the bytes of a weight under DeepSpeed."""
    return 4 if precision == "fp32" else 2


def model_states(launch: Launch, size: ModelSize, precision: str, place: Place) -> tuple[int, int]:
    """Return the bytes of weights, gradients and optimizer on a GPU, and in the memory of a node.

    ZeRO-2 and ZeRO-3 are DeepSpeed's own estimates (`estimate_zero2_model_states_mem_needs` and
    `estimate_zero3_model_states_mem_needs`), which are for 16-bit weights; in fp32 the two bytes more of each weight
    and each gradient are added. ZeRO-0 and ZeRO-1 count what the ZeRO-2 estimate counts, in its terms: 2 (weights) + 2
    (gradients) + 4 (gradients in fp32) + 4 (weights in fp32) + 8 (moments) bytes a parameter. DDP keeps weights,
    gradients and moments in fp32, and the 16-bit copies of its matrices that autocast makes. ZeRO-0 and DDP in fp32
    step the weights themselves: 4 + 4 + 8. (Rajbhandari et al. 2020, "ZeRO", section 3.1, has the same sums without the
    gradients in fp32.)
    """
    parameters, weight = size.parameters, weight_bytes(precision)
    more = weight - 2
    match launch.stage:
        case None:
            return 16 * parameters + (2 * size.matrices if precision != "fp32" else 0), 0
        case 0:
            return (16 if precision == "fp32" else 20) * parameters, 0
        case 1:
            return 2 * weight * parameters + 16 * parameters // place.gpus, 0
        case 2:
            host, gpu = _deepspeed_zero2(parameters, place, launch.offload)
            return gpu + more * parameters + (0 if launch.offload else more * parameters // place.gpus), host
    host, gpu = _deepspeed_zero3(size, place, launch.offload)
    gpu += 2 * more * size.largest_layer + (0 if launch.offload else more * parameters // place.gpus)
    return gpu, host + (more * parameters // place.nodes if launch.offload else 0)


@contextmanager
def _deepspeed_silent() -> Iterator[None]:
    """On being imported DeepSpeed warns of a machine without GPUs, which is where plans are made."""
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        logging.disable(logging.NOTSET)


def _deepspeed_zero2(parameters: int, place: Place, offload: bool) -> tuple[int, int]:
    with _deepspeed_silent():
        from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    host, gpu = estimate_zero2_model_states_mem_needs(
        parameters, num_gpus_per_node=place.gpus // place.nodes, num_nodes=place.nodes, cpu_offload=offload
    )
    return host, gpu


def _deepspeed_zero3(size: ModelSize, place: Place, offload: bool) -> tuple[int, int]:
    with _deepspeed_silent():
        from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs

    host, gpu, _ = estimate_zero3_model_states_mem_needs(
        size.parameters,
        size.largest_layer,
        num_gpus_per_node=place.gpus // place.nodes,
        num_nodes=place.nodes,
        cpu_offload=offload,
        cpu_offload_params=offload,
        zero_init=False,  # as deepspeed_configs/ has it
    )
    return host, gpu


def buffers(launch: Launch, size: ModelSize, precision: str, place: Place) -> int:
    """Return the bytes on a GPU for what is being sent, beside the model states.

    DDP holds the gradients a second time, in buckets (torch.nn.parallel.DistributedDataParallel,
    `gradient_as_bucket_view=False`). DeepSpeed's ZeRO-1 and ZeRO-2 take two buckets of `reduce_bucket_size` each, as
    deepspeed_configs/ sets `overlap_comm` (`setup_buckets` in deepspeed/runtime/zero/stage_1_and_2.py), ZeRO-3 takes
    one (stage3.py): whatever the model's size. ZeRO-0 copies the gradients into a bucket no larger than they are. Under
    ZeRO-3 come the gathered weights, but for the one layer that DeepSpeed's estimate of the model states has already.
    """
    weight = weight_bytes(precision)
    match launch.stage:
        case None:
            return 4 * size.parameters if place.gpus > 1 else 0
        case 0:
            return weight * min(size.parameters, REDUCED_AT_ONCE) if place.gpus > 1 else 0
        case 1 | 2:
            return 2 * weight * BUCKET_PARAMETERS
    gathered = min(size.parameters, GATHERED_PARAMETERS) - size.largest_layer
    return weight * (BUCKET_PARAMETERS + gathered)


def sent_bytes(launch: Launch, size: ModelSize, precision: str, gpus: int, micro_steps: int) -> int:
    """Return the bytes that each GPU sends in an optimizer step of `micro_steps` micro-batches.

    A ring of n GPUs sends 2 (n-1)/n of the data for an all-reduce, (n-1)/n for a reduce-scatter or an all-gather
    (nccl-tests, doc/PERFORMANCE.md). DDP and ZeRO-0 reduce the gradients once a step. ZeRO-1 does, too, and gathers the
    stepped weights; ZeRO-2 reduces them after each micro-batch. Both reduce by all-reduce: so does DeepSpeed where
    `use_multi_rank_bucket_allreduce` is on, its default; the ZeRO paper (section 7.2) counts half of that. ZeRO-3
    gathers the weights for each micro-batch, once if they stay gathered between forward and backward pass and twice
    otherwise, and reduce-scatters the gradients.
    """
    weights = weight_bytes(precision) * size.parameters
    match launch.stage:
        case None:
            volume = 2 * 4 * size.parameters
        case 0:
            volume = 2 * weights
        case 1:
            volume = 2 * weights + weights
        case 2:
            volume = 2 * weights * micro_steps + weights
        case _:
            gathers = 1 if size.parameters <= GATHERED_PARAMETERS else 2
            volume = (gathers + 1) * weights * micro_steps
    return volume * (gpus - 1) // gpus
