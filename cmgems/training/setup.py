"""What a run reads, opened and checked before any process group or model exists."""

from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock

from cmgems.config.schema import CorpusConfig, ModelConfig, NpmiConfig, PretrainConfig
from cmgems.data.corpus import Corpus, load_corpus
from cmgems.data.loader import SPECIAL_TOKENS_PER_WINDOW, Windows
from cmgems.data.prepare import prepare_corpus
from cmgems.data.settings import PrepareConfig, read_tokens
from cmgems.errors import UserError
from cmgems.masking.masker import Masker
from cmgems.masking.npmi import NpmiTable, human_counts, npmi_from_counts, read_npmi
from cmgems.model.bert import check_init_from


@dataclass(frozen=True, slots=True)
class TrainingData:
    """What a run reads."""

    corpus: Corpus
    npmi: NpmiTable
    training: Windows
    """Windows of the training split."""
    validation: Windows
    """Windows of the validation split."""

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of corpus and NPMI table, by name."""
        return {"corpus": self.corpus.fingerprint, "npmi": self.npmi.fingerprint}

    def describe(self) -> str:
        """Return a line for the log."""
        windows = f"{len(self.corpus.train):,} training and {len(self.corpus.validation):,} validation windows"
        best = ", ".join(self.npmi.best(5))
        return f"corpus {self.corpus.path}: {windows}; {self.npmi.k}-mers of the highest NPMI: {best}"


def open_data(config: PretrainConfig) -> TrainingData:
    """Open corpus and NPMI table.

    Raises
    ------
    UserError
        If they are unusable, or do not fit the model.
    """
    corpus = open_corpus(config.corpus)
    table = open_npmi(config.npmi, corpus)
    check_model_fits(config.model, corpus)
    training, validation = (
        Windows(split, corpus.tokens, config.model.max_positions) for split in (corpus.train, corpus.validation)
    )
    return TrainingData(corpus, table, training, validation)


def open_masker(data: TrainingData, config: PretrainConfig, device: torch.device, seed: int) -> Masker:
    """Return the masker of the run's corruption; `seed` is that of training or of validation."""
    return Masker(data.npmi, config.curriculum.corruption, seed, device, data.corpus.tokens)


def open_corpus(config: CorpusConfig) -> Corpus:
    """Return the corpus at `corpus.path`; prepared first where it is absent and the recipe says how.

    Raises
    ------
    UserError
        If it cannot be opened or prepared, or was prepared otherwise than the recipe says.
    """
    if config.prepare is not None and not config.path.exists():
        try:
            config.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"corpus.path {config.path} cannot be made: {error}") from None
        # Several processes come here at once: the first prepares, the others wait for it.
        with FileLock(config.path.with_name(f".{config.path.name}.lock")):
            if not config.path.exists():
                prepare_corpus(config.prepare, config.path)
    try:
        corpus = load_corpus(config.path)
    except UserError as error:
        raise UserError(f"corpus.path: {error}") from None
    _check_tokens(config, corpus)
    _check_prepared_as_told(config, corpus)
    return corpus


def _check_tokens(config: CorpusConfig, corpus: Corpus) -> None:
    """Raise UserError if the corpus is of other tokens than the recipe."""
    found = PrepareConfig.model_validate(corpus.manifest["config"]).tokens
    if config.tokens is not None and read_tokens(config.tokens) != read_tokens(found):
        raise UserError(
            f"corpus.path {corpus.path} has the tokens {found}, the recipe is for {config.tokens}: prepare another one "
            f"with `cmgems prepare --tokens {config.tokens}`"
        )


def _check_prepared_as_told(config: CorpusConfig, corpus: Corpus) -> None:
    """Raise UserError if the corpus at the path is another than `corpus.prepare` describes."""
    if config.prepare is None:
        return
    wanted = config.prepare.model_dump(mode="json")
    found = PrepareConfig.model_validate(corpus.manifest["config"]).model_dump(mode="json")
    differences = [
        f"corpus.prepare.{k}: {wanted.get(k)}, the corpus has {found.get(k)}"
        for k in {**wanted, **found}
        if wanted.get(k) != found.get(k)
    ]
    if differences:
        raise UserError(
            f"corpus.path {corpus.path} was not prepared as the recipe says; name another folder, or remove it:\n  "
            + "\n  ".join(differences)
        )


def open_npmi(config: NpmiConfig, corpus: Corpus) -> NpmiTable:
    """Return the NPMI table that the recipe names: a file, the human 6-mers, or the training split's own k-mers.

    Raises
    ------
    UserError
        If the table cannot be read, or is of words of another length than those of the corpus.
    """
    if config.table is None:
        tokens, counts = corpus.tokens, corpus.word_counts
        table = npmi_from_counts(counts, tokens.word, config.method, config.c, tokens.stride, corpus.genetic_code)
    elif config.table == "human":
        k, counts = human_counts()
        table = npmi_from_counts(counts, k, config.method, config.c)
    else:
        try:
            table = read_npmi(Path(config.table))
        except UserError as error:
            raise UserError(f"npmi.table: {error}") from None
    if table.k != corpus.tokens.word:
        raise UserError(
            f"npmi.table {config.table} is of {table.k}-mers, the corpus {corpus.path} has words of "
            f"{corpus.tokens.word}: make one with `cmgems npmi --corpus {corpus.path}`, or leave npmi.table out"
        )
    return table


def check_model_fits(config: ModelConfig, corpus: Corpus) -> None:
    """Raise UserError if the model cannot take the corpus' windows or k-mers."""
    longest = corpus.manifest["config"]["window_tokens"] + SPECIAL_TOKENS_PER_WINDOW
    if longest > config.max_positions:
        raise UserError(
            f"model.max_positions is {config.max_positions}, but the windows of {corpus.path} have up to "
            f"{longest} tokens with [CLS] and [SEP]"
        )
    check_init_from(config, corpus.tokens)
