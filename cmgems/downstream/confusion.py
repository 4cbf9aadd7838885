"""The picture of a result: its confusion matrix, or the predicted values against the true ones."""

from pathlib import Path

from matplotlib.figure import Figure

from cmgems.downstream.results import Result
from cmgems.downstream.scores import Estimates, Predictions


def draw_result(result: Result, predictions: Predictions | Estimates, folder: Path) -> None:
    """Draw the picture of a result into its folder."""
    if isinstance(predictions, Estimates):
        draw_values(result, predictions, folder / result.picture)
    else:
        draw_confusion(result, folder / result.picture)


def draw_values(result: Result, estimates: Estimates, path: Path) -> None:
    """Draw a point for each row of the test split into a PNG: its predicted and its true value."""
    figure = Figure(figsize=(4.5, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.scatter(estimates.predicted, estimates.values, s=6, alpha=0.5, linewidths=0)
    middle = float(estimates.values.mean())
    axes.axline((middle, middle), slope=1, color="#777777", linewidth=0.8)
    axes.set(xlabel=f"predicted {result.value}", ylabel=f"true {result.value}")
    axes.set_title(f"{result.task}, {result.metric} {result.score:.3f}")
    figure.savefig(path, dpi=100)


def draw_confusion(result: Result, path: Path) -> None:
    """Draw the confusion matrix of a result into a PNG: rows of the test split by true and predicted class."""
    classes, size = result.classes, 2.5 + 0.5 * len(result.classes)
    figure = Figure(figsize=(size + 1.5, size), layout="constrained")
    axes = figure.subplots()
    largest = max(max(counts) for counts in result.confusion)
    axes.imshow(result.confusion, cmap="Blues", vmin=0)
    for true, counts in enumerate(result.confusion):
        for predicted, count in enumerate(counts):
            colour = "white" if count > largest / 2 else "black"
            axes.annotate(f"{count:,}", (predicted, true), ha="center", va="center", color=colour)
    axes.set_xticks(range(len(classes)), classes, rotation=30, ha="right")
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="predicted", ylabel="true", title=f"{result.task}, {result.metric} {result.score:.3f}")
    figure.savefig(path, dpi=100)
