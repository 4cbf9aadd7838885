"""What a notebook calls, and the code and commands of docs/how-to/use-a-model.md."""

import gzip
import json
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

import cmgems
from cmgems.cli import main
from cmgems.config.command_line import read_config
from cmgems.errors import UserError
from tests.data.corpora import write_fasta
from tests.downstream import models
from tests.support.suites import write_suite
from tests.training.conftest import TINY

PAGE = (Path(__file__).parents[2] / "docs/how-to/use-a-model.md").read_text()


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with what the page's code and commands take."""
    monkeypatch.chdir(tmp_path)
    models.ours(tmp_path / "runs/logo-cm-gems-15/1/models/step-00010000", k=6)
    bases = "".join(random.Random(0).choices("ACGT", k=5000))
    bases = bases[:1000] + "A" + bases[1001:]
    with gzip.open("genome.fa.gz", "wt") as file:
        file.write(f">chr22\n{bases}\n")
    write_fasta(tmp_path / "genes.fa", one=bases[:300], two=bases[500:900])
    Path("peaks.bed").write_text("chr22\t10\t200\tpeak\t0\t-\n")
    with gzip.open("variants.vcf.gz", "wt") as file:
        file.write(
            "##fileformat=VCFv4.3\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\nchr22\t1001\t.\tA\tG\t.\t.\t.\n"
        )
    return tmp_path


@pytest.mark.slow
def test_the_code_of_the_page(workplace):
    use, predict, _ = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names = {}
    exec(use + predict.replace("17_000_001", "1001"), names)
    assert names["vectors"].shape == (2, 16)
    assert names["by_token"][0].shape == (11, 16)
    assert names["shares"].shape == (1, 4)
    assert np.isfinite(names["ratios"]).all()


@pytest.mark.slow
def test_the_commands_of_the_page(workplace):
    blocks = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    commands = [shlex.split(line) for block in blocks for line in block.replace("\\\n", " ").strip().splitlines()]
    launches = [words for words in commands if words[0] == "accelerate"]
    for words in commands:
        if words not in launches:
            main(words[1:])
    assert pq.read_table("embeddings")["tokens"].to_pylist() == [295, 395]
    assert pq.read_table("peaks")["name"].to_pylist() == ["peak"]
    assert np.load("tiles/embeddings.npy").shape == (10, 16)
    assert "CMGEMS_LLR=" in Path("scored.vcf").read_text()
    assert len(launches) == 1  # tests/inference/test_embedding.py


def test_a_run_is_its_last_model(workplace):
    models.ours(workplace / "runs/logo-cm-gems-15/1/models/step-00000100", k=3)
    assert cmgems.load("runs/logo-cm-gems-15/1").source.model.endswith("step-00010000")
    assert "1 layers of 16, up to 62 tokens" in repr(cmgems.load(workplace / "runs/logo-cm-gems-15/1"))
    with pytest.raises(UserError, match=r"model .*/runs/no cannot be loaded"):
        cmgems.load(workplace / "runs/no")


@pytest.mark.slow
def test_training_and_evaluating_in_one_process(tiny_corpus_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tiny_recipe = tmp_path / "tiny.yaml"
    tiny_recipe.write_text(yaml.safe_dump({**TINY, "corpus": {"path": str(tiny_corpus_path), "workers": 0}}))
    run = cmgems.train(tiny_recipe, tracking={"uri": uri})
    assert run == Path("runs/tiny/1")
    # Another one in the same process, of other precision.
    again = cmgems.train(tiny_recipe, tracking={"uri": uri}, training={"precision": "bf16", "steps": 8})
    assert again == Path("runs/tiny/2")
    config = read_config(str(tiny_recipe), {"tracking": {"uri": uri}})
    assert cmgems.train(config, training={"steps": 8}) == Path("runs/tiny/3")
    assert json.loads(Path("runs/tiny/3/run.json").read_text())["recipe"]["training"] == {
        **config.training.model_dump(mode="json"),
        "steps": 8,
    }
    mlflow.set_tracking_uri(uri)
    assert len(mlflow.search_runs(search_all_experiments=True, output_format="list")) == 3
    vectors = cmgems.load(run).embed(["ACGTACGTACGT"])
    assert vectors.shape == (1, TINY["model"]["hidden"])

    _, data, suite = write_suite(tmp_path)
    results = cmgems.evaluate(run, suite=str(suite), data=data, probe=True, seeds=1)
    assert {result.subject for result in results} >= {"step-00000012", "random-weights", "4-mer-regression"}
    assert all(-1 <= result.score <= 1 for result in results)

    with pytest.raises(UserError, match=r"tiny\.yaml: training\.stepz: unknown setting \(did you mean training\.steps"):
        cmgems.train(tiny_recipe, training={"stepz": 3})
    with pytest.raises(UserError, match=r"seedz: unknown setting \(did you mean seeds"):
        cmgems.evaluate(run, suite=str(suite), data=data, seedz=1)


@pytest.mark.slow
def test_the_package_is_imported_in_a_moment():
    program = "import time; begin = time.perf_counter(); import cmgems, sys; "
    program += "print(time.perf_counter() - begin, len(sys.modules))"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    seconds, modules = finished.stdout.split()
    assert float(seconds) < 0.3
    assert int(modules) < 200
