"""`cmgems study`: works on a study, with one process or several, and says how far it is."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from cmgems.errors import IncompleteError, Interrupted
from cmgems.runtime.signals import end_with_parent
from cmgems.study.cells import Cell, cells, missing_parts, open_record
from cmgems.study.settings import Study
from cmgems.study.tracking import StudyRun
from cmgems.study.worker import Worker

logger = logging.getLogger(__name__)

_WORKER = "CMGEMS_STUDY_WORKER"
"""Variable that tells a process that it is one of several which another one has started."""


def run_study(study: Study, chosen: Sequence[str], workers: int, arguments: Sequence[str]) -> None:
    """Compute what is missing of a study.

    Parameters
    ----------
    study
        The study.
    chosen
        Names of arms, or of arms with a seed; empty: all.
    workers
        Processes on this machine, each of which takes one arm and seed at a time. Others may be at work elsewhere.
    arguments
        Arguments of `cmgems study` that start another process on the same study, but for `--workers`.

    Raises
    ------
    UserError
        If a setting is wrong, or there are results of other settings.
    IncompleteError
        If something failed; all else is there.
    Interrupted
        If a signal asked it to stop.
    """
    todo = cells(study, chosen)
    for cell in todo:
        open_record(study, cell)  # what is wrong is said before anything is computed
    study.work.mkdir(parents=True, exist_ok=True)
    run = StudyRun(study)
    is_one_of_several = _WORKER in os.environ
    if not is_one_of_several:
        logger.info(f"study {study.config.name}: {describe(study, todo)}; results in {study.results}")
    if workers > 1:
        codes = _start(workers, arguments)
        failures = {f"worker {n}": f"exit code {code}" for n, code in enumerate(codes, 1) if code not in (0, 1)}
        if any(codes):
            failures |= {cell.name: "see above" for cell in _unfinished(study, todo)}
    else:
        progress = Progress(study, todo)
        failures = Worker(study, run, progress.show).work(todo)
    if failures:
        lines = [f"{name}: {problem}" for name, problem in failures.items()]
        raise IncompleteError(f"{len(failures)} of {len(todo)} failed:\n  " + "\n  ".join(lines))
    if is_one_of_several:
        return
    left = _unfinished(study, todo)
    if left:
        logger.info(f"{len(left)} of {len(todo)} are left to other processes: {', '.join(c.name for c in left)}")
    elif not _unfinished(study, cells(study)):
        run.finish([study.path])
        logger.info(f"all is there; the page: cmgems report {study.path.parent}")


def describe(study: Study, todo: Sequence[Cell]) -> str:
    """Return how much of a study is done."""
    done = len(todo) - len(_unfinished(study, todo))
    return f"{done} of {len(todo)} arms and seeds are done"


def _unfinished(study: Study, todo: Sequence[Cell]) -> list[Cell]:
    return [cell for cell in todo if missing_parts(study, cell, open_record(study, cell))]


def _start(workers: int, arguments: Sequence[str]) -> list[int]:
    """Start processes on the same study, and wait for them; return their exit codes."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "cmgems", "study", *arguments, "--workers", "1"],
            env={**os.environ, **_share_of_machine(number, workers), _WORKER: str(number)},
            preexec_fn=end_with_parent,
            start_new_session=True,  # of a Ctrl-C it gets the one signal that is sent below
        )
        for number in range(workers)
    ]
    try:
        return [process.wait() for process in processes]
    except Interrupted:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
        raise


def _share_of_machine(number: int, workers: int) -> dict[str, str]:
    """Return the variables that give a process its part of the GPUs, or of the cores."""
    import torch

    gpus = torch.cuda.device_count()
    if gpus >= workers:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")  # indices, or names of GPUs or of their parts
        names = visible.split(",") if visible else list(map(str, range(gpus)))
        return {"CUDA_VISIBLE_DEVICES": ",".join(names[number * gpus // workers : (number + 1) * gpus // workers])}
    cores = len(os.sched_getaffinity(0))
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // workers))}


@dataclass
class Progress:
    """How far a study is, from the files of its results, which all processes write."""

    study: Study
    todo: Sequence[Cell]

    def __post_init__(self) -> None:
        self._began, (self._spent_before, _) = time.monotonic(), self._seconds()

    def show(self, cell: Cell, part: str) -> None:
        """Log that a part has been computed."""
        done = len(self.todo) - len(_unfinished(self.study, self.todo))
        spent, left = self._seconds()
        pace = (spent - self._spent_before) / (time.monotonic() - self._began)  # of all processes together
        remaining = f", about {left / pace / 60:,.0f} min left" if pace > 0 and left > 0 else ""
        logger.info(f"[{done} of {len(self.todo)}] {cell.name}: {part}{remaining}")

    def _seconds(self) -> tuple[float, float]:
        """Return the time that single processes have spent on all that is there, and what is missing will take them, by
        the mean of what is there."""
        took: dict[str, list[float]] = {}
        missing: list[str] = []
        for cell in self.todo:
            record = open_record(self.study, cell)
            missing += [part.partition("@")[0] for part in missing_parts(self.study, cell, record)]
            for what, seconds in record.seconds.items():
                number = max(1, len(record.bits if what == "bits" else record.scores.get(what, [1])))
                took.setdefault(what, []).extend([seconds / number] * number)
        means = {what: sum(values) / len(values) for what, values in took.items()}
        left = sum(means.get(what, max(means.values(), default=0.0)) for what in missing)
        return sum(map(sum, took.values())), left
