"""CodonBERT's published correlations are what was published, and stand beside the scores of `codon`."""

import csv
import re

from cmgems.downstream.tasks import load_suite
from cmgems.report.page import write_report
from cmgems.report.published import published
from tests.report.test_page import write_score

TASKS = {task.name: task for task in load_suite("codon").tasks}
PUBLISHED = {"mRFP": "mrfp_expression", "riboswitches": "tc_riboswitch", "vaccines": "sars_cov_2_degradation"}


def write_value(run, name, score, subject="step-00010000", suite="codon", **settings):
    given = {"metric": "spearman", "metrics": {"spearman": score}, "value": TASKS[name].value, "confusion": []}
    write_score(run, TASKS[name], score, subject=subject, suite=suite, **given | settings)


def row(page, name):
    """Numbers and dashes of a task's row in the first table that has one."""
    text = re.search(rf'<tr class=""><th scope="row">{name}<.*?</tr>', page, re.DOTALL)[0]
    return re.findall(r"<td[^>]*>(?:<b>)?([^<]+)", text)


def test_scores_are_those_of_the_published_file(shared_data):
    with (shared_data / "reference" / "codonbert_published.csv").open() as file:
        models = list(csv.DictReader(file))
    table = published("codon")
    assert len(table.models) == len(models) == 7
    for own, theirs in zip(table.models, models, strict=True):
        for task, column in PUBLISHED.items():
            assert table.scores[own.name, task] == round(100 * float(theirs[column]))
    assert table.tasks == list(PUBLISHED)
    assert not table.has_steps


def test_they_stand_beside_the_scores_of_the_suite(tmp_path):
    write_value(tmp_path / "run", "mRFP", 0.8123)
    write_value(tmp_path / "run", "mRFP", 0.4, subject="codon-regression", kind="k-mer regression")
    write_value(tmp_path / "run", "mRFP", 0.5, subject="codon-forest", kind="k-mer regression")
    write_value(tmp_path / "run", "transcripts/1", 0.3)
    page = write_report([tmp_path / "run"], tmp_path / "report").read_text()
    assert row(page, "mRFP") == ["81.23", "50.00", "40.00", "62", "40", "80", "57", "78", "77", "85"]
    assert row(page, "riboswitches") == ["–"] * 3 + ["41", "47", "58", "49", "43", "56", "56"]
    assert row(page, "transcripts/1") == ["30.00"] + ["–"] * 9
    for name in ("codon-regression", "codon-forest", "TF-IDF, codons", "CodonBERT"):
        assert f">{name}</th>" in page
    assert "Genome Research 34:1027" in page


def test_a_group_has_the_mean_of_its_folds(tmp_path):
    for fold in range(1, 6):
        write_value(tmp_path / "run", f"transcripts/{fold}", fold / 10)
    page = write_report([tmp_path / "run"], tmp_path / "report").read_text()
    mean = re.search(r'<tr class="mean"><th scope="row">Transcripts mean<.*?</tr>', page, re.DOTALL)[0]
    assert "over 5 tasks" in mean
    assert ">30.00<" in mean


def test_probes_do_not_stand_beside_them(tmp_path):
    write_value(tmp_path / "run", "mRFP", 0.8123, suite="codon-probe", protocol="probe")
    page = write_report([tmp_path / "run"], tmp_path / "report").read_text()
    assert row(page, "mRFP") == ["81.23"]
    assert "CodonBERT</th>" not in page
