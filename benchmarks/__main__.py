"""python -m benchmarks [--rounds 5] [--only NAME ...] [--work FOLDER] [--output FILE.json]

Prints a table of ours beside what would be used instead (benchmarks/peers.py), and writes all rounds as JSON.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.measure import Rates, in_turns
from benchmarks.pieces import counting, masking, preparing, tokenizing

Row = tuple[str, str, str, str, str]
HEADER: Row = ("what", "unit", "ours", "beside", "ours to that")


def train(work: Path, model: str, *options: str) -> dict[str, Callable[[], float]]:
    """Ways to train, each in a process of its own for every round; useful tokens a second."""

    def way(kind: str) -> Callable[[], float]:
        command = [sys.executable, "-m", "benchmarks.training", kind, str(work), model, *options]

        def run() -> float:
            finished = subprocess.run(command, capture_output=True, text=True)
            if finished.returncode:
                sys.exit(f"{' '.join(command)}:\n{finished.stderr}")
            return float(json.loads(finished.stdout.splitlines()[-1])["tokens_per_second"])

        return run

    peer = "bare" if "--full" in options else "trainer"
    return {"ours": way("ours"), "L" if peer == "bare" else "P1": way(peer)}


def benchmarks(work: Path) -> dict[str, tuple[str, str, Callable[[], dict[str, Callable[[], float]]]]]:
    """What is measured, by name: its title, the unit of work, and the ways to do it."""
    return {
        "tokenizing": ("nucleotides to padded 6-mer ids, one core", "tokens/s", tokenizing),
        "masking": ("masks and corruption, 32 x 512, one core", "tokens/s", masking),
        "counting": ("counting 6-mers, one core", "bases/s", counting),
        "preparing": ("`cmgems prepare` of 50 Mb, one core", "bases/s", lambda: {"ours": preparing(work, 50)}),
        "logo": ("training LOGO", "useful tokens/s", lambda: train(work, "logo")),
        "logo-full": ("training LOGO, full windows", "useful tokens/s", lambda: train(work, "logo", "--full")),
        "dnabert": ("training DNABERT", "useful tokens/s", lambda: train(work, "dnabert")),
        "logo-bf16": ("training LOGO in bf16", "useful tokens/s", lambda: train(work, "logo", "--bf16")),
    }


def rows(title: str, unit: str, rates: dict[str, Rates]) -> Iterator[Row]:
    """Lines of the table: each of ours beside each peer."""
    peers = {name: rate for name, rate in rates.items() if name in ("P1", "P2", "L")}
    for name, rate in rates.items():
        if name in peers:
            continue
        what = title if name == "ours" else f"{title}: {name}"
        if not peers or name == "global_pmi":
            yield what, unit, rate.show(), "", ""
        for peer, other in peers.items():
            if name != "global_pmi":
                yield what, unit, rate.show(), f"{peer}: {other.show()}", rate.ratio(other).show()


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=None)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "cmgems-benchmarks")
    parser.add_argument("--output", type=Path, default=Path("benchmarks.json"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    known = benchmarks(arguments.work)
    chosen = arguments.only or list(known)
    if unknown := sorted(set(chosen) - set(known)):
        parser.error(f"--only {' '.join(unknown)}: there are {', '.join(known)}")
    lines, found = [HEADER], {}
    for name in chosen:
        title, unit, ways = known[name]
        print(f"{name} ...", file=sys.stderr, flush=True)
        rates = in_turns(ways(), arguments.rounds)
        lines += rows(title, unit, rates)
        found[name] = {way: rate.rounds for way, rate in rates.items()}
    machine = {"processor": platform.processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    arguments.output.write_text(json.dumps({"machine": machine, "rates": found}, indent=1) + "\n")
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    print(f"medians of {arguments.rounds} rounds (smallest to largest), {machine}")
    for line in lines:
        print("  ".join(map(str.ljust, line, widths)).rstrip())


if __name__ == "__main__":
    main()
