"""What a run stands on, opened and checked before any process group or model exists."""

import re
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from filelock import FileLock

from cmgems.config import CorpusConfig, NpmiConfig, PretrainConfig, flatten
from cmgems.errors import UserError
from cmgems.masking.npmi import NpmiTable, human_counts, npmi_from_counts, read_npmi
from cmgems.sequence.corpus import Corpus, load_corpus, prepare_corpus
from cmgems.sequence.tokenizer import SPECIAL_TOKENS, vocabulary
from cmgems.training.checkpoint import RunState, checkpoints, read_state
from cmgems.training.loader import SPECIAL_TOKENS_A_WINDOW
from cmgems.training.model import check_init_from


def open_corpus(config: CorpusConfig) -> Corpus:
    """The corpus at `corpus.path`; prepared first where it is absent and the recipe says how."""
    if config.prepare is not None and not config.path.exists():
        config.path.parent.mkdir(parents=True, exist_ok=True)
        # Several processes come here at once: the first prepares, the others wait for it.
        with FileLock(config.path.with_name(f".{config.path.name}.lock")):
            if not config.path.exists():
                prepare_corpus(config.prepare, config.path)
    return load_corpus(config.path)


def open_npmi(config: NpmiConfig, corpus: Corpus) -> NpmiTable:
    """The NPMI table that the recipe names: a file, the human 6-mers, or the training split's own k-mers."""
    if config.table is None:
        table = npmi_from_counts(corpus.counts, corpus.k, config.method, config.c)
    elif config.table == "human":
        k, counts = human_counts()
        table = npmi_from_counts(counts, k, config.method, config.c)
    else:
        table = read_npmi(Path(config.table))
    if table.k != corpus.k:
        raise UserError(
            f"npmi.table {config.table} is of {table.k}-mers, the corpus {corpus.path} of {corpus.k}-mers: "
            f"make one with `cmgems npmi --corpus {corpus.path}`, or leave npmi.table out"
        )
    return table


def check_recipe_fits(config: PretrainConfig, corpus: Corpus) -> None:
    """Raise UserError if model and corpus do not go together, or the output folder is taken."""
    longest = corpus.manifest["config"]["window_tokens"] + SPECIAL_TOKENS_A_WINDOW
    if longest > config.model.max_positions:
        raise UserError(
            f"model.max_positions is {config.model.max_positions}, but the windows of {corpus.path} have up to "
            f"{longest} tokens with [CLS] and [SEP]"
        )
    check_init_from(config.model, corpus.k)
    if config.resume == "never" and config.output is not None and config.output.exists():
        raise UserError(
            f"output {config.output} exists already: name another folder, or continue its run with --resume auto"
        )
    if config.resume not in ("never", "auto"):
        read_state(Path(config.resume))


def describe(corpus: Corpus, table: NpmiTable, folder: Path) -> str:
    """Lines for the log: what the run reads, and where it writes."""
    best = [vocabulary(table.k)[len(SPECIAL_TOKENS) + i] for i in np.argsort(-table.npmi, kind="stable")[:5]]
    return (
        f"corpus {corpus.path}: {len(corpus.train):,} training and {len(corpus.validation):,} validation windows; "
        f"{table.k}-mers of the highest NPMI: {', '.join(best)}\nrun folder {folder}"
    )


def checkpoint_to_resume(config: PretrainConfig) -> Path | None:
    """Folder of the checkpoint that `resume` asks for; None to start from the beginning."""
    if config.resume == "never":
        return None
    if config.resume != "auto":
        return Path(config.resume)
    found = [checkpoint for folder in _run_folders(config) for checkpoint in checkpoints(folder / "checkpoints")]
    return found[-1] if found else None


def make_run_folder(config: PretrainConfig, resumed: Path | None, accelerator: Accelerator) -> Path:
    """The run's folder, the same on all ranks: that of the resumed checkpoint, `output`, or the next free one."""
    if resumed:
        return resumed.parent.parent
    chosen: list[str | None] = [None]
    if accelerator.is_main_process:
        folder = config.output or _free_folder(Path("runs") / config.name)
        folder.mkdir(parents=True, exist_ok=True)
        chosen = [str(folder)]
    broadcast_object_list(chosen)
    return Path(str(chosen[0]))


def run_identity(config: PretrainConfig, corpus: Corpus, table: NpmiTable, launch: str) -> dict[str, Any]:
    """What must be the same for a run to go on from a checkpoint: all that has a say in its numbers."""
    free = ("name", "output", "resume", "corpus", "tracking", "checkpoint", "launch")
    settings = {name: value for name, value in flatten(config).items() if name.split(".")[0] not in free}
    return {**settings, "corpus": corpus.fingerprint, "npmi": table.fingerprint, "launched as": launch}


def read_resumable(checkpoint: Path, identity: dict[str, Any]) -> RunState:
    """State of a checkpoint; UserError naming each point in which the run that wrote it differs from this one."""
    state = read_state(checkpoint)
    then = state.identity
    differences = [
        f"{key}: {then.get(key)} then, {identity.get(key)} now"
        for key in {**then, **identity}
        if then.get(key) != identity.get(key)
    ]
    if differences:
        raise UserError(f"{checkpoint} cannot be resumed by this run:\n  " + "\n  ".join(differences))
    return state


def _run_folders(config: PretrainConfig) -> list[Path]:
    """Folders in which runs of this recipe may stand, oldest first."""
    if config.output is not None:
        return [config.output]
    numbered = re.compile(re.escape(config.name) + r"(-\d+)?")
    folders = [folder for folder in Path("runs").glob(f"{config.name}*") if numbered.fullmatch(folder.name)]
    return sorted(folders, key=lambda folder: (len(folder.name), folder.name))


def _free_folder(folder: Path) -> Path:
    number, free = 1, folder
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free
