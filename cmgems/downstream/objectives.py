"""What a fine-tuning minimises, and what its outputs say: of classes, or of a value."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import cross_entropy, mse_loss

from cmgems.downstream.scores import Estimates, Predictions, probabilities


@dataclass(frozen=True)
class Classification:
    """Cross-entropy of classes; an output for each."""

    best_by = "mcc"
    """Metric of the validation split that chooses the weights."""

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Sum over the rows of a batch; outputs [B, classes], labels [B]."""
        return cross_entropy(outputs, labels, reduction="sum")

    def predictions(self, outputs: npt.NDArray[Any], labels: npt.NDArray[Any]) -> Predictions:
        """Outputs [rows, classes] as probabilities, with the true labels [rows]."""
        return Predictions(labels=labels.astype(np.int64), probabilities=probabilities(outputs))

    def mean_loss(self, outputs: npt.NDArray[Any], labels: npt.NDArray[Any]) -> float:
        """Mean over all rows of a split."""
        predictions = self.predictions(outputs, labels)
        of_label = np.take_along_axis(predictions.probabilities, predictions.labels[:, None], axis=1)
        return float(-np.log(np.maximum(of_label, np.finfo(np.float64).tiny)).mean())


@dataclass(frozen=True)
class ValueRegression:
    """Squared error of a value, which is standardised: one output, in standard deviations of the training split."""

    mean: float
    """Of the training split, in the unit of the values."""
    deviation: float
    """Standard deviation of the training split, in the same unit."""
    best_by = "spearman"
    """Metric of the validation split that chooses the weights."""

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Sum over the rows of a batch; outputs [B, 1], values [B]."""
        standardised = (labels - self.mean) / self.deviation
        return mse_loss(outputs[:, 0], standardised.to(outputs.dtype), reduction="sum")

    def predictions(self, outputs: npt.NDArray[Any], labels: npt.NDArray[Any]) -> Estimates:
        """Outputs [rows, 1] in the unit of the values, with the true values [rows]."""
        return Estimates(labels.astype(np.float64), outputs[:, 0].astype(np.float64) * self.deviation + self.mean)

    def mean_loss(self, outputs: npt.NDArray[Any], labels: npt.NDArray[Any]) -> float:
        """Mean over all rows of a split, in squared standard deviations."""
        return float(np.square(outputs[:, 0] - (labels - self.mean) / self.deviation).mean())


Objective = Classification | ValueRegression

CLASSIFICATION = Classification()


def value_regression(values: npt.NDArray[np.float64]) -> ValueRegression:
    """Return the objective for a training split with these values, which differ."""
    return ValueRegression(float(values.mean()), float(values.std()))
