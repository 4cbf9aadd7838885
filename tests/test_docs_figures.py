"""The figures in the docs are those that the command beside them gives."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


def tables(page):
    """What stands between the markers, by name; without the timings, which every machine has its own of."""
    found = dict(re.findall(r"<!-- ([a-z ]+) -->\n(.*?)<!-- end -->", page.read_text(), re.DOTALL))
    del found["time"]
    return found


@pytest.mark.slow
def test_the_masking_tables_come_out_again(shared_data, tmp_path):
    page = REPOSITORY / "docs/masking.md"
    [command] = re.findall(r"^    python (benchmarks/.*) --output docs$", page.read_text(), re.MULTILINE)
    script, genome = command.split()
    shutil.copy(page, tmp_path)
    subprocess.run(
        [sys.executable, script, str(shared_data / "genomes" / genome), "--output", str(tmp_path)],
        cwd=REPOSITORY,
        check=True,
        timeout=300,
    )
    assert tables(tmp_path / "masking.md") == tables(page)
    assert set(tables(page)) == {"masked share", "hidden bases"}
    assert (tmp_path / "masking_top_decile.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_results_come_out_again_from_the_kept_ones(tmp_path):
    page = REPOSITORY / "docs/results.md"
    shutil.copy(page, tmp_path)
    command = [sys.executable, "-m", "benchmarks.results", "--output", str(tmp_path)]
    subprocess.run(command, cwd=REPOSITORY, check=True, timeout=300)
    assert (tmp_path / "results.md").read_text() == page.read_text()
    for picture in re.findall(r"\]\((results-\w+\.png)\)", page.read_text()):
        assert (tmp_path / picture).stat().st_size > 10_000
