"""One process that works on a study: it takes one arm and seed after another that no other process has."""

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from filelock import FileLock, Timeout

from cmgems.config.schema import PretrainConfig
from cmgems.downstream.benchmark import Unit, score_units
from cmgems.downstream.results import PREDICTIONS, Result, result_folder
from cmgems.downstream.setup import Scoring, open_scoring
from cmgems.downstream.subjects import Candidate, kmer_regression, random_weights
from cmgems.errors import CmgemsError, UserError
from cmgems.model.bert import build_model
from cmgems.runtime.files import remove_leftovers
from cmgems.study.cells import Cell, missing_parts, numeric_settings, open_record, record_path
from cmgems.study.gaps import GapScorer
from cmgems.study.machine import describe_machine
from cmgems.study.pretraining import pretrain, read_pretraining, trained_with
from cmgems.study.records import Entry, Record, pack_rows, write_record
from cmgems.study.settings import Arm, Study
from cmgems.study.tracking import StudyRun
from cmgems.training.setup import TrainingData, open_data
from cmgems.training.weights import export_model

logger = logging.getLogger(__name__)

_LIBRARIES = ("cmgems", "torch", "transformers", "accelerate", "scikit-learn", "numpy")


@dataclass
class Worker:
    """What a process needs for one arm and seed after another."""

    study: Study
    run: StudyRun
    on_part: Callable[[Cell, str], None]
    """Called after each part that has been computed."""
    _scorers: dict[str, GapScorer] = field(default_factory=dict)

    def work(self, chosen: Iterable[Cell]) -> dict[str, str]:
        """Compute what is missing of the cells, but for those that other processes have; return what failed, by name,
        with the reason."""
        failures = {}
        for cell in chosen:
            lock = FileLock(self.study.work / f".{cell.name}.lock")
            try:
                with lock.acquire(blocking=False):
                    self._complete(cell)
            except Timeout:
                continue
            except CmgemsError as error:
                failures[cell.name] = str(error)
                logger.error(f"{cell.name} failed: {error}")
        return failures

    def _complete(self, cell: Cell) -> None:
        record, path = open_record(self.study, cell), record_path(self.study, cell)
        remove_leftovers(path.parent, path.name)
        for part in missing_parts(self.study, cell, record):
            began = time.monotonic()
            self._check_corpus(cell, record)
            what, _, step = part.partition("@")
            if what == "pretraining":
                self._pretrain(cell, record)
            elif what == "bits":
                self._score_bits(cell, record, int(step))
            else:
                self._score(cell, record, what, int(step))
            record.seconds[what] = round(record.seconds.get(what, 0.0) + time.monotonic() - began, 1)
            record.machine = describe_machine()
            record.versions = {name: version(name) for name in _LIBRARIES}
            write_record(path, record)
            self.on_part(cell, part)
        self.run.publish(cell.name, open_record(self.study, cell))  # the numbers as they are kept

    def _check_corpus(self, cell: Cell, record: Record) -> None:
        """Note the corpus that a record is of; UserError if it is of another one than the study's."""
        found = self._data(cell).fingerprints
        if record.fingerprints and record.fingerprints != found:
            path = record_path(self.study, cell)
            raise UserError(f"{path} is of another corpus or NPMI table than the study's: remove it")
        record.fingerprints = found

    def _config(self, cell: Cell) -> PretrainConfig:
        config = self.study.configs[cell.arm.name]
        milestones = sorted({*config.checkpoint.milestones, *self.study.scored_steps(cell.arm)})
        return config.model_copy(
            update={
                "name": f"{config.name}-{cell.seed}",
                "seed": cell.seed,
                "output": self._folder(cell),
                "resume": "auto",
                "checkpoint": config.checkpoint.model_copy(update={"milestones": milestones}),
            }
        )

    def _folder(self, cell: Cell) -> Path:
        return self.study.work / cell.name

    def _pretrain(self, cell: Cell, record: Record) -> None:
        config, folder = self._config(cell), self._folder(cell)
        data = self._data(cell)
        window_tokens = data.corpus.manifest["splits"]["train"]["tokens"] / len(data.corpus.train)
        found = read_pretraining(folder, config, window_tokens)
        trained = trained_with(folder)
        if found is not None and (trained is None or numeric_settings(trained) != numeric_settings(config)):
            raise UserError(f"{folder} is a run of other settings than the study's: remove it")
        if found is None:
            pretrain(config, self.study.config.launch, folder)
            found = read_pretraining(folder, config, window_tokens)
        if found is None:
            raise CmgemsError(f"the run in {folder} has ended, and has not logged its last evaluation")
        record.pretraining = found
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # of no more use, and the largest part by far

    def _score_bits(self, cell: Cell, record: Record, step: int) -> None:
        assert self.study.config.bits is not None
        scorer = self._scorer(cell)
        record.bits[step] = {**scorer.score(self._model(cell, step)), **scorer.baselines}

    def _score(self, cell: Cell, record: Record, name: str, step: int) -> None:
        config = self.study.benchmark(name, str(self._model(cell, step)), cell.seed, self._folder(cell))
        scoring = open_scoring(config, config.tasks)
        subject = _subject(cell.arm, scoring)
        results = score_units(scoring, [Unit(task, subject, cell.seed) for task in scoring.tasks], is_published=False)
        is_last = step == max(self.study.steps([1.0], cell.arm))
        record.scores.setdefault(name, {})[step] = {
            result.task: _entry(result, scoring.folder if is_last else None) for result in results
        }

    def _model(self, cell: Cell, step: int) -> Path:
        """Return the folder of a model; made, or pretrained again, where it is not there."""
        folder = self._folder(cell) / "models" / f"step-{step:08d}"
        if not folder.is_dir():
            config = self._config(cell)
            if cell.arm.model == "pretrained":
                pretrain(config, self.study.config.launch, self._folder(cell))
            else:
                accelerator, tokens = Accelerator(), self._data(cell).corpus.tokens
                model = build_model(config.model, tokens, config.seed, accelerator.device)
                export_model(accelerator, model, tokens, folder)
        return folder

    def _data(self, cell: Cell) -> TrainingData:
        return open_data(self.study.configs[cell.arm.name])

    def _scorer(self, cell: Cell) -> GapScorer:
        """Return the scorer of a cell's corpus and architecture; its baselines are costly."""
        assert self.study.config.bits is not None
        recipe = self.study.configs[cell.arm.name]
        key = json.dumps([recipe.corpus.model_dump(mode="json"), recipe.model.model_dump(mode="json")])
        if key not in self._scorers:
            self._scorers[key] = GapScorer(self.study.config.bits, recipe, self._data(cell))
        return self._scorers[key]


def _subject(arm: Arm, scoring: Scoring) -> Candidate:
    """Return what is scored of an arm."""
    if arm.model == "random-weights":
        return random_weights(scoring.model.source)
    if arm.model.endswith("-mers"):
        return kmer_regression(scoring.model.source, int(arm.model.removesuffix("-mers")))
    return scoring.model


def _entry(result: Result, run: Path | None) -> Entry:
    """Return a record's entry of a result; with the predictions that are in the folder `run`, unless None."""
    outcomes = None
    if run is not None:
        folder = result_folder(run, result.suite, result.subject, result.task, result.seed)
        rows = np.loadtxt(folder / PREDICTIONS, delimiter=",", skiprows=1, usecols=(1, 2), dtype=np.int64, ndmin=2)
        outcomes = pack_rows(rows[:, 0] * len(result.classes) + rows[:, 1])
    return Entry(
        metric=result.metric,
        value=result.score,
        dev=result.dev_metrics.get(result.metric),
        choice=result.choice.value if result.choice else None,
        classes=len(result.classes),
        rows=result.rows,
        seconds=round(result.seconds, 2),
        outcomes=outcomes,
    )
