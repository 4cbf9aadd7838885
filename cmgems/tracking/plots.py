"""The picture of a run: validation perplexity, and bits per hidden base, against optimizer steps."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from cmgems.curriculum.controller import Switch

_STYLES = {"chain": ("--", "best Markov chain"), "composition": (":", "base composition")}


def draw_validation(
    evaluations: Sequence[Mapping[str, Any]],
    switches: Sequence[Switch],
    unigram_perplexity: float,
    baselines: Mapping[str, Mapping[str, Any]],
) -> Any:
    """Figure of an evaluation's `perplexity` and `bits` (each by masking) against its `step`, a line for each masking.

    Perplexities stand beside that of the k-mer frequencies, bits beside those of the `baselines` of the same masking.
    """
    # Imported here: a run has to start before there is anything to draw, and most processes never draw.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_perplexities(left, evaluations, unigram_perplexity)
    _draw_bits(right, evaluations, baselines)
    for axes in (left, right):
        for switch in switches:
            axes.axvline(switch.step, color="tab:red", linestyle="--")
            label = f" {switch.to_stage} from here"
            axes.annotate(label, (switch.step, 0.9), xycoords=("data", "axes fraction"), color="tab:red", va="top")
        axes.set(xlabel="optimizer step", xlim=(0, None))
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    return figure


def _draw_perplexities(axes: Any, evaluations: Sequence[Mapping[str, Any]], unigram_perplexity: float) -> None:
    for name in _maskings(evaluations, "perplexity"):
        axes.plot(*_curve(evaluations, "perplexity", name), marker="o", label=name)
    for number, (_, stage) in enumerate(groupby(evaluations, key=lambda evaluation: evaluation["stage"])):
        label = "current stage" if number == 0 else None
        axes.plot(*_curve(list(stage), "perplexity", "stage"), color="black", linewidth=5, alpha=0.25, label=label)
    axes.axhline(unigram_perplexity, color="grey", linestyle=":", label="k-mer frequencies alone")
    axes.set(ylabel="validation perplexity", yscale="log")


def _draw_bits(axes: Any, evaluations: Sequence[Mapping[str, Any]], baselines: Mapping[str, Mapping[str, Any]]) -> None:
    drawn = set()
    for name in _maskings(evaluations, "bits"):
        [line] = axes.plot(*_curve(evaluations, "bits", name), marker="o", label=name)
        for kind, baseline in baselines.get(name, {}).items():
            axes.axhline(baseline["bits"], color=line.get_color(), linestyle=_STYLES[kind][0], linewidth=1)
            drawn.add(kind)
    for style, label in (_STYLES[kind] for kind in sorted(drawn)):
        axes.plot([], [], color="grey", linestyle=style, label=label)
    axes.set(ylabel="bits per hidden base")


def _maskings(evaluations: Sequence[Mapping[str, Any]], score: str) -> list[str]:
    """Return the fixed maskings, in the order in which they are evaluated."""
    return [name for name in evaluations[-1].get(score, ()) if name != "stage"] if evaluations else []


def _curve(evaluations: Sequence[Mapping[str, Any]], score: str, masking: str) -> tuple[list[int], list[float]]:
    """Steps and scores under one masking; evaluations of older checkpoints have perplexities alone."""
    known = [evaluation for evaluation in evaluations if masking in evaluation.get(score, ())]
    return [evaluation["step"] for evaluation in known], [evaluation[score][masking] for evaluation in known]
