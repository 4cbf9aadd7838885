"""How a model is scored on a task. Each protocol has results of its own, which are never in one table with others."""

from dataclasses import dataclass
from typing import Literal

Pooling = Literal["model", "mean"]
ProtocolName = Literal["fine-tuning", "tuned", "pooled", "pooled-tuned", "probe"]


@dataclass(frozen=True)
class Protocol:
    """A way to score a model."""

    name: ProtocolName
    suffix: str
    """What it adds to the suite's name, in folders and metrics."""
    title: str
    """What the report calls it beside the suite's name."""
    about: str
    """What the report says about it."""


FINE_TUNING = Protocol(
    name="fine-tuning",
    suffix="",
    title="",
    about="Fine-tuning: all weights are trained by the task's recipe, with a new head.",
)
TUNED = Protocol(
    name="tuned",
    suffix="-tuned",
    title="fine-tuned to fit the model",
    about="Fine-tuning by the task's recipe but for the learning rate, of which each model and seed has the one that "
    "scores highest on the validation split. The random weights are fine-tuned in the same way. Published scores are "
    "not, and do not compare.",
)
POOLED = Protocol(
    name="pooled",
    suffix="-pooled",
    title="fine-tuned with another pooling",
    about="Fine-tuning by the task's recipe but for what is classified: as --pooling says, the mean of the last hidden "
    "states, or what the model's own classifier reads ([CLS] in BERT). The random weights are fine-tuned in the same "
    "way. Published scores are not, and do not compare.",
)
POOLED_TUNED = Protocol(
    name="pooled-tuned",
    suffix="-pooled-tuned",
    title="fine-tuned with another pooling, to fit the model",
    about="Fine-tuning by the task's recipe but for what is classified, as --pooling says, and for the learning rate, "
    "of which each model and seed has the one that scores highest on the validation split. The random weights are "
    "fine-tuned in the same way. Published scores are not, and do not compare.",
)
PROBE = Protocol(
    name="probe",
    suffix="-probe",
    title="probed",
    about="Probing: the model stays frozen, and a regularised logistic regression, of a value a ridge regression, is "
    "fitted to the means of its hidden states over a sequence's tokens. Seeds are bootstraps of the training rows. "
    "Published scores are of fine-tuned models, and do not compare.",
)

PROTOCOLS: dict[ProtocolName, Protocol] = {
    protocol.name: protocol for protocol in (FINE_TUNING, TUNED, POOLED, POOLED_TUNED, PROBE)
}
