"""Are the 6-mers of the highest NPMI cores of transcription factors' motifs?

    pip install pyjaspar==4.0.0
    python studies/motifs/motifs.py

Writes studies/motifs/results.json. Motifs: JASPAR 2024, CORE, vertebrates. The core of a motif is the run of six
positions with the highest information content, its 6-mer the most frequent base of each; both strands count. Rankings
are of the human 6-mers that ship with cmgems. p values are one-sided and of permutations of the cores: among all
6-mers, and among 6-mers with the same number of G and C, as both rankings and motifs depend on the composition.

References
----------
Rauluseviciute et al., JASPAR 2024, Nucleic Acids Research 52:D174 (2024).
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pyjaspar import jaspardb

from cmgems.data.tokenizer import BASES, vocabulary
from cmgems.masking.npmi import human_counts, npmi_from_counts
from cmgems.runtime.files import atomic_file

RELEASE = "JASPAR2024"
K = 6
TOPS = (100, 409)
"""Numbers of 6-mers that count as the top of a ranking: the first hundred, and the first tenth."""
PERMUTATIONS = 10_000
_SEED = 1
_COMPLEMENT = str.maketrans("ACGT", "TGCA")


def main() -> None:
    """Compare the rankings."""
    kmers = vocabulary(K)[-(4**K) :]
    motifs = jaspardb(release=RELEASE).fetch_motifs(collection="CORE", tax_group=["vertebrates"])
    cores = motif_cores(motif.counts for motif in motifs if motif.length >= K)
    is_core = np.array([kmer in cores for kmer in kmers])
    found = {name: compare(values, is_core, kmers) for name, values in rankings().items()}
    numbers = {
        "motifs": sum(motif.length >= K for motif in motifs),
        "release": RELEASE,
        "cores": int(is_core.sum()),
        "kmers": len(kmers),
        "permutations": PERMUTATIONS,
        "rankings": found,
    }
    path = Path(__file__).with_name("results.json")
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(numbers, indent=1) + "\n")
    for name, own in found.items():
        print(name, own)


def motif_cores(motifs: Iterable[Any]) -> set[str]:
    """Return the 6-mers of the cores of motifs, which are counts by base and position, on both strands."""
    cores = set()
    for counts in motifs:
        shares = np.array([counts[base] for base in BASES], dtype=float) + 0.01
        shares /= shares.sum(axis=0)
        information = 2 + (shares * np.log2(shares)).sum(axis=0)
        start = int(np.convolve(information, np.ones(K), mode="valid").argmax())
        core = "".join(BASES[base] for base in shares[:, start : start + K].argmax(axis=0))
        cores |= {core, reverse_complement(core)}
    return cores


def rankings() -> dict[str, npt.NDArray[np.float64]]:
    """Return what the 6-mers are ranked by, the highest first."""
    k, counts = human_counts()
    return {
        "NPMI `published`": npmi_from_counts(counts, k, "published").npmi,
        "NPMI `all`": npmi_from_counts(counts, k, "all").npmi,
        "frequency": counts.astype(float),
    }


def compare(
    values: npt.NDArray[np.float64], is_core: npt.NDArray[np.bool_], kmers: list[str]
) -> dict[str, dict[str, float]]:
    """Return, for each size of a ranking's top, its share of cores and the p values of the permutations.

    A permutation deals the cores anew to the 6-mers, always to both strands alike: `any` among all, `same_gc` among
    those with the same number of G and C.
    """
    place = {kmer: number for number, kmer in enumerate(kmers)}
    pairs = np.array([min(place[kmer], place[reverse_complement(kmer)]) for kmer in kmers])
    first, pair = np.unique(pairs, return_inverse=True)  # one 6-mer of each pair; the pair of each 6-mer
    palindrome = np.bincount(pair) == 1
    gc = np.array([kmers[number].count("G") + kmers[number].count("C") for number in first])
    strata = {"any": palindrome.astype(int), "same_gc": 2 * gc + palindrome}
    order, draw = np.argsort(-values, kind="stable"), np.random.RandomState(_SEED)
    permuted = {name: permutations(is_core[first], own, draw) for name, own in strata.items()}
    found = {}
    for top in TOPS:
        chosen = order[:top]
        hits, weights = int(is_core[chosen].sum()), np.bincount(pair[chosen], minlength=len(first))
        found[f"top {top}"] = {"share": hits / top}
        for name, labels in permuted.items():
            drawn = labels @ weights
            found[f"top {top}"][f"expected, {name}"] = round(float(drawn.mean()) / top, 4)
            found[f"top {top}"][f"p, {name}"] = float(f"{(1 + (drawn >= hits).sum()) / (1 + PERMUTATIONS):.2g}")
    return found


def permutations(
    labels: npt.NDArray[np.bool_], strata: npt.NDArray[np.int64], draw: np.random.RandomState
) -> npt.NDArray[np.int64]:
    """Return labels permuted within strata [permutations, labels]."""
    found = np.zeros((PERMUTATIONS, len(labels)), dtype=np.int64)
    for stratum in np.unique(strata):
        own = np.flatnonzero(strata == stratum)
        found[:, own] = labels[own][draw.rand(PERMUTATIONS, len(own)).argsort(axis=1)]
    return found


def reverse_complement(kmer: str) -> str:
    """Return a k-mer as the other strand reads it."""
    return kmer.translate(_COMPLEMENT)[::-1]


if __name__ == "__main__":
    main()
