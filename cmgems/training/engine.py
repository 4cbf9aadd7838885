"""Model and optimizer, wrapped for the launch: DeepSpeed's engine or torch's DDP, made to do what the recipe says."""

import logging
import os
import platform
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from accelerate import Accelerator
from filelock import FileLock

from cmgems.config.schema import PretrainConfig
from cmgems.data.order import BatchPlan
from cmgems.data.tokenization import Tokenization
from cmgems.errors import UserError
from cmgems.model.bert import build_model, build_optimizer
from cmgems.training.launch import describe, distribution, offload_device, zero_stage

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Engine:
    """Model and optimizer, wrapped for the launch, and how the work is divided."""

    accelerator: Accelerator
    plan: BatchPlan
    model: Any
    """Gives the negative log-likelihoods of `MaskedLanguageModel`."""
    optimizer: Any

    def describe(self) -> str:
        """Return a line for the log."""
        return describe(self.accelerator, self.plan, self.model)


def build_engine(
    config: PretrainConfig, accelerator: Accelerator, plan: BatchPlan, tokens: Tokenization, universal: bool = False
) -> Engine:
    """Build model and optimizer over `k`-mers, wrapped for the launch, and check what was launched; collective.

    `universal` says that a checkpoint in DeepSpeed's universal format will be loaded.

    Raises
    ------
    UserError
        If the model of `model.init_from` cannot be loaded, or the DeepSpeed config contradicts the recipe.
    """
    model = build_model(config.model, tokens, config.seed, accelerator.device)
    optimizer = build_optimizer(model, config.optimizer)
    with_deepspeed = distribution(accelerator) == "deepspeed"
    if with_deepspeed:
        deepspeed = accelerator.state.deepspeed_plugin.deepspeed_config
        _check_deepspeed_config(deepspeed)
        _fill_deepspeed_config(accelerator, config, plan)
        if universal:
            deepspeed["checkpoint"] = {**deepspeed.get("checkpoint", {}), "load_universal": True}
        if _wants_compiled_adam(deepspeed):
            _compile_adam(accelerator)
    prepared, wrapped = accelerator.prepare(model, optimizer)
    if with_deepspeed:
        _check_engine(accelerator, prepared)
        if prepared.zero_optimization_stage() == 0:
            _keep_gradient_norm(prepared)
    _set_timeouts(timedelta(seconds=config.launch.timeout))
    return Engine(accelerator, plan, prepared, wrapped)


def _check_deepspeed_config(deepspeed: dict[str, Any]) -> None:
    """Raise UserError where the launcher's DeepSpeed config says what the recipe has to say."""
    for block in ("optimizer", "scheduler"):
        if block in deepspeed:
            raise UserError(
                f"the DeepSpeed config has a block '{block}', but the recipe decides on it (settings optimizer.*): "
                "remove the block"
            )


def _check_engine(accelerator: Accelerator, model: Any) -> None:
    """Raise RuntimeError unless DeepSpeed's engine really has the world size and ZeRO stage of the launch."""
    found = (type(model).__name__, model.dp_world_size, model.zero_optimization_stage())
    expected = ("DeepSpeedEngine", accelerator.num_processes, zero_stage(accelerator))
    if found != expected:
        raise RuntimeError(f"DeepSpeed's engine, world size and ZeRO stage are {found}, not {expected}")


def _keep_gradient_norm(engine: Any) -> None:
    """Make DeepSpeed remember the gradient's norm where it clips without ZeRO and in fp32; elsewhere it does."""

    def clip() -> None:
        engine._global_grad_norm = torch.nn.utils.clip_grad_norm_(
            engine.module.parameters(), engine.gradient_clipping()
        )

    engine.clip_fp32_gradients = clip


def _set_timeouts(timeout: timedelta) -> None:
    """Bound the wait for a silent process in all groups: DeepSpeed makes its own, with a bound of half an hour."""
    if torch.distributed.is_initialized():
        for group in list(torch.distributed.distributed_c10d._world.pg_map):
            torch.distributed.distributed_c10d._set_pg_timeout(timeout, group)


def _wants_compiled_adam(deepspeed: dict[str, Any]) -> bool:
    """Return whether Accelerate is going to exchange the optimizer for DeepSpeed's, which is compiled on first use."""
    offload = offload_device(deepspeed.get("zero_optimization", {}), "optimizer")
    return offload != "none" and bool(deepspeed.get("zero_force_ds_cpu_optimizer", True))


def _compile_adam(accelerator: Accelerator) -> None:
    """Compile DeepSpeed's Adam on one process of each machine, while the others wait; collective.

    A compilation that was killed leaves a file `lock` behind, for which every later process waits without end. Nobody
    else compiles while our own lock is held, which ends with its process: what is found then can be removed.
    """
    from deepspeed.ops.op_builder import CPUAdamBuilder

    # For each machine, as the code is compiled for its processor.
    versions = f"{platform.node()}-python{platform.python_version()}-torch{torch.__version__}"
    default = Path("~/.cache/cmgems/torch_extensions").expanduser() / versions
    folder = Path(os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(default)))
    folder.mkdir(parents=True, exist_ok=True)
    with accelerator.local_main_process_first(), FileLock(folder / "cmgems.lock"):
        (folder / CPUAdamBuilder.NAME / "lock").unlink(missing_ok=True)
        try:
            CPUAdamBuilder().load(verbose=False)
        except (RuntimeError, OSError) as error:
            raise UserError(
                f"the DeepSpeed config asks for DeepSpeed's own Adam, which cannot be compiled here: {error}\n"
                'Put "zero_force_ds_cpu_optimizer": false into it to continue with torch\'s'
            ) from error


def _fill_deepspeed_config(accelerator: Accelerator, config: PretrainConfig, plan: BatchPlan) -> None:
    """Give DeepSpeed the recipe's batch and clipping; a launcher's own config is overridden with a warning."""
    deepspeed = accelerator.state.deepspeed_plugin.deepspeed_config
    settings = {
        "train_micro_batch_size_per_gpu": plan.micro_batch,
        "gradient_accumulation_steps": plan.accumulation,
        "gradient_clipping": config.optimizer.clip_norm,
    }
    deepspeed.pop("train_batch_size", None)  # the product of the others: Accelerate fills it in
    overridden = []
    for name, value in settings.items():
        if deepspeed.get(name, "auto") not in ("auto", 1, value):
            overridden.append(f"{name} {deepspeed[name]} is overridden by the recipe's {value}")
        deepspeed[name] = value
    for kind in ("bf16", "fp16"):
        wanted = config.training.precision == kind
        if deepspeed.get(kind, {}).get("enabled", wanted) not in ("auto", wanted):
            overridden.append(f"{kind} is overridden by the recipe's {config.training.precision}")
        deepspeed[kind] = {**deepspeed.get(kind, {}), "enabled": wanted}
    for problem in overridden if accelerator.is_local_main_process else ():
        logger.warning(f"DeepSpeed config: {problem}")
    deepspeed["steps_per_print"] = config.training.steps + 1  # our own log says more
