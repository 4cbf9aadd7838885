"""Measure whether memory, open files and threads of a run grow with its steps:

    python -m tests.soak.growth [--steps 5000] [--evaluations 25] [--checkpoints 25] [--folder FOLDER]

A small run on two processes with an evaluation and a checkpoint every 25 steps, which logs every step. For each rank
and measure the slope over the steps after a warm-up, by least squares over means of 250 steps, with its standard error.
With --folder the samples are kept there, in rank-R.csv. Memory is what the allocator has given out, which a leak makes
grow, and what is resident: a run on CPUs has the allocator keep what it frees (see cmgems/model/cpu.py), in pieces that
slowly become more.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from tests.soak.subject import RECIPE, Run, make_corpus

BLOCK = 250
"""Steps of a mean."""

WARM_UP = 0.3
"""Share of the steps that is left out."""

MEASURES = {
    "resident, MiB": lambda p: (p.memory_info().rss - p.memory_info().shared) / 2**20,
    "files": lambda p: p.num_fds(),
    "threads": lambda p: p.num_threads(),
}
"""Resident memory is that of no file. What belongs to the process alone (USS) would grow without any being allocated:
pages that it shares with its loader worker, a fork, become its own one by one as they are written to."""


def measure(folder, steps, evaluations, checkpoints):
    """Run, and return for each rank its samples, float64 [samples, 1 + measures], the step first; and for each the MiB
    that its memory allocator has given out, float64 [steps, 2]."""
    run = Run(folder, make_corpus(folder), f"sqlite:///{folder}/mlflow.db", "zero2", {"ALLOCATED": "1"})
    run.recipe |= {
        "training": {**RECIPE["training"], "steps": steps},
        "evaluation": {**RECIPE["evaluation"], "every": evaluations},
        "checkpoint": {"every": checkpoints, "keep": 2},
    }
    attempt = run.running()
    samples = [[], []]
    while attempt.alive:
        step = attempt.step
        for number, collected in enumerate(samples):
            try:
                if rank := attempt.rank(number):
                    collected.append([step, *(value(rank) for value in MEASURES.values())])
            except psutil.Error:
                continue  # it has just ended
        time.sleep(1)
    assert attempt.wait() == 0, attempt.output
    allocated = [np.loadtxt(attempt.trace / f"rank-{rank}.allocated", delimiter=",", ndmin=2) for rank in range(2)]
    return [np.array(collected) for collected in samples], allocated


def slope(steps, values):
    """Growth of a value per 1,000 steps, with its standard error, over means of blocks of steps."""
    blocks = steps // BLOCK
    points = [(steps[blocks == b].mean(), values[blocks == b].mean()) for b in np.unique(blocks)]
    x, y = np.array(points).T
    (growth, _), covariance = np.polyfit(x / 1000, y, 1, cov=True)
    return growth, covariance[0, 0] ** 0.5


def tell(name, samples, steps):
    """Print the growth of one measure from its samples: step and value."""
    kept = samples[samples[:, 0] > WARM_UP * steps]
    growth, error = slope(*kept.T)
    first, last = (f"{value:,.1f} at step {step:,.0f}" for step, value in kept[[0, -1]])
    print(f"{name}: {first}, {last}; {growth:+.3f} ± {error:.3f} per 1,000 steps")


def main():
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5000, help="optimizer steps (default: 5000)")
    parser.add_argument("--evaluations", type=int, default=25, help="steps between evaluations (default: 25)")
    parser.add_argument("--checkpoints", type=int, default=25, help="steps between checkpoints (default: 25)")
    parser.add_argument("--folder", type=Path, help="new folder (default: a temporary one, removed at the end)")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="growth-"))
    folder.mkdir(parents=True, exist_ok=True)
    found, allocated = measure(folder, arguments.steps, arguments.evaluations, arguments.checkpoints)
    for rank, (samples, in_use) in enumerate(zip(found, allocated, strict=True)):
        np.savetxt(folder / f"rank-{rank}.csv", samples, "%.3f", ",", header="step," + ",".join(MEASURES), comments="")
        tell(f"rank {rank}, allocated, MiB", in_use, arguments.steps)
        for column, name in enumerate(MEASURES, 1):
            tell(f"rank {rank}, {name}", samples[:, [0, column]], arguments.steps)
    if not arguments.folder:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
