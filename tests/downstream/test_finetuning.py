"""A fine-tuning does what its recipe says: which rows, which loss, which weights are scored."""

import os
import random

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import dynamic_module_utils

from cmgems.downstream.classifier import load_classifier
from cmgems.downstream.data import Split
from cmgems.downstream.finetuning import ComputeConfig, _arguments, _micro_batches, fine_tune
from cmgems.downstream.inputs import Rows
from cmgems.downstream.scores import score
from cmgems.downstream.tasks import Recipe
from cmgems.errors import DivergedError, UserError
from cmgems.inference.source import Source, load_encoder
from tests.downstream import models

ON_CPU = ComputeConfig()

DECIDING = "GAT"
"""A sequence that has this k-mer is of class 1."""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A model that takes 62 3-mers."""
    return Source(str(models.ours(tmp_path_factory.mktemp("model"))))


@pytest.fixture(scope="module")
def short_source(tmp_path_factory):
    """A model that takes 8 3-mers: sequences of 20 nucleotides are three windows."""
    return Source(str(models.ours(tmp_path_factory.mktemp("model"), max_positions=10)))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Fine-tune a model; return what came of it, and the model."""

    def fine_tune_model(source, splits, recipe, machine=ON_CPU, seed=1, dropout=True):
        encoder = load_encoder(source)
        model = load_classifier(source, 2, recipe.dropout, seed)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout) and not dropout:
                module.p = 0.0
        rows = {name: Rows(split, encoder) for name, split in splits.items()}
        folder = tmp_path_factory.mktemp("run")
        return fine_tune(model, encoder, rows, recipe, machine, seed, folder, "toy"), model

    return fine_tune_model


def recipe(**settings):
    return Recipe.model_validate({"learning_rate": 0.02, "batch": 32, "warmup_steps": 0} | settings)


def split(rows, seed, lengths=(20,), flipped=False):
    """Random sequences, every other one with the deciding k-mer; `flipped` gives each the wrong label."""
    draw, sequences = random.Random(seed), []
    while len(sequences) < rows:
        text = "".join(draw.choices("ACGT", k=lengths[len(sequences) % len(lengths)]))
        if len(sequences) % 2:
            start = draw.randrange(len(text) - 2)
            text = text[:start] + DECIDING + text[start + 3 :]
        if (DECIDING in text) == (len(sequences) % 2 == 1):
            sequences.append(text)
    return Split(f"toy {seed}", sequences, (np.arange(rows) + flipped) % 2, [0] * rows)


def splits(train=512, dev=64, test=100, **settings):
    sizes = {"train": train, "dev": dev, "test": test}
    return {name: split(rows, seed, **settings) for seed, (name, rows) in enumerate(sizes.items()) if rows}


def logits_by_hand(model, source, sequences):
    """Each sequence's mean over its windows, which go through the model one by one."""
    encoder = load_encoder(source)
    model.eval()
    with torch.no_grad():
        of_sequences = [
            torch.cat([model(input_ids=torch.tensor([window])).logits for window in encoder.windows(ids)]).mean(0)
            for ids in encoder.encode(sequences)
        ]
    return torch.stack(of_sequences)


def dev_mcc(outcome):
    """MCC on the validation split by step."""
    return {entry["step"]: entry["dev/mcc"] for entry in outcome.history if "dev/mcc" in entry}


@pytest.fixture(scope="module")
def learned(run, source):
    """What came of 60 steps on the task, with an evaluation every 10."""
    return run(source, splits(), recipe(steps=60, warmup_steps=10, evaluate_every=10))[0]


def test_a_model_learns_a_task_that_one_k_mer_decides(learned):
    assert score(learned.test)["mcc"] > 0.9
    assert score(learned.dev)["mcc"] > 0.9


def test_logits_of_a_sequence_are_the_mean_over_its_windows(run, short_source):
    data = splits(train=32, dev=0, test=25, lengths=(6, 12, 20, 33))
    outcome, model = run(short_source, data, recipe(steps=3), ComputeConfig(evaluation_batch=4))
    expected = logits_by_hand(model, short_source, data["test"].sequences).double().softmax(dim=1)
    assert outcome.test.probabilities == pytest.approx(expected.numpy(), abs=1e-6)
    assert len(set(outcome.test.probabilities[:, 0].round(6))) == 25


def test_the_loss_is_the_mean_over_the_sequences_however_many_windows_they_have(run, short_source):
    data = splits(train=16, dev=0, test=4, lengths=(6, 12, 20, 33))
    outcome, model = run(
        short_source, data, recipe(learning_rate=1e-12, batch=16, steps=20), ComputeConfig(micro_batch=5), dropout=False
    )
    logits = logits_by_hand(model, short_source, data["train"].sequences)
    expected = cross_entropy(logits, torch.tensor(data["train"].labels)).item()
    assert [entry["loss"] for entry in outcome.history] == [pytest.approx(expected, rel=1e-5)]


def test_micro_batches_change_neither_the_loss_nor_the_weights(run, short_source):
    # 10 rows: the last batch of each epoch has 2, which are as many micro-batches as two others, or a part of one.
    data = splits(train=10, dev=0, test=20, lengths=(6, 12, 20, 33))
    settings = recipe(learning_rate=1e-3, batch=4, epochs=7)
    whole, *others = (
        run(short_source, data, settings, ComputeConfig(micro_batch=size), dropout=False) for size in (4, 3, 1)
    )
    for outcome, model in others:
        assert outcome.best_step == whole[0].best_step == 3 * 7
        assert outcome.history[0]["loss"] == pytest.approx(whole[0].history[0]["loss"], rel=1e-5)
        assert outcome.test.probabilities == pytest.approx(whole[0].test.probabilities, abs=1e-4)
        for (name, weight), same in zip(whole[1].named_parameters(), model.parameters(), strict=True):
            if not name.endswith("key.bias"):  # it has no say in attention: its gradient is rounding alone
                assert torch.allclose(weight, same, atol=1e-4), name


def test_the_weights_of_the_best_validation_are_scored(run, source):
    # What is learned is wrong for the validation split: the longer, the worse.
    data = splits() | {"dev": split(64, seed=1, flipped=True)}
    outcome, model = run(source, data, recipe(steps=60, warmup_steps=10, evaluate_every=10))
    by_step = dev_mcc(outcome)
    assert sorted(by_step) == [10, 20, 30, 40, 50, 60]
    assert by_step[60] < -0.5
    assert outcome.best_step == max(by_step, key=by_step.__getitem__) < 60
    assert score(outcome.dev)["mcc"] == by_step[outcome.best_step]
    logits = logits_by_hand(model, source, data["test"].sequences).double()
    assert outcome.test.probabilities == pytest.approx(logits.softmax(dim=1).numpy(), abs=1e-6)


def test_of_equally_good_validations_the_first_is_scored(learned):
    by_step = dev_mcc(learned)
    best = [step for step, mcc in by_step.items() if mcc == max(by_step.values())]
    assert len(best) > 1
    assert 10 < learned.best_step == best[0]


def test_without_evaluations_the_last_step_is_scored_on_both_splits(run, source):
    data = splits(train=64)
    outcome, model = run(source, data, recipe(steps=5))
    assert outcome.best_step == 5
    assert dev_mcc(outcome) == {}
    for name, found in (("dev", outcome.dev), ("test", outcome.test)):
        logits = logits_by_hand(model, source, data[name].sequences).double()
        assert found.probabilities == pytest.approx(logits.softmax(dim=1).numpy(), abs=1e-6)


def test_without_a_validation_split_the_last_step_is_scored(run, source):
    outcome, _ = run(source, splits(train=64, dev=0), recipe(steps=7, evaluate_every=2))
    assert (outcome.best_step, outcome.dev) == (7, None)


def test_the_last_step_is_evaluated_too_whether_or_not_it_is_its_turn(run, source):
    outcome, model = run(source, data := splits(), recipe(steps=20, warmup_steps=10, evaluate_every=12))
    by_step = dev_mcc(outcome)
    assert sorted(by_step) == [12, 20]
    assert by_step[20] > by_step[12]
    assert outcome.best_step == 20
    logits = logits_by_hand(model, source, data["dev"].sequences).double()
    assert outcome.dev.probabilities == pytest.approx(logits.softmax(dim=1).numpy(), abs=1e-6)
    assert score(outcome.dev)["mcc"] == by_step[20]


def test_the_loss_of_the_validation_is_the_mean_over_its_rows(run, short_source):
    data = splits(train=64, dev=11, test=2, lengths=(6, 12, 20, 33))
    settings = recipe(steps=15, evaluate_every=15)
    outcome, _ = run(short_source, data, settings, ComputeConfig(evaluation_batch=4))
    of_label = outcome.dev.probabilities[range(11), data["dev"].labels]
    assert [entry["dev/loss"] for entry in outcome.history] == [pytest.approx(-np.log(of_label).mean(), rel=1e-9)]


def test_the_history_has_the_loss_and_all_metrics_of_the_validation(learned):
    by_keys = {}
    for entry in learned.history:
        by_keys.setdefault(tuple(sorted(entry)), []).append(entry["step"])
    metrics = ["accuracy", "f1", "loss", "mcc", "precision", "recall", "roc_auc"]
    assert by_keys == {
        ("learning_rate", "loss", "step"): [20, 40, 60],
        (*(f"dev/{name}" for name in metrics), "step"): [10, 20, 30, 40, 50, 60],
    }


def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero(learned):
    rates = [entry["learning_rate"] for entry in learned.history if "loss" in entry]
    # The last update of step 20 has 19 behind it: after 10 of warm-up, 9 of 50 on the way to zero.
    assert rates == pytest.approx([0.02 * (1 - done / 50) for done in (9, 29, 49)])


def arguments(tmp_path, has_dev=True, machine=ON_CPU, **settings):
    return _arguments(recipe(**settings), machine, 7, tmp_path, has_dev)


def test_a_recipe_in_steps(tmp_path):
    found = arguments(tmp_path, steps=200, warmup_steps=50, weight_decay=0.1, learning_rate=3e-5)
    assert (found.max_steps, found.get_warmup_steps(200)) == (200, 50)
    assert (found.learning_rate, found.weight_decay, found.seed) == (3e-5, 0.1, 7)
    assert found.lr_scheduler_type == "linear"


def test_a_recipe_in_epochs_with_a_share_of_warm_up(tmp_path):
    found = arguments(tmp_path, epochs=4, warmup_steps=None, warmup_share=0.1)
    assert (found.max_steps, found.num_train_epochs, found.get_warmup_steps(200)) == (-1, 4, 20)


def test_epochs_are_passes_over_the_training_split(run, source):
    outcome, _ = run(source, splits(train=70, dev=0), recipe(epochs=2))
    assert outcome.best_step == 2 * 3


@pytest.mark.parametrize(
    ("has_dev", "evaluate_every", "expected"),
    [
        (True, 20, ("steps", 20, 20, True)),
        (True, None, ("no", None, None, False)),
        (False, 20, ("no", None, None, False)),
    ],
)
def test_evaluations_need_a_recipe_and_a_validation_split(tmp_path, has_dev, evaluate_every, expected):
    found = arguments(tmp_path, has_dev, steps=100, evaluate_every=evaluate_every)
    saved = found.save_steps if found.save_strategy == "steps" else None
    assert (found.eval_strategy, found.eval_steps, saved, found.load_best_model_at_end) == expected


@pytest.mark.parametrize(
    ("batch", "processes", "at_most", "expected"),
    [
        (32, 1, 32, (32, 1)),
        (32, 1, 8, (8, 4)),
        (32, 4, 32, (8, 1)),
        (32, 1, 12, (8, 4)),
        (7, 1, 4, (1, 7)),
        (6, 2, 9, (3, 1)),
    ],
)
def test_a_batch_is_divided_among_processes_and_micro_batches(batch, processes, at_most, expected):
    at_once, micro_steps = _micro_batches(batch, processes, at_most)
    assert (at_once, micro_steps) == expected
    assert at_once * micro_steps * processes == batch


def test_micro_batches_reach_the_trainer(tmp_path):
    found = arguments(tmp_path, machine=ComputeConfig(micro_batch=12, evaluation_batch=5), batch=32, steps=1)
    assert (found.per_device_train_batch_size, found.gradient_accumulation_steps) == (8, 4)
    assert found.per_device_eval_batch_size == 5


def test_a_batch_that_does_not_divide_by_the_processes_is_refused():
    with pytest.raises(UserError, match="the recipe's batch of 10 sequences does not divide by 4 processes"):
        _micro_batches(10, 4, 32)


def test_a_seed_gives_the_same_predictions_each_time_and_another_seed_others(run, source):
    data, steps = splits(train=64), recipe(steps=6, evaluate_every=3)
    first, same, another = (run(source, data, steps, seed=seed)[0] for seed in (1, 1, 2))
    assert first.test.probabilities.tolist() == same.test.probabilities.tolist()
    assert first.history == same.history
    assert first.test.probabilities.tolist() != another.test.probabilities.tolist()


@pytest.mark.parametrize("kind", models.NATIVE)
def test_each_kind_of_model_is_fine_tuned_and_scores_every_row_in_its_place(run, tmp_path, kind):
    source = Source(str(models.NATIVE[kind](tmp_path / "model")))
    data = splits(train=12, dev=4, test=9, lengths=(6, 100, 400))
    data["test"].sequences[3] = "ACGTANNNCGTACGATTACA"
    outcome, model = run(source, data, recipe(batch=8, steps=2, evaluate_every=1), ComputeConfig(evaluation_batch=4))
    assert outcome.test.labels.tolist() == data["test"].labels.tolist()
    assert outcome.dev.labels.tolist() == data["dev"].labels.tolist()
    logits = logits_by_hand(model, source, data["test"].sequences).double()
    assert outcome.test.probabilities == pytest.approx(logits.softmax(dim=1).numpy(), abs=1e-5)


def test_a_model_with_its_own_code_is_fine_tuned(run, tmp_path, monkeypatch):
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    source = Source(str(models.remote_code(tmp_path / "model")), trust_remote_code=True)
    data = splits(train=32, dev=8, test=13)
    outcome, model = run(source, data, recipe(steps=2, evaluate_every=1))
    assert type(model).__name__ == "BagForSequenceClassification"
    assert outcome.test.labels.tolist() == data["test"].labels.tolist()


def test_a_training_that_diverges_is_an_error(run, source):
    with pytest.raises(DivergedError, match="the fine-tuning diverged"):
        run(source, splits(train=32, dev=0, test=8), recipe(learning_rate=1e30, steps=4))


def test_the_launcher_has_no_say_in_the_precision(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    for precision in ("fp32", "bf16"):
        arguments = _arguments(recipe(steps=2), ComputeConfig(precision=precision), 42, tmp_path, has_dev=False)
        assert (arguments.bf16, arguments.fp16) == (precision == "bf16", False)
        assert os.environ["ACCELERATE_MIXED_PRECISION"] == {"fp32": "no"}.get(precision, precision)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_fp16_needs_a_gpu(tmp_path):
    with pytest.raises(UserError, match="precision fp16 needs a GPU"):
        _arguments(recipe(steps=2), ComputeConfig(precision="fp16"), 42, tmp_path, has_dev=False)
