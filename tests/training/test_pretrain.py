"""A whole run in one process: what it leaves in its folder and in MLflow, how it stops and how it goes on."""

import json
import re
import shutil

import mlflow
import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForMaskedLM, AutoTokenizer

from cmgems.config.command_line import load_config
from cmgems.config.recipes import recipe_names
from cmgems.data.tokenizer import CLS, SEP, encode
from cmgems.errors import DivergedError, UserError
from cmgems.model.bert import MaskedLanguageModel, build_model
from cmgems.pretrain import pretrain
from cmgems.training import trainer
from tests.training.golden import GOLDEN_LOSSES
from tests.training.launching import forget_accelerator, logged, newest_run
from tests.training.launching import history_of as history


def artifacts(run):
    return {file.path for file in mlflow.MlflowClient().list_artifacts(run.info.run_id)}


def test_a_run_trains_switches_and_leaves_everything(run, tmp_path, tiny_corpus):
    finished = run()
    assert finished.info.status == "FINISHED"
    assert finished.info.run_name == "tiny"
    losses = history(finished, "train/loss")
    assert sorted(losses) == [2, 4, 6, 8, 10, 12]
    assert losses[12] < losses[2]
    for masking in ("span", "genemask", "global_pmi", "stage"):
        assert sorted(history(finished, f"ppl/{masking}")) == [4, 8, 12]
    stages = history(finished, "curriculum/stage")
    assert (stages[6], stages[7], stages[12]) == (0, 1, 1)
    assert finished.data.tags["switch.1"] == "genemask to global after step 7"
    assert finished.data.tags["switch.1.step"] == "7"
    assert finished.data.params["curriculum.stages.0.masking.0.strategy"] == "genemask"
    assert finished.data.params["training.steps"] == "12"
    assert {"config.yaml", "perplexity.png", "model"} <= artifacts(finished)
    assert {i.dataset.digest for i in finished.inputs.dataset_inputs} == {tiny_corpus.fingerprint[:32]}
    for metric in ("train/gradient_norm", "train/learning_rate", "usage/tokens_per_second", "usage/petaflop"):
        assert all(value > 0 for value in history(finished, metric).values()), metric
    assert 0.05 < history(finished, "masking/masked_share")[6] < 0.3
    folders = sorted(str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").glob("*/*"))
    assert folders == [
        "checkpoints/step-00000008",
        "checkpoints/step-00000012",
        "models/step-00000008",
        "models/step-00000012",
    ]


def test_the_exported_model_loads_with_transformers_alone(run, tmp_path, tiny_corpus):
    run()
    folder = tmp_path / "run/models/step-00000012"
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert next(model.parameters()).dtype == torch.float32
    sequence, k = tiny_corpus.validation[0]["sequence"], tiny_corpus.k
    text = " ".join(sequence[i : i + k] for i in range(len(sequence) - k + 1))
    inputs = tokenizer(text, return_tensors="pt")
    assert inputs["input_ids"][0].tolist() == [CLS, *encode(sequence, k), SEP]
    logits = model(**inputs).logits
    assert logits.shape == (1, len(sequence) - k + 3, 4**k + 5)
    # The trained weights, not random ones: unmasked tokens in place, the model does better than chance.
    nll = torch.nn.functional.cross_entropy(logits[0, 1:-1], inputs["input_ids"][0, 1:-1])
    assert nll < np.log(4**k)


@pytest.mark.parametrize("dropout", ["0.0", "0.1"])
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(run, tmp_path, monkeypatch, dropout):
    settings = ("--model.dropout", dropout)
    undisturbed = run(*settings, "--output", str(tmp_path / "undisturbed"))

    broken = MaskedLanguageModel.forward
    monkeypatch.setattr(MaskedLanguageModel, "forward", failing_after(run_steps=10, forward=broken))
    with pytest.raises(RuntimeError, match="power cut"):
        run(*settings)
    monkeypatch.setattr(MaskedLanguageModel, "forward", broken)
    stopped = newest_run()
    assert stopped.info.status == "FAILED"

    (tmp_path / "run/tracking.jsonl").unlink()  # what is in there is not logged again: step 10
    resumed = run(*settings, "--resume", "auto")
    assert resumed.info.run_id == stopped.info.run_id
    assert resumed.info.status == "FINISHED"
    for metric in ("train/loss", "train/gradient_norm", "ppl/stage", "masking/masked_share"):
        expected = history(undisturbed, metric)
        found = logged(tmp_path / "run", metric)
        assert found == {s: v for s, v in expected.items() if s > 8}
    assert resumed.data.tags["switch.1"] == "genemask to global after step 7"
    seconds = history(resumed, "usage/device_hours")
    assert seconds[12] > seconds[8] > 0


def failing_after(run_steps, forward):
    """A forward pass that raises in training step `run_steps` (4 micro-steps each)."""
    calls = 0

    def wrapped(self, *arguments, **named):
        nonlocal calls
        calls += self.training
        if calls > 4 * run_steps:
            raise RuntimeError("power cut")
        return forward(self, *arguments, **named)

    return wrapped


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [((), "--config RECIPE+nucleotides"), (("--model.embedding_init", "nucleotides"), "optimizer.learning_rate")],
)
def test_a_run_that_stays_on_the_plateau_says_so_and_what_helps(run, monkeypatch, capsys, settings, remedy):
    monkeypatch.setattr(trainer, "PLATEAU_STEPS", 8)
    run(*settings)
    lines = [line for line in capsys.readouterr().err.splitlines() if "still on a plateau" in line]
    assert [line.split("  ")[0] for line in lines] == ["step 8", "step 12"]
    assert all(remedy in line for line in lines)


def test_the_untrained_model_can_be_a_milestone(run, tiny_recipe, tiny_corpus, tmp_path):
    run("--checkpoint.milestones", "[0, 8]")
    folders = sorted(path.name for path in (tmp_path / "run/models").iterdir())
    assert folders == ["step-00000000", "step-00000008", "step-00000012"]
    found = AutoModelForMaskedLM.from_pretrained(tmp_path / "run/models/step-00000000").state_dict()
    config = load_config(["--config", str(tiny_recipe)])
    expected = build_model(config.model, tiny_corpus.tokens, config.seed).bert.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_finished_run_resumed_has_nothing_left_to_do(run):
    first = run()
    again = run("--resume", "auto")
    assert again.info.run_id == first.info.run_id
    assert again.info.status == "FINISHED"


def test_an_existing_output_folder_is_not_overwritten(run, tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match="exists already"):
        run()


def test_without_an_output_setting_each_run_gets_a_folder_of_its_own(tiny_recipe, tracking_uri, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(tracking_uri)  # of which newest_run asks
    for _ in range(2):
        pretrain(load_config(["--config", str(tiny_recipe), "--tracking.uri", tracking_uri]))
        forget_accelerator()
    assert sorted(path.name for path in (tmp_path / "runs/tiny").iterdir()) == ["1", "2"]
    assert newest_run().info.run_name == "tiny-2"


def test_a_non_finite_loss_stops_the_run_and_names_step_and_windows(run, tmp_path, monkeypatch, tiny_corpus):
    forward = MaskedLanguageModel.forward
    calls = 0

    def poisoned(self, *arguments, **named):
        nonlocal calls
        calls += self.training
        nll = forward(self, *arguments, **named)
        return nll * float("nan") if self.training and calls == 4 * 5 + 2 else nll  # step 6, second micro-step

    monkeypatch.setattr(MaskedLanguageModel, "forward", poisoned)
    with pytest.raises(DivergedError, match=r"step 6; .* windows \[\d+(, \d+){6}\]"):
        run()
    assert newest_run().info.status == "FAILED"
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000004"]


def test_a_run_starts_from_an_exported_model(run, tmp_path):
    first = run("--output", str(tmp_path / "first"))
    exported = str(tmp_path / "first/models/step-00000012")
    second = run("--output", str(tmp_path / "second"), "--model.init_from", exported)
    assert history(second, "train/loss")[2] < history(first, "train/loss")[2]


def test_an_npmi_table_of_another_k_is_refused(run):
    with pytest.raises(UserError, match=r"npmi.table human is of 6-mers, the corpus .* has words of 4"):
        run("--npmi.table", "human")


def test_windows_longer_than_the_model_are_refused(run):
    with pytest.raises(UserError, match=r"model.max_positions is 32, but the windows .* up to 42 tokens"):
        run("--model.max_positions", "32")


def test_a_missing_corpus_is_refused(run, tmp_path):
    with pytest.raises(UserError, match=r"corpus\.path: .*nowhere"):
        run("--corpus.path", str(tmp_path / "nowhere"))


def test_a_missing_corpus_is_prepared_where_the_recipe_says_how(run, tmp_path, tiny_genome):
    prepared = tmp_path / "prepared"
    settings = {"inputs": [str(tiny_genome)], "k": 4, "window_tokens": 40, "validation_chromosomes": ["three"]}
    arguments = [f"--corpus.prepare.{name}={json.dumps(value)}" for name, value in settings.items()]
    assert run("--corpus.path", str(prepared), *arguments).info.status == "FINISHED"
    assert (prepared / "manifest.json").exists()


def test_a_corpus_prepared_otherwise_than_the_recipe_says_is_refused(run, tiny_genome):
    with pytest.raises(UserError, match=r"corpus\.prepare\.k: 7, the corpus has 4"):
        run("--corpus.prepare.inputs", json.dumps([str(tiny_genome)]), "--corpus.prepare.k", "7")


def test_a_damaged_npmi_table_is_refused(run, tmp_path):
    (tmp_path / "npmi.csv").write_text("kmer,count,pmi,npmi\nAAAA,1,x,y\n")
    with pytest.raises(UserError, match=r"npmi\.table: .*npmi\.csv"):
        run("--npmi.table", str(tmp_path / "npmi.csv"))


def test_resume_goes_on_with_the_newest_run_only(tiny_recipe, tracking_uri, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["--config", str(tiny_recipe), "--tracking.uri", tracking_uri]
    pretrain(load_config(arguments))
    forget_accelerator()
    (tmp_path / "runs/tiny/2").mkdir()  # a second run that stopped before its first checkpoint
    pretrain(load_config([*arguments, "--resume", "auto"]))
    forget_accelerator()
    assert sorted(path.name for path in (tmp_path / "runs/tiny").iterdir()) == ["1", "2", "3"]


def test_a_checkpoint_is_named_and_not_its_output(run, tmp_path):
    run()
    checkpoint = str(tmp_path / "run/checkpoints/step-00000008")
    with pytest.raises(UserError, match="is not the folder of the checkpoint"):
        run("--resume", checkpoint, "--output", str(tmp_path / "other"))
    assert run("--resume", checkpoint).info.status == "FINISHED"


def test_the_division_of_the_work_may_change_on_resume(run, tmp_path):
    losses = history(run(), "train/loss")
    for folder in ("checkpoints/step-00000012", "models/step-00000012"):
        shutil.rmtree(tmp_path / "run" / folder)
    (tmp_path / "run/tracking.jsonl").unlink()  # what is in there is not logged again
    run("--resume", "auto", "--training.micro_batch", "25")
    assert logged(tmp_path / "run", "train/loss") == pytest.approx({s: losses[s] for s in (10, 12)}, rel=1e-4)


def test_half_written_and_half_removed_folders_are_cleared_away(run, tmp_path):
    run()
    leftover = tmp_path / "run/checkpoints/step-00000010.partial"
    leftover.mkdir()
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000012")
    run("--resume", "auto")
    assert not leftover.exists()


def test_a_validation_perplexity_that_is_not_finite_stops_the_run(run):
    nothing = json.dumps([{"name": "nothing", "masking": [{"strategy": "span", "centre_probability": 1e-9}]}])
    with pytest.raises(DivergedError, match="under stage 'nothing' is nan after step 4"):
        run("--curriculum.stages", nothing)


def test_a_gradient_that_is_not_finite_stops_the_run(run, monkeypatch):
    forward = MaskedLanguageModel.forward

    def steep(self, *arguments, **named):
        nll = forward(self, *arguments, **named)
        nll.register_hook(lambda gradient: gradient * float("inf"))
        return nll

    monkeypatch.setattr(
        MaskedLanguageModel, "forward", lambda self, *a, **n: (steep if self.training else forward)(self, *a, **n)
    )
    with pytest.raises(DivergedError, match="the gradient is not finite at step 1"):
        run()


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (["--launch.distributed", "deepspeed"], "asks for deepspeed, but this run was launched with none"),
        (["--launch.zero_stage", "2"], "asks for ZeRO stage 2"),
        (["--launch.processes", "2"], "asks for 2, but there are 1"),
    ],
)
def test_another_launch_than_required_is_refused(run, wanted, message):
    with pytest.raises(UserError, match=message):
        run(*wanted)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_precisions(run, precision):
    losses = history(run("--training.precision", precision), "train/loss")
    assert losses[12] < losses[2]


def test_losses_stay_as_they_are(run):
    losses = history(run(), "train/loss")
    assert losses == pytest.approx(GOLDEN_LOSSES, rel=1e-4)


# A recipe of 30 % differs by the rate from its twin of 15 %; those of other tokens by these from LOGO's.
IN_MATRIX = re.compile(r".*-30|(codonbert|rnabert)-(?!cm-gems).*|(calm|codons|nucleotides)-.*")
RECIPES = [
    pytest.param(name, marks=pytest.mark.matrix if IN_MATRIX.fullmatch(name) else pytest.mark.slow)
    for name in recipe_names()
]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_runs_for_two_steps_a_stage(run, name, tmp_path, tiny_genome):
    """Stages, masking and optimizer as the recipe has them; model, batch and length shrunk."""
    values = load_config(["--config", name, "--corpus.path", "unused"]).model_dump(mode="json")
    stages = values["curriculum"]["stages"]
    for stage in stages:
        if stage["until"]["kind"] == "perplexity_drop":
            # Ends at the second evaluation, which comes after two steps.
            stage["until"] |= {"below": 1e9, "min_steps": 0, "below_unigram": None, "patience": 1}
    values["corpus"] = {
        "path": str(tmp_path / "corpus"),
        "prepare": {
            "inputs": [str(tiny_genome)],
            "tokens": (values["corpus"]["prepare"] or values["corpus"]).get("tokens") or "kmer:6",
            "window_tokens": 40,
            "validation_chromosomes": ["three"],
        },
        "workers": 0,
    }
    values["model"] |= {"hidden": 32, "intermediate": 64, "layers": 2, "heads": 2, "max_positions": 64}
    values["training"] |= {"steps": 2 * len(stages), "global_batch": 8, "precision": "fp32"}
    values["optimizer"]["warmup_steps"] = 0
    values["evaluation"] |= {"every": 1, "windows": 8}
    values["checkpoint"] |= {"every": 1000, "milestones": []}
    values["tracking"] |= {"log_every": 1, "system_metrics": False}
    values["launch"] = {}
    recipe = tmp_path / "shrunk.yaml"
    recipe.write_text(yaml.safe_dump(values))
    finished = run("--config", str(recipe))
    losses = history(finished, "train/loss")
    assert len(losses) == 2 * len(stages)
    assert all(np.isfinite(loss) for loss in losses.values())
    found = history(finished, "curriculum/stage")
    assert [found[2 * i + 1] for i in range(len(stages))] == list(range(len(stages)))
