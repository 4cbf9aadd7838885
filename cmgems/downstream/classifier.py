"""A Hugging Face sequence classifier for a task: pretrained, or the same with random weights."""

from typing import Any

import torch
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging

from cmgems.errors import UserError
from cmgems.inference.source import Source, loading_errors, read_config

# Parts of a classifier that a language model does not bring with it.
_HEAD = ("classifier", "score", "pooler", "pre_classifier", "classification_head")


def load_classifier(source: Source, classes: int, dropout: float | None, seed: int) -> Any:
    """Return the model with a new head for `classes` classes, or one for a value, in float32.

    `seed` draws all weights that are new. `dropout` replaces the model's own on hidden states, where it has such a
    setting.

    Raises
    ------
    UserError
        If weights of the model itself are missing.
    """
    config = read_config(source)
    config.num_labels = classes
    if dropout is not None and hasattr(config, "hidden_dropout_prob"):
        config.hidden_dropout_prob = dropout
    torch.manual_seed(seed)
    transformers_logging.set_verbosity_error()  # its warning about new weights is checked below instead
    transformers_logging.disable_progress_bar()
    if source.random_weights:
        with loading_errors(source):
            return AutoModelForSequenceClassification.from_config(
                config, trust_remote_code=source.trust_remote_code, dtype=torch.float32
            )
    with loading_errors(source):
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
