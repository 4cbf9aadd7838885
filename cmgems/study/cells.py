"""The cells of a study, which are arms with a seed: their results, and the parts that these lack."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from cmgems.config.schema import PretrainConfig, flatten
from cmgems.downstream.tasks import load_suite
from cmgems.errors import UserError
from cmgems.study.records import Record, read_record
from cmgems.study.settings import Arm, Study

_NOT_NUMBERS = (
    *("name", "seed", "output", "resume", "allow_changed", "checkpoint.", "tracking.", "launch."),
    *("corpus.path", "corpus.workers", "corpus.prefetch", "corpus.prepare.inputs"),  # its fingerprint counts
    *("training.micro_batch", "evaluation.micro_batch", "model.activation_checkpointing"),
)
"""Beginnings of the names of settings that do not change what comes out, but for rounding."""

_NOT_OF_SCORES = {"title", "data", "at"}
"""Settings of a score that do not change what comes out."""


@dataclass(frozen=True)
class Cell:
    """An arm and a seed."""

    arm: Arm
    seed: int

    @property
    def name(self) -> str:
        """Name of its files."""
        return f"{self.arm.name}-{self.seed}"


def cells(study: Study, chosen: Iterable[str] = ()) -> list[Cell]:
    """Return the arms and seeds of a study, the first seeds of all arms first; `chosen` names some of them.

    Raises
    ------
    UserError
        If one is named that does not exist.
    """
    most = max(arm.seeds for arm in study.arms)
    every = [Cell(arm, seed) for seed in range(1, most + 1) for arm in study.arms if seed <= arm.seeds]
    chosen = list(chosen)
    unknown = set(chosen) - {name for cell in every for name in (cell.name, cell.arm.name)}
    if unknown:
        names = ", ".join(arm.name for arm in study.arms)
        raise UserError(f"cells: no {', '.join(sorted(unknown))}; arms: {names}, each also as ARM-SEED")
    return [cell for cell in every if not chosen or cell.name in chosen or cell.arm.name in chosen]


def record_path(study: Study, cell: Cell) -> Path:
    """Return the file of a cell's results."""
    return study.results / f"{cell.name}.json"


def open_record(study: Study, cell: Cell) -> Record:
    """Return what there is of a cell.

    Raises
    ------
    UserError
        If it was computed with other settings than the study has now.
    """
    path, settings = record_path(study, cell), numeric_settings(study.configs[cell.arm.name])
    scoring = _scoring(study)
    record = read_record(path)
    if record is None:
        return Record(study=study.config.name, arm=cell.arm.name, seed=cell.seed, settings=settings, scoring=scoring)
    changed = [
        f"{name}: {record.settings.get(name)} there, {settings.get(name)} in the study"
        for name in sorted(record.settings.keys() | settings.keys())
        if not name.startswith(_NOT_NUMBERS) and record.settings.get(name) != settings.get(name)
    ]
    computed = {*record.scores, *(["bits"] if record.bits else [])}
    changed += [
        "bits: other windows or gaps" if name == "bits" else f"scores.{name}: another suite, other tasks or protocol"
        for name, own in scoring.items()
        if name in computed and record.scoring.get(name, own) != own
    ]
    if changed:
        raise UserError(
            f"{path} was computed with other settings; remove it, or restore the study:\n  " + "\n  ".join(changed)
        )
    record.scoring = scoring
    return record


def missing_parts(study: Study, cell: Cell, record: Record) -> list[str]:
    """Return the parts that a record lacks, in the order of their computation: `pretraining`, `bits@STEP`,
    `SCORE@STEP`."""
    arm, bits = cell.arm, study.config.bits
    parts = ["pretraining"] if arm.model == "pretrained" and record.pretraining is None else []
    if bits is not None and arm.model in ("pretrained", "untrained"):
        parts += [f"bits@{step}" for step in study.steps(bits.at, arm) if step not in record.bits]
    for name, score in study.config.scores.items():
        steps = study.steps(score.at, arm)
        parts += [f"{name}@{step}" for step in steps if step not in record.scores.get(name, {})]
    return parts


def numeric_settings(config: PretrainConfig) -> dict[str, object]:
    """Return the settings that determine a run's numbers."""
    return {name: value for name, value in flatten(config).items() if not name.startswith(_NOT_NUMBERS)}


def _scoring(study: Study) -> dict[str, str]:
    """Return fingerprints of how each score, and the bits, are computed."""
    described: dict[str, Any] = {}
    for name, score in study.config.scores.items():
        suite = load_suite(study.beside(score.suite))
        if suite.is_of_values:
            raise UserError(
                f"{study.path}: scores.{name}: tasks of suite {suite.name} have a value; studies take classes only"
            )
        tasks = suite.choose(score.tasks)
        own = score.model_dump(mode="json", exclude=_NOT_OF_SCORES)
        described[name] = [own, [task.described() for task in tasks]]
    if study.config.bits is not None:
        described["bits"] = study.config.bits.model_dump(mode="json", exclude=_NOT_OF_SCORES)
    return {name: sha256(json.dumps(d, sort_keys=True).encode()).hexdigest()[:16] for name, d in described.items()}
