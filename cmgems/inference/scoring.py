"""Scores of the variants of a file (`cmgems score`): which they are is in `cmgems.inference.likelihoods`."""

import csv
import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cmgems.errors import UserError
from cmgems.inference.likelihoods import Scorer, Scores
from cmgems.inference.model import SequenceModel
from cmgems.inference.settings import ScoreConfig
from cmgems.inference.tables import is_table, opened
from cmgems.inference.variants import Variant, read_variants
from cmgems.runtime.files import atomic_file, check_writable
from cmgems.runtime.progress import ProgressLines

logger = logging.getLogger(__name__)

SCORE = "CMGEMS_LLR"
"""Field of a VCF file, and column of a table."""


def score_to_file(variants: Path, config: ScoreConfig) -> dict[str, int]:
    """Score all variants of a file, and write them with their scores.

    Parameters
    ----------
    variants
        As `cmgems.inference.variants.read_variants` takes it.
    config
        Model, genome, output and settings.

    Returns
    -------
    dict
        Numbers of alleles: `scored`, and those that were not by the reason.

    Raises
    ------
    UserError
        If an input cannot be read, or the output not be written.
    """
    if config.output.suffix not in (".vcf", ".parquet", ".csv"):
        raise UserError(f"output {config.output}: a name that ends with .vcf, .parquet or .csv")
    if config.output.suffix == ".vcf" and is_table(str(variants)):
        raise UserError(f"output {config.output}: of a table, write .csv or .parquet")
    check_writable("output", config.output.absolute().parent)
    model = SequenceModel(config.model, None, config.precision, config.max_tokens, config.trust_remote_code)
    alleles = list(read_variants(variants))
    with ProgressLines("scoring", len(alleles), "allele") as progress:
        scorer = Scorer(model.base_reader, config.strands, model.batch_tokens(config.batch_tokens))
        scores, reasons = scorer.score(alleles, config.genome, progress)
    with atomic_file(config.output) as partial:
        _write(partial, config.output.suffix, variants, alleles, scores)
    counts = {"scored": int(np.isfinite(scores).sum()), **dict(sorted(Counter(filter(None, reasons)).items()))}
    logger.info(f"{config.output}: " + ", ".join(f"{number:,} {what}" for what, number in counts.items()))
    return counts


def _write(path: Path, kind: str, source: Path, variants: Sequence[Variant], scores: Scores) -> None:
    if kind == ".vcf":
        _write_vcf(path, source, variants, scores)
        return
    columns: dict[str, Any] = {
        "chromosome": [variant.chromosome for variant in variants],
        "position": [variant.position + 1 for variant in variants],
        "reference": [variant.reference for variant in variants],
        "alternative": [variant.alternative for variant in variants],
    }
    if kind == ".parquet":
        values = pa.array(scores, mask=np.isnan(scores))
        pq.write_table(pa.table({**columns, SCORE.lower(): values}), path)
        return
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*columns, SCORE.lower()])
        for *cells, score in zip(*columns.values(), scores, strict=True):
            writer.writerow([*cells, "" if np.isnan(score) else f"{score:.6g}"])


def _write_vcf(path: Path, source: Path, variants: Sequence[Variant], scores: Scores) -> None:
    """Copy a VCF file with one more field, a number for each alternative allele, `.` where there is none."""
    of_row: defaultdict[int, list[str]] = defaultdict(list)
    for variant, score in zip(variants, scores, strict=True):
        of_row[variant.row].append("." if np.isnan(score) else f"{score:.6g}")
    row = 0
    header = f'##INFO=<ID={SCORE},Number=A,Type=Float,Description="Log-likelihood ratio of the allele, in nats">\n'
    with opened(source) as text, path.open("w") as file:
        for line in text:
            if line.startswith("##") or not line.strip():
                file.write(line)
            elif line.startswith("#"):
                file.write(header + line)
            else:
                cells = line.rstrip("\n").split("\t")
                cells += ["."] * (8 - len(cells))  # ID to INFO may be left out by careless tools
                cells[7] = f"{'' if cells[7] in ('.', '') else cells[7] + ';'}{SCORE}={','.join(of_row[row])}"
                file.write("\t".join(cells) + "\n")
                row += 1
