"""A study as data: what is varied, what is scored, what is compared."""

from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from cmgems.config.command_line import describe_validation_error
from cmgems.config.recipes import merge, read_mapping, read_named_recipe
from cmgems.config.schema import TRACKING_URI, PretrainConfig
from cmgems.downstream.protocols import Pooling
from cmgems.downstream.settings import BenchmarkConfig
from cmgems.errors import UserError
from cmgems.settings import Settings, Share

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class Option(Settings):
    """One value of what an axis varies."""

    title: str = Field(min_length=1)
    """Name in tables and figures."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings of the recipe that it replaces, in the groups of a recipe."""
    seeds: int | None = Field(default=None, ge=1)
    """Number of seeds; empty: the study's."""
    model: Literal["pretrained", "untrained", "random-weights"] | Annotated[str, Field(pattern="^[2-8]-mers$")] = (
        "pretrained"
    )
    """What is scored: the pretrained model, or a baseline: its initial weights, plain random weights, a regression on
    k-mers such as `4-mers`."""


class ScoreConfig(Settings):
    """Downstream scores of the models of a study."""

    title: str = Field(min_length=1)
    """Name in tables and figures."""
    suite: str
    """Suite of tasks: a YAML file beside the study's, or the name of one that ships with cmgems."""
    data: str
    """Folder of the suite's data, or the name of a dataset on the Hugging Face hub."""
    tasks: list[str] = Field(default_factory=list)
    """Names of the tasks; empty: all of the suite."""
    probe: bool = False
    """Fit a logistic regression to the frozen model's features instead of fine-tuning it."""
    learning_rates: list[Annotated[float, Field(gt=0)]] = Field(default_factory=list)
    """Learning rates to choose from on the dev split; empty: the recipe's."""
    pooling: Pooling | None = None
    """What is classified; empty: as the recipe says."""
    at: list[Annotated[Share, Field(gt=0)]] = Field(default_factory=lambda: [1.0], min_length=1)
    """Shares of the pretraining after which the model is scored."""


class BitsConfig(Settings):
    """Bits per hidden base under isolated gaps, which are masks that no curriculum trains on."""

    gaps: list[Annotated[int, Field(ge=1)]] = Field(default_factory=lambda: [1, 6, 12], min_length=1)
    """Lengths of the gaps, in nucleotides."""
    windows: int = Field(default=2000, ge=1)
    """Windows of the validation split, at most."""
    at: list[Annotated[Share, Field(gt=0)]] = Field(default_factory=lambda: [1.0], min_length=1)
    """Shares of the pretraining after which the model is scored."""


class Contrast(Settings):
    """Two options that are compared, seed by seed."""

    option: Name
    """The one."""
    against: Name
    """The one that it is compared with."""


class StudyConfig(Settings):
    """A grid of pretraining runs and their scores."""

    name: Name
    """Name of the study: of its MLflow experiment `study-NAME`, and of its folder in `runs/studies`."""
    title: str = Field(min_length=1)
    """Title of its page."""
    recipe: str
    """Recipe of all runs: a YAML file beside the study's, or the name of one that ships with cmgems."""
    axes: dict[Name, dict[Name, Option]] = Field(min_length=1)
    """What is varied, by name: every combination of one option of each axis is an arm."""
    seeds: int = Field(default=3, ge=1)
    """Seeds of an arm, 1 and so on; of a combination the fewest that an option of it names."""
    scores: dict[Name, ScoreConfig] = Field(default_factory=dict)
    """Downstream scores."""
    primary: list[Name] = Field(default_factory=list)
    """Scores whose mean over all tasks is the primary endpoint."""
    bits: BitsConfig | None = None
    """Bits per hidden base; empty: they are not scored."""
    contrasts: list[Contrast] = Field(default_factory=list)
    """Comparisons of the analysis, in the order of their importance."""
    subsets: dict[str, list[str]] = Field(default_factory=dict)
    """Tasks that the primary endpoint is also computed without, by a title such as `without mouse`."""
    reference: Name | None = None
    """Arm whose last scores the tables along the pretraining say when the others reach; empty: none."""
    launch: list[str] = Field(default_factory=list)
    """Command that launches cmgems/pretrain.py, such as `accelerate launch --num_processes 4`; empty: one process."""
    tracking_uri: str = Field(default="sqlite:///mlflow.db", pattern=TRACKING_URI)
    """MLflow: a database or a server."""

    @field_validator("axes")
    @classmethod
    def _has_options(cls, axes: dict[str, dict[str, Option]]) -> dict[str, dict[str, Option]]:
        for axis, options in axes.items():
            if not options:
                raise ValueError(f"{axis} has no options")
        return axes

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        options = {name for axis in self.axes.values() for name in axis}
        for contrast in self.contrasts:
            for name in (contrast.option, contrast.against):
                if name not in options:
                    raise ValueError(f"contrasts: no option {name}; there are {', '.join(sorted(options))}")
        if self.reference is not None and self.reference not in options:
            raise ValueError(f"reference: no option {self.reference}; there are {', '.join(sorted(options))}")
        if "bits" in self.scores or "pretraining" in self.scores:
            raise ValueError("scores: bits and pretraining are names of other parts; take another name")
        for name in self.primary:
            if name not in self.scores:
                raise ValueError(f"primary: no score {name}; there are {', '.join(self.scores) or 'none'}")
        return self


class Arm:
    """A combination of options, one of each axis."""

    def __init__(self, options: dict[str, str], chosen: list[Option], study: StudyConfig) -> None:
        self.options = options
        """Name of the option by axis."""
        self.name = "-".join(options.values())
        self.title = ", ".join(option.title for option in chosen)
        self.seeds = min((option.seeds for option in chosen if option.seeds is not None), default=study.seeds)
        kinds = {option.model for option in chosen if option.model != "pretrained"}
        if len(kinds) > 1:
            raise UserError(f"study {study.name}: {self.name} is {' and '.join(sorted(kinds))} at once")
        self.model = kinds.pop() if kinds else "pretrained"
        self.settings: dict[str, Any] = {}
        for option in chosen:
            self.settings = merge(self.settings, option.settings)


class Study:
    """A study with its folder.

    Parameters
    ----------
    path
        The study's YAML file.
    config
        What stands in it.
    """

    def __init__(self, path: Path, config: StudyConfig) -> None:
        self.path, self.config = path, config
        self.work = Path("runs/studies") / config.name
        """Folder of the runs, which can be removed when the study is finished."""
        self.results = path.parent / "results"
        """Folder of the results, one JSON file for each arm and seed."""
        combinations = product(*(axis.items() for axis in config.axes.values()))
        self.arms = [
            Arm(
                dict(zip(config.axes, (name for name, _ in chosen), strict=True)),
                [option for _, option in chosen],
                config,
            )
            for chosen in combinations
        ]
        self.configs = {arm.name: self._recipe(arm) for arm in self.arms}
        """Recipe of each arm, without seed and folder."""

    @property
    def experiment(self) -> str:
        """Name of its MLflow experiment."""
        return f"study-{self.config.name}"

    def beside(self, name: str) -> str:
        """Return a file's path, if there is one of that name beside the study's; else the name."""
        path = self.path.parent / name
        return str(path) if path.is_file() else name

    def arm(self, name: str) -> Arm:
        """Return the arm of a name."""
        return next(arm for arm in self.arms if arm.name == name)

    def benchmark(self, score: str, model: str, seed: int, output: Path) -> BenchmarkConfig:
        """Return how a model is scored."""
        config = self.config.scores[score]
        shared = config.model_dump(include={"data", "tasks", "probe", "learning_rates", "pooling"})
        return BenchmarkConfig(
            **shared,
            suite=self.beside(config.suite),
            model=model,
            output=output,
            seeds=1,
            first_seed=seed,
            baselines=False,
            tracking_uri=self.config.tracking_uri,
            experiment=self.experiment,
        )

    def steps(self, shares: list[float], arm: Arm) -> list[int]:
        """Return optimizer steps of an arm at shares of its pretraining; 0 of what is not pretrained."""
        if arm.model != "pretrained":
            return [0]
        return sorted({max(1, round(share * self.configs[arm.name].training.steps)) for share in shares})

    def scored_steps(self, arm: Arm) -> list[int]:
        """Return all steps at which something of an arm is scored."""
        shares = [score.at for score in self.config.scores.values()]
        shares += [self.config.bits.at] if self.config.bits else []
        return sorted({step for own in shares for step in self.steps(own, arm)})

    def _recipe(self, arm: Arm) -> PretrainConfig:
        values = merge(read_named_recipe(self.beside(self.config.recipe)), arm.settings)
        values["name"] = f"{self.config.name}-{arm.name}"
        values = merge(values, {"tracking": {"experiment": self.experiment, "uri": self.config.tracking_uri}})
        try:
            return PretrainConfig.model_validate(values)
        except ValidationError as error:
            problem = describe_validation_error(error, PretrainConfig)
            raise UserError(f"{self.path}: {arm.name}: {problem}") from None


def load_study(path: Path, overrides: dict[str, Any] | None = None) -> Study:
    """Read a study's file.

    Parameters
    ----------
    path
        The file, or a folder with `study.yaml` in it.
    overrides
        Settings to replace, in the groups of the file.

    Raises
    ------
    UserError
        If it cannot be read, or a setting of it or of a recipe is invalid.
    """
    path = path / "study.yaml" if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    values = merge(read_mapping(path, "a study is a mapping (name, recipe, axes, ...)"), overrides or {})
    try:
        config = StudyConfig.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{path}: " + describe_validation_error(error, StudyConfig)) from None
    return Study(path, config)
