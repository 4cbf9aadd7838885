"""What a run shows: a bar on a terminal or plain lines in a job log while it runs, a summary at its end."""

import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from cmgems.config.schema import PretrainConfig
from cmgems.curriculum.controller import Controller
from cmgems.model.codons import CODON_BITS
from cmgems.runtime.passwords import hide_password
from cmgems.runtime.progress import ProgressLines
from cmgems.training.run_folder import Run


def summarise(config: PretrainConfig, controller: Controller, run: Run) -> str:
    """Return what came of a run, and where to look at it."""
    progress = run.progress
    lines = [f"{config.training.steps:,} steps in {progress.seconds / 60:.1f} minutes", ""]
    for switch in controller.switches:
        measured = " -> ".join(f"{perplexity:.1f}" for perplexity in switch.perplexities[-3:])
        cause = f" (validation perplexity {measured})" if measured else ""
        lines.append(f"- switched from stage {switch.from_stage} to {switch.to_stage} after step {switch.step}{cause}")
    last = progress.evaluations[-1]
    final = {name: value for name, value in last["perplexity"].items() if name != "stage"}
    shown = ", ".join(f"{name} {value:.1f}" for name, value in final.items())
    lines.append(
        f"- validation perplexity at the end: {shown} (k-mer frequencies alone: {controller.unigram_perplexity:.1f})"
    )
    if "bits" in last:  # a finished run of an earlier release has none
        lines.append(f"- {describe_bits(last['bits'], progress.baselines)}")
    if "codons" in last:
        lines.append(f"- {describe_codon_bits(last['codons'], last['bits'])}")
    lines.append(f"- model and checkpoints: {run.folder}")
    lines.append(f"- MLflow: experiment '{config.tracking.experiment}', run '{run.name}'; {_how_to_look(config)}")
    return "\n".join(lines)


def describe_bits(bits: Mapping[str, float], baselines: Mapping[str, Mapping[str, Any]]) -> str:
    """Bits per hidden base by masking, each beside what Markov chains and the base composition score."""
    shown = (
        f"{name} {value:.3f} (Markov chain {baselines[name]['chain']['bits']:.3f}, "
        f"composition {baselines[name]['composition']['bits']:.3f})"
        for name, value in bits.items()
    )
    return "bits per hidden base: " + "  ".join(shown)


def describe_codon_bits(codons: Mapping[str, float], maskings: Iterable[str]) -> str:
    """Bits per hidden codon by masking, and those of the codon given its amino acid, beside those of codon usage."""
    total, usage, synonym, synonym_usage = CODON_BITS
    shown = (
        f"{name} {codons[total.format(name)]:.3f} (codon usage {codons[usage.format(name)]:.3f}), given the amino acid "
        f"{codons[synonym.format(name)]:.3f} ({codons[synonym_usage.format(name)]:.3f})"
        for name in maskings
    )
    return "bits per hidden codon: " + "  ".join(shown)


def _how_to_look(config: PretrainConfig) -> str:
    """Return where the run can be seen: the server's address, or the command that starts the UI on a database."""
    uri = hide_password(config.tracking.uri)
    if uri.startswith("http"):
        return f"at {uri}"
    program = Path(sys.executable).with_name("mlflow")
    on_path = shutil.which("mlflow") == str(program)
    return f"to look at it: {'mlflow' if on_path else os.path.relpath(program)} ui --backend-store-uri {uri}"


class Display:
    """Progress of the run, shown by rank 0."""

    def __init__(self, total_steps: int, first_step: int, is_main_process: bool) -> None:
        """`first_step`: number of steps that the run had done before."""
        self.is_main_process = is_main_process
        self._progress = ProgressLines(
            "training", total_steps, "step", is_shown=is_main_process, first=first_step, leave=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.close()

    def training(self, step: int, metrics: Mapping[str, float], stage: str) -> None:
        """Show training metrics after `step` steps."""
        loss, speed = metrics["train/loss"], metrics["usage/tokens_per_second"]
        self._progress.update(step, f"stage {stage}, loss {loss:.4f}, {speed:,.0f} tokens/s")

    def evaluation(self, evaluation: Mapping[str, Any], baselines: Mapping[str, Mapping[str, Any]]) -> None:
        """Show an evaluation (see `Progress.evaluations`): perplexities, and bits beside their baselines."""
        step, stage, perplexity = (evaluation[name] for name in ("step", "stage", "perplexity"))
        fixed = "  ".join(f"{name} {value:.1f}" for name, value in perplexity.items() if name != "stage")
        self.line(f"step {step}  validation perplexity: stage {stage} {perplexity['stage']:.1f}  ({fixed})")
        self.line(f"step {step}  {describe_bits(evaluation['bits'], baselines)}")
        if "codons" in evaluation:
            self.line(f"step {step}  {describe_codon_bits(evaluation['codons'], evaluation['bits'])}")

    def plateau(self, step: int, share: float, remedy: str) -> None:
        """Say that the run is still on the plateau it began on, and what helps."""
        self.line(
            f"step {step}  still on a plateau: every perplexity is at least {share:.0%} of that of k-mer frequencies "
            f"alone; {remedy}"
        )

    def line(self, text: str, every_rank: bool = False) -> None:
        """Print a line, above the bar if there is one."""
        if self.is_main_process or every_rank:
            self._progress.write(text)
