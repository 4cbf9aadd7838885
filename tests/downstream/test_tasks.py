"""Which tasks ship, what is said of a task that is wrong, and how a user's own is read."""

import csv
from collections import Counter

import pytest
import yaml

from cmgems.downstream.tasks import SUITES, load_suite, suite_names
from cmgems.errors import UserError

OWN = """\
name: mine
source: our own
tasks:
  - &first
    name: enhancers/liver
    species: pig
    kind: enhancer
    classes: [no enhancer, enhancer]
    length: 200
    recipe: {learning_rate: 1.0e-4, batch: 16, epochs: 2, warmup_share: 0.1}
  - <<: *first
    name: enhancers/heart
    classes: [none, weak, strong]
"""


@pytest.fixture
def write_suite(tmp_path):
    def write(text: str) -> str:
        (tmp_path / "mine.yaml").write_text(text)
        return str(tmp_path / "mine.yaml")

    return write


def test_the_suites_that_ship():
    assert suite_names() == ["codon", "demo", "fewshot", "gue", "yeast"]
    assert {name: len(load_suite(name).tasks) for name in suite_names()} == {
        "codon": 13,
        "demo": 1,
        "fewshot": 25,
        "gue": 28,
        "yeast": 6,
    }


def test_gue_has_the_published_tasks_and_groups(shared_data):
    with (shared_data / "reference" / "cm_gems_published_mcc.csv").open() as file:
        published = [row["task"] for row in csv.DictReader(file)]
    tasks = {task.name: task for task in load_suite("gue").tasks}
    human = published[: published.index("mean/human")]
    non_human = published[len(human) + 1 : published.index("mean/non_human")]
    assert {name for name, task in tasks.items() if task.group == "human"} == set(human)
    assert {name for name, task in tasks.items() if task.group == "non_human"} == set(non_human)
    assert (len(human), len(non_human)) == (12, 15)
    assert [name for name, task in tasks.items() if task.group is None] == ["virus/covid"]


def test_gue_classes_species_and_lengths():
    tasks = {task.name: task for task in load_suite("gue").tasks}
    more_than_two = {name: len(task.classes) for name, task in tasks.items() if len(task.classes) > 2}
    assert more_than_two == {"splice/reconstructed": 3, "virus/covid": 9}
    assert Counter(task.species for task in tasks.values()) == {"human": 12, "yeast": 10, "mouse": 5, "SARS-CoV-2": 1}
    assert Counter(task.length for task in tasks.values()) == {500: 10, 101: 10, 70: 3, 300: 3, 400: 1, 999: 1}


def test_gue_recipes_are_those_of_the_benchmark():
    tasks = {task.name: task.recipe for task in load_suite("gue").tasks}
    for recipe in tasks.values():
        assert (recipe.learning_rate, recipe.batch, recipe.warmup_steps) == (3e-5, 32, 50)
        assert recipe.evaluate_every in (200, 400)
    by_family = {
        "EMP": (3, None),
        "tf": (3, None),
        "mouse": (None, 1000),
        "splice": (5, None),
        "virus": (9, None),
        "prom": (4, None),
    }
    for name, recipe in tasks.items():
        expected = (10, None) if name.endswith("_tata") else by_family[name.split("/")[0]]
        assert (recipe.epochs, recipe.steps) == expected, name


@pytest.mark.parametrize("family", ["Prom-core", "Prom-300", "Cohn-enh", "Splice-40", "silencer"])
@pytest.mark.parametrize("setting", [10, 50, 100, 500, 1000])
def test_few_shot_recipes_go_by_the_setting(family, setting):
    [task] = load_suite("fewshot").choose([f"{family}/{setting}"])
    recipe = task.recipe
    expected = (1e-4, 20, 5) if setting <= 100 else (5e-5, 5, 15)
    assert (recipe.learning_rate, recipe.epochs, recipe.batch) == expected
    assert (recipe.warmup_share, recipe.weight_decay, recipe.dropout) == (0.1, 0.01, 0.1)
    assert task.files.dev is None
    assert len(task.classes) == (3 if family == "Splice-40" else 2)


def test_a_users_own_tasks_are_a_file(write_suite):
    suite = load_suite(write_suite(OWN))
    liver, heart = suite.tasks
    assert (liver.name, liver.classes, liver.recipe.batch) == ("enhancers/liver", ["no enhancer", "enhancer"], 16)
    assert (heart.classes, heart.recipe) == (["none", "weak", "strong"], liver.recipe)
    assert suite.choose(["enhancers/heart"]) == [heart]
    assert suite.choose([]) == suite.tasks


def test_an_unknown_task_or_suite_is_an_error_that_lists_what_there_is(write_suite):
    with pytest.raises(UserError, match="has no task kidney; its tasks: enhancers/liver, enhancers/heart"):
        load_suite(write_suite(OWN)).choose(["kidney"])
    with pytest.raises(UserError, match=r"blue: no such file, .* Suites: codon, demo, fewshot, gue"):
        load_suite("blue")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("species: pig", "specis: pig", r"tasks\.0\.specis: unknown setting"),
        ("species: pig", "species: pig\n    learning_rate: 1", r"tasks\.0\.learning_rate: unknown setting"),
        ("epochs: 2", "epochs: 2, step: 3", r"tasks\.0\.recipe\.step: unknown setting"),
        ("    length: 200\n", "", r"tasks\.0\.length: missing"),
        ("epochs: 2, ", "", "give either epochs or steps"),
        ("warmup_share: 0.1", "warmup_share: 0.1, warmup_steps: 5", "give either warmup_steps or warmup_share"),
        ("[no enhancer, enhancer]", "[enhancer]", r"tasks\.0\.classes: List should have at least 2 items"),
        ("[no enhancer, enhancer]", "[a, a]", "two classes have the same name"),
        ("[no enhancer, enhancer]", "[no, yes]", r"tasks\.0\.classes\.0: Input should be a valid string"),
        ("enhancers/heart", "enhancers/liver", "two tasks are named enhancers/liver"),
        ("enhancers/heart", "../heart", r"tasks\.1\.name: String should match"),
        ("batch: 16", "batch: 0", r"tasks\.0\.recipe\.batch: .* greater than or equal to 1 \(it is 0\)"),
        ("    length: 200\n", "    length: 200\n    files: {dev: null}\n", None),
        ("epochs: 2", "epochs: 2, evaluate_every: 9", None),
        ("name: mine", "name: [", "cannot be read as YAML"),
    ],
)
def test_what_is_wrong_with_a_suite_is_said(write_suite, old, new, message):
    assert old in OWN
    path = write_suite(OWN.replace(old, new))
    if message is None:
        load_suite(path)
    else:
        with pytest.raises(UserError, match=message) as error:
            load_suite(path)
        assert str(error.value).startswith(path)


def test_choosing_the_best_checkpoint_needs_a_validation_split(write_suite):
    text = OWN.replace("epochs: 2", "epochs: 2, evaluate_every: 9").replace("200\n", "200\n    files: {dev: null}\n")
    with pytest.raises(UserError, match=r"enhancers/liver: recipe\.evaluate_every needs a validation split"):
        load_suite(write_suite(text))


@pytest.mark.parametrize("text", ["", "- name: mine"])
def test_a_suite_is_a_mapping(write_suite, text):
    with pytest.raises(UserError, match="a suite is a mapping"):
        load_suite(write_suite(text))


def test_every_suite_names_its_source():
    for path in SUITES.glob("*.yaml"):
        assert len(yaml.safe_load(path.read_text())["source"]) > 20


@pytest.mark.parametrize(
    ("given", "expected"), [("1.0e-4", [1e-4]), ("[1.0e-3, 3.0e-5, 1e-3]", [3e-5, 1e-3]), ("[2]", [2.0])]
)
def test_learning_rates_are_tried_in_ascending_order(write_suite, given, expected):
    suite = load_suite(write_suite(OWN.replace("learning_rate: 1.0e-4", f"learning_rate: {given}")))
    assert suite.tasks[0].recipe.learning_rates == expected


@pytest.mark.parametrize("given", ["0", "-1.0e-4", "high", "[]", "[1.0e-4, 0]", ".inf"])
def test_what_is_no_learning_rate_is_one_message(write_suite, given):
    path = write_suite(OWN.replace("learning_rate: 1.0e-4", f"learning_rate: {given}"))
    with pytest.raises(UserError) as error:
        load_suite(path)
    first, *others = str(error.value).splitlines()
    assert "tasks.0.recipe.learning_rate: give a positive number, or a list of positive numbers (it is " in first
    assert not any("tasks.0" in line for line in others)


def test_a_choice_of_learning_rates_needs_a_validation_split(write_suite):
    without_dev = OWN.replace("200\n", "200\n    files: {dev: null}\n")
    several = without_dev.replace("learning_rate: 1.0e-4", "learning_rate: [1.0e-4, 1.0e-3]")
    expected = r"enhancers/liver: recipe\.learning_rate: a choice of several needs a validation split"
    with pytest.raises(UserError, match=expected):
        load_suite(write_suite(several))
    task = load_suite(write_suite(without_dev)).tasks[0]
    with pytest.raises(UserError, match="task enhancers/liver: --learning_rates: a choice of several needs"):
        task.adapted([1e-3, 1e-4], None)
    assert task.adapted([1e-3], None).recipe.learning_rates == [1e-3]


@pytest.mark.parametrize("name", ["gue-probe", "mine-tuned", "mine-pooled"])
def test_a_suite_has_no_name_that_scores_by_a_protocol_have(write_suite, name):
    with pytest.raises(UserError, match=r"name: a name that ends with -.* is kept for scores of another suite"):
        load_suite(write_suite(OWN.replace("name: mine", f"name: {name}")))
