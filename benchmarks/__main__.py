"""python -m benchmarks [--rounds 5] [--only NAME ...] [--work FOLDER] [--output FILE.json]

Prints a table of ours beside what would be used instead (benchmarks/peers.py) and of what was aimed at, and writes all
rounds as JSON.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import runs
from benchmarks.measure import Rates, in_rounds, in_turns, machine, run
from benchmarks.pieces import counting, embedding, masking, preparing, tokenizing

Row = tuple[str, str, str, str, str, str]
HEADER: Row = ("what", "unit", "ours", "beside", "ours to that", "target")


@dataclass(frozen=True)
class Value:
    """Something of ours that is measured."""

    unit: str
    target: str = ""
    peers: tuple[str, ...] = ()
    """What it stands beside."""


@dataclass(frozen=True)
class Benchmark:
    """Values that are measured together."""

    title: str
    values: dict[str, Value]
    """By name; the one that is called `ours` has the title alone in the table."""
    measure: Callable[[int], dict[str, Rates]]
    """From a number of rounds to rates, of the values and of their peers."""

    def rows(self, rates: dict[str, Rates]) -> Iterator[Row]:
        """Lines of the table: each value beside each of its peers."""
        for name, value in self.values.items():
            what = self.title if name == "ours" else f"{self.title}: {name}"
            ours = rates[name]
            if not value.peers:
                yield what, value.unit, ours.show(), "", "", value.target
            for peer in value.peers:
                other = rates[peer]
                yield what, value.unit, ours.show(), f"{peer}: {other.show()}", ours.ratio(other).show(), value.target


def train(title: str, target: str, work: Path, model: str, *options: str) -> Benchmark:
    """Ways to train, each in a process of its own for every round."""
    peer, kind = ("L", "bare") if "--full" in options else ("P1", "trainer")

    def way(kind: str) -> Callable[[], float]:
        command = [sys.executable, "-m", "benchmarks.training", kind, str(work), model, *options]
        return lambda: float(json.loads(run(command).splitlines()[-1])["tokens_per_second"])

    ways = {"ours": way("ours"), peer: way(kind)}
    return Benchmark(title, {"ours": Value("useful tokens/s", target, (peer,))}, lambda rounds: in_turns(ways, rounds))


def turns(title: str, values: dict[str, Value], ways: Callable[[], dict[str, Callable[[], float]]]) -> Benchmark:
    """Ways that are taken in turns; `ways` is called when they are measured."""
    return Benchmark(title, values, lambda rounds: in_turns(ways(), rounds))


def benchmarks(work: Path) -> dict[str, Benchmark]:
    """What is measured, by name."""
    return {
        "tokenizing": turns(
            "nucleotides to padded 6-mer ids, one core",
            {"ours": Value("tokens/s", ">= 100 x P1, >= 20 M", ("P1",))},
            tokenizing,
        ),
        "masking": turns(
            "masks and corruption, 32 x 512, one core",
            {
                "genemask": Value("tokens/s", ">= 20 x P2, >= 10 M", ("P2",)),
                "global_pmi": Value("tokens/s"),
                "genemask, choice alone": Value("tokens/s"),
                "global_pmi, choice alone": Value("tokens/s", ">= 25 M"),
            },
            masking,
        ),
        "counting": turns("counting 6-mers, one core", {"ours": Value("bases/s", ">= 150 M")}, counting),
        "preparing": turns(
            "`cmgems prepare` of 50 Mb, one core",
            {"ours": Value("bases/s", ">= 25 M")},
            lambda: {"ours": preparing(work, 50)},
        ),
        "embedding": turns(
            "embedding by LOGO, windows of all lengths",
            {"ours": Value("tokens/s", ">= 3 x P3", ("P3",))},
            lambda: embedding(work),
        ),
        "logo": train("training LOGO", ">= 2.0 x P1", work, "logo"),
        "logo-full": train("training LOGO, full windows", ">= 0.97 x L", work, "logo", "--full"),
        "logo-bf16": train("training LOGO in bf16", "", work, "logo", "--bf16"),
        "dnabert": train("training DNABERT", ">= 1.8 x P1", work, "dnabert"),
        "dnabert-bf16": train("training DNABERT in bf16", "", work, "dnabert", "--bf16"),
        "start": turns(
            "from the command to the first step",
            {
                "imports alone": Value("s"),
                "python, beyond imports": Value("s", "<= 5 s"),
                "accelerate launch, beyond imports": Value("s"),
            },
            lambda: runs.starting(work),
        ),
        "resume": Benchmark(
            "first batch of a run",
            {
                "read before it, from step 10": Value("batches", "0"),
                "read before it, from step 100,000": Value("batches", "0"),
                "time, from step 0": Value("s"),
                "time, from step 10": Value("s"),
                "time, from step 100,000": Value("s"),
            },
            lambda rounds: in_rounds(lambda: runs.resuming(work), rounds),
        ),
        "decision": Benchmark(
            "deciding on the stage, two processes",
            {
                "a decision": Value("ms"),
                "share, every 500 steps": Value("% of training", "<= 0.1 %"),
                "share, after every step": Value("% of training"),
            },
            lambda rounds: in_rounds(lambda: runs.deciding(work), rounds),
        ),
        "zero2-ddp": turns(
            "training LOGO, two processes of one thread",
            {"ZeRO-2": Value("useful tokens/s", "", ("DDP",))},
            lambda: runs.sharing(work),
        ),
        "checkpoint": Benchmark(
            "stall by a checkpoint of DNABERT",
            {
                "time": Value("s"),
                "in steps of 250 windows": Value("steps", "<= 2 steps"),
                f"in steps of {runs.WINDOWS} windows": Value("steps"),
            },
            lambda rounds: in_rounds(lambda: runs.checkpointing(work), rounds),
        ),
    }


def main(words: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=None)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "cmgems-benchmarks")
    parser.add_argument("--output", type=Path, default=Path("benchmarks.json"))
    arguments = parser.parse_args(words)
    work = arguments.work.resolve()
    known = benchmarks(work)
    chosen = arguments.only or list(known)
    if unknown := sorted(set(chosen) - set(known)):
        parser.error(f"--only {' '.join(unknown)}: there are {', '.join(known)}")
    work.mkdir(parents=True, exist_ok=True)
    lines, found = [HEADER], {}
    for name in chosen:
        print(f"{name} ...", file=sys.stderr, flush=True)
        rates = known[name].measure(arguments.rounds)
        lines += known[name].rows(rates)
        found[name] = {way: rate.rounds for way, rate in rates.items()}
        arguments.output.write_text(json.dumps({"machine": machine(), "rates": found}, indent=1) + "\n")
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    print(f"medians of {arguments.rounds} rounds (smallest to largest), {machine()}")
    for line in lines:
        print("  ".join(map(str.ljust, line, widths)).rstrip())


if __name__ == "__main__":
    main()
