"""Where a model comes from, a folder or the Hugging Face hub: its configuration, tokenizer and fingerprint."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from cmgems.errors import UserError
from cmgems.inference.encoder import Encoder, make_encoder
from cmgems.model.bert import LOADING_ERRORS

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
    config, tokenizer = read_config(source), _tokenizer(source)
    try:
        return make_encoder(tokenizer, config, source.model, source.max_tokens)
    except UserError:
        # A tokenizer that says nothing about case may turn everything into lower case, and then knows no k-mer.
        if getattr(tokenizer, "do_lower_case", False):
            return make_encoder(_tokenizer(source, do_lower_case=False), config, source.model, source.max_tokens)
        raise


def digest(source: Source) -> str:
    """Return the fingerprint of the weights, or of the architecture alone where they are random."""
    folder = Path(source.model)
    if not folder.is_dir():
        config = read_config(source)
        return f"{source.model}@{getattr(config, '_commit_hash', None)}" + (", random" * source.random_weights)
    return architecture_digest(source) if source.random_weights else _files_digest(folder)


def architecture_digest(source: Source) -> str:
    """Return the fingerprint of the architecture and the vocabulary; not of weights, their precision, or where they
    are."""
    settings = read_config(source).to_dict()
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


def read_config(source: Source) -> Any:
    """Return the configuration.

    Raises
    ------
    UserError
        If there is none, or the model brings code of its own that is not trusted.
    """
    with loading_errors(source):
        config = AutoConfig.from_pretrained(source.model, trust_remote_code=source.trust_remote_code)
    # With a type that transformers knows (DNABERT-2 says `bert`), it would take its own, another architecture.
    if getattr(config, "auto_map", None) and not source.trust_remote_code:
        raise _code_of_its_own(source)
    return config


def _tokenizer(source: Source, **settings: Any) -> Any:
    with loading_errors(source):
        return AutoTokenizer.from_pretrained(source.model, trust_remote_code=source.trust_remote_code, **settings)


@contextmanager
def loading_errors(source: Source) -> Iterator[None]:
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
