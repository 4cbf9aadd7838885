"""How speed, time and memory grow: writes the pictures of docs/performance.md and the numbers behind them.

    python -m benchmarks.growth [--work FOLDER] [--output docs] [--only training|corpus]

OUTPUT gets growth_training.png, growth_corpus.png and growth.json. WORK gets genomes, corpora and runs for a while, a
gigabyte at most. On two idle cores all of it takes about ten minutes. Linux only.
"""

import argparse
import json
import re
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.measure import CORES, REPOSITORY, Cost, Rates, cost, machine
from benchmarks.measure import run as run_command
from benchmarks.runs import SCRIPT, launcher
from benchmarks.training import K, arguments, logged_steps, write_genome
from cmgems.data.loader import SPECIAL_TOKENS_PER_WINDOW
from cmgems.data.prepare import prepare_corpus
from cmgems.data.settings import PrepareConfig

STEPS = 6
"""Optimizer steps of a run, of which the first is not counted."""
TOKENS_A_STEP = 8192
"""Tokens of an optimizer step, [CLS] and [SEP] included: the same in all runs, and so is the work."""
TOKENS_A_MICRO_BATCH = 2048
"""Tokens a process computes at once, where the micro-batch is not what is varied."""

GENOMES = (10, 30, 100, 300)
"""Sizes of the synthetic genomes, in Mb."""
LARGEST = 3000
"""Size of a genome that the memory is extrapolated to, in Mb: about a human one."""
TARGET = 1.5
"""Memory that `cmgems prepare` may take for that, in GB."""
OTHER_K = 7
"""k of `cmgems npmi -k`; another than the corpus' own makes it count the k-mers of all windows."""


@dataclass(frozen=True)
class Run:
    """What differs between the runs of the training picture."""

    tokens: int = 128
    """Length of all windows, in tokens, [CLS] and [SEP] included."""
    rows: int = TOKENS_A_MICRO_BATCH // 128
    """Windows of a micro-batch."""
    workers: int = 0
    """Loader workers of each process."""
    processes: int = 1
    threads: int = CORES
    """Threads of each process."""

    @property
    def layout(self) -> str:
        """Processes and threads in words."""
        many = "" if self.processes * self.threads <= CORES else f"\n(on {CORES} cores)"
        return f"{self.processes} x {self.threads}{many}"


def layouts() -> list[Run]:
    """One core, then all cores in three ways: by the threads of one process, of two, and of four."""
    counts = [(1, 1), *((processes, max(1, CORES // processes)) for processes in (1, 2, 4))]
    return [Run(processes=processes, threads=threads) for processes, threads in dict.fromkeys(counts)]


TRAINING = {
    "length of the windows (tokens)": {
        str(tokens): Run(tokens=tokens, rows=TOKENS_A_MICRO_BATCH // tokens) for tokens in (64, 128, 256, 512)
    },
    "micro-batch (windows)": {str(rows): Run(rows=rows) for rows in (1, 2, 4, 8, 16, 32, 64)},
    "loader workers": {str(workers): Run(workers=workers) for workers in (0, 1, 2, 4)},
    "processes x threads of each": {run.layout: run for run in layouts()},
}
"""Runs of each panel, by what is varied and its value."""


def main() -> None:
    """Measure, print, write, draw."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--output", type=Path, default=Path("docs"))
    parser.add_argument("--only", choices=["training", "corpus"], help="one of the two pictures")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "growth.json"
    numbers: dict[str, Any] = json.loads(path.read_text()) if options.only and path.exists() else {}
    numbers["machine"] = machine()
    with tempfile.TemporaryDirectory(prefix="cmgems-growth-", dir=options.work) as work:
        if options.only != "corpus":
            numbers["training"] = measure_training(Path(work))
        if options.only != "training":
            numbers["corpus"] = measure_corpus(Path(work))
    path.write_text(as_json(numbers) + "\n")
    draw(numbers, options.output)


def as_json(numbers: dict[str, Any]) -> str:
    """Numbers of four digits at most, the innermost lists and groups on one line each."""
    text = json.dumps(
        json.loads(json.dumps(numbers), parse_float=lambda digits: float(f"{float(digits):.4g}")), indent=1
    )
    return re.sub(r"[\[{][^\[\]{}]*[\]}]", lambda values: " ".join(values[0].split()), text)


# ----------------------------------------------------------------------------------------------------------- training


def measure_training(work: Path) -> dict[str, dict[str, list[float]]]:
    """Useful tokens a second of each counted step, by panel and value."""
    runs = dict.fromkeys(run for panel in TRAINING.values() for run in panel.values())
    rates = {run: train(run, corpus(work, run.tokens), work) for run in say_which(runs)}
    for panel, values in TRAINING.items():
        print_table((panel, "useful tokens/s"), ((value, rates[run].show()) for value, run in values.items()))
    return {panel: {value: rates[run].rounds for value, run in values.items()} for panel, values in TRAINING.items()}


def say_which(runs: Iterable[Run]) -> Iterator[Run]:
    """The runs, each named as it begins."""
    for run in runs:
        print(f"{run} ...", file=sys.stderr, flush=True)
        yield run


def corpus(work: Path, tokens: int) -> Path:
    """Corpus of a random genome, all windows of a length (in tokens, [CLS] and [SEP] included)."""
    path = work / f"windows-{tokens}"
    if not path.exists():
        genome = write_genome(work / "genome.fa", 2_000_000)
        length = tokens - SPECIAL_TOKENS_PER_WINDOW
        config = PrepareConfig(inputs=[str(genome)], k=K, window_tokens=length, full_length_share=1.0)
        prepare_corpus(config, path, progress=False)
        genome.unlink()
    return path


def train(run: Run, path: Path, work: Path) -> Rates:
    """Launch the training of LOGO as a user does; useful tokens a second of each step but the first."""
    output = work / "run"
    settings = {
        "corpus.workers": run.workers,
        "training.steps": STEPS,
        "training.global_batch": TOKENS_A_STEP // run.tokens,
        "training.micro_batch": run.rows,
        "tracking.uri": f"sqlite:///{work}/mlflow.db",
        "output": output,
    }
    command = [*launcher("ddp", run.processes), SCRIPT, *arguments("logo", path, settings)]
    run_command(command, OMP_NUM_THREADS=str(run.threads), PYTHONPATH=str(REPOSITORY))
    rates = rates_of_steps(output)
    shutil.rmtree(output)
    return rates


def rates_of_steps(folder: Path) -> Rates:
    """Useful tokens, over all processes, a second from the end of one step to the end of the next."""
    steps = logged_steps(folder)
    tokens = [step["metrics"]["usage/tokens_per_second"] * step["metrics"]["usage/seconds_per_step"] for step in steps]
    seconds = [(later["time"] - earlier["time"]) / 1000 for earlier, later in pairwise(steps)]
    assert len(seconds) == STEPS - 1
    return Rates([number / time for number, time in zip(tokens[1:], seconds, strict=True)])


# ------------------------------------------------------------------------------------------------------------- corpus


def measure_corpus(work: Path) -> dict[str, dict[str, dict[str, float]]]:
    """What each command takes, by genome size in Mb."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for megabases in GENOMES:
        print(f"genome of {megabases} Mb ...", file=sys.stderr, flush=True)
        for name, taken in costs(work, megabases).items():
            found.setdefault(name, {})[str(megabases)] = asdict(taken)
    for name, sizes in found.items():
        rows = ((size, *(f"{value:.3g}" for value in taken.values())) for size, taken in sizes.items())
        print_table((f"{name}: Mb", "seconds", "GB", "GB of its own"), rows)
        print(fit(sizes, "own_gigabytes" if name == "npmi -k" else "gigabytes").show(), end="\n\n")
    return found


def costs(work: Path, megabases: int) -> dict[str, Cost]:
    """Prepare a synthetic genome, and compute NPMI from its corpus, each in a process of its own."""
    genome, folder, table = work / "genome.fa", work / "corpus", work / "npmi.csv"
    write_genome(genome, megabases * 1_000_000)
    taken = {
        "prepare": cost("prepare", str(genome), "-k", str(K), "--output", str(folder)),
        "npmi": cost("npmi", "--corpus", str(folder), "--output", str(table)),
        "npmi -k": cost("npmi", "--corpus", str(folder), "-k", str(OTHER_K), "--output", str(table)),
    }
    shutil.rmtree(folder)
    return taken


@dataclass(frozen=True)
class Fit:
    """Memory as a straight line over the size of the genome."""

    constant: float
    """GB at size 0."""
    slope: float
    """GB a Mb."""

    def at(self, megabases: float) -> float:
        """GB at a size."""
        return self.constant + self.slope * megabases

    def show(self) -> str:
        """The line, and what it comes to for a human genome."""
        return (
            f"fit: {self.constant:.2f} GB + {1000 * self.slope:.2f} GB for each 1,000 Mb; "
            f"{LARGEST:,} Mb: {self.at(LARGEST):.2f} GB"
        )


def fit(sizes: dict[str, dict[str, float]], what: str) -> Fit:
    """Least squares."""
    slope, constant = np.polyfit([float(size) for size in sizes], [taken[what] for taken in sizes.values()], 1)
    return Fit(float(constant), float(slope))


def print_table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """Columns of words, and an empty line."""
    lines = [header, *(tuple(" ".join(cell.split()) for cell in row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(map(str.ljust, line, widths)).rstrip())
    print(flush=True)


# ----------------------------------------------------------------------------------------------------------- pictures


def draw(numbers: dict[str, Any], folder: Path) -> None:
    """The pictures of what there are numbers of."""
    if "training" in numbers:
        draw_training(numbers, folder / "growth_training.png")
    if "corpus" in numbers:
        draw_corpus(numbers, folder / "growth_corpus.png")


def panels(title: str) -> tuple[Any, list[Any]]:
    """A figure of four panels."""
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.2), layout="constrained")
    figure.suptitle(title, fontsize="medium")
    for panel in axes.flat:
        panel.spines[["top", "right"]].set_visible(False)
    return figure, list(axes.flat)


def save(figure: Any, path: Path) -> None:
    """Write a figure, and forget it."""
    figure.savefig(path, dpi=100, pil_kwargs={"optimize": True})
    plt.close(figure)


def draw_training(numbers: dict[str, Any], path: Path) -> None:
    """Medians with the range of the steps: points over numbers, bars over layouts of processes."""
    base, machine = Run(), numbers["machine"]
    figure, axes = panels(
        f"Training LOGO in fp32 on {machine['cores']} cores of an {machine['processor']}; "
        f"median and range of {STEPS - 1} steps of {TOKENS_A_STEP:,} tokens\n"
        f"where not said otherwise: windows of {base.tokens} tokens, micro-batches of {TOKENS_A_MICRO_BATCH:,} tokens, "
        f"no loader workers, 1 process of {base.threads} threads"
    )
    for axis, letter, (what, values) in zip(axes, "abcd", numbers["training"].items(), strict=True):
        medians = [statistics.median(rounds) for rounds in values.values()]
        below = [median - min(rounds) for median, rounds in zip(medians, values.values(), strict=True)]
        above = [max(rounds) - median for median, rounds in zip(medians, values.values(), strict=True)]
        places = range(len(values))
        if "processes" in what:
            axis.bar(places, medians, 0.6, yerr=(below, above), capsize=3, color="C0")
        else:
            axis.errorbar(places, medians, (below, above), marker="o", capsize=3, color="C0")
        axis.set_xticks(places, values)
        axis.set_xlabel(f"({letter}) {what}")
        axis.set_ylabel("useful tokens/s")
        axis.yaxis.set_major_formatter("{x:,.0f}")
    top = 1.05 * max(max(rounds) for values in numbers["training"].values() for rounds in values.values())
    for axis in axes:
        axis.set_ylim(0, top)
    save(figure, path)


def draw_corpus(numbers: dict[str, Any], path: Path) -> None:
    """Seconds and memory over the size of the genome."""
    found = numbers["corpus"]
    figure, axes = panels(f"From a genome to NPMI, on one core of an {numbers['machine']['processor']}")
    draw_line(axes[0], found["prepare"], "seconds", "C0", f"cmgems prepare: {speed(found['prepare'])}")
    draw_line(axes[2], found["npmi -k"], "seconds", "C1", f"cmgems npmi -k {OTHER_K}: {speed(found['npmi -k'])}")
    draw_line(axes[2], found["npmi"], "seconds", "C0", "cmgems npmi: counts of the corpus")
    for axis in (axes[0], axes[2]):
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.set_ylabel("processor time (s)")
    draw_memory(axes[1], found["prepare"], "gigabytes", "C0", "cmgems prepare")
    axes[1].axhline(TARGET, color="black", linestyle="--", linewidth=1, label=f"target: {TARGET} GB at {LARGEST:,} Mb")
    draw_line(axes[3], found["npmi -k"], "gigabytes", "C2", f"cmgems npmi -k {OTHER_K}, mapped pages of the corpus too")
    draw_memory(axes[3], found["npmi -k"], "own_gigabytes", "C1", "without them")
    for axis, letter, sizes in zip(axes, "abcd", 2 * [GENOMES, (*GENOMES, LARGEST)], strict=True):
        axis.set_xscale("log")
        axis.set_xticks(sizes, map("{:,}".format, sizes))
        axis.set_xticks([], minor=True)
        axis.set_xlabel(f"({letter}) size of the genome (Mb)")
        axis.legend(frameon=False, fontsize="small")
    axes[1].set_ylim(0, 1.1 * TARGET)
    axes[3].set_ylim(0, 1.5 * axes[3].get_ylim()[1])
    save(figure, path)


def speed(sizes: dict[str, dict[str, float]]) -> str:
    """Megabases a second of the largest genome."""
    size = max(sizes, key=float)
    return f"{float(size) / sizes[size]['seconds']:.0f} Mb/s"


def draw_line(axis: Any, sizes: dict[str, dict[str, float]], what: str, colour: str, label: str) -> None:
    """Points, joined."""
    values = [taken[what] for taken in sizes.values()]
    axis.plot([float(size) for size in sizes], values, marker="o", color=colour, label=label)


def draw_memory(axis: Any, sizes: dict[str, dict[str, float]], what: str, colour: str, label: str) -> None:
    """Points, and the straight line through them as far as a human genome."""
    values = [taken[what] for taken in sizes.values()]
    axis.plot([float(size) for size in sizes], values, marker="o", linestyle="", color=colour, label=label)
    line = fit(sizes, what)
    along = np.geomspace(min(map(float, sizes)), LARGEST, 50).tolist()
    label = line.show().replace("; ", "\n")
    axis.plot(along, [line.at(size) for size in along], color=colour, linestyle=":", label=label)
    axis.set_ylabel("peak memory (GB)")


if __name__ == "__main__":
    main()
