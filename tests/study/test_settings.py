"""Studies as data: arms, seeds, steps, errors."""

import re

import pytest
import yaml

from cmgems.errors import UserError
from cmgems.study.cells import cells, open_record
from cmgems.study.settings import load_study
from tests.training.launching import REPOSITORY


def change(path, **values):
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **values}, sort_keys=False))


def test_an_arm_is_a_combination_of_one_option_of_each_axis(study_file):
    axes = yaml.safe_load(study_file.read_text())["axes"]
    rates = {
        "slow": {"title": "slow", "settings": {"optimizer": {"learning_rate": 0.01}}, "seeds": 1},
        "fast": {"title": "fast"},
    }
    change(study_file, axes={**axes, "rate": rates}, contrasts=[], reference=None)
    study = load_study(study_file)
    assert [arm.name for arm in study.arms][:4] == ["span-slow", "span-fast", "genemask-slow", "genemask-fast"]
    assert [arm.seeds for arm in study.arms][:4] == [1, 2, 1, 1]
    assert study.configs["genemask-slow"].optimizer.learning_rate == 0.01
    assert study.configs["genemask-slow"].curriculum.stages[0].name == "genemask"
    assert study.arm("span-fast").title == "Span, fast"


def test_the_first_seeds_of_all_arms_come_first(study_file):
    names = [cell.name for cell in cells(load_study(study_file))]
    assert names == ["span-1", "genemask-1", "none-1", "random-1", "3-mers-1", "span-2"]


def test_cells_are_chosen_by_arm_or_by_arm_and_seed(study_file):
    assert [cell.name for cell in cells(load_study(study_file), ["none", "span-2"])] == ["none-1", "span-2"]
    with pytest.raises(UserError, match="cells: no spam; arms: span, genemask"):
        cells(load_study(study_file), ["spam"])


def test_shares_become_steps(study_file):
    study = load_study(study_file)
    assert study.scored_steps(study.arm("span")) == [4, 8]
    assert study.scored_steps(study.arm("none")) == [0]


@pytest.mark.parametrize(
    ("change_to", "message"),
    [
        ({"primary": ["spam"]}, "primary: no score spam; there are probe, tuned"),
        ({"contrasts": [{"option": "span", "against": "spam"}]}, "contrasts: no option spam"),
        ({"reference": "spam"}, "reference: no option spam"),
        ({"axes": {"arm": {}}}, "arm has no options"),
        ({"spam": 1}, "spam: unknown setting"),
        ({"recipe": "spam"}, "--config spam: no such file, nor a recipe of that name"),
    ],
)
def test_what_is_wrong_is_named(study_file, change_to, message):
    change(study_file, **change_to)
    with pytest.raises(UserError, match=message):
        load_study(study_file)


def test_a_score_of_values_is_refused(study_file):
    scores = yaml.safe_load(study_file.read_text())["scores"]
    change(study_file, scores=scores | {"probe": scores["probe"] | {"suite": "codon"}})
    study = load_study(study_file)
    with pytest.raises(UserError, match=r"scores\.probe: tasks of suite codon have a value; studies take classes only"):
        open_record(study, cells(study)[0])


def test_an_invalid_setting_of_an_arm_is_named_with_the_arm(study_file):
    values = yaml.safe_load(study_file.read_text())
    values["axes"]["arm"]["genemask"]["settings"]["training"] = {"stepz": 3}
    study_file.write_text(yaml.safe_dump(values, sort_keys=False))
    with pytest.raises(UserError, match=r"study.yaml: genemask: training.stepz: unknown setting"):
        load_study(study_file)


def test_a_study_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(UserError, match="there is no such file"):
        load_study(tmp_path)


def test_the_study_of_the_how_to_page_is_one(tmp_path):
    page = (REPOSITORY / "docs/how-to/run-a-study.md").read_text()
    [text] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "study.yaml").write_text(text)
    study = load_study(tmp_path)
    assert [arm.name for arm in study.arms] == ["genemask-15", "genemask-30", "none", "4-mers"]
    assert study.configs["genemask-30"].curriculum.stages[0].masking[0].rate == 0.3
    assert study.scored_steps(study.arm("genemask-15")) == [300, 600, 1200]


@pytest.mark.parametrize("name", ["curriculum", "screen"])
def test_the_studies_of_the_repository_are_valid(name):
    study = load_study(REPOSITORY / "studies" / name)
    arms = {arm.name: arm for arm in study.arms}
    if name == "screen":
        assert len(arms) == 10
        assert {config.training.steps for config in study.configs.values()} == {1984}
        return
    assert [arm.seeds for arm in study.arms] == [6] * 3 + [3] * 13
    tokens = {arm: config.training.steps * config.training.global_batch * 126 for arm, config in study.configs.items()}
    assert set(tokens.values()) == {19_998_720}
    assert study.scored_steps(arms["span"]) == [310, 620, 1240, 2480, 4960]
    weights = [masking.weight for masking in study.configs["mixture"].curriculum.stages[0].masking]
    assert sum(weights) == pytest.approx(1)
