"""A Hugging Face sequence classifier for a task, with its encoder: pretrained, or the same with random weights."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

from cmgems.downstream.inputs import Encoder, make_encoder
from cmgems.errors import UserError
from cmgems.model.bert import LOADING_ERRORS

# Parts of a classifier that a language model does not bring with it.
_HEAD = ("classifier", "score", "pooler", "pre_classifier", "classification_head")

# Settings in a model's config.json that say nothing about what it computes.
_NOT_ARCHITECTURE = ("architectures", "dtype", "torch_dtype", "transformers_version")


@dataclass(frozen=True)
class Source:
    """Where a classifier comes from."""

    model: str
    """Folder, or name on the Hugging Face hub."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""
    random_weights: bool = False
    """Take its architecture and tokenizer only."""
    max_tokens: int | None = None
    """Longest input in tokens, special tokens not counted; None: what the model takes."""

    def check(self) -> None:
        """Raise UserError where there is no such model, or it is not one for DNA."""
        load_encoder(self)


def load_encoder(source: Source) -> Encoder:
    """Return how the model takes sequences.

    Raises
    ------
    UserError
        If there is no such model, or it is not one for DNA.
    """
    config, tokenizer = _config(source), _tokenizer(source)
    try:
        return make_encoder(tokenizer, config, source.model, source.max_tokens)
    except UserError:
        # A tokenizer that says nothing about case may turn everything into lower case, and then knows no k-mer.
        if getattr(tokenizer, "do_lower_case", False):
            return make_encoder(_tokenizer(source, do_lower_case=False), config, source.model, source.max_tokens)
        raise


def load_classifier(source: Source, classes: int, dropout: float | None, seed: int) -> Any:
    """Return the model with a new head for `classes` classes, or one for a value, in float32.

    `seed` draws all weights that are new. `dropout` replaces the model's own on hidden states, where it has such a
    setting.

    Raises
    ------
    UserError
        If weights of the model itself are missing.
    """
    config = _config(source)
    config.num_labels = classes
    if dropout is not None and hasattr(config, "hidden_dropout_prob"):
        config.hidden_dropout_prob = dropout
    torch.manual_seed(seed)
    transformers_logging.set_verbosity_error()  # its warning about new weights is checked below instead
    transformers_logging.disable_progress_bar()
    if source.random_weights:
        with _user_error(source):
            return AutoModelForSequenceClassification.from_config(
                config, trust_remote_code=source.trust_remote_code, dtype=torch.float32
            )
    with _user_error(source):
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            source.model,
            config=config,
            trust_remote_code=source.trust_remote_code,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    new = [*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])]
    missing = sorted(key for key in new if not any(part in _HEAD for part in key.split(".")))
    if not new:
        raise UserError(
            f"model {source.model} is a classifier that was fine-tuned already, and would be scored with its own head: "
            "give the model that it was made from"
        )
    if missing:
        raise UserError(f"model {source.model}: weights are missing, or of another shape: {', '.join(missing)}")
    return model


def digest(source: Source) -> str:
    """Return the fingerprint of the weights, or of the architecture alone where they are random."""
    folder = Path(source.model)
    if not folder.is_dir():
        config = _config(source)
        return f"{source.model}@{getattr(config, '_commit_hash', None)}" + (", random" * source.random_weights)
    return architecture_digest(source) if source.random_weights else _files_digest(folder)


def architecture_digest(source: Source) -> str:
    """Return the fingerprint of the architecture and the vocabulary; not of weights, their precision, or where they
    are."""
    settings = _config(source).to_dict()
    settings = {k: v for k, v in settings.items() if not k.startswith("_") and k not in _NOT_ARCHITECTURE}
    text = json.dumps([settings, load_encoder(source).tokenizer.get_vocab()], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _files_digest(folder: Path) -> str:
    """SHA-256 of what makes the model, all files but those that describe it."""
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith(".") and path.suffix != ".md":
            with path.open("rb") as file:
                total.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def _config(source: Source) -> Any:
    with _user_error(source):
        config = AutoConfig.from_pretrained(source.model, trust_remote_code=source.trust_remote_code)
    # With a type that transformers knows (DNABERT-2 says `bert`), it would take its own, another architecture.
    if getattr(config, "auto_map", None) and not source.trust_remote_code:
        raise _code_of_its_own(source)
    return config


def _tokenizer(source: Source, **settings: Any) -> Any:
    with _user_error(source):
        return AutoTokenizer.from_pretrained(source.model, trust_remote_code=source.trust_remote_code, **settings)


@contextmanager
def _user_error(source: Source) -> Iterator[None]:
    """Turn what transformers says about a model that cannot be had into a UserError."""
    try:
        yield
    except LOADING_ERRORS as error:
        if "trust_remote_code" in str(error):
            raise _code_of_its_own(source) from error
        raise UserError(f"model {source.model} cannot be loaded: {error}") from error


def _code_of_its_own(source: Source) -> UserError:
    return UserError(
        f"model {source.model} brings code of its own, which would run here: look at it, and give "
        "--trust_remote_code if you trust it"
    )
