"""Every setting of a pretraining run, with its unit and its default. Unknown settings are refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from cmgems.curriculum.settings import CurriculumConfig, check_stages
from cmgems.data.settings import PrepareConfig, read_tokens
from cmgems.settings import OpenShare, Settings, Share

TRACKING_URI = r"^(sqlite|postgresql|mysql|mssql|https?|file|databricks)\b"


class CorpusConfig(Settings):
    """Where the training data is, and how it is read."""

    path: Path
    """Folder written by `cmgems prepare`."""
    prepare: PrepareConfig | None = None
    """How to prepare the corpus when the folder does not exist; without it a missing folder is an error."""
    tokens: str | None = None
    """Tokens that the recipe is for, as `cmgems prepare --tokens` has them; a corpus of others is an error."""
    workers: int = Field(default=2, ge=0)
    """Loader worker processes for each training process; 0 reads in the training process itself."""
    prefetch: int = Field(default=4, ge=1)
    """Micro-batches each loader worker keeps ready."""

    @field_validator("tokens")
    @classmethod
    def _is_a_kind_of_tokens(cls, tokens: str | None) -> str | None:
        if tokens is not None:
            read_tokens(tokens)
        return tokens


class NpmiConfig(Settings):
    """Where the NPMI of the k-mers comes from."""

    table: str | None = None
    """CSV written by `cmgems npmi`; `human` for the human 6-mers that ship with cmgems; empty: the training split's."""
    method: Literal["all", "published", "synonymous"] = "all"
    """`all`: the minimum over all segmentations; `published`: the arithmetic of GeneMask's published table;
    `synonymous`: pairs of codons against what their amino acids and each codon's share among its synonyms give."""
    c: float = Field(default=101, gt=1)
    """Constant of the normalisation ln f / (ln f + ln c), in occurrences."""

    @model_validator(mode="after")
    def _table_has_its_own(self) -> "NpmiConfig":
        given = self.model_fields_set & {"method", "c"}
        if self.table not in (None, "human") and given:
            raise ValueError(
                f"{' and '.join(sorted(given))} would change nothing: the table {self.table} is computed already"
            )
        return self


INITIAL_WEIGHTS = {
    "embedding_init": ("embedding_scale", "nucleotide_share"),
    "position_init": ("position_scale",),
    "attention_init": ("attention_scale",),
}
"""Settings of ModelConfig that choose the initial weights, and those that belong to a choice other than `normal`."""


class ModelConfig(Settings):
    """The BERT encoder. Defaults: DNABERT (BERT base)."""

    layers: int = Field(default=12, ge=1)
    """Transformer layers."""
    hidden: int = Field(default=768, ge=1)
    """Width of the hidden states."""
    intermediate: int = Field(default=3072, ge=1)
    """Width of the feed-forward layers."""
    heads: int = Field(default=12, ge=1)
    """Attention heads."""
    dropout: Share = 0.1
    """Dropout probability on hidden states and attention weights."""
    initializer_range: float = Field(default=0.02, gt=0)
    """Standard deviation of the random initial weights (BERT's 0.02 suits a width of 768; narrow models want more)."""
    embedding_init: Literal["normal", "nucleotides"] = "normal"
    """Initial k-mer embeddings: independent of each other, or composed of vectors of their nucleotides."""
    embedding_scale: float = Field(default=0.4, gt=0)
    """Standard deviation of the initial k-mer embeddings (`nucleotides` only)."""
    nucleotide_share: OpenShare = 0.9
    """Share of the initial embeddings' variance that the nucleotides make; the rest is noise (`nucleotides` only)."""
    position_init: Literal["normal", "sinusoidal"] = "normal"
    """Initial position embeddings: independent of each other, or sinusoids."""
    position_scale: float = Field(default=1.0, gt=0)
    """Root mean square of the initial sinusoids relative to the k-mer embeddings' (`sinusoidal` only)."""
    attention_init: Literal["normal", "neighbours"] = "normal"
    """Initial queries and keys of the first layer: random, or such that each head attends to tokens at most k away."""
    attention_scale: float = Field(default=2.0, gt=0)
    """Weight of the sinusoids in those queries and keys: the larger, the sharper (`neighbours` only)."""
    max_positions: int = Field(default=512, ge=8)
    """Longest input, in tokens, [CLS] and [SEP] included."""
    init_from: str | None = None
    """Model to start from, a folder or a name on the Hugging Face hub; empty: random weights."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more compute."""

    @model_validator(mode="after")
    def _heads_divide(self) -> "ModelConfig":
        if self.hidden % self.heads:
            raise ValueError(f"hidden ({self.hidden}) is not a multiple of heads ({self.heads})")
        return self

    @model_validator(mode="after")
    def _initial_weights(self) -> "ModelConfig":
        chosen = [name for name in INITIAL_WEIGHTS if getattr(self, name) != "normal"]
        if chosen and self.init_from is not None:
            raise ValueError(f"{', '.join(chosen)}: with init_from there are no weights to draw: set to normal")
        if self.attention_init == "neighbours" and self.position_init != "sinusoidal":
            raise ValueError("attention_init: neighbours needs position_init: sinusoidal, by which it finds them")
        for choice, scales in INITIAL_WEIGHTS.items():
            for scale in scales:
                default = type(self).model_fields[scale].default
                if choice not in chosen and getattr(self, scale) != default:
                    raise ValueError(f"{scale} would change nothing: {choice} is normal")
        return self

    @property
    def embedding_sd(self) -> float:
        """Standard deviation of the initial k-mer embeddings, whichever they are."""
        return self.embedding_scale if self.embedding_init == "nucleotides" else self.initializer_range


class OptimizerConfig(Settings):
    """AdamW and its schedule: linear warm-up, then linear decay to zero at the last step."""

    learning_rate: float = Field(default=8e-4, gt=0)
    """Peak learning rate."""
    warmup_steps: int = Field(default=500, ge=0)
    """Optimizer steps of linear warm-up."""
    beta1: OpenShare = 0.9
    """Decay of AdamW's first moment."""
    beta2: OpenShare = 0.98
    """Decay of AdamW's second moment."""
    eps: float = Field(default=1e-6, gt=0)
    """AdamW's epsilon."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay; none on biases and LayerNorm."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Largest L2 norm of the gradient of a global batch."""


class TrainingConfig(Settings):
    """How long, how much at once, in which precision."""

    steps: int = Field(default=10_000, ge=1)
    """Optimizer steps of the run."""
    global_batch: int = Field(default=250, ge=1)
    """Windows an optimizer step, over all processes."""
    micro_batch: int = Field(default=32, ge=1)
    """Windows a process computes at once, at most; gradient accumulation makes up the rest."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Arithmetic of the forward and backward pass (fp16: for GPUs without bf16, untested)."""


class EvaluationConfig(Settings):
    """Validation perplexity: the same windows with the same masks at every evaluation."""

    every: int = Field(default=500, ge=1)
    """Optimizer steps between two evaluations."""
    windows: int = Field(default=1000, ge=1)
    """Windows of the validation split that are scored, at most."""
    micro_batch: int = Field(default=64, ge=1)
    """Windows a process scores at once."""
    rate: OpenShare = 0.15
    """Mask rate of the three fixed maskings (span, genemask, global_pmi) that every run is scored under."""
    seed: int = Field(default=20_231, ge=0, lt=2**31)
    """Seed of the validation windows and masks; keep it to compare runs."""


class CheckpointConfig(Settings):
    """What is saved in the run's folder."""

    every: int = Field(default=500, ge=1)
    """Optimizer steps between two checkpoints that the run can resume from."""
    keep: int = Field(default=2, ge=1)
    """Number of newest checkpoints that are kept."""
    milestones: list[Annotated[int, Field(ge=0)]] = Field(default_factory=lambda: [1000, 10_000])
    """Steps whose checkpoints are never removed, and whose models are exported (as the last step's always is); 0: the
    untrained model, exported only."""
    staging: Path | None = None
    """Fast local folder that checkpoints pass through; empty: /dev/shm where it has room, else the run's folder."""


class TrackingConfig(Settings):
    """MLflow."""

    uri: str = Field(default="sqlite:///mlflow.db", pattern=TRACKING_URI)
    """Tracking URI: a database or a server."""
    experiment: str = "cmgems-pretraining"
    """Experiment the run belongs to."""
    log_every: int = Field(default=10, ge=1)
    """Optimizer steps between two logged training metrics, which are means over those steps."""
    system_metrics: bool = True
    """Record processor, memory and GPU use."""
    patience: float = Field(default=60, ge=0)
    """Seconds to wait at the end of a run for a server that does not answer; `cmgems sync` sends what is left then."""


class LaunchConfig(Settings):
    """What the run must be launched as; it stops at once where it is not. Empty: anything goes."""

    distributed: Literal["none", "ddp", "deepspeed"] | None = None
    """Required kind of distribution."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] | None = None
    """Required DeepSpeed ZeRO stage."""
    processes: Annotated[int, Field(ge=1)] | None = None
    """Required number of processes."""
    timeout: int = Field(default=1800, ge=1)
    """Seconds that a process waits for one that does not answer, in any operation of several; then the run ends."""


class PretrainConfig(Settings):
    """A pretraining run."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9._-]+$")
    """Name of the run in MLflow, and of its folder."""
    seed: int = Field(default=42, ge=0, lt=2**31)
    """Seed of weights, data order, masks and dropout."""
    output: Path | None = None
    """Folder of checkpoints and models; empty: the next free one of runs/NAME/1, runs/NAME/2 and so on."""
    resume: str = "never"
    """`never`, `auto` (the newest sound checkpoint of the newest run, if any), or a checkpoint's folder."""
    allow_changed: list[str] = Field(default_factory=list)
    """Settings or groups in which a resumed run may differ from its checkpoint, such as `training.steps`."""
    corpus: CorpusConfig
    """Training data."""
    npmi: NpmiConfig = NpmiConfig()
    """NPMI of the k-mers."""
    curriculum: CurriculumConfig
    """Masking stages."""
    model: ModelConfig = ModelConfig()
    """Architecture."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Optimizer and learning rate."""
    training: TrainingConfig = TrainingConfig()
    """Length and batch of the run."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Validation perplexity."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Checkpoints and exported models."""
    tracking: TrackingConfig = TrackingConfig()
    """MLflow."""
    launch: LaunchConfig = LaunchConfig()
    """Required launch."""

    @model_validator(mode="after")
    def _stages_end(self) -> "PretrainConfig":
        check_stages(self.curriculum.stages, self.training.steps, self.evaluation.every)
        return self

    @model_validator(mode="after")
    def _warmup_fits(self) -> "PretrainConfig":
        if self.optimizer.warmup_steps >= self.training.steps:
            raise ValueError(
                f"optimizer.warmup_steps ({self.optimizer.warmup_steps}) is not below "
                f"training.steps ({self.training.steps})"
            )
        return self


def flatten(config: BaseModel) -> dict[str, Any]:
    """Return the settings as a flat mapping of dotted names, in the order of the classes above."""

    def walk(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from walk(f"{prefix}.{key}" if prefix else key, inner)
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            for index, inner in enumerate(value):
                yield from walk(f"{prefix}.{index}", inner)
        else:
            yield prefix, value

    return dict(walk("", config.model_dump(mode="json")))
