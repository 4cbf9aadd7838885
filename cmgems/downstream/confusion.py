"""The picture of a result: its confusion matrix."""

from pathlib import Path

from matplotlib.figure import Figure

from cmgems.downstream.results import Result


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
