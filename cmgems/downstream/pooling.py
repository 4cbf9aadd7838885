"""A classifier on the mean of a model's last hidden states.

BERT's own classifier reads [CLS] alone. A model that was pretrained by masked tokens and nothing else has never been
asked to put anything there, and a short fine-tuning does not teach it: what pretraining has brought to the tokens is
then lost.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from cmgems.errors import UserError
from cmgems.inference.encoder import Encoder

HEAD = "head.safetensors"
"""File of the linear layer, beside the saved encoder."""


class MeanPooledClassifier(nn.Module):
    """The encoder of a classifier with dropout and a linear layer on the mean of its last hidden states
    over a sequence's own tokens: neither special ones nor padding."""

    def __init__(self, classifier: Any, encoder: Encoder, name: str) -> None:
        """Draw the linear layer from torch's generator, in the state in which `load_classifier` leaves it.

        `name` is what errors call the model.

        Raises
        ------
        UserError
            If it has no encoder apart from its classifier.
        """
        super().__init__()
        self.config = config = classifier.config
        self.encoder = classifier.base_model
        if self.encoder is classifier:
            raise UserError(f"model {name} has no encoder of its own that could be pooled: leave out pooling mean")
        if hasattr(self.encoder, "pooler"):
            self.encoder.pooler = None  # it is not used, and would only be saved
        self.dropout = nn.Dropout(getattr(config, "hidden_dropout_prob", 0.0))
        self.head = nn.Linear(config.hidden_size, config.num_labels)
        nn.init.normal_(self.head.weight, std=getattr(config, "initializer_range", 0.02))
        nn.init.zeros_(self.head.bias)
        self._own_tokens = encoder.own_tokens

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SequenceClassifierOutput:
        """Logits [B, classes] of inputs [B, T]."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
        weights = self._own_tokens(attention_mask).to(hidden.dtype)[:, :, None]
        mean = (hidden * weights).sum(dim=1) / weights.sum(dim=1)
        return SequenceClassifierOutput(logits=self.head(self.dropout(mean)))

    def save_pretrained(self, folder: Path) -> None:
        """Write the encoder, for AutoModel, and the linear layer (`weight` [classes, hidden] and `bias`) beside it."""
        self.encoder.save_pretrained(folder)
        save_file({name: tensor.contiguous() for name, tensor in self.head.state_dict().items()}, folder / HEAD)
