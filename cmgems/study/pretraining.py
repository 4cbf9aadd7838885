"""The pretraining of one arm and seed: a process of its own, and what it has logged."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

import cmgems
from cmgems.config.recipes import read_mapping
from cmgems.config.schema import PretrainConfig
from cmgems.errors import CmgemsError, IncompleteError, Interrupted, InUseError
from cmgems.runtime.files import atomic_file
from cmgems.runtime.passwords import has_password
from cmgems.runtime.signals import end_with_parent
from cmgems.study.records import Pretraining
from cmgems.tracking.journal import read_contents

SCRIPT = Path(cmgems.__file__).parent / "pretrain.py"


def pretrain(config: PretrainConfig, launch: list[str], folder: Path) -> None:
    """Pretrain into a folder, or resume there; its output goes into a log beside it, `FOLDER.log`.

    Raises
    ------
    InUseError
        If another process has the folder.
    Interrupted
        If this process has been asked to stop; the run has saved a checkpoint then.
    IncompleteError
        If it fails otherwise.
    """
    recipe, log = recipe_path(folder), folder.with_name(folder.name + ".log")
    with atomic_file(recipe, private=has_password(config.tracking.uri)) as partial:
        partial.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    command = [*(launch or [sys.executable]), str(SCRIPT), "--config", str(recipe)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SCRIPT.parents[1]), *_python_path()])}
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=output,
            stderr=output,
            preexec_fn=end_with_parent,
            start_new_session=True,  # of a Ctrl-C it gets the one signal that is sent below
        )
        try:
            code = process.wait()
        except Interrupted:
            process.terminate()
            process.wait()
            raise
    if code:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        problem = next((line for line in reversed(lines) if "error:" in line), lines[-1] if lines else "")
        kind = InUseError if code == InUseError.exit_code else IncompleteError
        raise kind(f"pretraining failed (exit code {code}), see {log}: {problem}")


def recipe_path(folder: Path) -> Path:
    """Return the file with the recipe that a run was started with, beside its folder."""
    return folder.with_name(folder.name + ".yaml")


def trained_with(folder: Path) -> PretrainConfig | None:
    """Return the recipe that a run was started with; None if it is not there, or is no recipe of this version."""
    try:
        return PretrainConfig.model_validate(read_mapping(recipe_path(folder), "a recipe is a mapping"))
    except (CmgemsError, ValidationError):
        return None


def _python_path() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


def read_pretraining(folder: Path, config: PretrainConfig, window_tokens: float) -> Pretraining | None:
    """Return what a run of all its steps has logged; None unless it has finished.

    Parameters
    ----------
    folder
        The run's folder.
    config
        Its settings.
    window_tokens
        Tokens of a training window, as a mean.

    Raises
    ------
    CmgemsError
        If its journal cannot be read.
    """
    status, switches = None, dict[str, int]()
    evaluations: dict[int, Mapping[str, float]] = {}
    training: dict[int, Mapping[str, float]] = {}
    for content in read_contents(folder):
        found, step = content.get("metrics", {}), content.get("step", 0)
        status = content.get("status", status)
        if "ppl/stage" in found:
            evaluations[step] = found  # a step that was repeated after a crash counts once
        if "usage/petaflop" in found or "masking/masked_share" in found:
            training[step] = {**training.get(step, {}), **found}
        switches |= {k: int(v) for k, v in content.get("tags", {}).items() if k.endswith(".step")}
    if status != "FINISHED" or max(evaluations, default=0) != config.training.steps:
        return None
    last = evaluations[max(evaluations)]
    constants = ("_composition", "_chain")
    columns = sorted(n for n in last if n.split("/")[0] in ("ppl", "bits") and not n.endswith(constants))
    usage = [found for _, found in sorted(training.items())]
    return Pretraining(
        steps=config.training.steps,
        tokens=round(config.training.steps * config.training.global_batch * window_tokens),
        petaflop=_last(usage, "usage/petaflop"),
        hours=_last(usage, "usage/device_hours"),
        switches=sorted(switches.values()),
        masked_share=_mean(training, "masking/masked_share"),
        hidden_bases_share=_mean(training, "masking/hidden_bases_share"),
        validation={
            "step": [float(step) for step in sorted(evaluations)],
            **{name: [evaluations[step].get(name) for step in sorted(evaluations)] for name in columns},
        },
    )


def _last(found: list[Any], name: str) -> float:
    values = [each[name] for each in found if name in each]
    if not values:
        raise CmgemsError(f"the journal of the run has no {name}")
    return float(values[-1])


def _mean(found: Mapping[int, Mapping[str, float]], name: str) -> float:
    """Return the mean of a metric, which is of the steps since the one before, over all steps."""
    total, before = 0.0, 0
    for step, values in sorted(found.items()):
        if name in values:
            total += values[name] * (step - before)
            before = step
    return total / before if before else 0.0
