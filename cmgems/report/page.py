"""A page on the downstream scores of some runs, beside the published ones: `report.html`, and its pictures as files.

The page has all in it: pictures, style, no script. It needs no network.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

import cmgems
from cmgems.errors import UserError
from cmgems.report import figures, tables
from cmgems.report.cells import Table
from cmgems.report.comparison import Comparison, Run, compare, read_runs
from cmgems.report.figures import Picture
from cmgems.runtime.files import atomic_file

PAGE = "report.html"
_PICTURES = "report_*.png"


@dataclass(frozen=True)
class Section:
    """A part of the page: tables, then pictures."""

    title: str
    about: list[str]
    """Paragraphs that come first."""
    tables: list[Table]
    pictures: list[Picture]


def write_report(runs: list[Path], output: Path) -> Path:
    """Write the page on the downstream results of `runs` into the folder `output`, and return its path.

    Parameters
    ----------
    runs
        Folders of pretraining runs, or of others that have results below `downstream/`. They are only read, also while
        a run is not finished.
    output
        Folder to write into, as `write_page` does.

    Raises
    ------
    UserError
        If a run has no results, or one that cannot be read, or if `output` cannot be written.
    """
    if not runs:
        raise UserError("a report needs the folder of at least one run")
    read = read_runs(runs)
    return write_page("page.html", _sections(read), output, runs=read)


def write_page(template: str, sections: Sequence[Section], output: Path, **values: Any) -> Path:
    """Write a page and its pictures into the folder `output`, and return the page's path.

    Each file is written beside its place and renamed, the page last. Pictures of an earlier report in the folder
    (`report_*.png`) that this one does not have are removed; all else that is there stays. `report_files` names what
    was written.

    Parameters
    ----------
    template
        Template of the page, which extends layout.html.
    sections
        The sections of the page.
    output
        Folder to write into; it is made if need be.
    values
        What else the template shows.

    Raises
    ------
    UserError
        If `output` cannot be written.
    """
    page = _render(template, sections, values)
    pictures = {f"report_{each.name}.png": each.png for section in sections for each in section.pictures}
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, content in pictures.items():
            _write(output / name, content)
        for old in output.glob(_PICTURES):
            if old.name not in pictures:
                old.unlink()
        _write(output / PAGE, page.encode())
    except OSError as error:
        raise UserError(f"the report cannot be written to {output}: {error}") from error
    return output / PAGE


def report_files(output: Path) -> list[Path]:
    """Return the files of the report in a folder: the page, then its pictures."""
    return [path for path in (output / PAGE, *sorted(output.glob(_PICTURES))) if path.is_file()]


def _sections(runs: Sequence[Run]) -> list[Section]:
    """Return one for each suite and protocol, with the pretraining before the few-shot ones; at the end what the data
    is."""
    comparisons = compare(runs)
    suites = [_suite_section(comparison) for comparison in comparisons if not comparison.is_few_shot]
    few_shot = [_few_shot_section(comparison) for comparison in comparisons if comparison.is_few_shot]
    integrity = [
        Section(f"What is in the data: {suite}", [], [tables.integrity_table(of_suite)], [])
        for suite, of_suite in _by_suite(comparisons).items()
    ]
    return suites + _pretraining_sections(runs) + few_shot + integrity


def _by_suite(comparisons: Sequence[Comparison]) -> dict[str, list[Comparison]]:
    suites: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        suites.setdefault(comparison.base, []).append(comparison)
    return suites


def _title(comparison: Comparison) -> str:
    return f"Suite {comparison.base}" + (f", {comparison.protocol.title}" if comparison.protocol.title else "")


def _suite_section(comparison: Comparison) -> Section:
    several = len({(task.species, task.kind) for task in comparison.tasks}) > 1
    shown = [
        tables.score_table(comparison),
        tables.kind_table(comparison) if several else None,
        tables.share_table(comparison),
    ]
    pictures = [figures.differences(comparison), figures.efficiency(comparison)]
    return Section(
        _title(comparison),
        _about(comparison),
        [table for table in shown if table and table.rows],
        [picture for picture in pictures if picture],
    )


def _few_shot_section(comparison: Comparison) -> Section:
    picture = figures.few_shot(comparison)
    about = [*_about(comparison), "Few-shot tasks: each is trained on so many sequences of each class."]
    return Section(_title(comparison), about, [tables.few_shot_table(comparison)], [picture] if picture else [])


def _pretraining_sections(runs: Sequence[Run]) -> list[Section]:
    picture = figures.perplexities(runs)
    if picture is None:
        return []
    about = []
    for run in runs:
        switches = ", ".join(f"{step:,}" for step in run.switches)
        without = "" if run.perplexities else "no perplexities here"
        about.append(
            f"{run.label}: " + (without or (f"new stage after step {switches}" if switches else "no change of stage"))
        )
    return [Section("Pretraining", about, [], [picture])]


def _about(comparison: Comparison) -> list[str]:
    source = comparison.source or (
        "A suite that does not ship with cmgems: tasks without any result are not known here, nor shown."
    )
    published = [f"Published scores: {comparison.published.source}."] if comparison.published else []
    return [source, comparison.protocol.about, *published]


def _render(template: str, sections: Sequence[Section], values: dict[str, Any]) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = lambda png: "data:image/png;base64," + base64.b64encode(png).decode("ascii")
    return environment.get_template(template).render(
        **values,
        sections=sections,
        version=cmgems.__version__,
        when=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )


def _write(path: Path, content: bytes) -> None:
    with atomic_file(path) as partial:
        partial.write_bytes(content)
