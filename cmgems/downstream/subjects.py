"""What is scored, a model and its baselines, and the folder that their results are in."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from cmgems.downstream.results import Kind
from cmgems.downstream.settings import ScoringConfig
from cmgems.inference.source import Source
from cmgems.tracking.journal import find_place

UNTRAINED = "step-00000000"
"""Folder of a run's untrained model."""


@dataclass(frozen=True)
class Candidate:
    """What is scored: a model, or a baseline."""

    kind: Kind
    name: str
    """Name in tables and of the folder: `step-00010000`, `random-weights`."""
    source: Source
    """The model; of a baseline the model that it is the baseline of."""
    step: int | None = None
    """Optimizer steps that the model was pretrained for, if known."""
    k: int | None = None
    """Length of the k-mers of a regression."""
    codons: bool = False
    """Whether these are codons: 3-mers side by side."""
    forest: bool = False
    """Whether the regression is a random forest."""


def random_weights(source: Source) -> Candidate:
    """Return the baseline that has the model's architecture and none of what it has learned."""
    baseline = Source(source.model, source.trust_remote_code, random_weights=True, max_tokens=source.max_tokens)
    return Candidate("random weights", "random-weights", baseline)


def untrained_start(subject: Candidate) -> Candidate | None:
    """Return the model as its pretraining began, where the run has exported it (`checkpoint.milestones`, step 0).

    It separates the effect of training from that of the initial weights, which are not plain random ones where a
    recipe says so.
    """
    model = Path(subject.source.model).resolve()
    start = model.parent / UNTRAINED
    if model == start or not (start / "config.json").is_file():
        return None
    return Candidate("model", UNTRAINED, replace(subject.source, model=str(_shorter(start))), step=0)


def kmer_regression(source: Source, k: int) -> Candidate:
    """Return the baseline that is no neural network: a regression on k-mers of a length."""
    return Candidate("k-mer regression", f"{k}-mer-regression", source, k=k)


def codon_regression(source: Source) -> Candidate:
    """Return the regression of a value on codons."""
    return Candidate("k-mer regression", "codon-regression", source, k=3, codons=True)


def forest(baseline: Candidate) -> Candidate:
    """Return a random forest on what a regression of a value counts."""
    return replace(baseline, name=baseline.name.replace("regression", "forest"), forest=True)


def run_folder(config: ScoringConfig) -> Path:
    """Return the folder that gets the results: that of the pretraining run which the model is of, or one named after
    the model."""
    if config.output is not None:
        return config.output
    folder = Path(config.model).resolve()
    if folder.is_dir():
        run = folder.parent.parent
        return _shorter(run) if find_place(run) is not None else Path("runs") / folder.name
    return Path("runs") / re.sub(r"[^\w.-]+", "--", config.model)


def _shorter(folder: Path) -> Path:
    """Return a folder below the current one by its relative path."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def model_subject(config: ScoringConfig) -> Candidate:
    """Return the model that is scored, and the number of its pretraining steps, as its folder's name `step-N` says."""
    folder = Path(config.model)
    name = folder.resolve().name if folder.is_dir() else folder.name
    numbered = re.fullmatch(r"step-(\d+)", name)
    step = int(numbered[1]) if config.step is None and numbered else config.step
    source = Source(config.model, config.trust_remote_code, max_tokens=config.max_tokens)
    return Candidate("model", name, source, step)
