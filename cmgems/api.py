"""What a notebook or a program calls: load a model, train one, evaluate one. `cmgems.load` and so on are from here."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState

from cmgems.config.command_line import read_config, validated
from cmgems.config.recipes import merge
from cmgems.config.schema import PretrainConfig
from cmgems.downstream.benchmark import benchmark
from cmgems.downstream.results import Result
from cmgems.downstream.settings import BenchmarkConfig
from cmgems.errors import UserError
from cmgems.inference.model import SequenceModel
from cmgems.inference.settings import Precision
from cmgems.runtime.logging import configure_logging
from cmgems.runtime.process import world_size
from cmgems.runtime.signals import stopping_on_signals
from cmgems.training.checkpoint import exported_models


def load(
    model: str | Path,
    device: torch.device | str | None = None,
    precision: Precision = "fp32",
    max_tokens: int | None = None,
    trust_remote_code: bool = False,
) -> SequenceModel:
    """Load a model for embeddings, scores of variants, and predictions of hidden nucleotides.

    Parameters
    ----------
    model
        The folder of a run, of which the last exported model is loaded, of a model, or a name on the Hugging Face hub.
    device
        Where it computes; None: the first GPU, or the CPU.
    precision
        Arithmetic of the forward pass.
    max_tokens
        Longest input in tokens, special ones not counted; None: the model's.
    trust_remote_code
        Run the code that comes with a model from the hub.

    Raises
    ------
    UserError
        If there is no such model, or it is not one for DNA or RNA.
    """
    return SequenceModel(_model(model), device, precision, max_tokens, trust_remote_code)


def train(recipe: str | Path | PretrainConfig = "demo", **settings: Any) -> Path:
    """Pretrain a model in this process, and return the folder of the run.

    Several processes train by `accelerate launch cmgems/pretrain.py`.

    Parameters
    ----------
    recipe
        A YAML file, the name of a recipe that ships with cmgems, or a config that is complete.
    settings
        Settings that replace those of the recipe, a dict for each section: `training={"steps": 500}`.

    Raises
    ------
    UserError
        If a setting, the data or the run's folder is wrong.
    """
    if world_size() > 1:
        raise UserError("cmgems.train is for one process; several train by `accelerate launch cmgems/pretrain.py`")
    from cmgems.pretrain import pretrain

    if isinstance(recipe, PretrainConfig):
        config = validated(merge(recipe.model_dump(exclude_unset=True), settings), PretrainConfig)
    else:
        config = read_config(str(recipe), settings)
    configure_logging()
    with _accelerate_of_its_own(), stopping_on_signals():
        return pretrain(config)


def evaluate(model: str | Path, suite: str = "gue", data: str | Path = "", **settings: Any) -> list[Result]:
    """Score a model on a suite of downstream tasks, beside its baselines, as `cmgems benchmark` does.

    Parameters
    ----------
    model
        As `load` takes it.
    suite
        `gue`, `fewshot`, `yeast`, `codon`, or a YAML file.
    data
        Folder of the suite's data, or the name of a dataset on the Hugging Face hub.
    settings
        Options of `cmgems benchmark`, such as `probe=True`, `seeds=5`, `tasks=["tf/0"]`.

    Returns
    -------
    list of Result
        One for each task, seed, and model or baseline. `result.score` is the value of `result.metric`.

    Raises
    ------
    UserError
        If there is no such model, suite or data.
    IncompleteError
        If some scores could not be computed; the others are in files.
    """
    configure_logging()
    config = validated({"model": _model(model), "suite": suite, "data": str(data), **settings}, BenchmarkConfig)
    with _accelerate_of_its_own():
        return benchmark(config)


def _model(run_or_model: str | Path) -> str:
    """Return the model that a run has exported last; what is not the folder of a run is a model itself."""
    return str(max(exported_models(Path(run_or_model)), default=run_or_model))


@contextmanager
def _accelerate_of_its_own() -> Iterator[None]:
    """Forget what Accelerate keeps for a whole process, so that what comes next can have other settings."""
    try:
        yield
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)  # there is no public way
        PartialState._reset_state()
