"""The BERT encoder with its masked-language-model head, its optimizer, and what a step of it costs."""

import json
import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForMaskedLM
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.bert.modeling_bert import BertCrossAttention, BertLayer
from transformers.utils import cached_file

from cmgems.config.schema import ModelConfig, OptimizerConfig
from cmgems.data.tokenization import Tokenization
from cmgems.data.tokenizer import PAD, vocabulary_size
from cmgems.errors import UserError
from cmgems.masking.tokens import places
from cmgems.model.cpu import optimize_for_cpu
from cmgems.model.initialization import initialize

LOADING_ERRORS = (
    *(OSError, ValueError, KeyError, ImportError, SafetensorError),
    pickle.UnpicklingError,  # torch reads plain weights only, and nothing that would run code
    *(StrictDataclassError, TypeError, AttributeError, ArithmeticError, RuntimeError),  # nonsense in the JSON files
)
"""What transformers raises where a model cannot be had."""


class MaskedLanguageModel(nn.Module):
    """BERT that computes for the masked tokens only what no other token needs: the last layer, but for its keys and
    values, and the head, a projection onto the whole vocabulary."""

    def __init__(self, bert: BertForMaskedLM) -> None:
        super().__init__()
        self.bert = bert

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        masked: torch.Tensor,
        labels: torch.Tensor,
        return_logits: bool = False,
    ) -> torch.Tensor:
        """Negative log-likelihood in nats, float32 [M], of the M masked tokens; all inputs are [B, T].

        With `return_logits` instead of it the logits of these tokens, [M, 5 + 4^k].
        """
        tokens = _MaskedTokens.of(masked)
        model = self.bert.bert
        hidden = model.embeddings(input_ids=input_ids)
        seen = create_bidirectional_mask(config=model.config, inputs_embeds=hidden, attention_mask=attention_mask)
        *layers, last = model.encoder.layer
        for layer in layers:
            hidden = layer(hidden, seen)
        logits: torch.Tensor = self.bert.cls(_last_layer(last, hidden, seen, tokens))
        if return_logits:
            return logits
        nll: torch.Tensor = cross_entropy(logits.float(), labels.take(tokens.place), reduction="none")
        return nll


@dataclass(frozen=True, slots=True)
class _MaskedTokens:
    """Where the M masked tokens of a batch [B, T] are."""

    place: torch.Tensor
    """int64 [M], among all tokens [B * T]."""
    slot: torch.Tensor
    """int64 [M], among those of a table [B * most] with a line for each row."""
    most: int
    """Masked tokens of the row that has most of them, 1 at least."""

    @classmethod
    def of(cls, masked: torch.Tensor) -> "_MaskedTokens":
        """Waits for the device twice; before the model has started, as else it would have to wait for that."""
        place = places(masked)
        row = place // masked.shape[1]
        number = masked.sum(dim=1)
        most = max(1, int(number.max()))
        before = (number.cumsum(dim=0) - number)[row]
        return cls(place, row * most + torch.arange(len(row), device=row.device) - before, most)


def _last_layer(
    layer: BertLayer, hidden: torch.Tensor, seen: torch.Tensor | None, tokens: _MaskedTokens
) -> torch.Tensor:
    """Return what a layer makes of the masked tokens [M, H], from the hidden states of all [B, T, H]."""
    rows, _, size = hidden.shape
    # A row with fewer tokens than the table is wide has some token in the rest of its line, which is left out again.
    place = tokens.place.new_zeros(rows * tokens.most).scatter(0, tokens.slot, tokens.place)
    own = hidden.flatten(0, 1).index_select(0, place).view(rows, tokens.most, size)
    attention = layer.attention
    context, _ = BertCrossAttention.forward(
        attention.self,
        own,
        encoder_hidden_states=hidden,
        attention_mask=None if seen is None else seen[:, :, : tokens.most],  # for each token the same
    )
    chosen, context = (states.flatten(0, 1).index_select(0, tokens.slot) for states in (own, context))
    found: torch.Tensor = layer.feed_forward_chunk(attention.output(context, chosen))
    return found


def bert_config(config: ModelConfig, tokens: Tokenization) -> BertConfig:
    """Architecture in the terms of transformers; the vocabulary is that of overlapping k-mers."""
    return BertConfig(
        vocab_size=vocabulary_size(tokens.k),
        hidden_size=config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.intermediate,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout,
        max_position_embeddings=config.max_positions,
        initializer_range=config.initializer_range,
        pad_token_id=PAD,
    )


def build_model(
    config: ModelConfig,
    tokens: Tokenization,
    seed: int,
    device: torch.device = torch.device("cpu"),  # noqa: B008  # immutable
) -> MaskedLanguageModel:
    """Return the model with random weights drawn from `seed`, or those of `model.init_from`; `device` will have it.

    Raises
    ------
    UserError
        If the model of `model.init_from` cannot be loaded, or lacks weights.
    """
    torch.manual_seed(seed)
    if config.init_from:
        bert = _pretrained(config)
    else:
        bert = BertForMaskedLM(bert_config(config, tokens))
        initialize(bert, config, tokens, seed)
    if device.type == "cpu":
        optimize_for_cpu(bert)
    if config.activation_checkpointing:
        bert.activation_checkpointing_enable({"use_reentrant": False})
    return MaskedLanguageModel(bert)


def _pretrained(config: ModelConfig) -> BertForMaskedLM:
    """Return the model of `model.init_from`; UserError unless all of its weights are there."""
    try:
        bert, loading = BertForMaskedLM.from_pretrained(
            config.init_from,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except LOADING_ERRORS as error:
        raise UserError(f"model.init_from {config.init_from}: no weights that can be read: {error}") from None
    if loading["missing_keys"]:
        missing = ", ".join(sorted(loading["missing_keys"]))
        raise UserError(f"model.init_from {config.init_from}: weights are missing, it is not a masked LM: {missing}")
    return bert


def check_init_from(config: ModelConfig, tokens: Tokenization) -> None:
    """Raise UserError unless the model of `model.init_from` is a BERT of the recipe's architecture over k-mers.

    Reads the model's config.json only, not its weights.
    """
    if not config.init_from:
        return
    try:
        file = cached_file(config.init_from, "config.json")
        found = json.loads(Path(str(file)).read_text())
        if not isinstance(found, dict):
            raise ValueError("it is not a mapping")
    except (OSError, ValueError) as error:
        hint = " (a run's models are in its folder models/)" if "checkpoints" in Path(config.init_from).parts else ""
        raise UserError(f"model.init_from {config.init_from}: no readable config.json{hint}: {error}") from None
    wanted = bert_config(config, tokens)
    names = {
        "vocab_size": f"the vocabulary of {tokens.k}-mers",
        "hidden_size": "model.hidden",
        "num_hidden_layers": "model.layers",
        "num_attention_heads": "model.heads",
        "intermediate_size": "model.intermediate",
        "max_position_embeddings": "model.max_positions",
    }
    differences = [
        f"{key} is {found.get(key)}, {setting} asks for {getattr(wanted, key)}"
        for key, setting in names.items()
        if found.get(key) != getattr(wanted, key)
    ]
    if found.get("model_type") != "bert":
        differences.insert(0, f"model_type is {found.get('model_type')}, not bert")
    if differences:
        raise UserError(f"model.init_from {config.init_from} does not fit the recipe: {'; '.join(differences)}")


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW without weight decay on biases and LayerNorm (all parameters of one dimension)."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.eps)


def learning_rate(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """Learning rate of optimizer step `step` (counted from 0): linear warm-up, then linear decay to zero.

    A function of the step alone: the same for any number of processes, before and after a resume.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    return config.learning_rate * (total_steps - step) / (total_steps - config.warmup_steps)


def training_flops(config: BertConfig, rows: int, width: int, masked: float) -> float:
    """Floating-point operations of a training step on `rows` windows of `width` tokens, padding included, of which
    `masked` are masked.

    Matrix products only, two operations a multiply-add, the backward pass counted as twice the forward (Kaplan et al.
    2020, "Scaling Laws for Neural Language Models", section 2.1). Recomputed activations do not count.
    """
    hidden = int(config.hidden_size)
    head = 2 * (hidden * hidden + hidden * int(config.vocab_size)) * masked
    last = _layer_flops(config, rows * width, width, masked)
    return 3 * (repeatable_flops(config, rows, width) + last + head)


def repeatable_flops(config: BertConfig, rows: int, width: int) -> float:
    """Return those of a forward pass through the layers that `model.activation_checkpointing` computes once more: all
    but the last."""
    tokens, layers = rows * width, int(config.num_hidden_layers) - 1
    return layers * _layer_flops(config, tokens, width, tokens)


def _layer_flops(config: BertConfig, tokens: int, width: int, computed: float) -> float:
    """Return those of a layer's forward pass: keys and values of all tokens, and the rest of `computed` ones."""
    hidden, inner = int(config.hidden_size), int(config.intermediate_size)
    projections = 2 * (2 * hidden * hidden + 2 * hidden * inner)
    attention = 2 * 2 * hidden * width
    return 2 * 2 * hidden * hidden * tokens + (projections + attention) * computed
