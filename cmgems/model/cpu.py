"""Faster training on CPUs: memory, linear layers, dropout. Nothing here touches a run on GPUs."""

import ctypes
import os

from transformers import PreTrainedModel

from cmgems.model.dropout import use_dropout
from cmgems.model.linear import use_linear

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h


def optimize_for_cpu(model: PreTrainedModel) -> None:
    """Let a model on the CPU compute its linear layers by oneDNN, and draw its dropout by a faster generator.

    Parameters keep their names, and what the model is saved as is the same.
    """
    if model.config.hidden_dropout_prob or model.config.attention_probs_dropout_prob:
        use_dropout(model)
    use_linear(model)


def prepare_cpu_memory() -> None:
    """Let torch ask Linux for pages of 2 MB for large tensors on the CPU, and keep the code of few matrix products;
    before the first tensor.

    Activations come and go with every operation, and the system clears and maps their pages each time again: with pages
    of 4 KB that takes about a tenth of a training step of LOGO.

    oneDNN writes code for every shape it multiplies, a fourth of a megabyte each, of which it keeps 1,024 and torch as
    many again. Windows of all lengths give a hundred shapes a step that hardly ever come back, and their code, left
    between the activations, breaks up the memory that these leave behind. 128 are those of one micro-batch.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
    os.environ.setdefault("LRU_CACHE_CAPACITY", "1")  # torch's own, for the same


def keep_freed_memory() -> None:
    """Make this process keep the memory of tensors that are gone for those to come, where the C library is glibc.

    On the CPU activations come and go with every operation, and glibc gives each large one back to the system, which
    clears its pages for the next one: a tenth of a training step of LOGO. Costs up to as much memory again, as sizes
    differ.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)  # the largest there is
