"""TF-IDF of the k-mers or codons in sequences: how often each occurs, the less the more sequences have it."""

import numpy as np
import numpy.typing as npt
from sklearn.feature_extraction.text import TfidfVectorizer

from cmgems.downstream.data import TaskData
from cmgems.errors import UserError


def tfidf(data: TaskData, k: int, codons: bool = False) -> dict[str, npt.NDArray[np.float64]]:
    """Return the TF-IDF [rows, words] of each split, with the weights and words of the training split.

    Words are all overlapping k-mers; with `codons` those side by side, from the first nucleotide on. One with an N does
    not count. scikit-learn's defaults: a smoothed logarithm, and rows of length 1.

    Raises
    ------
    UserError
        If there is no word in the training split.
    """
    step = k if codons else 1
    vectorizer = TfidfVectorizer(analyzer=lambda sequence: words(sequence, k, step))
    if not any(words(sequence, k, step) for sequence in data.train.sequences):
        raise UserError(f"{data.train.source}: no sequence has {k} nucleotides without an N to count")
    vectorizer.fit(data.train.sequences)
    return {name: vectorizer.transform(split.sequences).toarray() for name, split in data.splits.items()}


def words(sequence: str, k: int, step: int) -> list[str]:
    """Return the k-mers without N that begin at every `step`-th nucleotide.

    Examples
    --------
    >>> words("ATGAANGTTC", k=3, step=3)
    ['ATG', 'GTT']
    """
    kmers = (sequence[i : i + k] for i in range(0, len(sequence) - k + 1, step))
    return [kmer for kmer in kmers if "N" not in kmer]
