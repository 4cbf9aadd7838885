"""Tables and pictures of docs/results.md, from the kept results of the studies.

    python -m benchmarks.results [--output docs]

OUTPUT gets results-contrasts.png and results-curves.png, and the sections of results.md between markers.
"""

import argparse
import json
import textwrap
from pathlib import Path
from typing import Any

from benchmarks.masking_statistics import table, write_between_markers
from benchmarks.measure import REPOSITORY
from cmgems.report.cells import NONE, Cell, Table
from cmgems.report.figures import Picture
from cmgems.report.study import StudyReport
from cmgems.study.results import read_records
from cmgems.study.settings import load_study

STUDIES = REPOSITORY / "studies"


def main() -> None:
    """Write all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs"), help="folder with results.md")
    write_results(parser.parse_args().output)


def write_results(output: Path) -> None:
    """Write the pictures into a folder, and the tables into the results.md there."""
    study, screen = read("curriculum"), read("screen")
    sections = {
        "screen": markdown(screen.arms_table()),
        "about": textwrap.fill(" ".join(study.about()), 128, break_long_words=False, break_on_hyphens=False),
        "arms": markdown(study.arms_table()),
        "contrasts": _with_picture(markdown(study.contrasts_table()), study.contrasts_picture(), output),
        "tasks": markdown(study.tasks_table()),
        "motifs": motifs_table(json.loads((STUDIES / "motifs/results.json").read_text())),
        "curves": _with_picture("\n\n".join(map(markdown, study.curve_tables())), study.curves_picture(), output),
    }
    write_between_markers(output / "results.md", sections)


def read(name: str) -> StudyReport:
    """Read a study that is kept in the repository."""
    study = load_study(STUDIES / name)
    return StudyReport(study, read_records(study))


def motifs_table(numbers: dict[str, Any]) -> str:
    """Return shares of motif cores among the top of each ranking, beside what permutations have."""
    header = ["ranking", "6-mers", "motif cores", "expected", "p", "expected, same G and C", "p, same G and C"]
    rows = []
    for name, tops in numbers["rankings"].items():
        for top, own in tops.items():
            cells = [f"{own['share']:.1%}"]
            for kind in ("any", "same_gc"):
                cells += [f"{own[f'expected, {kind}']:.1%}", f"{own[f'p, {kind}']:.2g}"]
            rows.append([name, top.replace("top", "first"), *cells])
    return table(header, rows)


def _with_picture(text: str, picture: Picture | None, output: Path) -> str:
    if picture is None:
        return text
    file = f"results-{picture.name}.png"
    (output / file).write_bytes(picture.png)
    return f"{text}\n\n![{picture.caption}]({file})"


def markdown(shown: Table) -> str:
    """Return a table in Markdown, with its caption above and its notes below; one for each group of columns that has a
    title."""
    parts, start = [f"**{shown.caption.rstrip('.')}.**"], 0
    for heading in shown.headings:
        own = slice(start, start + len(heading.columns))
        start = own.stop
        rows = [(row.title, row.detail, row.cells[own]) for row in shown.rows]
        named = [
            [title + (f" ({detail})" if detail else ""), *map(_cell, cells)]
            for title, detail, cells in rows
            if any(cell.text not in ("", NONE) for cell in cells)
        ]
        title = heading.text[:1].upper() + heading.text[1:]
        parts += [f"{title}:"] if title else []
        parts.append(table([shown.corner, *heading.columns], named))
    return "\n\n".join([*parts, *shown.notes])


def _cell(cell: Cell) -> str:
    text = f"**{cell.text}**" if cell.is_best else cell.text
    if not cell.detail:
        return text
    return f"{text} {cell.detail}" if cell.detail.startswith("±") else f"{text} ({cell.detail})"


if __name__ == "__main__":
    main()
