"""A published model: its files, its card, and what is refused."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForMaskedLM, AutoTokenizer

import cmgems
from cmgems.cli import main
from cmgems.config.command_line import load_config
from cmgems.data.corpus import load_corpus
from cmgems.data.loader import Windows
from cmgems.data.order import training_samples
from tests.training.conftest import TINY
from tests.training.launching import logged


def tables(folder):
    """Rows of all tables of the card, by the text of their first cell."""
    rows = re.findall(r"^\| (.*) \|$", (folder / "README.md").read_text(), re.MULTILINE)
    found = {}
    for row in rows:
        first, *cells = re.split(r" \| ", row)
        found.setdefault(first, []).append(cells)
    return found


def test_it_has_the_runs_files_a_card_and_a_recipe(trained, publish):
    folder, model = publish(trained), trained / "models/step-00000012"
    names = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in folder.iterdir()} == names | {"README.md", "recipe.yaml"}
    assert all((folder / name).read_bytes() == (model / name).read_bytes() for name in names)


def test_a_folder_needs_no_network(trained, publish, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("a connection")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, fail)
    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert (publish(trained) / "README.md").is_file()


def test_the_hub_reads_its_metadata(trained, publish):
    data = ModelCard.load(publish(trained, "--license", "mit", "--kg_co2", "1.5") / "README.md").data
    assert (data.license, data.library_name, data.pipeline_tag) == ("mit", "transformers", "fill-mask")
    assert {"dna", "genomics", "cmgems"} <= set(data.tags)
    assert data.co2_eq_emissions["emissions"] == 1500  # grams
    assert data.eval_results is None


def test_what_is_not_known_is_not_claimed(trained, publish):
    folder = publish(trained)
    data, text = ModelCard.load(folder / "README.md").data, (folder / "README.md").read_text()
    assert data.license is None
    assert "licence | none given" in text
    assert "co2_eq_emissions" not in data.to_dict()
    assert "emissions" not in text
    assert "the model was scored on no downstream task" in text


def test_its_numbers_are_those_of_the_journal(trained, publish):
    rows = tables(publish(trained))

    def at_the_end(name):
        return logged(trained, name)[12]

    for title, name in (("random spans", "span"), ("GeneMask", "genemask"), ("Global-PMI", "global_pmi")):
        perplexities, bits = rows[title]
        value = at_the_end(f"ppl/{name}")
        alone = value / at_the_end(f"ppl_vs_unigram/{name}")
        expected = (value, alone, at_the_end(f"ppl/{name}_composition"))
        assert perplexities == [f"{each:,.3f}" for each in expected]
        kinds = ("", "_composition", "_chain")
        expected = [at_the_end(f"{group}/{name}{kind}") for group in ("bits", "bases_right") for kind in kinds]
        assert bits == [f"{each:.4f}" for each in expected]


def test_it_says_what_the_model_is_and_what_it_was_trained_on(trained, publish, tiny_corpus_path):
    rows, corpus = tables(publish(trained)), load_corpus(tiny_corpus_path)
    weights = AutoModelForMaskedLM.from_pretrained(trained / "models/step-00000012").num_parameters()
    assert rows["parameters"] == [[f"{weights:,}"]]
    assert rows["tokens"] == [["overlapping 4-mers, one at every nucleotide"]]
    [source] = corpus.manifest["inputs"]
    assert rows["tiny.fa"] == [[f"{source['bytes']:,}", f"`{source['sha256']}`"]]
    lengths, seen = Windows(corpus.train, corpus.tokens, 64).lengths, 0
    for step in range(12):
        _, samples = training_samples(step, 25, len(lengths), TINY["seed"])
        seen += sum(corpus.tokens.tokens(int(nucleotides)) for nucleotides in lengths[samples])
    assert rows["tokens seen"] == [[f"{seen:,}"]]


def test_stages_have_the_steps_that_they_masked(trained, publish):
    rows = tables(publish(trained))
    assert [row[-1] for row in rows["genemask"]] == ["1 to 7"]
    assert rows["global"] == [["global_pmi, rate 0.15, temperature 0.0", "with the run", "8 to 12"]]


def test_an_earlier_model_has_its_own_numbers(trained, publish):
    folder = publish(trained, "--step", "8")
    rows = tables(folder)
    weights = (trained / "models/step-00000008/model.safetensors").read_bytes()
    assert (folder / "model.safetensors").read_bytes() == weights
    assert rows["optimizer steps"] == [["8"]]
    assert rows["global"][0][-1] == "8 to 8"
    assert rows["GeneMask"][0][0] == f"{logged(trained, 'ppl/genemask')[8]:,.3f}"


def test_downstream_scores_stand_beside_the_baselines(scored, publish):
    folder = publish(scored)
    text, rows = (folder / "README.md").read_text(), tables(folder)
    assert "| task | this model (step 12) | random weights | k-mer regression |" in text
    assert rows["tf/0"] == [["72.00 ± 1.00 (3)", "43.00 ± 2.00 (3)", "50.00 (1)"]]
    assert rows["tf/1"] == [["25.00 ± 7.07 (2)", "35.00 ± 7.07 (2)", "–"]]
    assert "model: 1, 2, 3." in text
    assert "Not above random weights of the same architecture: tf/1." in text
    assert "11." not in str(rows["tf/0"])  # of the other model


def test_downstream_scores_are_in_the_index_of_the_model(scored, publish):
    [first, second] = ModelCard.load(publish(scored) / "README.md").data.eval_results
    assert (first.dataset_type, first.dataset_config, first.dataset_split) == ("gue", "tf/0", "test")
    assert (first.metric_type, first.metric_value) == ("matthews_correlation", 0.72)
    assert first.metric_name == "mcc, fine-tuning, mean of 3 seeds, standard deviation 0.010000"
    assert (second.dataset_config, second.metric_value) == ("tf/1", 0.25)


def test_nothing_tells_where_it_was_made(scored, publish, tiny_corpus_path):
    folder = publish(scored)
    for path in folder.iterdir():
        content = path.read_bytes()
        for place in (scored.parent, tiny_corpus_path.parent, Path.home(), Path("/tmp"), Path(cmgems.__file__).parent):
            assert str(place).encode() not in content, (path.name, place)
        assert b"sqlite" not in content


def test_the_recipe_is_one_that_trains_the_model(trained, publish, tiny_corpus_path):
    published = load_config(["--config", str(publish(trained) / "recipe.yaml")])
    recipe = json.loads((trained / "run.json").read_text())["recipe"]
    for group in ("seed", "curriculum", "model", "optimizer", "training", "evaluation", "npmi"):
        assert published.model_dump(mode="json")[group] == recipe[group]
    prepare = load_corpus(tiny_corpus_path).manifest["config"]
    assert published.corpus.prepare.model_dump(mode="json") == {**prepare, "inputs": ["tiny.fa"]}


def test_a_table_of_npmi_goes_by_its_name(trained, publish, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    record = json.loads((run / "run.json").read_text())
    record["recipe"]["npmi"] = {"table": str(tmp_path / "mine.csv"), "method": "all", "c": 101.0}
    (run / "run.json").write_text(json.dumps(record))
    folder = publish(run)
    assert load_config(["--config", str(folder / "recipe.yaml")]).npmi.table == "mine.csv"
    assert "a table of its own, `mine.csv`." in (folder / "README.md").read_text()


def test_names_cannot_break_a_table(trained, publish, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    record = json.loads((run / "run.json").read_text())
    record["corpus"]["inputs"][0]["name"] = record["corpus"]["config"]["inputs"][0] = "/data/a|b\n<c>.fa"
    (run / "run.json").write_text(json.dumps(record))
    assert "| a\\|b &lt;c>.fa | " in (publish(run) / "README.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["{tmp}/none", "--to", "{tmp}/x"], "none is not the folder of a pretraining run"),
        (["{run}/models/step-00000012", "--to", "{tmp}/x"], "step-00000012 is not the folder of a pretraining run"),
        (["{run}", "--to", "{tmp}/x", "--step", "9"], "has no exported model of step 9; there are those of: 8, 12"),
        (["{run}", "--to", "{tmp}/full"], "full exists already and is not empty; name another folder"),
        (["{run}", "--to", "{tmp}/full/file"], "file is a file; name another folder"),
        (["{run}", "--to", "/dev/null/x"], "/dev/null/x: the model cannot be written ("),
        (["{run}", "--to", "{tmp}/x", "--private"], "private would change nothing"),
        (["{run}", "--to", "{tmp}/x", "--license", "All Rights"], "license: String should match pattern"),
        (["{run}", "--to", "hub:model"], "a model on the hub is named hub:OWNER/NAME"),
        (["{run}", "--to", "hub:me/model"], "there is no token for the hub: set HF_TOKEN"),
        (["{run}"], "to: missing"),
    ],
)
def test_a_mistake_is_one_message_and_nothing_is_written(trained, tmp_path, options, message, monkeypatch, capsys):
    monkeypatch.setattr("cmgems.publishing.publish.get_token", lambda: None)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(SystemExit) as stop:
        main(["publish", *(option.format(tmp=tmp_path, run=trained) for option in options)])
    error = capsys.readouterr().err
    assert (stop.value.code, len(error.splitlines())) == (2, 1)
    assert error.startswith("error: ")
    assert message in error
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full"]


def test_damaged_weights_are_named(trained, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (run / "models/step-00000012/model.safetensors").write_bytes(b"cut short")
    with pytest.raises(SystemExit):
        main(["publish", str(run), "--to", str(tmp_path / "x")])
    assert "step-00000012/model.safetensors cannot be read: " in capsys.readouterr().err


LOAD = """
import json, sys
exec(open("code.py").read())
print(json.dumps([model.config.vocab_size, logits.tolist(), len(embedding), "cmgems" in sys.modules]))
"""


def run_code_of_card(folder, place):
    """Run the card's code in a fresh process where cmgems cannot be imported; return what it has computed."""
    [code] = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    place.mkdir()
    (place / "code.py").write_text(code.replace('name = "published"', f"name = {str(folder)!r}"))
    (place / "cmgems.py").write_text("raise ImportError('not here')")
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }  # sums of others are rounded otherwise
    command = [sys.executable, "-c", LOAD]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def predictions(model_folder, text):
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForMaskedLM.from_pretrained(model_folder).eval()
    with torch.no_grad():
        return model(**tokenizer(text, return_tensors="pt")).logits[0, 1:-1]


SEQUENCE = "ATGGCATTACGGATCCAATGCGTA"


@pytest.mark.slow
def test_the_code_of_the_card_works_with_transformers_alone(trained, publish, tmp_path):
    vocabulary, logits, width, imported = run_code_of_card(publish(trained), tmp_path / "elsewhere")
    assert (vocabulary, width, imported) == (261, 32, False)
    kmers = " ".join(SEQUENCE[i : i + 4] for i in range(len(SEQUENCE) - 3))
    assert torch.equal(torch.tensor(logits), predictions(trained / "models/step-00000012", kmers))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "tokens"), [("codon", 8), ("kmer:4:2", 11)])
def test_a_model_of_other_tokens(train, tiny_genome, publish, tmp_path, kind, tokens):
    prepare = {"inputs": [str(tiny_genome)], "tokens": kind, "window_tokens": 40, "validation_chromosomes": ["three"]}
    run = train({"corpus": {"path": str(tmp_path / "corpus"), "prepare": prepare, "workers": 0}})
    folder = publish(run)
    _, logits, _, imported = run_code_of_card(folder, tmp_path / "elsewhere")
    assert (len(logits), imported) == (tokens, False)
    kmers = " ".join(SEQUENCE[i : i + 4] for i in range(0, len(SEQUENCE) - 3, 2))
    text = SEQUENCE if kind == "codon" else kmers
    assert torch.equal(torch.tensor(logits), predictions(run / "models/step-00000012", text))
    assert load_config(["--config", str(folder / "recipe.yaml")]).corpus.prepare.tokenization.k in (3, 4)
    if kind == "codon":
        codon = [logged(run, name.format("span"))[12] for name in ("codon_bits/{}", "codon_bits/{}_usage")]
        assert tables(folder)["random spans"][2][:2] == [f"{value:.4f}" for value in codon]


@pytest.mark.slow
def test_a_run_of_an_earlier_version_is_published_once_it_is_resumed(
    trained, train, publish, tiny_corpus_path, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (run / "run.json").unlink()
    with pytest.raises(SystemExit):
        publish(run)
    train({"corpus": {"path": str(tiny_corpus_path), "workers": 0}}, "--resume", "auto", folder=run)
    expected = (run / "models/step-00000012/model.safetensors").read_bytes()
    assert (publish(run) / "model.safetensors").read_bytes() == expected


def test_files_go_by_their_names_and_data_sets_of_the_hub_by_theirs(trained, publish, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    record = json.loads((run / "run.json").read_text())
    file = {"name": "elsewhere/genome.fa", "bytes": 1, "sha256": "0" * 64}
    record["corpus"]["inputs"] = [file, {"name": "owner/genomes", "bytes": None, "sha256": None}]
    record["corpus"]["config"]["inputs"] = ["elsewhere/genome.fa", "owner/genomes"]
    record["recipe"]["model"]["init_from"] = "owner/model"
    (run / "run.json").write_text(json.dumps(record))
    folder = publish(run)
    data = ModelCard.load(folder / "README.md").data
    assert (data.datasets, data.base_model) == (["owner/genomes"], "owner/model")
    assert load_config(["--config", str(folder / "recipe.yaml")]).corpus.prepare.inputs == [
        "genome.fa",
        "owner/genomes",
    ]
