"""The commands of the pages that no other test runs, read by the programs' own parsers."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from cmgems import cli
from cmgems.config.command_line import load_config

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
PAGES = [DOCS / "tutorial.md", DOCS / "results.md", *sorted((DOCS / "how-to").glob("*.md"))]
README = (REPOSITORY / "README.md").read_text()


def commands(page):
    """Command lines of a page's shell blocks."""
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
        yield from block.replace("\\\n", " ").strip().splitlines()


COMMANDS = [(page.name, " ".join(command.split())) for page in PAGES for command in commands(page)]


@pytest.fixture
def parsed(monkeypatch):
    """Names of the commands that were parsed instead of run."""
    found = []
    tools = (
        cli.Prepare,
        cli.Npmi,
        cli.Plan,
        cli.Benchmark,
        cli.Embed,
        cli.Score,
        cli.Report,
        cli.Publish,
        cli.RunStudy,
    )
    for command in tools:
        monkeypatch.setattr(command, "cli_cmd", lambda settings: found.append(type(settings).__name__))
    return found


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_a_command_is_one_that_the_programs_take(page, command, parsed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, recipe in recipes(page):
        (tmp_path / f"{name}.yaml").write_text(recipe)
    words = shlex.split(command)
    if words[0] == "cmgems":
        cli.main(words[1:])
        assert len(parsed) == 1
    elif words[0] == "accelerate" and "-m" in words:
        assert words[words.index("-m") + 1] == "cmgems"
        cli.main(words[words.index("-m") + 2 :])
        assert len(parsed) == 1
    elif "cmgems/pretrain.py" in words:
        load_config(words[words.index("cmgems/pretrain.py") + 1 :])
    elif words[:2] == ["python", "studies/curriculum/fetch.py"]:
        assert (REPOSITORY / words[1]).is_file()  # tests/study/test_fetch.py
    elif words[0] == "sbatch":
        assert words[-2] == "slurm/study.sh"  # tests/study/test_slurm_study.py
    else:
        assert command in README


def recipes(page):
    """Recipes and suites that a page shows, by name."""
    text = next(path for path in PAGES if path.name == page).read_text()
    for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL):
        yield yaml.safe_load(block)["name"], block


def test_the_pages_have_commands():
    assert len(COMMANDS) >= 8


def test_every_page_is_in_the_navigation():
    navigation = (REPOSITORY / "mkdocs.yml").read_text()
    pages = [str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")]
    assert [page for page in pages if f": {page}\n" not in navigation] == []
