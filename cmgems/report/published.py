"""Published scores, to stand beside those of cmgems: for GUE those of CM-GEMS's authors, for `codon` CodonBERT's.

GUE: MCC x 100 of twelve models on 27 tasks, each of a single seed, from the table of the talk on Roy et al., Unlocking
Efficiency: Adaptive Masking for Gene Transformer Models, ECAI 2024. Four columns are baselines that were pretrained for
longer; the others are the authors' own runs of 10,000 steps.

codon: Spearman's correlation x 100 of seven models on three tasks, each of one run, from Table 2 of Li et al.,
Genome Research 34:1027, 2024. TF-IDF is that of codons, with a random forest.

Means are computed from the rows, so that they can be had for any tasks.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

SUITE = "gue"
"""The suite of CM-GEMS's scores."""
SHORT, LONG = 10_000, 120_000
"""Pretraining steps of the authors' own runs, and of the baselines whose steps are known."""

_SOURCES = {
    SUITE: "Roy et al., Unlocking Efficiency: Adaptive Masking for Gene Transformer Models, ECAI 2024 (the authors' "
    "talk and table; one seed each)",
    "codon": "Li et al., CodonBERT large language model for mRNA vaccines, Genome Research 34:1027, 2024, Table 2 (one "
    "run each, with the models' own trainings)",
}
METRICS = {SUITE: "mcc", "codon": "spearman"}
"""Suites with published scores, and the metric of these."""

_MEAN = "mean/"

# The table does not say how long the Nucleotide Transformer was trained.
_BASELINES = {
    "dnabert2_bpe_120k": ("DNABERT-2, BPE", LONG),
    "dnabert_6mer": ("DNABERT, 6-mer", LONG),
    "nt_500m_human": ("NT 500M, human", None),
    "dnabert2_kmer_120k": ("DNABERT-2, k-mer", LONG),
}
_CODON = {
    "nucleotide_textcnn": "TextCNN, nucleotides",
    "rnabert_textcnn": "RNABERT + TextCNN",
    "rna_fm_textcnn": "RNA-FM + TextCNN",
    "codon_tfidf": "TF-IDF, codons",
    "codon_textcnn": "TextCNN, codons",
    "codon2vec_textcnn": "Codon2vec + TextCNN",
    "codonbert": "CodonBERT",
}
_ARCHITECTURES = {"dnabert": "DNABERT", "logo": "LOGO"}
_MASKINGS = {"global": "Global-PMI", "genemask": "GeneMask", "cmstep": "CM-Step", "cmgems": "CM-GEMS"}


class PublishedModel(NamedTuple):
    """A column of the table."""

    name: str
    """Name in the file."""
    label: str
    """Name for readers."""
    steps: int | None
    """Optimizer steps of pretraining; None: the table does not say."""


@dataclass(frozen=True)
class Published:
    """A table. All scores are x 100, of one seed."""

    source: str
    """Where it was published."""
    heading: str
    """What stands over its columns, but for those of SHORT steps."""
    decimals: int
    """Decimals with which it gives scores x 100."""
    models: list[PublishedModel]
    """Its columns, in the order of the file."""
    tasks: list[str]
    """Its rows, in the order of the file, without the means."""
    scores: dict[tuple[str, str], float]
    """Scores by name of the model and name of the task."""
    stated_means: dict[tuple[str, str], float]
    """The means that the file has, by name of the model and group (`human`, `non_human`)."""

    @property
    def has_steps(self) -> bool:
        """Whether it has models of SHORT and of LONG pretraining to compare with."""
        return {SHORT, LONG} <= {model.steps for model in self.models}

    def of_steps(self, steps: int) -> list[PublishedModel]:
        """Return the models that were pretrained for so many steps."""
        return [model for model in self.models if model.steps == steps]

    def mean(self, model: PublishedModel, tasks: Sequence[str]) -> float:
        """Return a model's mean over `tasks`. Raises KeyError if one of them is not in the table."""
        return float(np.mean([self.scores[model.name, task] for task in tasks]))

    def best(self, models: Sequence[PublishedModel], tasks: Sequence[str]) -> PublishedModel:
        """Return the model with the highest mean over `tasks`. Raises KeyError if one is not in the table."""
        return max(models, key=lambda model: self.mean(model, tasks))


@cache
def published(suite: str = SUITE) -> Published:
    """Read the table for a suite in METRICS, which ships with cmgems."""
    with (Path(__file__).parent / f"published_{METRICS[suite]}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name != "task"]
    values = {(name, row["task"]): float(row[name]) for row in rows for name in names}
    is_gue = suite == SUITE
    return Published(
        source=_SOURCES[suite],
        heading="Published baselines, longer pretraining" if is_gue else "Published",
        decimals=2 if is_gue else 0,
        models=[_model(name) for name in names],
        tasks=[row["task"] for row in rows if not row["task"].startswith(_MEAN)],
        scores={key: value for key, value in values.items() if not key[1].startswith(_MEAN)},
        stated_means={(n, t.removeprefix(_MEAN)): value for (n, t), value in values.items() if t.startswith(_MEAN)},
    )


def _model(name: str) -> PublishedModel:
    if name in _CODON:
        return PublishedModel(name, _CODON[name], None)
    if name in _BASELINES:
        return PublishedModel(name, *_BASELINES[name])
    architecture, masking, _ = name.split("_")
    return PublishedModel(name, f"{_ARCHITECTURES[architecture]} {_MASKINGS[masking]}", SHORT)
