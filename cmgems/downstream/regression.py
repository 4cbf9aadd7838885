"""The baseline under every language model: a logistic regression on how often each k-mer occurs in a sequence."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cmgems.data.tokenizer import count_kmers
from cmgems.downstream.data import Split
from cmgems.downstream.scores import Predictions
from cmgems.errors import UserError

_ITERATIONS = 5000


def kmer_shares(sequences: Sequence[str], k: int) -> npt.NDArray[np.float64]:
    """Return the shares [rows, 4**k] of the k-mers in each sequence; k-mers with an N do not count."""
    counts = np.stack([count_kmers([sequence], k) for sequence in sequences]).astype(np.float64)
    return np.asarray(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))


def regression(train: Split, test: Split, classes: int, k: int) -> Predictions:
    """Fit on the shares of the k-mers in all of `train` and score `test`. Nothing in it is random.

    Raises
    ------
    UserError
        If all training rows have the same label.
    """
    if len(np.unique(train.labels)) == 1:
        raise UserError(f"{train.source}: all rows have the same label: nothing can be learned from them")
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=_ITERATIONS))
    pipeline.fit(kmer_shares(train.sequences, k), train.labels)
    shares = np.zeros((len(test), classes))
    shares[:, pipeline.classes_] = pipeline.predict_proba(kmer_shares(test.sequences, k))
    return Predictions(test.labels, shares)
