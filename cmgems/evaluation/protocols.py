"""How a model is scored on a task. Each protocol has results of its own, which are never in one table with others."""

from dataclasses import dataclass
from typing import Literal

Pooling = Literal["model", "mean"]
ProtocolName = Literal["fine-tuning", "tuned", "probe"]


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
    "scores highest on the validation split, or for what is classified: the mean of the last hidden states instead of "
    "[CLS]. The random weights are fine-tuned in the same way. Published scores are not, and do not compare.",
)
PROBE = Protocol(
    name="probe",
    suffix="-probe",
    title="probed",
    about="Probing: the model stays frozen, and a regularised logistic regression is fitted to the means of its hidden "
    "states over a sequence's tokens. Seeds are bootstraps of the training rows. Published scores are of fine-tuned "
    "models, and do not compare.",
)

PROTOCOLS: dict[ProtocolName, Protocol] = {protocol.name: protocol for protocol in (FINE_TUNING, TUNED, PROBE)}
