"""slurm/study.sh under a real SLURM: an array of two jobs shares a study, and a third writes its page."""

import json
import re

import pytest

from tests.support.slurm_cluster import ENVIRONMENT, OPTIONS
from tests.training.launching import REPOSITORY

pytestmark = pytest.mark.slow

CELLS = {"span-1", "none-1", "3-mers-1"}


def test_an_array_shares_a_study(slurm, study_file, tmp_path):
    array = slurm.run(
        *("sbatch", "--parsable", *OPTIONS, f"--chdir={REPOSITORY}", f"--output={tmp_path}/%A_%a.log", "--array=1-2"),
        *("slurm/study.sh", study_file.parent, "--cells", ",".join(sorted(CELLS)), "--work", tmp_path / "work"),
        cwd=REPOSITORY,
        environment={**ENVIRONMENT, "REPORT_OPTIONS": f"--chdir={tmp_path}"},
    )
    slurm.wait_for_files(tmp_path, f"slurm-{array}_report.log", seconds=400)
    report = re.search(r"Submitted batch job (\d+)", (tmp_path / f"{array}_1.log").read_text())[1]
    logs = [tmp_path / f"{array}_{number}.log" for number in (1, 2)]
    printed = "\n".join(path.read_text() for path in logs)
    assert slurm.wait_for(report, "COMPLETED", "FAILED")["JobState"] == "COMPLETED", printed
    assert {slurm.job(f"{array}_{number}")["JobState"] for number in (1, 2)} == {"COMPLETED"}, printed
    assert {path.stem for path in (study_file.parent / "results").glob("*.json")} == CELLS
    for cell in CELLS:  # each part is computed by one of the two
        record = json.loads((study_file.parent / "results" / f"{cell}.json").read_text())
        assert record["scores"]["tuned"]
        assert sum(f"{cell}: tuned@" in path.read_text() for path in logs) == 1
    assert "3 of 6 arms and seeds have results" in (study_file.parent / "report/report.html").read_text()
