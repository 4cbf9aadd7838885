"""What there is to say of a model that a run has exported: all of it is read in the run's folder.

Nothing that is told has a path of the machine in it: files and folders go by their names alone.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from cmgems.config.schema import PretrainConfig
from cmgems.data.hub import is_hub_name
from cmgems.data.settings import PrepareConfig
from cmgems.data.tokenization import Tokenization
from cmgems.downstream.results import read_results
from cmgems.downstream.subjects import UNTRAINED
from cmgems.errors import UserError
from cmgems.report.comparison import Comparison, Run, compare
from cmgems.tracking.journal import read_contents
from cmgems.training.checkpoint import checkpoint_step, exported_models, step_folder
from cmgems.training.record import read_record

Points = Mapping[str, Mapping[int, float]]
"""Values of metrics, by name and optimizer step."""


@dataclass(frozen=True, slots=True)
class Phase:
    """A stage of the curriculum, and the steps that it masked up to the model."""

    name: str
    masking: list[dict[str, Any]]
    """Settings of its masking strategies."""
    until: dict[str, Any]
    """What ends it."""
    first: int | None
    """First optimizer step, counted from 1; None: it is not reached, or passed over."""
    last: int | None
    """Last optimizer step."""


@dataclass(frozen=True)
class Description:
    """A model and how it came about."""

    folder: Path
    """Where the run has exported it."""
    step: int
    """Optimizer steps of its training."""
    parameters: int
    """Number of its weights."""
    config: PretrainConfig
    """Settings of the run; files and folders by their names alone."""
    corpus: dict[str, Any]
    """Manifest of the corpus, in the same way."""
    environment: dict[str, str]
    """Versions and device of the run."""
    launch: str
    """What the run was launched as."""
    phases: list[Phase]
    """The curriculum up to the model."""
    resumptions: dict[int, str]
    """What was different when the run was resumed, by the step after which it was."""
    evaluated: int | None
    """Optimizer steps of the last evaluation up to the model; None: there was none."""
    metrics: dict[str, float]
    """What this evaluation has logged, by the names in MLflow."""
    tokens: int
    """Tokens that the model has read in training, special ones not counted."""
    device_hours: float | None
    """Wall-clock time of all processes together, evaluations included, in hours."""
    comparisons: list[Comparison]
    """Downstream scores of the model, its untrained start and its baselines, by suite and protocol."""

    @property
    def tokenization(self) -> Tokenization:
        """Which nucleotides a token covers."""
        return PrepareConfig.model_validate(self.corpus["config"]).tokenization


def describe(run: Path, step: int | None) -> Description:
    """Read what there is to say of a model of a run: that of a step, or the last one.

    Raises
    ------
    UserError
        If there is no such run or model, or a part of it cannot be read.
    """
    contents = read_contents(run)
    if not contents:
        raise UserError(f"{run} is not the folder of a pretraining run, such as runs/NAME/1")
    folder = find_model(run, step)
    record, step = read_record(run), checkpoint_step(folder)
    corpus = _without_paths(record.corpus)
    config = _public_settings(record.recipe, corpus)
    points, tags = _until(step, contents)
    evaluated: int | None = max(points.get("ppl/span", ()), default=None)
    hours = points.get("usage/device_hours", {})
    return Description(
        folder=folder,
        step=step,
        parameters=count_parameters(folder),
        config=config,
        corpus=corpus,
        environment=record.environment,
        launch=tags.get("launch", ""),
        phases=_phases(config, step, points, tags),
        resumptions={after: text for after, text in _numbered(tags, r"resumed\.(\d+)").items() if after < step},
        evaluated=evaluated,
        metrics={name: value for name, values in points.items() for at, value in values.items() if at == evaluated},
        tokens=tokens_read(points),
        device_hours=hours[max(hours)] if hours else None,
        comparisons=_scores(run, config.name, step),
    )


def find_model(run: Path, step: int | None) -> Path:
    """Return the folder of a model that a run has exported.

    Raises
    ------
    UserError
        If there is none.
    """
    models = exported_models(run)
    if not models:
        raise UserError(f"{run} has no exported model yet: a run exports one at its milestones and at its end")
    if step is None:
        return models[-1]
    wanted = step_folder(run / "models", step)
    if wanted not in models:
        steps = ", ".join(f"{checkpoint_step(model)}" for model in models)
        raise UserError(f"{run} has no exported model of step {step}; there are those of: {steps}")
    return wanted


def count_parameters(folder: Path) -> int:
    """Return the number of weights of an exported model; a matrix that two layers share counts once.

    Raises
    ------
    UserError
        If its files cannot be read.
    """
    total = 0
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder} has no weights: model.safetensors is missing")
    for path in files:
        try:
            with safe_open(path, framework="numpy") as weights:
                shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} cannot be read: {error}") from None
        total += sum(_product(shape) for shape in shapes)
    return total


def _product(shape: Iterable[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _name_alone(source: str) -> str:
    """Name of a file or folder without where it is; names on the hub stay as they are."""
    return source if is_hub_name(source) else Path(source).name


def _without_paths(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest of a corpus with its inputs by their names alone; only those without a checksum can be on
    the hub."""
    names = {
        source["name"]: Path(source["name"]).name if source["sha256"] else _name_alone(source["name"])
        for source in manifest["inputs"]
    }
    config = dict(manifest["config"])
    for kind in ("inputs", "annotation"):
        if kind in config:
            config[kind] = [names[source] for source in config[kind]]
    inputs = [{**source, "name": names[source["name"]]} for source in manifest["inputs"]]
    return {**manifest, "config": config, "inputs": inputs}


def _public_settings(recipe: dict[str, Any], corpus: dict[str, Any]) -> PretrainConfig:
    """Return the settings of a run as anybody can use them: with the preparation of the corpus, without the places
    of files and servers."""
    own = {name: recipe[name] for name in ("name", "seed", "curriculum", "optimizer", "training", "evaluation")}
    own["corpus"] = {
        **recipe["corpus"],
        "path": Path(recipe["corpus"]["path"]).name,
        "prepare": corpus["config"],
    }
    own["npmi"] = {name: value for name, value in recipe["npmi"].items() if value is not None}
    if (table := recipe["npmi"]["table"]) is not None:
        own["npmi"] = {**own["npmi"], "table": table} if table == "human" else {"table": Path(table).name}
    start = recipe["model"]["init_from"]
    own["model"] = {**recipe["model"], "init_from": start and _name_alone(start)}
    own["checkpoint"] = {**recipe["checkpoint"], "staging": None}
    try:
        return PretrainConfig.model_validate(own)
    except ValidationError as error:
        raise UserError(f"the run's settings are none of this version of cmgems: {error}") from None


def _until(step: int, contents: list[dict[str, Any]]) -> tuple[Points, dict[str, str]]:
    """Return the metrics of a journal up to a step, and its tags; what was logged again replaces what was before."""
    points: dict[str, dict[int, float]] = {}
    tags: dict[str, str] = {}
    for content in contents:
        tags |= content.get("tags", {})
        if content.get("step", step + 1) <= step:
            for name, value in content["metrics"].items():
                points.setdefault(name, {})[content["step"]] = value
    return points, tags


def _numbered(tags: Mapping[str, str], pattern: str) -> dict[int, str]:
    """Return the tags whose whole names fit a pattern, by the number in it."""
    found = ((re.fullmatch(pattern, name), value) for name, value in tags.items())
    return {int(match[1]): value for match, value in found if match}


def _phases(config: PretrainConfig, step: int, points: Points, tags: Mapping[str, str]) -> list[Phase]:
    switches = sorted(int(after) for after in _numbered(tags, r"switch\.(\d+)\.step").values() if int(after) < step)
    stage = points.get("curriculum/stage", {})
    indices = [0, *(int(stage[after]) for after in switches)]
    bounds = [0, *switches, step]
    reached = {index: (bounds[n] + 1, bounds[n + 1]) for n, index in enumerate(indices)} if step else {}
    dumped = config.curriculum.model_dump(mode="json")["stages"]
    return [
        Phase(each["name"], each["masking"], each["until"], *reached.get(index, (None, None)))
        for index, each in enumerate(dumped)
    ]


def tokens_read(points: Points) -> int:
    """Return the tokens of all training steps: those of each log line are its speed, times its time and steps."""
    speeds, seconds = (points.get(f"usage/{name}", {}) for name in ("tokens_per_second", "seconds_per_step"))
    total, before = 0.0, 0
    for step in sorted(speeds):
        total += speeds[step] * seconds[step] * (step - before)
        before = step
    return round(total)


def _scores(run: Path, name: str, step: int) -> list[Comparison]:
    """Return the downstream scores of a model, beside its untrained start and the baselines."""
    model = step_folder(run, step).name
    results = [r for r in read_results(run) if r.kind != "model" or r.subject in (model, UNTRAINED)]
    scored = {result.suite for result in results if result.subject == model}
    return compare([Run(run, name, [result for result in results if result.suite in scored], {}, {}, [])])
