"""The page of a study: its arms, their comparisons, tasks, and scores along the pretraining."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from cmgems.report.cells import NONE, Cell, Heading, Row, Table, mark_best, number
from cmgems.report.figures import COLOURS, STYLE, Picture, picture
from cmgems.report.page import Section, write_page
from cmgems.report.tables import metric_title
from cmgems.study.analysis import (
    INTERVAL,
    RESAMPLES,
    Bootstrap,
    Difference,
    Endpoint,
    difference,
    last_step,
    mean_score,
    share_to_reach,
)
from cmgems.study.records import Pretraining, Record
from cmgems.study.results import read_records
from cmgems.study.settings import Arm, Study


def write_study_report(study: Study, output: Path) -> Path:
    """Write the page on a study's results into the folder `output`, and return its path.

    Raises
    ------
    UserError
        If there are no results, one cannot be read, or `output` cannot be written.
    """
    report = StudyReport(study, read_records(study))
    return write_page("study.html", report.sections(), output, title=study.config.title, about=report.about())


@dataclass
class StudyReport:
    """What a study's page shows."""

    study: Study
    records: list[Record]

    def sections(self) -> list[Section]:
        """Return the sections of the page."""
        shown = [
            Section("Arms", [], [self.arms_table()], []),
            self._comparisons(),
            Section("Tasks", [], [self.tasks_table()], []) if self.endpoint.tasks else None,
            Section("Along the pretraining", [], self.curve_tables(), [p for p in [self.curves_picture()] if p]),
        ]
        return [section for section in shown if section is not None]

    def about(self) -> list[str]:
        """Return what is to be known of the results as a whole."""
        seeds = sum(arm.seeds for arm in self.study.arms)
        hours = sum(sum(record.seconds.values()) for record in self.records) / 3600
        machines = sorted({record.machine for record in self.records if record.machine})
        versions = sorted({f"{name} {v}" for record in self.records for name, v in record.versions.items()})
        return [
            f"{len(self.records)} of {seeds} arms and seeds have results; {hours:,.1f} hours of one process each on "
            f"{'; '.join(machines)}; {', '.join(versions)}.",
            "Scores are given × 100, as means over seeds ± their standard deviation.",
        ]

    @cached_property
    def endpoint(self) -> Endpoint:
        """The primary endpoint."""
        return Endpoint(self.records, self.study.config.primary)

    @cached_property
    def differences(self) -> list[Difference]:
        """The comparisons that there are results of."""
        return self._differences(())

    def _differences(self, without: Sequence[str]) -> list[Difference]:
        contrasts = [(c.option, c.against) for c in self.study.config.contrasts]
        found = [difference(self.endpoint, *pair, self._resampled, self._bootstrap, without) for pair in contrasts]
        return [each for each in found if each is not None]

    @cached_property
    def _bootstrap(self) -> Bootstrap:
        return Bootstrap()

    @cached_property
    def _resampled(self) -> dict[tuple[str, int, str], np.ndarray]:
        compared = {name for c in self.study.config.contrasts for name in (c.option, c.against)}
        return self.endpoint.resampled(sorted(compared), self._bootstrap)

    def _of(self, arm: Arm) -> list[Record]:
        return [record for record in self.records if record.arm == arm.name]

    @property
    def _arms(self) -> list[Arm]:
        """The arms that there are results of."""
        return [arm for arm in self.study.arms if self._of(arm)]

    def arms_table(self) -> Table:
        """What each arm is, and its scores."""
        groups = [group for group in self._column_groups() if group.columns]
        rows = [
            Row(
                arm.title,
                f"{len(self._of(arm))} of {arm.seeds} seeds",
                [show(arm) for group in groups for show in group.columns.values()],
            )
            for arm in self._arms
        ]
        headings = [Heading(group.title, list(group.columns), group.kind) for group in groups]
        return Table("Means over seeds ± standard deviations.", "arm", headings, rows + self._bits_baselines(groups))

    def _column_groups(self) -> list["_Columns"]:
        config, endpoint = self.study.config, self.endpoint
        primary: dict[str, _Show] = {"mean": lambda arm: _spread(endpoint.means(arm.name))}
        for name, tasks in config.subsets.items():
            primary[name] = lambda arm, tasks=tasks: _spread(endpoint.means(arm.name, tasks))  # type: ignore[misc]
        ranks = endpoint.ranks([arm.name for arm in self._arms])
        primary["mean rank"] = lambda arm: Cell(f"{ranks[arm.name]:.1f}" if arm.name in ranks else NONE)
        bits: dict[str, _Show] = {
            f"gap of {gap}": lambda arm, gap=gap: _bits(self._last_bits(arm, f"gap_{gap}"))  # type: ignore[misc]
            for gap in (config.bits.gaps if config.bits else [])
        }
        secondary: dict[str, _Show] = {
            score.title: lambda arm, name=name: _spread(self._last_scores(arm, [name]))  # type: ignore[misc]
            for name, score in config.scores.items()
            if name not in config.primary and len(score.at) == 1
        }
        return [
            _Columns("pretraining", "", {name: self._of_runs(show) for name, show in _OF_RUNS.items()}),
            _Columns(self._primary_title(), "models", primary if endpoint.tasks else {}),
            _Columns(_BITS, "baselines", bits),
            _Columns("secondary endpoints", "published", secondary),
        ]

    def _of_runs(self, show: Callable[[list[Pretraining]], str]) -> "_Show":
        def cell(arm: Arm) -> Cell:
            runs = [record.pretraining for record in self._of(arm) if record.pretraining]
            return Cell(show(runs) if runs else NONE)

        return cell

    def _bits_baselines(self, groups: Sequence["_Columns"]) -> list[Row]:
        """Return rows for what can be predicted without a model."""
        rows = []
        for kind, title in (("chain", "Best Markov chain"), ("composition", "Base composition")):
            cells: list[Cell] = []
            for group in groups:
                gaps = self.study.config.bits.gaps if self.study.config.bits and group.title == _BITS else []
                found = [self._last_bits(self._arms[0], f"gap_{gap}_{kind}") for gap in gaps]
                cells += [Cell(f"{own[0]:.3f}" if own else NONE) for own in found] or [Cell("")] * len(group.columns)
            rows.append(Row(title, "", cells))
        return rows if any(cell.text not in ("", NONE) for row in rows for cell in row.cells) else []

    def _primary_title(self) -> str:
        metric = next(
            (metric_title(e.metric) for own in self.endpoint.by_arm.values() for s in own.values() for e in s.values()),
            "",
        )
        return f"primary endpoint: mean {metric} of {len(self.endpoint.tasks)} tasks"

    def contrasts_table(self) -> Table:
        """The comparisons in the primary endpoint."""
        subsets = {name: self._differences(tasks) for name, tasks in self.study.config.subsets.items()}
        rows = []
        for each in self.differences:
            pair = (each.option, each.against)
            others = [next(d for d in found if (d.option, d.against) == pair) for found in subsets.values()]
            cells = [
                Cell(_signed(each.mean)),
                Cell(f"{_signed(each.low)} to {_signed(each.high)}"),
                Cell(number(each.detectable)),
                Cell(f"{sum(value > 0 for value in each.by_seed)} of {len(each.seeds)}"),
                Cell(f"{each.p:.3f}"),
                Cell(f"{each.wins} of {len(each.by_task)}"),
                *(Cell(_signed(other.mean), f"{_signed(other.low)} to {_signed(other.high)}") for other in others),
            ]
            rows.append(Row(f"{self._title(each.option)} minus {self._title(each.against)}", "", cells))
        columns = ["difference", f"{INTERVAL:.0%} interval", "detectable", "seeds above 0", "p (sign test)"]
        columns.append("tasks above 0")
        headings = [Heading(self._primary_title(), columns, "models")]
        if subsets:
            headings.append(Heading("difference", list(subsets), ""))
        notes = [
            "Differences are paired by seed. Intervals: percentiles of a bootstrap over seeds and test rows together "
            f"({RESAMPLES:,} resamples). Detectable: 2.8 standard errors, a difference that would be found with a "
            "probability of 80 % at a level of 5 %. Sign test: over the seeds, two-sided."
        ]
        return Table("Comparisons in the primary endpoint.", "arms", headings, rows, notes)

    def tasks_table(self) -> Table:
        """Means of each task and arm in the primary endpoint."""
        arms = [arm for arm in self._arms if arm.name in self.endpoint.by_arm]
        means = {arm.name: self.endpoint.task_means(arm.name) for arm in arms}
        rows = [
            Row(task, "", mark_best([Cell(number(means[arm.name][task]), value=means[arm.name][task]) for arm in arms]))
            for task in self.endpoint.tasks
        ]
        return Table(
            "Tasks of the primary endpoint: means over seeds.", "task", [Heading("", [a.title for a in arms], "")], rows
        )

    def curve_tables(self) -> list[Table]:
        """Scores along the pretraining, one table for each that was taken several times."""
        return [self._curve_table(curve) for curve in self._curves()]

    def _curve_table(self, curve: "_Curve") -> Table:
        arms = [arm for arm in self._arms if arm.model == "pretrained"]
        means = {arm.name: self._points(arm, curve) for arm in arms}
        shares = sorted({share for own in means.values() for share in own})
        reference = self.study.config.reference
        target = means.get(reference or "", {}).get(1.0)
        rows = []
        for arm in arms:
            values = [means[arm.name].get(share) for share in shares]
            cells = [Cell(NONE if v is None else f"{v:.3f}" if curve.is_bits else number(v)) for v in values]
            if target is not None:
                sign = -1.0 if curve.is_bits else 1.0
                known = [
                    (share, sign * value) for share, value in zip(shares, values, strict=True) if value is not None
                ]
                reached = share_to_reach([s for s, _ in known], [v for _, v in known], sign * target)
                cells.append(Cell(NONE if reached is None else f"{reached:.2f}"))
            rows.append(Row(arm.title, "", cells))
        headings = [Heading("share of the tokens", [f"{share:.3g}" for share in shares], "")]
        if target is not None:
            headings.append(Heading("", [f"reaches the last of {self._title(reference or '')} after"], ""))
        return Table(curve.title, "arm", headings, rows)

    def contrasts_picture(self) -> Picture | None:
        """The comparisons with their intervals."""
        if not self.differences:
            return None
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(7.5, 0.9 + 0.32 * len(self.differences)), layout="constrained")
            axes = figure.subplots()
            for row, each in enumerate(self.differences):
                axes.plot([100 * each.low, 100 * each.high], [row, row], color=COLOURS[0], linewidth=2)
                axes.plot([100 * v for v in each.by_seed], [row] * len(each.seeds), ".", color="#999999", markersize=4)
                axes.plot([100 * each.mean], [row], "o", color=COLOURS[1], markersize=6)
            titles = [f"{self._title(each.option)} − {self._title(each.against)}" for each in self.differences]
            axes.set_yticks(range(len(titles)), titles)
            axes.invert_yaxis()
            axes.axvline(0, color="black", linewidth=0.8)
            axes.set_xlabel("difference × 100")
            caption = "Differences in the primary endpoint with their 95 % intervals; grey: each seed."
            return picture("contrasts", caption, figure)

    def curves_picture(self) -> Picture | None:
        """Scores along the pretraining."""
        curves = self._curves()
        arms = [arm for arm in self._arms if arm.model == "pretrained"]
        if not curves or not arms:
            return None
        columns = min(3, len(curves))
        rows = -(-len(curves) // columns)
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(4.2 * columns, 3.2 * rows + 0.9), layout="constrained")
            grid = figure.subplots(rows, columns, squeeze=False).ravel()
            for axes, curve in zip(grid, curves, strict=False):
                for index, arm in enumerate(arms):
                    means = self._points(arm, curve)
                    values = [value if curve.is_bits else 100 * value for value in means.values()]
                    style = "-" if index < len(COLOURS) else "--"
                    colour = COLOURS[index % len(COLOURS)]
                    axes.plot(list(means), values, style, marker=".", color=colour, label=arm.title, linewidth=1.2)
                axes.set(title=curve.title, xlabel="share of the tokens", xscale="log")
                axes.xaxis.set_major_locator(FixedLocator([1 / 16, 1 / 8, 1 / 4, 1 / 2, 1]))
                axes.xaxis.set_minor_locator(NullLocator())
                axes.xaxis.set_major_formatter(lambda value, _: f"1/{round(1 / value)}" if value < 1 else "1")
            for axes in grid[len(curves) :]:
                axes.remove()
            handles, labels = grid[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))
            return picture("curves", "Means over seeds along the pretraining.", figure)

    def _comparisons(self) -> Section | None:
        if not self.differences:
            return None
        shown = self.contrasts_picture()
        return Section("Comparisons", [], [self.contrasts_table()], [shown] if shown else [])

    def _curves(self) -> list["_Curve"]:
        """Return what was taken several times along the pretraining."""
        config = self.study.config
        curves = [_Curve(s.title, score=name) for name, s in config.scores.items() if len(s.at) > 1]
        if config.bits and len(config.bits.at) > 1:
            curves += [_Curve(f"bits per hidden base, gaps of {gap}", gap=gap) for gap in config.bits.gaps]
        return curves

    def _points(self, arm: Arm, curve: "_Curve") -> dict[float, float]:
        """Return means over the seeds by share of the pretraining."""
        found: dict[float, list[float]] = {}
        for record in self._of(arm):
            for step in self.study.scored_steps(arm):
                value = curve.value(record, step)
                if value is not None:
                    found.setdefault(step / max(1, last_step(record)), []).append(value)
        return {share: float(np.mean(values)) for share, values in sorted(found.items())}

    def _last_scores(self, arm: Arm, names: Sequence[str]) -> list[float]:
        found = [mean_score(record, names, last_step(record)) for record in self._of(arm)]
        return [value for value in found if value is not None]

    def _last_bits(self, arm: Arm, name: str) -> list[float]:
        found = [record.bits.get(last_step(record), {}).get(name) for record in self._of(arm)]
        return [value for value in found if value is not None]

    def _title(self, arm: str) -> str:
        return next((each.title for each in self.study.arms if each.name == arm), arm)


_Show = Callable[[Arm], Cell]


@dataclass(frozen=True)
class _Curve:
    """A score that was taken several times along the pretraining: a downstream score, or the bits of a gap."""

    title: str
    score: str = ""
    gap: int = 0

    @property
    def is_bits(self) -> bool:
        """Whether it is of bits, of which fewer are better."""
        return not self.score

    def value(self, record: Record, step: int) -> float | None:
        """Return its value at a step."""
        if self.is_bits:
            return record.bits.get(step, {}).get(f"gap_{self.gap}")
        return mean_score(record, [self.score], step)


@dataclass(frozen=True)
class _Columns:
    """Neighbouring columns of a table of arms."""

    title: str
    kind: str
    """As in `cells.Heading`."""
    columns: dict[str, _Show]
    """What each shows of an arm, by its heading."""


def _switches(runs: list[Pretraining]) -> str:
    steps = [run.switches[0] for run in runs if len(run.switches) == 1]
    if not steps:
        return NONE
    return f"{min(steps):,}" if min(steps) == max(steps) else f"{min(steps):,} to {max(steps):,}"


_BITS = "bits per hidden base"
_OF_RUNS: dict[str, Callable[[list[Pretraining]], str]] = {
    "tokens masked": lambda runs: f"{np.mean([run.masked_share for run in runs]):.1%}",
    "bases hidden": lambda runs: f"{np.mean([run.hidden_bases_share for run in runs]):.1%}",
    "second stage from step": _switches,
    "petaflop": lambda runs: f"{np.mean([run.petaflop for run in runs]):.3f}",
}


def _spread(values: Sequence[float]) -> Cell:
    if not values:
        return Cell(NONE)
    mean = float(np.mean(values))
    return Cell(number(mean), f"± {number(float(np.std(values, ddof=1)))}" if len(values) > 1 else "", value=mean)


def _bits(values: Sequence[float]) -> Cell:
    if not values:
        return Cell(NONE)
    mean = float(np.mean(values))
    return Cell(f"{mean:.3f}", f"± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")


def _signed(value: float) -> str:
    return NONE if math.isnan(value) else f"{100 * value:+.2f}".replace("-", "−")
