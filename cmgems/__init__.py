"""Curriculum-masked pretraining of DNA language models (CM-GEMS)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from cmgems.api import evaluate, load, train
    from cmgems.curriculum.controller import Controller
    from cmgems.data.corpus import load_corpus
    from cmgems.data.tokenizer import build_tokenizer
    from cmgems.masking.collator import MaskingCollator
    from cmgems.masking.masker import Masker
    from cmgems.masking.npmi import NpmiTable

__all__ = [
    "Controller",
    "Masker",
    "MaskingCollator",
    "NpmiTable",
    "build_tokenizer",
    "evaluate",
    "load",
    "load_corpus",
    "train",
]

_HOMES = {
    "Controller": "curriculum.controller",
    "Masker": "masking.masker",
    "MaskingCollator": "masking.collator",
    "NpmiTable": "masking.npmi",
    "build_tokenizer": "data.tokenizer",
    "evaluate": "api",
    "load": "api",
    "load_corpus": "data.corpus",
    "train": "api",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch takes seconds, which `--help` need not wait for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
