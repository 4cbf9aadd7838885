"""Checkpoints are read without running code that stands in them.

A file of torch's is a pickle. DeepSpeed has torch read its own with all that pickles can do, which is to run any code;
here torch reads plain weights only, whatever it was asked for.
"""

import os
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from cmgems.errors import UserError

_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""torch's variable that overrides `weights_only=False` in every call of torch.load."""
_DO_NOT = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


@contextmanager
def plain_weights_only(folder: Path, with_deepspeed: bool) -> Iterator[None]:
    """Have torch read plain weights only, with what DeepSpeed adds to them where it has written them.

    Raises
    ------
    UserError
        If a file of the checkpoint in `folder` holds anything else.
    """
    before = {name: os.environ.pop(name, None) for name in (_FORCE, _DO_NOT)}
    os.environ[_FORCE] = "1"
    try:
        with torch.serialization.safe_globals(deepspeed_classes() if with_deepspeed else []):
            yield
    except pickle.UnpicklingError as error:
        raise refusal(folder, str(error)) from None
    finally:
        del os.environ[_FORCE]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def deepspeed_classes() -> list[Any]:
    """Return the classes in DeepSpeed's checkpoints: they hold numbers, and do nothing when they are made."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]


def is_refusal(message: str) -> bool:
    """Return whether a process that has printed `message` ended since a file holds more than plain weights."""
    return "UnpicklingError" in message


def refusal(folder: Path, message: str) -> UserError:
    """Return the error for a checkpoint of which torch has said `message`; of that what was found is shown, and not how
    to have the code run."""
    found = re.search(r"[Uu]nsupported (?:global|GLOBAL|operand|class)[:\s]+(?:GLOBAL )?[\w.]+", message)
    return UserError(
        f"{folder} is not read: a file of this checkpoint holds more than weights, which could be code"
        + (f" ({found[0]})" if found else "")
    )
