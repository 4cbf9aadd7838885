"""A model trained on sequences of a known source predicts hidden bases as well as can be, and not better."""

import numpy as np
import pytest
import yaml

from cmgems.data.corpus import load_corpus
from cmgems.data.prepare import prepare_corpus
from cmgems.data.settings import PrepareConfig

pytestmark = pytest.mark.matrix

RECIPE = {
    "name": "chain",
    "curriculum": {
        "stages": [{"name": "span", "masking": [{"strategy": "span", "rate": 0.15}]}],
        # As bits are scored: a token that is kept or random would be other evidence.
        "corruption": {"mask_share": 1, "random_share": 0},
    },
    "model": {
        "layers": 2,
        "hidden": 64,
        "intermediate": 256,
        "heads": 4,
        "dropout": 0.0,
        "max_positions": 64,
        "embedding_init": "nucleotides",
        "position_init": "sinusoidal",
        "attention_init": "neighbours",
        "initializer_range": 0.08,
    },
    "optimizer": {"learning_rate": 4.0e-3, "warmup_steps": 50, "eps": 1.0e-8},
    "training": {"steps": 1500, "global_batch": 64, "micro_batch": 64, "precision": "fp32"},
    "evaluation": {"every": 1500, "windows": 1000, "micro_batch": 200},
    "checkpoint": {"every": 1500, "milestones": []},
    "tracking": {"log_every": 100, "system_metrics": False},
}


@pytest.fixture(scope="module")
def chain():
    """P(base | three bases before it), [4, 4, 4, 4]; bases in the order ACGT. Each of the three
    adds to the logits, by how far the next one is from it in the alphabet: all bases are equally frequent."""
    weights = np.random.default_rng(5).normal(scale=0.6, size=(3, 4))
    bases = np.arange(4)
    first, second, third = weights[:, (bases - bases[:, None]) % 4]
    logits = first[:, None, None] + second[None, :, None] + third[None, None, :]
    return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def corpus(chain, tmp_path_factory):
    folder = tmp_path_factory.mktemp("chain")
    random = np.random.default_rng(4)
    with (folder / "genome.fa").open("w") as file:
        for name, length in (("train", 2_000_000), ("validation", 60_000)):
            bases, draws = [0, 1, 2], random.random(length)
            cumulative = chain.cumsum(axis=-1)
            for draw in draws:
                bases.append(min(3, int((draw >= cumulative[bases[-3], bases[-2], bases[-1]]).sum())))
            file.write(f">{name}\n{''.join('ACGT'[base] for base in bases)}\n")
    config = PrepareConfig(
        inputs=[str(folder / "genome.fa")],
        k=3,
        window_tokens=62,
        min_window_tokens=62,
        full_length_share=1,
        validation_chromosomes=["validation"],
    )
    prepare_corpus(config, folder / "corpus", progress=False)
    return load_corpus(folder / "corpus")


def test_bits_per_hidden_base_come_to_those_of_the_source_and_not_below(corpus, run, tmp_path):
    """The best Markov chain is the source itself, up to the error of its counts: tests/data/test_markov.py shows that
    it comes to the exact conditional entropy."""
    recipe = tmp_path / "chain.yaml"
    recipe.write_text(yaml.safe_dump({**RECIPE, "corpus": {"path": str(corpus.path), "workers": 0}}))
    metrics = run("--config", str(recipe)).data.metrics
    excess = metrics["bits/span"] - metrics["bits/span_chain"]
    assert metrics["bits/span_chain"] < metrics["bits/span_composition"] - 0.3
    assert -0.003 < excess < 0.03
    assert metrics["bases_right/span"] == pytest.approx(metrics["bases_right/span_chain"], abs=0.01)
    # What the model reads off visible k-mers it knows: one base is hidden behind the three 3-mers that contain it.
    assert metrics["ppl/span"] < metrics["ppl/span_composition"]
