"""Settings of fine-tuning and of suites, with their units and defaults. Imports neither torch nor transformers."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from cmgems.config.schema import TRACKING_URI
from cmgems.downstream.protocols import FINE_TUNING, POOLED, POOLED_TUNED, PROBE, TUNED, Pooling, Protocol
from cmgems.settings import Settings


class ScoringConfig(Settings):
    """What is scored, on which data, and how it is computed."""

    model: str = Field(min_length=1)
    """Sequence model: a folder, as in RUN/models/ of a pretraining run, or a name on the Hugging Face hub."""
    data: str = Field(min_length=1)
    """Folder of the suite's data, or the name of a dataset on the Hugging Face hub."""
    suite: str = "gue"
    """Suite of tasks: `gue`, `fewshot`, `yeast`, `codon`, or a YAML file."""
    resplit: bool = False
    """Divide the dev split of a task that has no train split here; its scores are marked, and enter no mean."""
    trust_remote_code: bool = False
    """Run the code that comes with a model from the hub."""
    max_tokens: int | None = Field(default=None, ge=8)
    """Longest input in tokens, special ones not counted; longer sequences are read in windows. Empty: the model's."""
    learning_rates: list[Annotated[float, Field(gt=0)]] = Field(default_factory=list)
    """Learning rates to choose from on the dev split, comma-separated; empty: the recipe's. Results are kept apart."""
    pooling: Pooling | None = None
    """What is classified: `model`, as its own classifier does ([CLS] in BERT), or `mean`, the mean of its last
    hidden states; empty: the recipe's. Results are kept apart."""
    micro_batch: int = Field(default=32, ge=1)
    """Sequences a process computes at once in training, at most; gradient accumulation makes up the recipe's batch."""
    evaluation_batch: int = Field(default=64, ge=1)
    """Sequences a process scores at once."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the forward and backward pass."""
    output: Path | None = None
    """Folder that gets `downstream/`; empty: that of the model's pretraining run, or runs/NAME for other models."""
    step: int | None = Field(default=None, ge=0)
    """Optimizer steps the model was pretrained for; empty: as its folder's name says."""
    tracking_uri: str | None = Field(default=None, pattern=TRACKING_URI)
    """MLflow: a database or a server. Empty: where the pretraining run is, or sqlite:///mlflow.db for other models."""
    experiment: str = "cmgems-downstream"
    """MLflow experiment for models that no pretraining run is known of."""

    @property
    def protocol(self) -> Protocol:
        """How the model is scored."""
        if self.pooling:
            return POOLED_TUNED if self.learning_rates else POOLED
        return TUNED if self.learning_rates else FINE_TUNING


class FinetuneConfig(ScoringConfig):
    """Fine-tune a model on one task, and score it."""

    task: str = Field(min_length=1)
    """Name of the task in the suite."""
    seed: int = Field(default=42, ge=0, lt=2**31)
    """Seed of the classifier's new weights, of the order of the rows, and of dropout."""
    random_weights: bool = False
    """Take the model's architecture and tokenizer only: the baseline of pretraining."""
    save_model: bool = True
    """Keep the fine-tuned classifier, in the result's folder `model`."""


class BenchmarkConfig(ScoringConfig):
    """Score a model on a suite of tasks, over several seeds, beside its baselines. Goes on where it was stopped."""

    tasks: list[str] = Field(default_factory=list)
    """Names of the tasks, separated by commas; empty: all of the suite."""
    seeds: int = Field(default=3, ge=1)
    """Number of seeds."""
    first_seed: int = Field(default=42, ge=0, lt=2**31)
    """The first of the seeds, which are consecutive numbers."""
    baselines: bool = True
    """Score the same architecture with random weights, the run's untrained model if it was exported (step 0), and a
    regression on k-mers, too; of a value it is a ridge regression on their TF-IDF."""
    kmers: list[Annotated[int, Field(ge=2, le=8)]] = Field(default_factory=lambda: [4])
    """Lengths of the k-mers that the baselines count, each a regression of its own."""
    codons: bool = False
    """Among the baselines of tasks with a value, a ridge regression on the TF-IDF of codons: 3-mers side by side."""
    forest: bool = False
    """Among the baselines of tasks with a value, a random forest on what each of the regressions counts."""
    probe: bool = False
    """Fit a logistic regression (of a value a ridge regression) to the frozen model's features instead of fine-tuning
    it. Results are kept apart."""
    shard: str = "1/1"
    """`i/n`: of all tasks and seeds only every n-th, from the i-th: for n jobs at once."""

    @field_validator("shard")
    @classmethod
    def _is_share(cls, shard: str) -> str:
        numbers = shard.split("/")
        if len(numbers) != 2 or not all(n.isdecimal() for n in numbers) or not 1 <= int(numbers[0]) <= int(numbers[1]):
            raise ValueError(f"{shard} is not a share such as 1/4, which is the first of four")
        return shard

    @model_validator(mode="after")
    def _one_protocol(self) -> Self:
        if self.probe and self.learning_rates:
            raise ValueError("--probe trains no model, and takes no --learning_rates: give one of them")
        if self.probe and self.pooling:
            raise ValueError("--probe takes the means of all layers, and no --pooling: give one of them")
        return self

    @property
    def protocol(self) -> Protocol:
        """How the model and its baselines are scored."""
        return PROBE if self.probe else super().protocol
