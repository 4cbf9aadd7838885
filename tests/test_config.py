"""Recipes and overrides: what is accepted, and the message for each kind of mistake."""

from typing import get_args, get_origin

import pytest
import yaml

from cmgems.config.command_line import load_config
from cmgems.config.recipes import recipe_names
from cmgems.config.schema import PretrainConfig, flatten
from cmgems.curriculum.triggers import AtStep, Never, PerplexityDrop, RunShare
from cmgems.data.settings import read_tokens
from cmgems.errors import UserError
from cmgems.masking.strategies import STRATEGIES

CORPUS = ["--corpus.path", "data/anywhere"]
PUBLISHED = [name for name in recipe_names() if name.startswith(("dnabert-", "logo-"))]
OF_OTHER_TOKENS = [name for name in recipe_names() if name not in (*PUBLISHED, "demo")]


def stages(*until):
    """A curriculum of as many span stages, as a command-line value."""
    return yaml.safe_dump(
        [
            {"name": f"s{i}", "masking": [{"strategy": "span", "rate": 0.15}], **({"until": u} if u else {})}
            for i, u in enumerate(until)
        ],
        default_flow_style=True,
        width=10_000,
    )


def write_recipe(folder, text):
    path = folder / "recipe.yaml"
    path.write_text(text)
    return str(path)


def minimal_recipe(folder, *until, **sections):
    values = {
        "name": "test",
        "corpus": {"path": "somewhere"},
        "curriculum": {"stages": yaml.safe_load(stages(*until))},
        **sections,
    }
    return write_recipe(folder, yaml.safe_dump(values))


def test_without_arguments_the_demo_recipe_is_read():
    assert load_config([]).name == "demo"


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_is_named_as_its_file(name):
    assert load_config(["--config", name, *CORPUS]).name == name


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_recipe_has_a_twin_that_differs_in_its_initial_weights_alone(name):
    own, twin = (load_config(["--config", recipe, *CORPUS]) for recipe in (name, f"{name}+nucleotides"))
    assert twin.name == f"{name}-nucleotides"
    initial = {"embedding_init": "nucleotides", "position_init": "sinusoidal", "attention_init": "neighbours"}
    assert twin == own.model_copy(update={"name": twin.name, "model": own.model.model_copy(update=initial)})
    assert own.model.embedding_init == own.model.position_init == own.model.attention_init == "normal"


def test_a_recipe_in_a_file_has_variants_too(tmp_path):
    recipe = minimal_recipe(tmp_path, None)
    config = load_config(["--config", f"{recipe}+nucleotides", "--model.embedding_scale", "0.1"])
    assert (config.name, config.model.embedding_init) == ("test-nucleotides", "nucleotides")
    assert config.model.embedding_scale == 0.1


def test_a_file_whose_name_has_a_plus_is_a_file(tmp_path):
    path = tmp_path / "a+nucleotides"
    path.write_text((tmp_path / minimal_recipe(tmp_path, None)).read_text())
    assert load_config(["--config", str(path)]).name == "test"


def test_an_unknown_variant_is_named():
    with pytest.raises(UserError, match=r"no variant codons\. Variants: nucleotides"):
        load_config(["--config", "logo-span-15+codons", *CORPUS])


def test_the_recipes_cover_each_curriculum_model_and_mask_rate():
    curricula = ("cm-gems", "cm-step", "genemask", "global", "span", "widening-span", "reversed")
    expected = {f"{m}-{c}-{r}" for m in ("dnabert", "logo") for c in curricula for r in (15, 30)}
    assert expected == set(PUBLISHED)


def test_recipes_of_other_tokens_cover_each_curriculum():
    bases = (("codonbert", 15), ("calm", 25), ("rnabert", 15), ("codons", 15), ("nucleotides", 15))
    curricula = ("cm-gems", "genemask", "global", "span")
    assert {f"{base}-{curriculum}-{rate}" for base, rate in bases for curriculum in curricula} == set(OF_OTHER_TOKENS)


@pytest.mark.parametrize("name", OF_OTHER_TOKENS)
def test_recipes_of_other_tokens_hold_the_published_sizes(name):
    config = load_config(["--config", name, *CORPUS])
    model, rate = config.model, int(name.rpartition("-")[2]) / 100
    shape = (model.layers, model.hidden, model.intermediate, model.heads, model.max_positions)
    base = (12, 768, 3072, 12, 1024)
    expected = {"codonbert": base, "calm": base, "rnabert": (6, 120, 40, 12, 440)}
    assert shape == expected.get(name.partition("-")[0], shape)
    assert {masking.rate for stage in config.curriculum.stages for masking in stage.masking} == {rate}
    tokens = config.corpus.prepare.tokens if config.corpus.prepare else config.corpus.tokens
    assert read_tokens(tokens) == ((1, 1) if name.startswith(("rnabert", "nucleotides")) else (3, 3))


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_hold_the_published_settings(name):
    config = load_config(["--config", name, *CORPUS])
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.warmup_steps, optimizer.weight_decay) == (8e-4, 500, 0.01)
    assert (optimizer.beta1, optimizer.beta2, optimizer.eps) == (0.9, 0.98, 1e-6)
    assert (config.training.steps, config.training.global_batch, config.evaluation.every) == (10_000, 250, 500)
    shape = (config.model.layers, config.model.hidden, config.model.intermediate, config.model.heads)
    assert shape == ((12, 768, 3072, 12) if name.startswith("dnabert") else (2, 256, 3072, 8))


def test_cm_gems_switches_from_genemask_to_global_when_perplexity_falls_by_less_than_one():
    first, second = load_config(["--config", "dnabert-cm-gems-15", *CORPUS]).curriculum.stages
    assert [m.strategy for m in first.masking] == ["genemask"]
    assert (first.until.kind, first.until.below, first.until.unit) == ("perplexity_drop", 1, "perplexity")
    assert [m.strategy for m in second.masking] == ["global_pmi"]


def test_cm_step_goes_from_genemask_to_global_in_ten_equal_phases():
    phases = load_config(["--config", "logo-cm-step-15", *CORPUS]).curriculum.stages
    shares = []
    for phase in phases:
        total = sum(m.weight for m in phase.masking)
        shares.append(sum(m.weight for m in phase.masking if m.strategy == "global_pmi") / total)
    assert shares == pytest.approx([i / 9 for i in range(10)])
    assert [phase.until.at for phase in phases[:-1]] == pytest.approx([i / 10 for i in range(1, 10)])


def test_a_command_line_override_wins_over_the_recipe(tmp_path):
    recipe = minimal_recipe(tmp_path, None, training={"steps": 700, "global_batch": 10})
    config = load_config(["--config", recipe, "--training.global_batch=20", "--checkpoint.milestones", "[5, 6]"])
    assert (config.training.steps, config.training.global_batch) == (700, 20)
    assert config.checkpoint.milestones == [5, 6]


def test_a_recipe_extends_another_one(tmp_path):
    (tmp_path / "base.yaml").write_text("name: base\ncorpus: {path: x}\ntraining: {steps: 900, global_batch: 10}\n")
    stage = "{name: s, masking: [{strategy: span, rate: 0.15}]}"
    recipe = f"extends: base.yaml\nname: new\ntraining: {{steps: 800}}\ncurriculum: {{stages: [{stage}]}}\n"
    config = load_config(["--config", write_recipe(tmp_path, recipe)])
    assert (config.name, config.training.steps, config.training.global_batch) == ("new", 800, 10)


def test_flatten_gives_dotted_names():
    flat = flatten(load_config(["--config", "logo-cm-gems-15", *CORPUS]))
    assert flat["training.steps"] == 10_000
    assert flat["curriculum.stages.0.masking.0.strategy"] == "genemask"
    assert flat["checkpoint.milestones"] == [1000, 10_000]


def test_every_setting_has_a_description():
    def check(model, prefix=""):
        for name, field in model.model_fields.items():
            assert field.description, prefix + name
            for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
                if hasattr(kind, "model_fields"):
                    check(kind, f"{prefix}{name}.")

    check(PretrainConfig)


def all_settings(model, prefix=""):
    for name, field in model.model_fields.items():
        groups = [t for t in (field.annotation, *get_args(field.annotation)) if hasattr(t, "model_fields")]
        if groups and get_origin(field.annotation) is not list:
            yield from all_settings(groups[0], f"{prefix}{name}.")
        else:
            yield prefix + name


def test_help_shows_every_setting(capsys):
    with pytest.raises(SystemExit) as stop:
        load_config(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    in_stages = [f"curriculum.stages.N.masking.M.{name}" for each in STRATEGIES.values() for name in each.model_fields]
    for trigger in (PerplexityDrop, RunShare, AtStep, Never):
        in_stages += [f"curriculum.stages.N.until.{name}" for name in trigger.model_fields]
    for name in [*all_settings(PretrainConfig), *in_stages]:
        assert f"--{name}" in shown, name


def test_a_setting_inside_a_stage_is_overridden_by_its_place():
    arguments = ["--curriculum.stages.0.until.below", "5", "--curriculum.stages.1.masking.0.rate=0.3"]
    first, second = load_config(arguments).curriculum.stages
    assert first.until.below == 5
    assert second.masking[0].rate == 0.3


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--curriculum.stages.7.name=x", "--curriculum.stages.7.name: the recipe has no such place"),
        ("--curriculum.stages.0.until.belo=5", "curriculum.stages.0.until.perplexity_drop.belo: unknown setting"),
        ("--curriculum.stages.0.until.below", "--curriculum.stages.0.until.below: a value is missing"),
        ("--curriculum.stages.0.until.below=many", "curriculum.stages.0.until.perplexity_drop.below"),
        ("--curriculum.stages.0.name=[", "--curriculum.stages.0.name"),
    ],
)
def test_a_mistake_inside_a_stage_names_its_place(argument, message):
    with pytest.raises(UserError) as error:
        load_config([argument])
    assert message in str(error.value)


def test_recipes_that_extend_each_other_are_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(UserError, match="the file extends itself"):
        load_config(["--config", str(tmp_path / "a.yaml")])


@pytest.mark.parametrize(("model", "rate"), [("dnabert", 15), ("dnabert", 30), ("logo", 15), ("logo", 30)])
@pytest.mark.parametrize(
    "curriculum", ["cm-gems", "cm-step", "genemask", "global", "reversed", "span", "widening-span"]
)
def test_recipes_of_a_curriculum_differ_in_model_and_mask_rate_only(curriculum, model, rate):
    def stages(model, rate):
        found = load_config(["--config", f"{model}-{curriculum}-{rate}", *CORPUS]).model_dump(mode="json")
        for stage in found["curriculum"]["stages"]:
            for masking in stage["masking"]:
                amount = (masking.pop("rate"), masking.pop("centre_probability", None))
                assert amount in {15: [(0.15, None), (None, 0.0176), (None, 0.025)], 30: [(0.3, None)]}[rate]
        return found["curriculum"]

    assert stages(model, rate) == stages("dnabert", 15)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--training.stpes", "3"], "--training.stpes: unknown setting (did you mean --training.steps?)"),
        (["--training.steps", "many"], "training.steps: Input should be a valid integer"),
        (["--training.steps", "0"], "training.steps: Input should be greater than or equal to 1"),
        (["--training.steps"], "command line"),
        (["stray"], "command line"),
        (["--config", "no-such-recipe"], "--config no-such-recipe: no such file"),
        (["--training.precision", "fp64"], "training.precision: Input should be 'fp32', 'bf16' or 'fp16'"),
        (["--optimizer.warmup_steps", "99999"], "optimizer.warmup_steps (99999) is not below training.steps"),
        (["--model.heads", "7"], "model: hidden"),
        (["--name", "a/b"], "name: "),
        (["--tracking.uri", "nowhere://x"], "tracking.uri: "),
        (
            ["--npmi.table", "x.csv", "--npmi.c", "50"],
            "npmi: c would change nothing: the table x.csv is computed already",
        ),
        (["--curriculum.stages", "[]"], "curriculum.stages: "),
    ],
)
def test_a_mistake_on_the_command_line_names_the_setting(arguments, message):
    with pytest.raises(UserError) as error:
        load_config(arguments)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "cannot be read as YAML"),
        ("- a\n- b\n", "a recipe is a mapping of settings, this is list"),
        ("extends: nowhere.yaml\n", "extends: there is no file nowhere.yaml"),
        ("name: x\ntraining: {stpes: 3}\n", "training.stpes: unknown setting (did you mean training.steps?)"),
        ("name: x\n", "curriculum: missing"),
    ],
)
def test_a_mistake_in_a_recipe_names_file_and_setting(tmp_path, text, message):
    with pytest.raises(UserError) as error:
        load_config(["--config", write_recipe(tmp_path, text)])
    assert message in str(error.value)
    assert "recipe.yaml" in str(error.value)


@pytest.mark.parametrize(
    ("masking", "message"),
    [
        ({"strategy": "span"}, "give either rate or centre_probability"),
        ({"strategy": "span", "rate": 0.1, "centre_probability": 0.1}, "give either rate or centre_probability"),
        ({"strategy": "global_pmi", "centre_probability": 0.1}, "global_pmi has no centres"),
        ({"strategy": "genemask", "rate": 0.1, "lengths": [6]}, "lengths belongs to span"),
        ({"strategy": "span", "rate": 0.1, "temperature": 1}, "temperature belongs to global_pmi"),
        ({"strategy": "spam", "rate": 0.1}, "strategy"),
        ({"strategy": "span", "rate": 1.5}, "rate"),
    ],
)
def test_an_impossible_masking_is_refused(tmp_path, masking, message):
    values = {"name": "x", "corpus": {"path": "x"}, "curriculum": {"stages": [{"name": "s", "masking": [masking]}]}}
    with pytest.raises(UserError, match=r"curriculum\.stages\.0\.masking\.0") as error:
        load_config(["--config", write_recipe(tmp_path, yaml.safe_dump(values))])
    assert message in str(error.value)


NEVER_ENDS = "can never end before the last"


@pytest.mark.parametrize(
    ("until", "message"),
    [
        ([{"kind": "never"}, None], NEVER_ENDS),
        ([None, None], NEVER_ENDS),
        ([{"kind": "step", "at": 1000}, None], NEVER_ENDS),
        ([{"kind": "perplexity_drop", "below": 1}, None], None),
        ([{"kind": "perplexity_drop", "below": 1, "patience": 2}, None], None),
        ([{"kind": "perplexity_drop", "below": 1, "patience": 9}, None], NEVER_ENDS),
        ([{"kind": "perplexity_drop", "below": 1, "min_steps": 901}, None], NEVER_ENDS),
        ([{"kind": "perplexity_drop", "below": 1, "min_steps": 900}, None], None),
        ([{"kind": "step", "at": 500}, {"kind": "share", "at": 0.5}, None], "before it begins"),
        ([{"kind": "step", "at": 499}, {"kind": "share", "at": 0.5}, None], None),
        ([{"kind": "step", "at": 500}], "needs until: never"),
    ],
)
def test_a_stage_that_cannot_end_is_refused(tmp_path, until, message):
    recipe = minimal_recipe(tmp_path, *until, training={"steps": 1000}, evaluation={"every": 100})
    if message is None:
        load_config(["--config", recipe])
    else:
        with pytest.raises(UserError, match=r"curriculum\.stages") as error:
            load_config(["--config", recipe])
        assert message in str(error.value)
