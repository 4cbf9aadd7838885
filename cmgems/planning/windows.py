"""The windows that a run will see: how long they are, how wide a micro-batch of them gets, how much is masked."""

from collections.abc import Sequence
from dataclasses import dataclass

from cmgems.config.schema import CorpusConfig, ModelConfig
from cmgems.curriculum.settings import StageConfig
from cmgems.data.corpus import load_corpus
from cmgems.data.loader import SPECIAL_TOKENS_PER_WINDOW
from cmgems.data.order import BatchPlan
from cmgems.data.settings import PrepareConfig
from cmgems.data.tokenization import Tokenization
from cmgems.errors import UserError
from cmgems.masking.strategies import MaskingStrategy

_MULTIPLE = 8  # cmgems.data.tokenizer.encode_batch pads to multiples of it


@dataclass(frozen=True, slots=True)
class Windows:
    """Lengths in tokens, without [CLS] and [SEP]."""

    tokens: Tokenization
    """Which nucleotides a token covers."""
    shortest: int
    """The shortest window."""
    full: int
    """A full window."""
    full_share: float
    """Share of the windows that are full; the others' lengths are uniform from the shortest to the full."""
    mean: float
    """Mean length."""
    source: str
    """Where this is from."""


def read_windows(corpus: CorpusConfig, model: ModelConfig) -> Windows:
    """Return the windows of the recipe's corpus if it is there, else those of its `corpus.prepare`, else DNABERT's.

    Raises
    ------
    UserError
        If they are longer than the model's positions.
    """
    most = model.max_positions - SPECIAL_TOKENS_PER_WINDOW
    if corpus.path.exists():
        opened = load_corpus(corpus.path)
        split = opened.manifest["splits"]["train"]
        prepared = PrepareConfig.model_validate(opened.manifest["config"])
        windows = _windows(prepared, f"the corpus {corpus.path}", split["tokens"] / split["windows"])
    elif corpus.prepare is not None:
        windows = _windows(corpus.prepare, "corpus.prepare in the recipe")
    else:
        full = min(most, int(PrepareConfig.model_fields["window_tokens"].default))
        tokens = {"tokens": corpus.tokens} if corpus.tokens else {}
        assumed = PrepareConfig(inputs=["none"], window_tokens=full, min_window_tokens=min(5, full), **tokens)
        windows = _windows(assumed, "the defaults of `cmgems prepare`: there is no corpus yet")
    if windows.full > most:
        raise UserError(
            f"model.max_positions is {model.max_positions}, but windows by {windows.source} have up to "
            f"{windows.full + SPECIAL_TOKENS_PER_WINDOW} tokens with [CLS] and [SEP]"
        )
    return windows


def _windows(prepared: PrepareConfig, source: str, mean: float | None = None) -> Windows:
    shortest, full, share = prepared.min_window_tokens, prepared.window_tokens, prepared.full_length_share
    expected = share * full + (1 - share) * (shortest + full) / 2
    return Windows(prepared.tokenization, shortest, full, share, expected if mean is None else mean, source)


def full_width(windows: Windows, max_positions: int) -> int:
    """Return the tokens of a row of a micro-batch that holds a full window, [CLS], [SEP] and padding included."""
    return _padded(windows.full, max_positions)


def widths(windows: Windows, batch: BatchPlan, rank: int, max_positions: int) -> list[int]:
    """Return the typical width of each micro-batch of a rank in an optimizer step, padding included: that of its
    longest window.

    The windows of a global batch stand from the longest to the shortest; the one in slot i of n is taken to be as long
    as a share of (i + 1/2) / n of all windows exceeds. 0 for a micro-batch without windows.
    """
    found = []
    for micro_step in range(batch.accumulation):
        slot = int(batch.slots(micro_step, rank)[0])
        exceeded = ((slot + 0.5) / batch.global_batch - windows.full_share) / max(1 - windows.full_share, 1e-9)
        length = windows.full - max(0.0, exceeded) * (windows.full - windows.shortest)
        found.append(_padded(round(length), max_positions) if slot >= 0 else 0)
    return found


def _padded(tokens: int, max_positions: int) -> int:
    return min(-(-(tokens + SPECIAL_TOKENS_PER_WINDOW) // _MULTIPLE) * _MULTIPLE, max_positions)


def mask_rate(stages: Sequence[StageConfig], windows: Windows) -> float:
    """Return the expected share of the tokens that are masked, in the stage that masks most."""
    return max(_mean_rate(stage.masking, windows) for stage in stages)


def _mean_rate(masking: Sequence[MaskingStrategy], windows: Windows) -> float:
    total = sum(setting.weight for setting in masking)
    shares = (setting.weight * setting.masked_share(windows.tokens, round(windows.mean)) for setting in masking)
    return sum(shares) / total
