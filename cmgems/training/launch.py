"""Starts Accelerate, and makes sure that the run is what it was launched as.

Several invalid launches do not fail by themselves: processes that do not see each other train copies of the same
model, and a DeepSpeed config can be passed over without a word. Here each of them ends the run with the remedy.
"""

import argparse
import os
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import psutil
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import (
    DistributedType,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    broadcast,
    broadcast_object_list,
)

from cmgems.config.schema import LaunchConfig, PretrainConfig
from cmgems.data.order import BatchPlan
from cmgems.errors import CmgemsError, UserError
from cmgems.model.cpu import keep_freed_memory
from cmgems.runtime.process import is_launched, local_world_size, world_size

T = TypeVar("T")

_DEEPSPEED_CONFIG = "ACCELERATE_DEEPSPEED_CONFIG_FILE"


def start_accelerator(config: PretrainConfig) -> tuple[Accelerator, BatchPlan]:
    """Return the Accelerator of this process, and how the global batch is laid over the processes.

    Raises
    ------
    UserError
        If processes share a GPU or do not see each other, the device lacks the precision, or the launch is not what the
        recipe requires.
    """
    on_gpu = torch.cuda.is_available() and not _asked_for("ACCELERATE_USE_CPU")
    # DeepSpeed calls collectives by names that torch is about to rename: nothing a user could act on.
    warnings.filterwarnings("ignore", category=FutureWarning, message=r"`torch\.distributed")
    if not on_gpu:
        keep_freed_memory()
    several = is_launched()
    if launched_with_deepspeed():
        find_deepspeed_config(psutil.Process().parent())
        if not on_gpu:
            _skip_shared_memory_op()
    check_devices(config.training.precision, on_gpu)
    handlers = []
    if several:
        # Without gloo, DeepSpeed on a machine without GPUs leaves each process alone.
        timeout = timedelta(seconds=config.launch.timeout)
        handlers.append(InitProcessGroupKwargs(backend="nccl" if on_gpu else "gloo", timeout=timeout))
    accelerator = Accelerator(
        # Processes without GPUs find each other only with `cpu`; with DeepSpeed, it turns DeepSpeed off.
        cpu=several and not on_gpu and not launched_with_deepspeed(),
        mixed_precision={"fp32": "no"}.get(config.training.precision, config.training.precision),
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=1, sync_with_dataloader=False, adjust_scheduler=False
        ),
        kwargs_handlers=handlers,
    )
    check_launch(accelerator, config.launch)
    plan = BatchPlan(config.training.global_batch, accelerator.num_processes, config.training.micro_batch)
    accelerator.gradient_accumulation_steps = plan.accumulation
    return accelerator, plan


def on_main_process(accelerator: Accelerator, function: Callable[[], T]) -> T:
    """Return on all processes what a function returns on rank 0, or raise there the CmgemsError that it raises;
    collective. One that rank 0 alone raises would be followed by a message of each process that has lost it."""
    outcome: list[T | CmgemsError | None] = [None]
    if accelerator.is_main_process:
        try:
            outcome = [function()]
        except CmgemsError as error:
            outcome = [error]
    broadcast_object_list(outcome)
    if isinstance(outcome[0], CmgemsError):
        raise outcome[0]
    return cast(T, outcome[0])


def check_devices(precision: str, on_gpu: bool) -> None:
    """Raise UserError if processes of this machine would share a GPU, or if the device lacks the precision."""
    processes = local_world_size()
    if on_gpu and processes > torch.cuda.device_count():
        raise UserError(
            f"{processes} processes on a machine with {torch.cuda.device_count()} GPU(s): each "
            "needs one of its own; launch fewer, or hide the GPUs with CUDA_VISIBLE_DEVICES= to run on the CPU"
        )
    if precision == "fp16" and not on_gpu:
        raise UserError("training.precision fp16 needs a GPU; on the CPU take --training.precision bf16 or fp32")
    if precision == "bf16" and on_gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name()
        raise UserError(f"training.precision bf16: a {name} has none; take --training.precision fp16 or fp32")


def launched_with_deepspeed() -> bool:
    """Return whether the launcher was asked for DeepSpeed."""
    return _asked_for("ACCELERATE_USE_DEEPSPEED")


def check_launch(accelerator: Accelerator, wanted: LaunchConfig) -> None:
    """Raise UserError where the run is not what the launcher was asked for, or not what the recipe requires."""
    processes = world_size()
    kind = distribution(accelerator)
    asked = launcher_settings(psutil.Process().parent())
    if processes != accelerator.num_processes:
        raise UserError(
            f"{processes} processes were launched, but each is on its own (distributed type "
            f"{accelerator.distributed_type.value}). Launch with a config file from deepspeed_configs/"
        )
    if (launched_with_deepspeed() or asked.get("distributed_type") == "DEEPSPEED") and kind != "deepspeed":
        raise UserError(
            "DeepSpeed was asked for, but Accelerate runs without it. On a machine without GPUs, `--cpu` and "
            "ACCELERATE_USE_CPU turn DeepSpeed off: leave them out, and keep `use_cpu: false` in the config file"
        )
    if asked.get("num_processes", processes) != processes:
        raise UserError(
            f"accelerate launch was asked to start {asked['num_processes']} processes, but has started {processes}: "
            "leave out options such as `--cpu`, which pass over its config file"
        )
    if wanted.distributed is not None and wanted.distributed != kind:
        raise UserError(f"launch.distributed asks for {wanted.distributed}, but this run was launched with {kind}")
    if wanted.zero_stage is not None and wanted.zero_stage != zero_stage(accelerator):
        raise UserError(
            f"launch.zero_stage asks for ZeRO stage {wanted.zero_stage}, "
            f"but this run was launched with {zero_stage(accelerator)}"
        )
    if wanted.processes is not None and wanted.processes != accelerator.num_processes:
        raise UserError(f"launch.processes asks for {wanted.processes}, but there are {accelerator.num_processes}")


def launcher_settings(launcher: psutil.Process | None) -> dict[str, Any]:
    """`distributed_type` and `num_processes` that `accelerate launch` got on its command line, or in the config file
    that is named there; empty if the process is another program.

    The launcher does not always pass them on: some options make it forget its config file.
    """
    asked = _launcher_options(launcher)
    settings = yaml.safe_load(asked.config_file.read_text()) if asked.config_file else {}
    found = {name: settings[name] for name in ("distributed_type", "num_processes") if name in settings}
    return found if asked.num_processes is None else {**found, "num_processes": asked.num_processes}


def find_deepspeed_config(launcher: psutil.Process | None) -> None:
    """Make the path of the DeepSpeed config absolute, where the launcher's config file names one that is not in the
    current folder: it may stand beside that config file, or under the folder above.

    Raises
    ------
    UserError
        If there is no such file.
    """
    named = Path(os.environ.get(_DEEPSPEED_CONFIG, "none"))
    if str(named) == "none" or named.is_file():
        return
    config_file = _launcher_options(launcher).config_file
    folder = config_file.absolute().parent if config_file else Path.cwd()
    found = next((path for path in (folder / named.name, folder.parent / named) if path.is_file()), None)
    if found is None:
        beside = f", nor beside {config_file}" if config_file else ""
        raise UserError(f"deepspeed_config_file {named}: there is no such file in {Path.cwd()}{beside}")
    os.environ[_DEEPSPEED_CONFIG] = str(found)


def _launcher_options(launcher: psutil.Process | None) -> argparse.Namespace:
    """Return `config_file` and `num_processes` on the command line of `accelerate launch`; None for what is not there.

    Raises
    ------
    UserError
        If the config file's name is empty, which Accelerate takes for none.
    """
    try:
        command = launcher.cmdline() if launcher else []
    except psutil.Error:
        command = []
    is_accelerate = "launch" in command and any(Path(word).name.startswith("accelerate") for word in command)
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config_file", "--config-file")
    parser.add_argument("--num_processes", "--num-processes", type=int)
    asked, _ = parser.parse_known_args(command[command.index("launch") + 1 :] if is_accelerate else [])
    if asked.config_file == "":
        raise UserError("accelerate launch: the name after --config_file is empty")
    asked.config_file = Path(asked.config_file) if asked.config_file else None
    return asked


def distribution(accelerator: Accelerator) -> str:
    """`deepspeed`, `ddp` or `none`: what really runs."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return "deepspeed"
    return "none" if accelerator.distributed_type == DistributedType.NO else "ddp"


def zero_stage(accelerator: Accelerator) -> int | None:
    """ZeRO stage of the DeepSpeed config; None without DeepSpeed."""
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return None
    return int(accelerator.state.deepspeed_plugin.zero_stage)


def launched_as(accelerator: Accelerator) -> str:
    """Return the kind of distribution, which a checkpoint is bound to; DDP and a single process write the same."""
    stage = zero_stage(accelerator)
    return "without DeepSpeed" if stage is None else f"ZeRO-{stage}"


def broadcaster(accelerator: Accelerator) -> Callable[[int], int]:
    """Function that returns on every rank the integer that rank 0 passes to it; collective."""

    def from_rank_0(value: int) -> int:
        tensor = torch.tensor([value], dtype=torch.int64, device=accelerator.device)
        return int(broadcast(tensor, from_process=0))

    return from_rank_0


def describe_kind(accelerator: Accelerator) -> str:
    """Kind of distribution, ZeRO stage and offload, in words."""
    stage = zero_stage(accelerator)
    return f"{distribution(accelerator)}{'' if stage is None else f' ZeRO-{stage}'}{_offloaded(accelerator)}"


def describe(accelerator: Accelerator, plan: BatchPlan, model: torch.nn.Module) -> str:
    """Return one line for the log: what the run runs under."""
    parts = [
        f"{describe_kind(accelerator)}, {accelerator.num_processes} process(es) ({type(model).__name__})",
        f"device {accelerator.device}",
        f"precision {accelerator.mixed_precision}",
        f"global batch {plan.global_batch} = {accelerator.num_processes} x {plan.micro_batch} windows "
        f"x {plan.accumulation} micro-step(s)",
    ]
    return ", ".join(parts)


def _offloaded(accelerator: Accelerator) -> str:
    if distribution(accelerator) != "deepspeed":
        return ""
    zero = accelerator.state.deepspeed_plugin.deepspeed_config.get("zero_optimization", {})
    kinds = [kind for kind in ("optimizer", "param") if offload_device(zero, kind) != "none"]
    return f" with {' and '.join(kinds)} offload" if kinds else ""


def offload_device(zero: dict[str, Any], kind: str) -> str:
    """Device that DeepSpeed's `zero_optimization` block moves the `optimizer` or `param` to; `none` without offload."""
    return (zero.get(f"offload_{kind}") or {}).get("device") or "none"


def _asked_for(variable: str) -> bool:
    """Return whether an environment variable that launchers set says yes."""
    return os.environ.get(variable, "").lower() in ("1", "true", "yes")


def _skip_shared_memory_op() -> None:
    """Keep DeepSpeed from compiling an operator that training on CPU over gloo has no use for (about a minute)."""
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
