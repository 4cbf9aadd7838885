"""A linear probe in a few lines of transformers and scikit-learn, with nothing of cmgems:

python tests/downstream/probe_independently.py MODEL TRAIN.csv DEV.csv TEST.csv SEED [K]

MODEL is a folder; K is the length of its overlapping k-mers, for a tokenizer that takes them. Prints a JSON object: MCC
on dev for each C, the chosen C, and the probabilities of the classes for each row of the test split.
"""

import csv
import json
import sys
import warnings

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import matthews_corrcoef
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import resample
from transformers import AutoModel, AutoTokenizer

PENALTIES = [0.0001, 0.001, 0.01, 0.1, 1.0, 10.0, 100.0]


def read(path):
    """Sequences and labels of a file."""
    with open(path, newline="") as file:  # noqa: PTH123
        rows = list(csv.DictReader(file))
    return [row["sequence"] for row in rows], np.array([int(row["label"]) for row in rows])


def feature_row(sequence, tokenizer, model, k):
    """Means of all layers' hidden states over the tokens of a sequence, which is read in as few parts as can be."""
    words = [sequence[i : i + k] for i in range(len(sequence) - k + 1)] if k else [sequence]
    ids = tokenizer(" ".join(words), add_special_tokens=False)["input_ids"]
    framed = tokenizer(" ".join(words))["input_ids"]
    before = framed.index(ids[0])
    longest = min(tokenizer.model_max_length, model.config.max_position_embeddings) - (len(framed) - len(ids))
    parts = -(-len(ids) // longest)
    states = []
    for part in np.array_split(ids, parts):
        window = [*framed[:before], *part.tolist(), *framed[before + len(ids) :]]
        with torch.no_grad():
            hidden = model(torch.tensor([window]), output_hidden_states=True).hidden_states
        states.append(torch.cat(hidden, dim=2)[0, before : before + len(part)].double())
    return torch.cat(states).mean(dim=0).numpy()


def probe(folder, train, dev, test, seed, k=None):
    """What the script prints."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    features, labels = {}, {}
    for name, path in (("train", train), ("dev", dev), ("test", test)):
        sequences, labels[name] = read(path)
        features[name] = np.stack([feature_row(sequence, tokenizer, model, k) for sequence in sequences])

    random = np.random.RandomState(seed)
    own = [np.flatnonzero(labels["train"] == label) for label in sorted(set(labels["train"]))]
    rows = np.concatenate([resample(of_class, random_state=random) for of_class in own])
    scores, fitted = {}, {}
    for penalty in PENALTIES:
        regression = LogisticRegression(C=penalty, solver="lbfgs", tol=1e-9, max_iter=100_000)
        fitted[penalty] = make_pipeline(StandardScaler(), regression).fit(
            features["train"][rows], labels["train"][rows]
        )
        scores[penalty] = matthews_corrcoef(labels["dev"], fitted[penalty].predict(features["dev"]))
    chosen = min(penalty for penalty in PENALTIES if scores[penalty] == max(scores.values()))
    probabilities = fitted[chosen].predict_proba(features["test"])
    return {"scores": scores, "chosen": chosen, "probabilities": probabilities.tolist()}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    folder, train, dev, test, seed, *k = sys.argv[1:]
    json.dump(probe(folder, train, dev, test, int(seed), int(k[0]) if k else None), sys.stdout)
