"""The tables of the report, as text: scores and their means, shares of the best published ones, what is in the data."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from cmgems.downstream.results import Result, Score
from cmgems.report.cells import NONE, Cell, Heading, Row, Table, count_cell, mark_best, score_cell, share_cell
from cmgems.report.comparison import Column, Comparison, TaskRow, groups_of, kinds_of
from cmgems.report.published import LONG, SHORT, PublishedModel

GROUP_TITLES = {"human": "Human", "non_human": "Non-human", None: "In no mean"}
_MOST_NAMES = 6


def name_tasks(chosen: Sequence[TaskRow], of: Sequence[TaskRow]) -> str:
    """Say which tasks a mean is over, by those that are there or those that are not, whichever are fewer."""
    missing = [task.name for task in of if task not in chosen]
    if not missing:
        return ""
    names, start = ([task.name for task in chosen], "") if len(chosen) <= len(missing) else (missing, "without ")
    return (
        start + ", ".join(names[:_MOST_NAMES]) + (f" and {len(names) - _MOST_NAMES} more" * (len(names) > _MOST_NAMES))
    )


def column_name(column: Column) -> str:
    """Name of a model or baseline where there is no heading over it: also its run, and all runs of a baseline."""
    own = column.label if column.kind == "model" else column.kind
    return f"{' and '.join(column.runs)}, {own}"


def baseline_name(comparison: Comparison, baseline: Column) -> str:
    """Name of a baseline without its runs: its kind, or what sets it apart from others of its kind."""
    labels = {other.label for other in comparison.baselines if other.kind == baseline.kind}
    return baseline.kind if len(labels) == 1 else baseline.label


def score_table(comparison: Comparison) -> Table:
    """Return all tasks by group, each group with its means."""
    rows: list[Row] = []
    for group, tasks in groups_of(comparison.tasks).items():
        part = len(rows)
        rows += [_task_row(comparison, task) for task in tasks]
        if group is not None:
            rows += [
                _mean_row(comparison, f"{group_title(group)} mean", chosen, tasks)
                for chosen in comparison.task_sets(tasks)
            ]
        title = group_title(group) if len(groups_of(comparison.tasks)) > 1 else ""
        rows[part] = replace(rows[part], part=title)
    caption = f"Test split: {metric_name(comparison)}, mean ± standard deviation over seeds (number of seeds)."
    return Table(caption, "task", _headings(comparison), rows, _marks_explained(comparison))


def kind_table(comparison: Comparison) -> Table:
    """Return the means by species and classification target."""
    rows = [
        replace(_mean_row(comparison, title, chosen, tasks), kind="")
        for title, tasks in kinds_of(comparison.tasks).items()
        for chosen in comparison.task_sets(tasks)
    ]
    return Table(f"Mean {metric_name(comparison)} by species and kind of task.", "tasks", _headings(comparison), rows)


def share_table(comparison: Comparison) -> Table | None:
    """Return the means as shares of the best published one after long pretraining; None if nothing published has these
    tasks, or tells its pretraining."""
    table = comparison.published
    if table is None or not table.has_steps:
        return None
    groups = {group_title(group): tasks for group, tasks in groups_of(comparison.tasks).items() if group is not None}
    rows = []
    for title, tasks in (groups | kinds_of(comparison.tasks)).items():
        for chosen in comparison.task_sets([task for task in tasks if task.name in table.tasks]):
            names = [task.name for task in chosen]
            best = table.best(table.of_steps(LONG), names)
            mean = table.mean(best, names)
            cells = [share_cell(column.mean(chosen), mean) for column in comparison.columns]
            rows.append(Row(title, _which(chosen, tasks), [Cell(f"{mean:.2f}", best.label), *cells]))
    caption = (
        f"Mean {metric_name(comparison)} as a share of the highest published mean over the same tasks, among the "
        f"models of {LONG:,} pretraining steps. Published values are of one seed."
    )
    published = Heading("Published", [f"best of {LONG // 1000}K steps"], "published")
    return Table(caption, "tasks", [published, *_own_headings(comparison)], rows)


def few_shot_table(comparison: Comparison) -> Table:
    """Return tasks by family, each with its training sequences of a class."""
    rows: list[Row] = []
    for family, tasks in families_of(comparison.tasks).items():
        of_family = [_task_row(comparison, task, setting_name(task)) for task in tasks]
        detail = f"{family} ({tasks[0].species}, {tasks[0].kind})"
        rows += [replace(of_family[0], part=detail), *of_family[1:]]
    caption = f"Test split: {metric_name(comparison)}, mean ± standard deviation over seeds (number of seeds)."
    notes = _marks_explained(comparison)
    if any(task.shots is None for task in comparison.tasks):
        notes.append("setting: the number in the task's name, where the suite does not know that of the sequences.")
    return Table(caption, "training sequences of each class", _headings(comparison), rows, notes)


def families_of(tasks: Sequence[TaskRow]) -> dict[str, list[TaskRow]]:
    """Few-shot tasks by family: FAMILY/SETTING."""
    families: dict[str, list[TaskRow]] = {}
    for task in tasks:
        families.setdefault(task.name.rpartition("/")[0] or task.name, []).append(task)
    return families


def setting_name(task: TaskRow) -> str:
    """Training sequences of each class; where the suite does not know it, the setting's name."""
    return f"{task.shots:,}" if task.shots is not None else f"setting {task.name.rpartition('/')[2]}"


def integrity_table(comparisons: Sequence[Comparison]) -> Table:
    """Sequences that occur more than once, ambiguous nucleotides, and sequences longer than a model's input.

    `comparisons` are those of a suite by all protocols: they have the same data.
    """
    headings = [
        Heading("Rows", ["train", "dev", "test"], ""),
        Heading("Rows that repeat one of their split", ["train", "dev", "test"], ""),
        Heading("Rows that occur in another split too", ["dev, in train", "test, in train", "test, in dev"], ""),
        Heading("Sequences with several labels or values", ["in a split", "across splits"], ""),
        Heading("Nucleotides", ["ambiguous"], ""),
        Heading("Sequences", ["longer than the input"], ""),
    ]
    rows = []
    for task in dict.fromkeys(task for comparison in comparisons for task in comparison.tasks):
        found: dict[str, list[tuple[Column, Result]]] = {}
        for column in [column for comparison in comparisons for column in comparison.columns]:
            for result in column.results:
                if result.task == task.name:
                    found.setdefault(json.dumps([result.integrity, result.ambiguous]), []).append((column, result))
        for of_data in found.values():
            columns = list(dict.fromkeys(column_name(column) for column, _ in of_data))
            detail = "; ".join(columns) if len(found) > 1 else ""
            rows.append(Row(task.name, detail, _integrity_cells([result for _, result in of_data])))
    caption = (
        "What is in the data, none of it left out or changed. Test rows that occur in train were trained on. Sequences "
        "longer than a model's input are read in windows, so that nothing is cut; a k-mer regression reads any length."
    )
    return Table(caption, "task", headings, rows)


def _integrity_cells(results: Sequence[Result]) -> list[Cell]:
    rows, integrity = results[0].rows, results[0].integrity
    duplicates = {each["split"]: each for each in integrity.get("duplicates", [])}
    overlaps = {(each["first"], each["second"]): each for each in integrity.get("overlaps", [])}
    pairs = [("train", "dev"), ("train", "test"), ("dev", "test")]
    return [
        *(count_cell(rows.get(split)) for split in ("train", "dev", "test")),
        *(count_cell(duplicates.get(split, {}).get("rows")) for split in ("train", "dev", "test")),
        *(_overlap_cell(overlaps.get(pair, {}), pair == ("train", "test")) for pair in pairs),
        count_cell(sum(each["conflicting"] for each in duplicates.values())),
        count_cell(sum(each["conflicting"] for each in overlaps.values())),
        count_cell(results[0].ambiguous),
        _length_cell(results),
    ]


def _overlap_cell(overlap: dict[str, Any], trained_on: bool) -> Cell:
    cell = count_cell(overlap.get("rows"))
    return replace(cell, mark="trained on") if trained_on and overlap.get("rows") else cell


def _length_cell(results: Sequence[Result]) -> Cell:
    """Return how many are longer, for each length that a model's input has."""
    by_limit = {result.lengths["limit"]: result.lengths for result in results if result.lengths}
    if not by_limit:
        return Cell(NONE)
    texts = [f"{each['longer']:,} of {each['sequences']:,}" for each in by_limit.values()]
    return Cell("; ".join(texts), "input of " + "; ".join(f"{limit:,}" for limit in by_limit) + " tokens")


def group_title(group: str | None) -> str:
    """Name of a group of tasks for readers."""
    return GROUP_TITLES.get(group) or str(group).replace("_", " ").capitalize()


def metric_name(comparison: Comparison) -> str:
    """Name of the suite's metric for readers, with its unit."""
    return metric_title(comparison.metric)


def metric_title(metric: str) -> str:
    """Name of a metric for readers, with its unit."""
    names = {
        "mcc": "MCC × 100",
        "accuracy": "accuracy in %",
        "f1": "F1 (mean over classes) × 100",
        "spearman": "Spearman's ρ × 100",
        "pearson": "Pearson's r × 100",
        "r2": "R² × 100",
    }
    return names.get(metric, f"{metric} × 100")


def _which(chosen: Sequence[TaskRow], of: Sequence[TaskRow]) -> str:
    if len(chosen) == len(of):
        return f"over {len(of)} tasks" if len(of) > 1 else "1 task"
    return f"over {len(chosen)} of {len(of)} tasks: {name_tasks(chosen, of)}"


def _own_headings(comparison: Comparison) -> list[Heading]:
    headings: list[Heading] = []
    for column in comparison.models:
        run = column.runs[0]
        if headings and headings[-1].text == run:
            headings[-1] = replace(headings[-1], columns=[*headings[-1].columns, column.label])
        else:
            headings.append(Heading(run, [column.label], "models"))
    runs = {run for column in comparison.columns for run in column.runs}
    names = [
        baseline_name(comparison, baseline)
        + ("" if len(baseline.runs) == len(runs) else f": {' and '.join(baseline.runs)}")
        for baseline in comparison.baselines
    ]
    return headings + ([Heading("Baselines", names, "baselines")] if names else [])


def _headings(comparison: Comparison) -> list[Heading]:
    if comparison.published is None:
        return _own_headings(comparison)
    short, longer = _published_parts(comparison)
    parts = [Heading(comparison.published.heading, [_published_name(m) for m in longer], "published")]
    for architecture, models in groupby(short, key=lambda model: model.label.split()[0]):
        names = [model.label.removeprefix(architecture).strip() for model in models]
        parts.append(Heading(f"Published, {architecture}, {SHORT // 1000}K steps", names, "published"))
    return _own_headings(comparison) + parts


def _published_parts(comparison: Comparison) -> tuple[list[PublishedModel], list[PublishedModel]]:
    """Return models of few steps, and the others."""
    models = comparison.published.models if comparison.published else []
    return [m for m in models if m.steps == SHORT], [m for m in models if m.steps != SHORT]


def _published_name(model: PublishedModel) -> str:
    return f"{model.label}, {model.steps // 1000}K" if model.steps else model.label


def _task_row(comparison: Comparison, task: TaskRow, title: str = "") -> Row:
    own = [_score_cell(comparison, column, task) for column in comparison.columns]
    cells = own + _published_cells(comparison, [task])
    return Row(title or task.name, "" if title else f"{task.species}, {task.kind}", _with_best(comparison, cells))


def _mean_row(comparison: Comparison, title: str, chosen: Sequence[TaskRow], of: Sequence[TaskRow]) -> Row:
    own = [_mean_cell(comparison, column, chosen) for column in comparison.columns]
    cells = own + _published_cells(comparison, chosen)
    return Row(title, _which(chosen, of), _with_best(comparison, cells), kind="mean")


def _score_cell(comparison: Comparison, column: Column, task: TaskRow) -> Cell:
    score, apart = column.score(task.name), column.resplit_score(task.name)
    if score is None:
        return replace(score_cell(apart), mark="resplit", value=None) if apart else Cell(NONE)
    cell = _marked(comparison, column, score, lambda each: each.score(task.name))
    if apart is None:
        return cell
    count = len(apart.values)
    return replace(cell, mark=", ".join(filter(None, [cell.mark, f"{count} resplit left out"])))


def _mean_cell(comparison: Comparison, column: Column, tasks: Sequence[TaskRow]) -> Cell:
    score = column.mean(tasks)
    return _marked(comparison, column, score, lambda each: each.mean(tasks)) if score else Cell(NONE)


def _marked(comparison: Comparison, column: Column, score: Score, same: Callable[[Column], Score | None]) -> Cell:
    """Mark a model's score that is not above its baseline's; `same` gives the baseline's."""
    baseline = comparison.baseline_value(column, same) if column.kind == "model" else None
    return replace(score_cell(score), mark="≤ baseline" if baseline is not None and score.mean <= baseline else "")


def _published_cells(comparison: Comparison, tasks: Sequence[TaskRow]) -> list[Cell]:
    table = comparison.published
    if table is None:
        return []
    names = [task.name for task in tasks]
    if not set(names) <= set(table.tasks):
        return [Cell(NONE) for _ in table.models]
    short, longer = _published_parts(comparison)
    values = [table.mean(model, names) for model in longer + short]
    return [Cell(f"{value:.{table.decimals}f}", value=value) for value in values]


def _with_best(comparison: Comparison, cells: list[Cell]) -> list[Cell]:
    """Mark the highest of the models, and apart from them the highest published one."""
    models, others = len(comparison.models), len(comparison.columns)
    return mark_best(cells[:models]) + cells[models:others] + mark_best(cells[others:])


def _marks_explained(comparison: Comparison) -> list[str]:
    notes = [
        "Bold: the highest mean of a row among the models of the runs. Baselines are never bold."
        if comparison.published is None
        else "Bold: the highest of a row, once among the models of the runs and once among the published ones, which "
        "are of one seed each. Baselines are never bold.",
        "≤ baseline: not above the mean of the same run's random weights, scored in the same way; pretraining has "
        "brought nothing there. A model whose run has no scores of random weights has no such mark.",
    ]
    if any(result.resplit for column in comparison.columns for result in column.results):
        notes.append(
            "resplit: trained on a part of the published validation split, for want of the training split. Such a "
            "score is not one of the benchmark: it is left out of every mean, comparison and picture."
        )
    return notes + _unlike_recipes(comparison)


def _unlike_recipes(comparison: Comparison) -> list[str]:
    """Say so where models were not fine-tuned alike."""
    recipes: dict[str, set[str]] = {}
    for column in comparison.columns:
        for result in column.results:
            if result.kind != "k-mer regression":
                recipes.setdefault(result.task, set()).add(json.dumps(result.recipe, sort_keys=True))
    unlike = [task.name for task in comparison.tasks if len(recipes.get(task.name, ())) > 1]
    return (
        [f"Not all models and seeds were fine-tuned with the same settings on: {', '.join(unlike)}."] if unlike else []
    )
