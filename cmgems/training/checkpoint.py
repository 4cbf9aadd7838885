"""Checkpoints to resume from, and models to use: folders that exist completely or not at all.

Each is written into a folder beside its place, `NAME.partial`, and renamed when all ranks are done.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from transformers import BertForMaskedLM
from transformers.utils.logging import disable_progress_bar

from cmgems.errors import UserError
from cmgems.sequence.tokenizer import save_tokenizer

STATE_FILE = "cmgems.json"


def step_folder(parent: Path, step: int) -> Path:
    """Folder of a checkpoint or an exported model; names sort by step."""
    return parent / f"step-{step:08d}"


@dataclass(frozen=True, slots=True)
class RunState:
    """What a checkpoint holds beside the weights and the optimizer; JSON values."""

    identity: dict[str, Any]
    """What a run that resumes from it must have in common with the one that wrote it."""
    mlflow_run: str | None
    """Id of the MLflow run to go on with."""
    progress: dict[str, Any]
    """Steps, time and operations so far, and all evaluations."""
    curriculum: dict[str, Any]
    """State of the curriculum controller."""


def save_checkpoint(accelerator: Accelerator, folder: Path, state: RunState) -> None:
    """Save model, optimizer and run state; collective."""
    with _complete_or_absent(accelerator, folder) as partial:
        # Pickled: Accelerate's safetensors drop one of two tied weights, and then miss it at load.
        accelerator.save_state(str(partial), safe_serialization=False)
        if accelerator.is_main_process:
            (partial / STATE_FILE).write_text(json.dumps(asdict(state), indent=1))


def read_state(folder: Path) -> RunState:
    """The run state that a checkpoint was saved with."""
    try:
        return RunState(**json.loads((folder / STATE_FILE).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder} is not a checkpoint: {error}") from None


def checkpoints(parent: Path) -> list[Path]:
    """Complete checkpoints in a folder, oldest first."""
    return sorted(path.parent for path in parent.glob(f"step-*[0-9]/{STATE_FILE}"))


def drop_old_checkpoints(accelerator: Accelerator, parent: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints."""
    if accelerator.is_main_process:
        for folder in checkpoints(parent)[:-keep]:
            _remove(folder)


def export_model(accelerator: Accelerator, model: torch.nn.Module, k: int, folder: Path) -> None:
    """Write model and tokenizer so that transformers' Auto classes load them, in float32; collective."""
    with _complete_or_absent(accelerator, folder) as partial:
        weights = _full_precision_weights(accelerator, model)
        if accelerator.is_main_process:
            bert = BertForMaskedLM(accelerator.unwrap_model(model).bert.config)
            bert.load_state_dict(weights)
            disable_progress_bar()
            bert.save_pretrained(partial)
            save_tokenizer(partial, k, bert.config.max_position_embeddings)


def _full_precision_weights(accelerator: Accelerator, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights of the BERT inside `model`, float32 on the CPU: those that the optimizer steps; collective.

    In bf16 and fp16 DeepSpeed computes with rounded copies of them, and under ZeRO-3 each process holds a part only.
    """
    parameters = accelerator.unwrap_model(model).bert.named_parameters(remove_duplicate=False)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from deepspeed.utils import safe_get_full_fp32_param

        weights = {name: safe_get_full_fp32_param(parameter) for name, parameter in parameters}
    else:
        weights = dict(parameters)
    return {name: tensor.detach().float().cpu() for name, tensor in weights.items()}


@contextmanager
def _complete_or_absent(accelerator: Accelerator, folder: Path) -> Iterator[Path]:
    """A folder for all ranks to write into, which takes its place when all are done."""
    partial = folder.with_name(folder.name + ".partial")
    if accelerator.is_main_process:
        for leftover in folder.parent.glob("*.partial"):  # of a run that was killed while it wrote or removed
            shutil.rmtree(leftover)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    yield partial
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if folder.exists():
            _remove(folder)
        partial.rename(folder)
    accelerator.wait_for_everyone()


def _remove(folder: Path) -> None:
    """Remove a complete folder, which must not look complete while it is half removed."""
    shutil.rmtree(folder.rename(folder.with_name(f"{folder.name}.removed.partial")))
