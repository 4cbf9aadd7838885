"""Bits per hidden base of a model under isolated gaps."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from accelerate import Accelerator

from cmgems.config.schema import INITIAL_WEIGHTS, EvaluationConfig, ModelConfig, PretrainConfig
from cmgems.data.markov import MarkovChains
from cmgems.masking.gaps import Gaps
from cmgems.masking.strategies import MaskingStrategy
from cmgems.model.bert import build_model
from cmgems.study.settings import BitsConfig
from cmgems.training.baselines import fit_baselines, score_baselines
from cmgems.training.setup import TrainingData, open_masker
from cmgems.training.validation import Validation

_WINDOWS_AT_ONCE = 100


@dataclass
class GapScorer:
    """Scores models on the validation windows of a corpus, with the same gaps always."""

    config: BitsConfig
    recipe: PretrainConfig
    """Recipe of the models: its corpus, its k-mers, its architecture."""
    data: TrainingData

    @cached_property
    def _maskings(self) -> dict[str, list[MaskingStrategy]]:
        return {f"gap_{bases}": [Gaps(bases=bases)] for bases in self.config.gaps}

    @cached_property
    def _validation(self) -> Validation:
        accelerator = Accelerator()
        seed = self.recipe.evaluation.seed
        evaluation = EvaluationConfig(windows=self.config.windows, micro_batch=_WINDOWS_AT_ONCE, seed=seed)
        masker = open_masker(self.data, self.recipe, accelerator.device, seed)
        return Validation(self.data.validation, evaluation, masker, self.data.corpus, accelerator)

    @cached_property
    def _chains(self) -> MarkovChains:
        return fit_baselines(self.data.training)

    @cached_property
    def baselines(self) -> dict[str, float]:
        """Bits of the base composition and of the best Markov chain, by name of the gap and of the baseline."""
        scores = score_baselines(self._validation, self._chains, self._maskings)
        return {f"{name}_{kind}": float(found["bits"]) for name, own in scores.items() for kind, found in own.items()}

    def score(self, model: Path) -> dict[str, float]:
        """Return a model's bits per hidden base by name of the gap; `model` is a folder that a run has exported."""
        settings = self.recipe.model.model_dump(exclude=set(INITIAL_WEIGHTS) | set(sum(INITIAL_WEIGHTS.values(), ())))
        config = ModelConfig.model_validate({**settings, "init_from": str(model)})
        loaded = build_model(config, self.data.corpus.tokens, self.recipe.seed, self._validation.accelerator.device)
        loaded.to(self._validation.accelerator.device)
        scores = self._validation.score(loaded, self._maskings, set(self._maskings), bases_alone=True)
        return {name: score.bits for name, score in scores.items()}
