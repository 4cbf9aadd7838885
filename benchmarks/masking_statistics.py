"""What each masking strategy does to the windows of a genome: writes the tables and the plot of docs/masking.md.

    python benchmarks/masking_statistics.py GENOME.fa ... --output docs

The tables go between the markers in OUTPUT/masking.md, the plot to OUTPUT/masking_top_decile.png.
"""

import argparse
import platform
import re
import statistics
import time
from collections.abc import Iterable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
import torch
from matplotlib import pyplot as plt

from cmgems.data.genomes import read_runs
from cmgems.data.tokenizer import count_kmers, encode_batch
from cmgems.masking.corruption import CorruptionConfig
from cmgems.masking.masker import STATISTICS, MaskedBatch, Masker
from cmgems.masking.npmi import human_counts, npmi_from_counts
from cmgems.masking.strategies import STRATEGIES

LENGTHS = (5, 10, 20, 40, 80, 160, 320, 510)
RATES = (0.15, 0.30)
MAIN = ("span", "genemask", "global_pmi")
BATCH = 250
SEED = 42


def main() -> None:
    """Measure, and write tables and plot."""
    arguments = parse_arguments()
    bases = [piece.bases.decode("ascii") for piece in read_runs(*arguments.genomes)]
    k, counts = human_counts()
    if arguments.npmi == "own":
        counts = count_kmers(bases, k)
    masker = Masker(npmi_from_counts(counts, k), CorruptionConfig(), SEED)
    windows = {length: sample_windows(bases, length, k, arguments.windows) for length in LENGTHS}
    full = windows[max(LENGTHS)]
    in_top_tenth = masker.in_top_tenth[full[full >= 5]].double().mean().item()
    at_full_length = {(name, rate): measure(masker, full, name, rate) for name in MAIN for rate in RATES}

    tables = {
        "masked share": share_by_length(masker, windows),
        "hidden bases": hidden_and_top_tenth(at_full_length, in_top_tenth),
        "time": time_per_batch(masker, full[:32]),
    }
    write_between_markers(arguments.output / "masking.md", tables)
    plot_top_tenth(at_full_length, in_top_tenth, arguments.output / "masking_top_decile.png")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("genomes", nargs="+", metavar="GENOME", help="genome files, as for `cmgems prepare`")
    parser.add_argument("--npmi", choices=["human", "own"], default="human", help="NPMI table: human, or the genomes'")
    parser.add_argument("--windows", type=int, default=4000, help="windows of each length (default: %(default)s)")
    parser.add_argument("--output", type=Path, required=True, help="folder with masking.md")
    return parser.parse_args()


def sample_windows(bases: list[str], tokens: int, k: int, number: int) -> torch.Tensor:
    """Windows of `tokens` tokens at random places, token ids [number, tokens + 2]."""
    size = tokens + k - 1
    long_enough = [run for run in bases if len(run) >= size]
    places = np.array([len(run) - size + 1 for run in long_enough])
    ends = places.cumsum()
    sequences = []
    for place in np.random.default_rng(SEED).integers(ends[-1], size=number).tolist():
        run = int(np.searchsorted(ends, place, side="right"))
        start = place - int(ends[run] - places[run])
        sequences.append(long_enough[run][start : start + size])
    return torch.from_numpy(encode_batch(sequences, k, max_tokens=tokens))


def mask(masker: Masker, ids: torch.Tensor, name: str, rate: float) -> Iterable[MaskedBatch]:
    """The windows in masked batches."""
    setting = [STRATEGIES[name].model_validate({"rate": rate})]
    for sample_id in torch.split(torch.arange(len(ids)), BATCH):
        yield masker(ids[sample_id], torch.zeros_like(sample_id), sample_id, setting)


def measure(masker: Masker, ids: torch.Tensor, name: str, rate: float) -> dict[str, float]:
    """Sums of Masker.statistics over the windows, by name."""
    sums = torch.stack([masker.statistics(batch) for batch in mask(masker, ids, name, rate)]).sum(dim=0)
    return dict(zip(STATISTICS, sums.tolist(), strict=True))


def share_by_length(masker: Masker, windows: dict[int, torch.Tensor]) -> str:
    """Table of the masked share of the tokens by window length."""
    rows = []
    for name in STRATEGIES:
        for rate in RATES:
            sums = [measure(masker, ids, name, rate) for ids in windows.values()]
            shares = [f"{s['masked_tokens'] / s['valid_tokens']:.1%}" for s in sums]
            rows.append([f"`{name}`", f"{rate:.0%}", *shares])
    return table(["strategy", "rate", *(f"{length} tokens" for length in windows)], rows)


def hidden_and_top_tenth(results: dict[tuple[str, float], dict[str, float]], all_tokens: float) -> str:
    """Table of what the masked tokens hide, at full length."""
    rows = [["(all tokens)", "", "", "", f"{all_tokens:.1%}"]]
    for (name, rate), sums in results.items():
        masked = sums["masked_tokens"] / sums["valid_tokens"]
        hidden = sums["hidden_nucleotides"] / sums["nucleotides"]
        rows.append([f"`{name}`", f"{rate:.0%}", f"{masked:.1%}", f"{hidden:.1%}", f"{top_tenth_share(sums):.1%}"])
    return table(["strategy", "rate", "masked tokens", "hidden bases", "masked tokens in the top tenth"], rows)


def top_tenth_share(sums: dict[str, float]) -> float:
    """Share of the masked tokens whose k-mer is in the top tenth by NPMI."""
    return sums["masked_top_tenth_tokens"] / sums["masked_tokens"]


def time_per_batch(masker: Masker, ids: torch.Tensor, repeats: int = 100) -> str:
    """Table of the time to mask one batch, corruption included."""
    rows = []
    for name in STRATEGIES:
        milliseconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            list(mask(masker, ids, name, RATES[0]))
            milliseconds.append(1000 * (time.perf_counter() - start))
        rows.append([f"`{name}`", f"{statistics.median(milliseconds):.1f}"])
    where = f"{torch.get_num_threads()} CPU thread(s), {platform.machine()}, PyTorch {torch.__version__}"
    return f"Median of {repeats} batches of {len(ids)} x {ids.shape[1]} tokens; {where}.\n\n" + table(
        ["strategy", "ms per batch"], rows
    )


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_between_markers(path: Path, tables: dict[str, str]) -> None:
    """Replace what stands between `<!-- NAME -->` and `<!-- end -->` by the table of that name."""
    text = path.read_text(encoding="utf-8")
    for name, new in tables.items():
        section = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        found = section.search(text)
        if not found:
            raise SystemExit(f"{path}: there is no '<!-- {name} -->' followed by '<!-- end -->'")
        text = f"{text[: found.end(1)]}\n{new}\n\n{text[found.start(2) :]}"
    path.write_text(text, encoding="utf-8")


def plot_top_tenth(results: dict[tuple[str, float], dict[str, float]], all_tokens: float, path: Path) -> None:
    """Bars of the top-tenth share by strategy and rate; the line is the share among all tokens of the windows."""
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    width = 0.8 / len(RATES)
    for i, rate in enumerate(RATES):
        shares = [100 * top_tenth_share(results[name, rate]) for name in MAIN]
        places = [x + (i - (len(RATES) - 1) / 2) * width for x in range(len(MAIN))]
        axes.bar_label(axes.bar(places, shares, width, label=f"rate {rate:.0%}"), fmt="%.1f")
    axes.axhline(100 * all_tokens, color="black", linestyle=":", label="all tokens")
    axes.set_xticks(range(len(MAIN)), MAIN)
    axes.set_ylabel("masked tokens in the\ntop tenth by NPMI (%)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left")
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
