"""How soon a model leaves the plateau, from BERT's own initialization and from that of the variant `+nucleotides`.

    python -m benchmarks.initialization [GENOME...] [--recipe RECIPE] [--seeds 3] [--workers 2] [--output docs]

Each curriculum is trained from both starts with the same seeds by RECIPE: initialization.yaml, unless another is named.
OUTPUT gets a .json and a .png of the recipe's name, and the section of that name in training.md. Started again, it
leaves out the runs in WORK that have finished, and resumes those that were interrupted.
"""

import argparse
import math
import os
import signal
import statistics
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.growth import as_json, save
from benchmarks.masking_statistics import table, write_between_markers
from benchmarks.measure import REPOSITORY, machine
from benchmarks.runs import SCRIPT
from cmgems.config.command_line import load_config
from cmgems.config.schema import PretrainConfig
from cmgems.data.corpus import load_corpus
from cmgems.data.prepare import prepare_corpus
from cmgems.data.settings import PrepareConfig
from cmgems.errors import UserError
from cmgems.runtime.logging import configure_logging
from cmgems.runtime.process import exit_on_error
from cmgems.tracking.journal import read_contents

RECIPE = REPOSITORY / "benchmarks/initialization.yaml"
STARTS = {"bert": "BERT's own", "nucleotides": "`+nucleotides`"}
"""Titles by name; a name other than `bert` is that of a variant."""


@dataclass(frozen=True)
class Curriculum:
    """A curriculum of the comparison."""

    title: str
    masking: str
    """The fixed masking it is scored under: its own, or that of its first stage."""
    stages: list[dict[str, Any]]


def _stage(strategy: str, **more: Any) -> dict[str, Any]:
    return {"name": strategy, "masking": [{"strategy": strategy, "rate": 0.15}], **more}


_UNTIL_PLATEAU = {"kind": "perplexity_drop", "below": 10, "unit": "percent"}

CURRICULA = {
    "span": Curriculum("Span", "span", [_stage("span")]),
    "genemask": Curriculum("GeneMask", "genemask", [_stage("genemask")]),
    "global": Curriculum("Global-PMI", "global_pmi", [_stage("global_pmi")]),
    "cm-gems": Curriculum("CM-GEMS", "genemask", [_stage("genemask", until=_UNTIL_PLATEAU), _stage("global_pmi")]),
}

ENDPOINTS = {
    "half of the k-mer frequencies' perplexity": ("ppl_vs_unigram/{}", 0.5, None),
    "a tenth of it": ("ppl_vs_unigram/{}", 0.1, None),
    "visible bases read": ("ppl/{}", 1.0, "ppl/{}_composition"),
    "bits 5 % below the composition's": ("bits/{}", 0.95, "bits/{}_composition"),
    "bits below the best Markov chain's": ("bits/{}", 1.0, "bits/{}_chain"),
}
"""The metric that has to fall, by masking, and below what: a factor, times another metric or 1."""

LAST = {
    "perplexity": ("ppl/{}", ".1f"),
    "bits per hidden base": ("bits/{}", ".4f"),
    "bases right": ("bases_right/{}", ".1%"),
}
"""Metric and format of what the table of the last evaluation has of each run."""


@dataclass(frozen=True, order=True)
class Run:
    """One run of the comparison."""

    seed: int
    curriculum: str
    start: str

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.curriculum}-{self.start}-{self.seed}"


@dataclass(frozen=True)
class Result:
    """What a finished run has logged."""

    run: Run
    evaluations: dict[int, dict[str, float]]
    """Validation metrics by step, in order."""
    switch: int | None
    """Step after which the second stage began."""

    @property
    def masking(self) -> str:
        """The masking that counts."""
        return CURRICULA[self.run.curriculum].masking

    @property
    def last(self) -> dict[str, float]:
        """Metrics of the last evaluation."""
        return self.evaluations[max(self.evaluations)]

    @cached_property
    def endpoints(self) -> dict[str, int | None]:
        """Step of the first evaluation past each endpoint; None where there is none."""
        return {
            endpoint: next((step for step, found in self.evaluations.items() if self._is_past(endpoint, found)), None)
            for endpoint in ENDPOINTS
        }

    def _is_past(self, endpoint: str, metrics: Mapping[str, float]) -> bool:
        name, factor, baseline = ENDPOINTS[endpoint]
        below = factor * (metrics[baseline.format(self.masking)] if baseline else 1)
        return metrics.get(name.format(self.masking), math.inf) < below  # one that is not finite is not logged


def main() -> None:
    """Train what is missing, then write tables, picture and numbers."""
    options = parse_arguments()
    name, work = options.recipe.stem, (options.work or Path("runs", options.recipe.stem)).resolve()
    runs = [
        Run(seed, curriculum, start)
        for seed in range(1, options.seeds + 1)
        for curriculum in options.curricula
        for start in STARTS
    ]
    failed = []
    configure_logging()
    with exit_on_error():
        recipe = load_config(["--config", str(options.recipe)])
        corpus = prepare(recipe, work / "corpus", options.genomes, options.validation)
        steps = options.steps or recipe.training.steps
        commands = {run: arguments(run, options.recipe, corpus, work, steps) for run in runs}
        configs = [load_config(command) for command in commands.values()]
        if not options.report:
            missing = [run for run in runs if read_result(run, work, steps) is None]
            failed = train_all(missing, commands, work, options.workers)
        results = [result for run in runs if (result := read_result(run, work, steps)) is not None]
        if results:
            write_all(name, results, configs[0], corpus.inputs, options.output)
        print(f"{len(results)} of {len(runs)} runs have finished", flush=True)
    if failed:
        sys.exit(f"failed, see their logs in {work}: {', '.join(run.name for run in failed)}")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.initialization",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("genomes", nargs="*", metavar="GENOME", help="as for `cmgems prepare` (default: the recipe's)")
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="recipe of all runs (default: initialization.yaml)")
    parser.add_argument("--validation", type=_names, default=[], metavar="NAME,...", help="chromosomes for validation")
    parser.add_argument("--curricula", type=_curricula, default=list(CURRICULA), metavar="NAME,...")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each curriculum and start (default: 3)")
    parser.add_argument("--steps", type=int, help="optimizer steps of a run (default: the recipe's)")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, one thread each (default: 2)")
    parser.add_argument("--work", type=Path, help="folder of corpus and runs (default: runs/ and the recipe's name)")
    parser.add_argument("--output", type=Path, default=Path("docs"), help="folder with training.md")
    parser.add_argument("--report", action="store_true", help="train nothing: write what there is of finished runs")
    return parser.parse_args()


def _names(text: str) -> list[str]:
    return text.split(",")


def _curricula(text: str) -> list[str]:
    names = _names(text)
    if unknown := [name for name in names if name not in CURRICULA]:
        raise argparse.ArgumentTypeError(f"no {', '.join(unknown)}; there are {', '.join(CURRICULA)}")
    return names


# ----------------------------------------------------------------------------------------------------------- training


def prepare(recipe: PretrainConfig, path: Path, genomes: list[str], validation: list[str]) -> PrepareConfig:
    """Prepare the recipe's corpus, unless it is there, with other genomes and validation chromosomes where these are
    named; return its settings."""
    if recipe.corpus.prepare is None:
        raise UserError("the recipe has no corpus.prepare, which says how the genomes are cut into windows")
    named = {"inputs": genomes, "validation_chromosomes": validation}
    config = recipe.corpus.prepare.model_copy(update={setting: names for setting, names in named.items() if names})
    if not path.exists():
        prepare_corpus(config, path)
    elif load_corpus(path).manifest["config"] != config.model_dump(mode="json"):
        raise UserError(f"{path} was prepared from other genomes or settings: remove it, or name another --work")
    return config


def arguments(run: Run, base: Path, corpus: PrepareConfig, work: Path, steps: int) -> list[str]:
    """Command line of a run, whose recipe is written into `work` and extends `base`."""
    recipe = work / f"{run.curriculum}.yaml"
    own = {
        "extends": str(base.resolve()),
        "corpus": {"prepare": corpus.model_dump(mode="json")},
        "curriculum": {"stages": CURRICULA[run.curriculum].stages},
    }
    recipe.write_text(yaml.safe_dump(own))
    settings = {
        "output": work / run.name,
        "resume": "auto",
        "seed": run.seed,
        "corpus.path": work / "corpus",
        "training.steps": steps,
        "checkpoint.every": steps,
        # SQLite locks the whole file: a run waits for no other.
        "tracking.uri": f"sqlite:///{work / run.name}.db",
    }
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    return ["--config", str(recipe) if run.start == "bert" else f"{recipe}+{run.start}", *words]


def train_all(runs: Sequence[Run], commands: Mapping[Run, list[str]], work: Path, workers: int) -> list[Run]:
    """Train several at a time, and print a line for each that has ended; those that have failed.

    Interrupted (Ctrl-C or SIGTERM), it stops the runs, which save a checkpoint each.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    started, failed, processes = time.monotonic(), [], set[subprocess.Popen[bytes]]()

    def train(run: Run) -> int:
        with (work / f"{run.name}.log").open("ab") as log:
            command = [sys.executable, SCRIPT, *commands[run]]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
            # In a session of its own: of a Ctrl-C it gets the one signal that is sent below.
            process = subprocess.Popen(
                command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log, start_new_session=True
            )
            processes.add(process)
            return process.wait()

    with ThreadPoolExecutor(workers) as pool:
        futures = {pool.submit(train, run): run for run in runs}
        try:
            for done, future in enumerate(as_completed(futures), 1):
                run, code = futures[future], future.result()
                if code:
                    failed.append(run)
                left = (time.monotonic() - started) / done * (len(runs) - done) / 60
                how = f"failed (exit code {code})" if code else "finished"
                print(f"{done} of {len(runs)}: {run.name} {how}, about {left:.0f} min left", flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.terminate()
            raise
    return failed


def read_result(run: Run, work: Path, steps: int) -> Result | None:
    """What a run of so many steps has logged; None unless it has finished."""
    evaluations: dict[int, dict[str, float]] = {}
    switches, status = [], None
    for content in read_contents(work / run.name):
        found = content.get("metrics", {})
        status = content.get("status", status)
        if "ppl/stage" in found:
            evaluations[content["step"]] = found  # a step that was repeated after a crash counts once
        if found.get("curriculum/stage", 0) > 0:
            switches.append(content["step"])
    if status != "FINISHED" or max(evaluations, default=0) != steps:
        return None
    return Result(run, dict(sorted(evaluations.items())), min(switches, default=None))


# ------------------------------------------------------------------------------------------------------------- report


def write_all(name: str, results: list[Result], config: PretrainConfig, genomes: list[str], output: Path) -> None:
    """Numbers, picture and tables."""
    genomes = [Path(genome).name for genome in genomes]
    numbers = {
        "machine": machine(),
        "genomes": genomes,
        "steps": config.training.steps,
        "evaluation_every": config.evaluation.every,
        "runs": [as_numbers(result) for result in results],
    }
    (output / f"{name}.json").write_text(as_json(numbers) + "\n")
    draw(results, output / f"{name}.png")
    section = "\n\n".join(
        [
            describe(config, genomes),
            steps_table(results),
            f"After {config.training.steps:,} steps, beside the baselines of the same masked windows:",
            last_table(results),
            f"![Validation perplexity from both starts]({name}.png)",
        ]
    )
    write_between_markers(output / "training.md", {name: section})


def as_numbers(result: Result) -> dict[str, Any]:
    """A run for the JSON file: baselines, which are the same at all evaluations, once, and metrics in columns."""
    left_out, last = ("_composition", "_chain", "/stage"), result.last
    columns = [name for name in last if "/" in name and not name.endswith(left_out)]
    return {
        **asdict(result.run),
        "masking": result.masking,
        "switch": result.switch,
        "endpoints": result.endpoints,
        "baselines": {name: value for name, value in last.items() if name.endswith(left_out[:2])},
        "evaluations": {
            "step": list(result.evaluations),
            # Metrics that are not finite are not logged.
            **{name: [found.get(name) for found in result.evaluations.values()] for name in columns},
        },
    }


def describe(config: PretrainConfig, genomes: Iterable[str]) -> str:
    """What the tables are of."""
    model, training = config.model, config.training
    tokens = training.global_batch * model.max_positions
    return textwrap.fill(
        f"Optimizer steps until an evaluation (every {config.evaluation.every} steps, under the curriculum's own "
        "masking; for CM-GEMS, GeneMask) first finds the perplexity below half, then below a tenth of that of the "
        "k-mer frequencies; below that of reading every visible base off the other k-mers and predicting the hidden "
        "ones by their composition; the bits per hidden base 5 % below those of the composition; and below those of "
        "the best Markov chain. Median over the seeds (range); the ratio is that of the medians. The model has "
        f"{model.layers} layers of width {model.hidden} and is trained on {tokens:,} tokens per step from "
        f"{', '.join(f'`{name}`' for name in genomes)}, with a peak learning rate of "
        f"{config.optimizer.learning_rate:g}. CM-GEMS switches from GeneMask to Global-PMI when the perplexity falls "
        "by less than 10 % from one evaluation to the next.",
        width=125,
        break_long_words=False,
        break_on_hyphens=False,
    )


def by_start(results: Iterable[Result]) -> Iterator[tuple[Curriculum, dict[str, list[Result]]]]:
    """Each curriculum, and its results by start."""
    results = list(results)
    for name, curriculum in CURRICULA.items():
        own = {start: [r for r in results if (r.run.curriculum, r.run.start) == (name, start)] for start in STARTS}
        if any(own.values()):
            yield curriculum, {start: found for start, found in own.items() if found}


def steps_table(results: Sequence[Result]) -> str:
    """Table of the steps to each endpoint, with a row for the ratio where there are both starts."""
    rows = []
    for curriculum, starts in by_start(results):
        for start, found in starts.items():
            steps = [show_steps([r.endpoints[name] for r in found], _limit(found)) for name in ENDPOINTS]
            rows.append([curriculum.title, STARTS[start], str(len(found)), *steps])
        if len(starts) == len(STARTS):
            slow, fast = starts.values()
            ratios = [
                show_ratio([r.endpoints[name] for r in slow], [r.endpoints[name] for r in fast], _limit(slow))
                for name in ENDPOINTS
            ]
            rows.append([curriculum.title, "ratio", "", *ratios])
    return table(["curriculum", "start", "seeds", *ENDPOINTS], rows)


def _limit(results: Sequence[Result]) -> int:
    return min(max(result.evaluations) for result in results)


def _median(steps: Iterable[int | None]) -> float:
    return statistics.median(math.inf if step is None else step for step in steps)


def show_steps(steps: Sequence[int | None], limit: int) -> str:
    """Median and range of steps, where None is more than `limit`."""
    known = [math.inf if step is None else step for step in steps]
    median, low, high = (
        f"> {limit:,}" if math.isinf(value) else f"{value:,.0f}" for value in (_median(steps), min(known), max(known))
    )
    return median if low == high else f"{median} ({low} to {high})"


def show_ratio(slow: Sequence[int | None], fast: Sequence[int | None], limit: int) -> str:
    """Ratio of the medians; a bound where one was not reached within `limit` steps, nothing where neither was."""
    above, below = _median(slow), _median(fast)
    if math.isinf(above) and math.isinf(below):
        return ""
    bound = "> " if math.isinf(above) else "< " if math.isinf(below) else ""
    return f"{bound}{min(above, limit) / min(below, limit):.1f}"


def last_table(results: Sequence[Result]) -> str:
    """Table of the last evaluation: of the model, and of the baselines."""
    rows = []
    for curriculum, starts in by_start(results):
        for start, found in starts.items():
            name, metrics = curriculum.masking, found[0].last
            values = [show_values([r.last[key.format(name)] for r in found], form) for key, form in LAST.values()]
            baselines = [
                f"{metrics[f'ppl/{name}_composition']:.1f}",
                *(f"{metrics[f'bits/{name}_{kind}']:.4f}" for kind in ("composition", "chain")),
            ]
            switch = show_switches(found) if len(curriculum.stages) > 1 else ""
            rows.append([curriculum.title, STARTS[start], str(len(found)), *values, *baselines, switch])
    header = ["curriculum", "start", "seeds", *LAST, "composition's perplexity", "its bits", "best Markov chain's bits"]
    return table([*header, "second stage from step"], rows)


def show_values(values: Sequence[float], form: str) -> str:
    """Median and range."""
    median, low, high = (format(value, form) for value in (statistics.median(values), min(values), max(values)))
    return median if low == high else f"{median} ({low} to {high})"


def show_switches(results: Sequence[Result]) -> str:
    """Median and range of the steps after which the second stage began."""
    return show_steps([result.switch for result in results], _limit(results))


def draw(results: Sequence[Result], path: Path) -> None:
    """Validation perplexity against steps: a panel for each curriculum, a thin line for each run."""
    curricula = list(by_start(results))
    columns = min(2, len(curricula))
    size = -(-len(curricula) // columns)
    figure, grid = plt.subplots(
        size, columns, figsize=(4.6 * columns, 0.7 + 3 * size), layout="constrained", squeeze=False
    )
    for axis, (curriculum, starts) in zip(grid.flat, curricula, strict=False):
        name = f"ppl/{curriculum.masking}"
        for colour, (start, title) in zip(("C1", "C0"), STARTS.items(), strict=True):
            for result in starts.get(start, []):
                perplexities = [found.get(name, math.nan) for found in result.evaluations.values()]
                label = title.strip("`")
                axis.plot(list(result.evaluations), perplexities, color=colour, linewidth=0.9, label=label)
        last = next(iter(starts.values()))[0].last
        unigram = last[name] / last[f"ppl_vs_unigram/{curriculum.masking}"]
        axis.axhline(unigram, color="black", linestyle="--", linewidth=0.8, label="k-mer frequencies")
        axis.axhline(
            last[f"{name}_composition"], color="black", linestyle=":", linewidth=1, label="visible bases, composition"
        )
        axis.set(title=curriculum.title, yscale="log", xlim=(0, None), xlabel="optimizer step")
        axis.set_ylabel(f"perplexity ({curriculum.masking})")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:,g}")
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.spines[["top", "right"]].set_visible(False)
    for axis in list(grid.flat)[len(curricula) :]:
        axis.remove()
    # Each label once, whatever the number of lines that have it.
    labels = {
        label: line for axis in figure.axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(labels.values(), labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    save(figure, path)


if __name__ == "__main__":
    main()
