"""Tables as data: headings, rows and cells, for the page to render."""

from dataclasses import dataclass, field, replace

from cmgems.downstream.results import Score

NONE = "–"


@dataclass(frozen=True)
class Cell:
    """A cell."""

    text: str
    detail: str = ""
    """What is shown smaller below."""
    mark: str = ""
    """A warning."""
    is_best: bool = False
    value: float | None = None
    """What it is compared with others by; None: it is not compared."""


@dataclass(frozen=True)
class Row:
    """A row."""

    title: str
    detail: str
    cells: list[Cell]
    kind: str = ""
    """`mean`, or nothing."""
    part: str = ""
    """Title of the part of the table that begins with this row."""


@dataclass(frozen=True)
class Heading:
    """A heading over neighbouring columns; `columns` are their own headings."""

    text: str
    columns: list[str]
    kind: str
    """`models`, `baselines`, `published` or nothing."""


@dataclass(frozen=True)
class Table:
    """A table; the first column is for the rows' titles."""

    caption: str
    corner: str
    headings: list[Heading]
    rows: list[Row]
    notes: list[str] = field(default_factory=list)

    @property
    def starts(self) -> list[int]:
        """Numbers of the columns with which headings begin."""
        return [sum(len(heading.columns) for heading in self.headings[:n]) for n in range(len(self.headings))]


def number(value: float) -> str:
    """Return a score x 100."""
    return f"{100 * value:.2f}"


def count_cell(value: int | None) -> Cell:
    return Cell(NONE if value is None else f"{value:,}")


def score_cell(score: Score) -> Cell:
    seeds = f"({len(score.values)})"
    return Cell(
        number(score.mean), f"± {number(score.sd)} {seeds}" if score.sd is not None else seeds, value=score.mean
    )


def share_cell(score: Score | None, of: float) -> Cell:
    return Cell(f"{100 * 100 * score.mean / of:.1f} %", number(score.mean)) if score and of > 0 else Cell(NONE)


def mark_best(cells: list[Cell]) -> list[Cell]:
    """Mark all whose text is that of the highest value, if there are others to compare with."""
    compared = [cell for cell in cells if cell.value is not None]
    if len(compared) < 2:
        return cells
    best = max(compared, key=lambda cell: cell.value or 0.0).text
    return [replace(cell, is_best=cell.value is not None and cell.text == best) for cell in cells]
