"""The pictures of the report, as PNG."""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from cmgems.downstream.results import Score
from cmgems.report.cells import NONE
from cmgems.report.comparison import Column, Comparison, Run, TaskRow, groups_of
from cmgems.report.published import LONG, SHORT
from cmgems.report.tables import baseline_name, column_name, families_of, group_title, metric_name, setting_name

_PIXELS_PER_INCH = 96
_SHARPNESS = 2  # pixels of the file for each that is shown
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000"]  # Okabe and Ito, told apart
_BASELINE = "#777777"
STYLE = {
    "text.parse_math": False,  # names may have a dollar sign
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.grid": False,
    "legend.frameon": False,
}
# Titles of the maskings that every run's perplexity is measured under.
_MASKINGS = {"span": "span", "genemask": "GeneMask", "global_pmi": "Global-PMI", "stage": "the stage's own"}


@dataclass(frozen=True)
class Picture:
    """A picture."""

    name: str
    """Of its file, without the ending."""
    caption: str
    png: bytes
    width: int
    """Pixels that it is to be shown in."""


def differences(comparison: Comparison) -> Picture | None:
    """Heat map of what each model has more than the published runs and than random weights, task by task.

    None if there is nothing to compare.
    """
    tasks = [task for group in groups_of(comparison.tasks).values() for task in group]
    panels = [panel for panel in _difference_panels(comparison, tasks) if np.isfinite(panel.values).any()]
    if not panels:
        return None
    kept = np.flatnonzero(np.any([np.isfinite(panel.values).any(axis=1) for panel in panels], axis=0))
    models = len(comparison.models)
    with matplotlib.rc_context(STYLE):
        longest = max(len(column_name(model)) for model in comparison.models)
        size = (2.3 + len(panels) * max(0.9 + 0.55 * models, 1.9), 0.75 + 0.075 * longest + 0.25 * len(kept))
        figure = Figure(figsize=(max(size[0], 5.5), size[1]), layout="constrained")
        all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, panel in zip(all_axes, panels, strict=True):
            values = panel.values[kept]
            largest = float(np.nanmax(np.abs(values))) or 1.0
            image = axes.imshow(values, cmap="RdBu", vmin=-largest, vmax=largest, aspect="auto")
            axes.set_title(panel.title)
            axes.set_xticks(range(models), [column_name(model) for model in comparison.models], rotation=90)
            axes.spines[:].set_visible(False)
            axes.tick_params(length=0)
            _print_values(axes, values, largest)
            figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02, aspect=40).outline.set_visible(False)
        all_axes[0].set_yticks(range(len(kept)), [tasks[number].name for number in kept])
        caption = (
            f"Differences in {metric_name(comparison)}, means over seeds, task by task. Blue: the model is better; "
            "red: worse. " + " ".join(panel.caption for panel in panels)
        )
        return picture(f"{comparison.suite}_differences", caption, figure)


def efficiency(comparison: Comparison) -> Picture | None:
    """Return the means against pretraining steps, with baselines as lines; None unless a run has several steps."""
    if not any(len(of_run) > 1 for of_run in _by_run(comparison).values()):
        return None
    groups = groups_of(comparison.tasks)
    panels = []
    for group, tasks in groups.items():
        if group is None and len(groups) > 1:
            continue
        if common := comparison.common_tasks(tasks):
            title = f"{group_title(group)}: " if group else ""
            panels.append((f"{title}mean over {len(common)} of {len(tasks)} tasks", common))
    if not panels:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.9 * len(panels), 3.9), layout="constrained")
        for axes, (title, tasks) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            _draw_efficiency(axes, comparison, tasks)
            axes.set(title=title, xlabel="optimizer steps of pretraining", ylabel=f"mean {metric_name(comparison)}")
        _legend_below(figure)
        published = " Thin lines: the highest published mean over the same tasks, of one seed."
        caption = (
            "Mean over the tasks that all models have, against steps of pretraining; bars are standard deviations over "
            "seeds." + published * (comparison.published is not None and comparison.published.has_steps)
        )
        return picture(f"{comparison.suite}_steps", caption, figure)


def few_shot(comparison: Comparison) -> Picture | None:
    """Return the scores against training sequences of a class, a panel for each family; None if all were trained
    otherwise."""
    families = {
        family: [task for task in tasks if any(column.score(task.name) for column in comparison.columns)]
        for family, tasks in families_of(comparison.tasks).items()
    }
    families = {family: tasks for family, tasks in families.items() if tasks}
    if not families:
        return None
    columns = min(3, len(families))
    rows = -(-len(families) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(3.6 * columns, 5.5), 3.0 * rows + 0.6), layout="constrained")
        all_axes = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes, (family, tasks) in zip(all_axes, families.items(), strict=False):
            _draw_settings(axes, comparison, tasks)
            axes.set(title=family, xlabel="training sequences of each class", ylabel=metric_name(comparison))
        for axes in all_axes[len(families) :]:
            axes.set_axis_off()
        _legend_below(figure)
        caption = "Score against training sequences of each class; bars are standard deviations over seeds."
        return picture(f"{comparison.suite}_shots", caption, figure)


def perplexities(runs: Sequence[Run]) -> Picture | None:
    """Validation perplexity of the pretraining, a panel for each masking; None if no run has a journal of it."""
    measured = dict.fromkeys(name for run in runs for name in run.perplexities)
    names = [name for name in measured if name != "stage"] or list(measured)
    if not names:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(3.6 * len(names), 5.5), 3.7), layout="constrained")
        for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
            _draw_perplexities(axes, runs, name)
            axes.set(title=f"masking: {_MASKINGS.get(name, name)}", xlabel="optimizer step", yscale="log")
            axes.set(ylabel="validation perplexity", xlim=(0, None))
            _plain_numbers(axes)
        _legend_below(figure)
        caption = (
            "Validation perplexity (lower is better) on the same masked tokens at every evaluation. Dashed: a run goes "
            "on to its next stage. Dotted: k-mer frequencies alone. Only runs on the same corpus compare."
        )
        return picture("perplexity", caption, figure)


@dataclass(frozen=True)
class _Panel:
    """Differences [tasks, models], NaN where there is none."""

    title: str
    caption: str
    values: Any


def _difference_panels(comparison: Comparison, tasks: Sequence[TaskRow]) -> Iterator[_Panel]:
    def panel(title: str, caption: str, of: Callable[[Column, TaskRow, Score], float | None]) -> _Panel:
        values = [[_difference(model, task, of) for model in comparison.models] for task in tasks]
        return _Panel(title, caption, np.array(values, dtype=np.float64))

    table = comparison.published
    scored = [task.name for task in tasks if any(model.score(task.name) for model in comparison.models)]
    names = [name for name in scored if table and name in table.tasks]
    if table and table.has_steps and names:
        best = table.best(table.of_steps(SHORT), names)
        yield panel(
            f"minus published\n{best.label}, {SHORT // 1000}K",
            f"{best.label} is the published run of {SHORT:,} steps with the highest mean over these tasks (one seed).",
            lambda _, task, score: 100 * score.mean - table.scores.get((best.name, task.name), np.nan),
        )

    def above_baseline(model: Column, task: TaskRow, score: Score) -> float | None:
        baseline = comparison.baseline_value(model, lambda each: each.score(task.name))
        return None if baseline is None else 100 * (score.mean - baseline)

    yield panel("minus\nrandom weights", "The random weights are those of the same run.", above_baseline)


def _difference(model: Column, task: TaskRow, of: Callable[[Column, TaskRow, Score], float | None]) -> float:
    score = model.score(task.name)
    value = of(model, task, score) if score else None
    return np.nan if value is None else value


def _print_values(axes: Any, values: Any, largest: float) -> None:
    for (row, column), value in np.ndenumerate(values):
        there = np.isfinite(value)
        colour = "white" if there and abs(value) > 0.6 * largest else "black"
        axes.text(column, row, f"{value:+.1f}" if there else NONE, ha="center", va="center", color=colour, fontsize=8)


def _by_run(comparison: Comparison) -> dict[str, list[Column]]:
    """Return models of which the steps are known, by run."""
    runs: dict[str, list[Column]] = {}
    for model in comparison.models:
        if model.step is not None:
            runs.setdefault(model.runs[0], []).append(model)
    return runs


def _draw_efficiency(axes: Any, comparison: Comparison, tasks: Sequence[TaskRow]) -> None:
    colours = _colours(comparison)
    for run, models in _by_run(comparison).items():
        points = [(model.step, model.mean(tasks)) for model in models]
        _draw_scores(axes, points, label=run, color=colours[run], marker="o")
    for baseline in comparison.baselines:
        mean = baseline.mean(tasks)
        if mean is not None:
            style = "--" if baseline.kind == "random weights" else ":"
            label = baseline_name(comparison, baseline) + f" ({baseline.runs[0]})" * (len(baseline.runs) < len(colours))
            axes.axhline(100 * mean.mean, color=_baseline_colour(baseline, colours), linestyle=style, label=label)
    table, names = comparison.published, [task.name for task in tasks]
    for steps, colour in ((SHORT, "#bbbbbb"), (LONG, "#444444")) if table and table.has_steps else ():
        assert table
        best = table.best(table.of_steps(steps), names)
        label = f"published, best of {steps // 1000}K steps"
        axes.axhline(table.mean(best, names), color=colour, linewidth=0.8, label=label)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter("{x:,.0f}")


def _draw_settings(axes: Any, comparison: Comparison, tasks: Sequence[TaskRow]) -> None:
    colours = _colours(comparison)
    markers = dict(zip([id(column) for column in comparison.columns], cycle("osD^v<>P*X"), strict=False))
    # Side by side, so that one bar does not hide another.
    offsets = np.linspace(-0.1, 0.1, len(comparison.columns)) if len(comparison.columns) > 1 else [0.0]
    for column, offset in zip(comparison.columns, offsets, strict=True):
        is_model = column.kind == "model"
        points = [(place + offset, column.score(task.name)) for place, task in enumerate(tasks)]
        colour = colours[column.runs[0]] if is_model else _baseline_colour(column, colours)
        style = "-" if is_model else "--" if column.kind == "random weights" else ":"
        own = is_model or len(column.runs) < len(colours)
        label = column_name(column) if own else baseline_name(comparison, column)
        _draw_scores(axes, points, label=label, color=colour, linestyle=style, marker=markers[id(column)])
    axes.set_xticks(range(len(tasks)), [setting_name(task) for task in tasks])
    axes.margins(x=0.1)


def _draw_scores(axes: Any, points: Sequence[tuple[float | None, Score | None]], **style: Any) -> None:
    """Draw scores x 100 with their standard deviations, where there are any."""
    there = [(place, score) for place, score in points if score is not None]
    if there:
        heights = [100 * score.mean for _, score in there]
        bars = [100 * (score.sd or 0.0) for _, score in there]
        axes.errorbar([place for place, _ in there], heights, bars, capsize=2, markersize=4, linewidth=1.3, **style)


def _draw_perplexities(axes: Any, runs: Sequence[Run], masking: str) -> None:
    for run, colour in zip(runs, cycle(COLOURS), strict=False):
        points = run.perplexities.get(masking)
        if not points:
            continue
        axes.plot(list(points), list(points.values()), color=colour, marker=".", label=run.label)
        for step in run.switches:
            axes.axvline(step, color=colour, linestyle="--", linewidth=1)
    for unigram in sorted({round(run.unigrams[masking], 1) for run in runs if masking in run.unigrams}):
        axes.axhline(unigram, color=_BASELINE, linestyle=":", label="k-mer frequencies alone")


def _plain_numbers(axes: Any) -> None:
    """Few numbers on both axes, without powers of ten; the vertical one is logarithmic."""
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 4 * low else MaxNLocator(5))
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter("{x:,.0f}")


def _colours(comparison: Comparison) -> dict[str, str]:
    """Colour of each run."""
    runs = dict.fromkeys(run for column in comparison.columns for run in column.runs)
    return dict(zip(runs, cycle(COLOURS), strict=False))


def _baseline_colour(baseline: Column, colours: dict[str, str]) -> str:
    """Return the run's colour, grey if it is a baseline of several, or if there is one run only."""
    return colours[baseline.runs[0]] if len(baseline.runs) == 1 < len(colours) else _BASELINE


def _legend_below(figure: Any) -> None:
    """One legend for all panels."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if entries:
        width = 0.6 + 0.08 * max(map(len, entries))  # inches, about
        columns = max(1, min(len(entries), int(figure.get_size_inches()[0] // width)))
        figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=columns)


def picture(name: str, caption: str, figure: Any) -> Picture:
    """Return a figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_SHARPNESS * _PIXELS_PER_INCH)
    return Picture(name, caption, buffer.getvalue(), width=int(figure.get_size_inches()[0] * _PIXELS_PER_INCH))
