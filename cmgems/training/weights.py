"""Weights of model and optimizer under DDP and every ZeRO stage: saved, loaded, exported for transformers."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors import SafetensorError
from transformers import BertForMaskedLM
from transformers.utils.logging import disable_progress_bar

from cmgems.data.tokenization import Tokenization
from cmgems.data.tokenizer import save_tokenizer
from cmgems.errors import UserError
from cmgems.runtime.files import apply_umask, atomic_folder, remove_leftovers
from cmgems.training.plain_weights import plain_weights_only

DEEPSPEED_TAG = "deepspeed"
WEIGHTS_FILE = "weights.pt"


def load_weights(accelerator: Accelerator, model: Any, optimizer: Any, folder: Path) -> None:
    """Load model and optimizer from what `CheckpointWriter` wrote, or its universal format; collective.

    Learning rate, weight decay and the like stay as the recipe has them.

    Raises
    ------
    UserError
        If a file that this process reads holds more than weights, which could be code.
    RuntimeError
        If DeepSpeed finds nothing to load.
    """
    settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        with plain_weights_only(folder, with_deepspeed=True):
            path, _ = model.load_checkpoint(str(folder), DEEPSPEED_TAG)
        if path is None:
            raise RuntimeError(f"DeepSpeed found nothing to load in {folder / DEEPSPEED_TAG}")
        _separate_step_counts(model.basic_optimizer)
    else:
        _load_without_deepspeed(accelerator, model, optimizer, folder)
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)


def _load_without_deepspeed(accelerator: Accelerator, model: Any, optimizer: Any, folder: Path) -> None:
    with plain_weights_only(folder, with_deepspeed=False):
        weights = torch.load(folder / WEIGHTS_FILE, map_location="cpu", weights_only=True)
    accelerator.unwrap_model(model).load_state_dict(weights["model"])
    optimizer.load_state_dict(weights["optimizer"])
    if accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(weights["scaler"])


def _separate_step_counts(optimizer: torch.optim.Optimizer) -> None:
    """Give each parameter a step count of its own.

    DeepSpeed 0.19.8 loads ZeRO-3's universal format with one tensor for all groups, which then counts every step once
    a group; it also gives all groups the first one's weight decay.
    """
    for state in optimizer.state.values():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"] = state["step"].clone()


def export_model(accelerator: Accelerator, model: Any, tokens: Tokenization, folder: Path) -> None:
    """Write model and tokenizer so that transformers' Auto classes load them, in float32; collective.

    Raises
    ------
    UserError
        If they cannot be written.
    """
    weights = _full_precision_weights(accelerator, model)
    if accelerator.is_main_process:
        bert = BertForMaskedLM(accelerator.unwrap_model(model).bert.config)
        bert.load_state_dict(weights)
        disable_progress_bar()
        remove_leftovers(folder.parent)
        try:
            with atomic_folder(folder, replace=True) as partial:
                bert.save_pretrained(partial)
                save_tokenizer(partial, tokens, bert.config.max_position_embeddings)
                apply_umask(partial)
        except (OSError, SafetensorError) as error:
            raise UserError(f"the model cannot be written to {folder}: {error}") from error
    accelerator.wait_for_everyone()


def save_weights(accelerator: Accelerator, model: Any, optimizer: Any, folder: Path) -> None:
    """Write what this rank has to save of model and optimizer; collective.

    Accelerate's own save_state would add random states, which nothing here needs, and bind the checkpoint to a number
    of processes. Without DeepSpeed every rank has all of it, and rank 0 writes.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        model.save_checkpoint(str(folder), DEEPSPEED_TAG)
    elif accelerator.is_main_process:
        weights = {
            "model": accelerator.unwrap_model(model).state_dict(),
            "optimizer": optimizer.state_dict(),
            "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
        }
        torch.save(weights, folder / WEIGHTS_FILE)


def state_bytes(model: torch.nn.Module) -> int:
    """Size of model and optimizer on all ranks together, at most: weights in float32 and 16 bit, and two moments."""
    return 14 * sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in model.parameters())


def _full_precision_weights(accelerator: Accelerator, model: Any) -> dict[str, torch.Tensor]:
    """Return the weights of the BERT inside `model`, float32 on the CPU: those that the optimizer steps; collective.

    In bf16 and fp16 DeepSpeed computes with rounded copies of them, and under ZeRO-3 each process holds a part only.
    """
    parameters = accelerator.unwrap_model(model).bert.named_parameters(remove_duplicate=False)
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        weights = dict(parameters)
    elif model.zero_optimization_stage() > 0:
        from deepspeed.utils import safe_get_full_fp32_param

        weights = {name: safe_get_full_fp32_param(parameter) for name, parameter in parameters}
    else:
        stepped = _stepped_without_zero(model.optimizer)
        weights = {name: stepped.get(id(parameter), parameter) for name, parameter in parameters}
    return {name: tensor.detach().float().cpu() for name, tensor in weights.items()}


def _stepped_without_zero(optimizer: Any) -> dict[int, torch.Tensor]:
    """Float32 weights that DeepSpeed steps under ZeRO-0 in bf16 and fp16, by the id of the rounded parameter."""
    groups = zip(getattr(optimizer, "fp16_groups", ()), getattr(optimizer, "fp32_groups", ()), strict=True)
    return {id(rounded): full for group in groups for rounded, full in zip(*group, strict=True)}
