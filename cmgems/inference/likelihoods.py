"""Log-likelihood ratios of the alleles of variants by a masked language model.

    score = mean over strands of  log P(alternative | context) - log P(reference | context)

in nats, where the changed nucleotides are hidden: every token that contains one is masked, so that the context says
nothing of them. Below 0 the model finds the alternative less likely. P of several nucleotides is the product of those
of each. The ratio is that of GPN (Benegas et al. 2023, PNAS 120:e2311219120), and the masked marginals of Meier et al.
(2021, "Language models enable zero-shot prediction of the effects of mutations on protein function").

Alleles of different lengths have contexts of their own, in which the allele and one nucleotide on each side of it are
hidden; the score is the difference of the means of log P per hidden nucleotide. Sums would favour short alleles.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from cmgems.data.annotation import reverse_complement
from cmgems.inference.bases import BaseReader, Masked
from cmgems.inference.sequences import chromosomes
from cmgems.inference.settings import Strands
from cmgems.inference.variants import Variant, trim
from cmgems.runtime.progress import ProgressLines

Scores = npt.NDArray[np.float64]

LONGEST_ALLELE = 50
"""Longest allele that is scored, in nucleotides."""

MISSING, DIFFERENT, SYMBOLIC = "record not in the genome", "reference allele not that of the genome", "symbolic allele"
LONG, AT_END, SAME = f"allele longer than {LONGEST_ALLELE}", "beside an N or an end of its record", "alleles alike"

_AT_ONCE = 4096  # variants whose contexts are made at once
_BASE = {base: place for place, base in enumerate("ACGT")}


class Scorer:
    """Scores variants."""

    def __init__(self, reader: BaseReader, strands: Strands | None, batch_tokens: int) -> None:
        self._reader, self._batch_tokens = reader, batch_tokens
        tokens = reader.tokens
        # Where tokens lie side by side, they have a reading frame, which the other strand does not share.
        self._strands = strands or ("both" if tokens.stride == 1 else "forward")
        self._length = tokens.nucleotides(self._reader.limit)

    def score(
        self, variants: Sequence[Variant], genome: str, progress: ProgressLines | None = None
    ) -> tuple[Scores, list[str]]:
        """Return the score of each variant, float64 [variants] with NaN where there is none, and why there is none."""
        scores, reasons = np.full(len(variants), np.nan), [MISSING] * len(variants)
        of_record: defaultdict[str, list[int]] = defaultdict(list)
        for number, variant in enumerate(variants):
            of_record[variant.chromosome].append(number)
        done = 0
        for record in chromosomes(genome, set(of_record)):
            numbers = of_record.pop(record.name)
            for start in range(0, len(numbers), _AT_ONCE):
                some = numbers[start : start + _AT_ONCE]
                for number in some:
                    reasons[number] = self._obstacle(variants[number], record.bases)
                those = [number for number in some if not reasons[number]]
                scores[those] = self._score([variants[number] for number in those], record.bases)
                done += len(some)
                if progress is not None:
                    progress.update(done)
        return scores, reasons

    def _obstacle(self, variant: Variant, record: str) -> str:
        """Return why a variant of a record cannot be scored; empty if it can."""
        if variant.is_symbolic:
            return SYMBOLIC
        if max(len(variant.reference), len(variant.alternative)) > LONGEST_ALLELE:
            return LONG
        if record[variant.position : variant.position + len(variant.reference)] != variant.reference:
            return DIFFERENT
        if variant.reference == variant.alternative:
            return SAME
        change, k = trim(variant), self._reader.tokens.k
        end = change.start + len(change.reference)
        beside = record[max(change.start - 1, 0) : change.start], record[end : end + 1]
        is_beside_nothing = change.is_indel and not all(base in _BASE for base in beside)
        # Where tokens lie side by side, the last nucleotides may be in none.
        is_in_no_token = len(record) < end + k if self._reader.tokens.stride > 1 else len(record) < k + LONGEST_ALLELE
        return AT_END if is_beside_nothing or is_in_no_token else ""

    def _score(self, variants: Sequence[Variant], record: str) -> Scores:
        # What each context is computed for: a variant, the nucleotides whose probabilities count, and their weight.
        uses: defaultdict[Masked, list[tuple[int, str, float]]] = defaultdict(list)
        for number, variant in enumerate(variants):
            for context, allele, weight in self._contexts(variant, record):
                if self._strands == "forward":
                    uses[context].append((number, allele, weight))
                    continue
                uses[context].append((number, allele, weight / 2))
                uses[_other_strand(context)].append((number, reverse_complement(allele.encode()).decode(), weight / 2))
        scores = np.zeros(len(variants))
        for batch in self._batches(list(uses)):
            for context, found in zip(batch, self._reader.probabilities(batch), strict=True):
                for number, allele, weight in uses[context]:
                    of_allele = found[np.arange(len(allele)), [_BASE[base] for base in allele]]
                    scores[number] += weight * np.log(of_allele).sum()
        return scores

    def _contexts(self, variant: Variant, record: str) -> Iterator[tuple[Masked, str, float]]:
        """Yield the contexts of both alleles with the nucleotides that are hidden in them, and their weights."""
        change = trim(variant)
        end = change.start + len(change.reference)
        flank = 1 if change.is_indel else 0
        left, right = record[change.start - flank : change.start], record[end : end + flank]
        for allele, sign in ((change.alternative, 1.0), (change.reference, -1.0)):
            hidden = left + allele + right
            context = self._context(record, change.start - len(left), end + len(right), hidden)
            yield context, hidden, sign / len(hidden) if change.is_indel else sign

    def _context(self, record: str, start: int, end: int, hidden: str) -> Masked:
        """Return a window of the record with `hidden` in place of the nucleotides from start to end, in its middle: as
        many before as after, so that both strands have the same. It begins where a token does, counted from the
        record's beginning."""
        stride, beside = self._reader.tokens.stride, (self._length - len(hidden)) // 2
        before = min(max(beside, 2 * beside - (len(record) - end)), start)
        first = -(-(start - before) // stride) * stride
        after = 2 * beside - (start - first)
        bases = record[first:start] + "A" * len(hidden) + record[end : end + after]
        return Masked(bases, tuple(range(start - first, start - first + len(hidden))))

    def _batches(self, contexts: list[Masked]) -> Iterator[list[Masked]]:
        """Yield contexts of similar lengths together."""
        at_once = max(self._batch_tokens // self._reader.limit, 1)
        contexts.sort(key=lambda context: -len(context.bases))
        for start in range(0, len(contexts), at_once):
            yield contexts[start : start + at_once]


def _other_strand(context: Masked) -> Masked:
    length = len(context.bases)
    bases = reverse_complement(context.bases.encode()).decode()
    return Masked(bases, tuple(length - 1 - place for place in reversed(context.hidden)))
