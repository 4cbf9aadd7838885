"""Runs over codons, nucleotides and k-mers that do not overlap: prepared, trained, resumed and exported."""

import json

import mlflow
import numpy as np
import pytest
import yaml
from transformers import AutoModelForMaskedLM, AutoTokenizer

from cmgems.cli import main
from cmgems.data.corpus import load_corpus
from cmgems.data.settings import PrepareConfig
from cmgems.data.tokenizer import count_kmers
from cmgems.errors import UserError
from cmgems.model.codons import CODON_BITS
from cmgems.training import trainer
from tests.training.conftest import TINY
from tests.training.launching import ZERO2, history_of, launch, newest_run
from tests.training.test_resume import as_killed_after_step_8

KINDS = {
    "codon": ("kmer:3:3", 6),
    "nucleotide": ("kmer:1", 6),
    "kmer:6:6": ("kmer:6:6", 6),
    "kmer:4:2": ("kmer:4:2", 4),
}


TIERS = {"codon": (), "nucleotide": pytest.mark.slow}


@pytest.fixture(params=[pytest.param(kind, marks=TIERS.get(kind, pytest.mark.matrix)) for kind in KINDS])
def kind(request):
    return request.param


@pytest.fixture
def recipe(tmp_path, tiny_genome, kind):
    """The tiny recipe with tokens of a kind; its corpus is prepared by the run."""
    prepare = {"inputs": [str(tiny_genome)], "tokens": kind, "window_tokens": 40, "validation_chromosomes": ["three"]}
    prepare["alphabet"] = "rna" if kind == "nucleotide" else "dna"
    start = {"embedding_init": "nucleotides", "position_init": "sinusoidal", "attention_init": "neighbours"}
    settings = {
        **TINY,
        "model": {**TINY["model"], **start},
        "corpus": {"path": str(tmp_path / "corpus"), "prepare": prepare, "workers": 0},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_a_run_over_other_tokens(run, recipe, tmp_path, kind, monkeypatch, capsys):
    monkeypatch.setattr(trainer, "PLATEAU_STEPS", 8)
    finished = run("--config", str(recipe))
    assert ("still on a plateau" in capsys.readouterr().err) == (kind == "kmer:4:2")  # of tokens that share bases
    corpus, (tokens, word) = load_corpus(tmp_path / "corpus"), KINDS[kind]
    config = PrepareConfig.model_validate(corpus.manifest["config"])
    assert (config.tokens, config.word) == (tokens, word)
    stride = corpus.tokens.stride
    sequences = corpus.train["sequence"]
    assert (corpus.word_counts == count_kmers(sequences, word, stride)).all()
    assert all(start % stride == 0 for start in corpus.train["start"])
    assert all((len(sequence) - corpus.k) % stride == 0 for sequence in sequences)

    losses = history_of(finished, "train/loss")
    assert losses[12] < losses[2] <= 1.2 * np.log(5 + 4**corpus.k)
    for masking in ("span", "genemask", "global_pmi"):
        assert 0 < history_of(finished, f"bits/{masking}")[12] < 2.5
        for kind_of_bits in CODON_BITS:  # of random bases: six bits a codon, and fewer of it among its synonyms
            bits = history_of(finished, kind_of_bits.format(masking))
            assert set(bits) == (set(history_of(finished, f"bits/{masking}")) if kind == "codon" else set())
            assert all(5 < value < 7 if kind_of_bits.startswith("codon") else 1 < value < 3 for value in bits.values())

    folder = tmp_path / "run/models/step-00000012"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForMaskedLM.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer) == 5 + 4**corpus.k
    assert any("U" in token for token in tokenizer.convert_ids_to_tokens(range(5, 9))) == (kind == "nucleotide")


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.slow if kind == "codon" else pytest.mark.matrix) for kind in KINDS],
    indirect=True,
)
def test_a_run_that_was_killed_goes_on_bit_for_bit(run, recipe, tmp_path):
    whole = history_of(run("--config", str(recipe)), "train/loss")
    as_killed_after_step_8(tmp_path / "run")
    again = run("--config", str(recipe), "--resume", "auto")
    assert history_of(again, "train/loss") == whole
    assert (tmp_path / "run/models/step-00000012/model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["codon"], indirect=True)
def test_two_processes_train_on_codons_as_one(run, recipe, tmp_path, tracking_uri):
    one = history_of(run("--config", str(recipe)), "train/loss")
    store = ("--tracking.uri", tracking_uri, "--output", str(tmp_path / "two"))
    finished = launch(ZERO2, "--config", str(recipe), *store)
    assert finished.returncode == 0, finished.stderr
    mlflow.set_tracking_uri(tracking_uri)
    assert history_of(newest_run(), "train/loss") == pytest.approx(one, rel=1e-4)


@pytest.mark.parametrize("kind", ["codon"], indirect=True)
def test_a_corpus_of_other_tokens_than_the_recipes_is_refused(run, recipe, tiny_corpus):
    values = yaml.safe_load(recipe.read_text())
    values["corpus"] = {"path": str(tiny_corpus.path), "tokens": "codon", "workers": 0}
    recipe.write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match="has the tokens kmer:4, the recipe is for codon: prepare another one"):
        run("--config", str(recipe))


def test_npmi_of_a_corpus_of_codons_is_of_pairs(tmp_path, tiny_genome, capsys):
    output = str(tmp_path / "corpus")
    main(["prepare", str(tiny_genome), "--output", output, "--tokens", "codon", "--validation_chromosomes", "three"])
    main(["npmi", "--corpus", output, "--output", str(tmp_path / "npmi.csv")])
    assert "NPMI of 4,096 6-mers" in capsys.readouterr().out
    assert json.loads((tmp_path / "corpus/manifest.json").read_text())["config"]["k"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokens", "codons"], "tokens 'codons': it is kmer:K, kmer:K:STRIDE, nucleotide or codon"),
        (["--tokens", "kmer:6:4"], "tokens of 6 nucleotides at every 4: 6 must be a multiple of it"),
        (["--tokens", "kmer:9"], "a token of 9 nucleotides: it can have 1 to 8"),
        (["--tokens", "codon", "-k", "6"], "k is 6, but tokens codon: give one of them"),
        (["--tokens", "codon", "--word", "7"], "a word of 7 nucleotides: it can have 2 to 8, a multiple of 3"),
    ],
)
def test_tokens_that_cannot_be_are_refused(tmp_path, tiny_genome, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        main(["prepare", str(tiny_genome), "--output", str(tmp_path / "corpus"), *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "corpus").exists()


def test_a_corpus_of_other_tokens_than_the_recipe_says_is_refused(run, recipe, tmp_path, tiny_genome, kind):
    main(["prepare", str(tiny_genome), "--output", str(tmp_path / "corpus"), "--validation_chromosomes", "three"])
    with pytest.raises(UserError, match="was not prepared as the recipe says"):
        run("--config", str(recipe))
