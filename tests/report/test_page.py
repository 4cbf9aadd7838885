"""The report says what the results say: numbers, means over the same tasks, marks, and all in one page."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from statistics import mean, stdev
from zlib import crc32

import numpy as np
import pytest

import cmgems
from cmgems.downstream.results import Result, result_files, result_folder, write_result
from cmgems.downstream.scores import Predictions
from cmgems.downstream.tasks import load_suite
from cmgems.errors import UserError
from cmgems.report.comparison import read_runs
from cmgems.report.page import report_files, write_report
from cmgems.report.published import published
from cmgems.tracking.journal import Journal, MlflowRunRef

GUE = {task.name: task for task in load_suite("gue").tasks}
FEW_SHOT = {task.name: task for task in load_suite("fewshot").tasks}
KINDS = {"random-weights": "random weights", "kmer-regression": "k-mer regression"}
CHROMIUM = Path("/usr/bin/chromium")


def write_score(run, task, score, seed=1, subject="step-00010000", suite="gue", **settings):
    """Write the result of a task and seed as a benchmark does; `score` is the suite's main metric."""
    metric = load_suite("fewshot").metric if suite == "fewshot" else "mcc"
    step = re.fullmatch(r"step-(\d+)", subject)
    values = {
        "suite": suite,
        "metric": metric,
        "task": task.name,
        "species": task.species,
        "task_kind": task.kind,
        "classes": task.classes,
        "group": task.group,
        "shots": task.shots,
        "kind": KINDS.get(subject, "model"),
        "subject": subject,
        "model": str(run / "models" / subject),
        "step": int(step[1]) if step else None,
        "seed": seed,
        "resplit": False,
        "metrics": {metric: score},
        "dev_metrics": {},
        "confusion": [[1, 0], [0, 1]],
        "rows": {"train": 1000, "dev": 100, "test": 120},
        "integrity": {
            "task": task.name,
            "rows": {"train": 1000, "dev": 100, "test": 120},
            "duplicates": [{"split": "train", "sequences": 2, "rows": 5, "conflicting": 1}],
            "overlaps": [{"first": "train", "second": "test", "sequences": 3, "rows": 7, "conflicting": 2}],
        },
        "lengths": {"limit": 510, "sequences": 1220, "longest": 994, "longer": 11, "tokens_beyond": 99},
        "ambiguous": 13,
        "recipe": {"batch": 32},
        "best_step": 200,
        "history": [],
        "seconds": 1.5,
        "identity": {"task": task.name, "subject": subject},
        "versions": {},
    }
    folder = result_folder(run, suite, subject, task.name, seed)
    with result_files(folder) as partial:
        write_result(
            partial, Result.model_validate(values | settings), Predictions(np.array([0]), np.array([[0.75, 0.25]]))
        )


def write_scores(run, task, scores, **settings):
    """The same for several seeds, from 1 on."""
    for seed, score in enumerate(scores, start=1):
        write_score(run, task, score, seed, **settings)


def write_journal(run, perplexities, switch=None):
    """Write a journal with a perplexity at each step, and a switch of stages."""
    journal = Journal(run)
    journal.begin(MlflowRunRef("sqlite:///mlflow.db", "experiment", "id"))
    for step, value in perplexities.items():
        names = ("span", "genemask", "global_pmi")
        metrics = {f"ppl/{name}": value * (1 + number / 5) for number, name in enumerate(names)}
        metrics |= {f"ppl_vs_unigram/{name}": metrics[f"ppl/{name}"] / 3500 for name in names}
        metrics |= {"ppl/stage": value, "ppl/span_composition": 4.0, "bits/span": 1.9, "train/loss": 1.0}
        journal.append({"time": 1, "step": step, "metrics": metrics})
    if switch:
        journal.append({"tags": {"switch.1": "genemask to global", "switch.1.step": str(switch)}})
    journal.close()


class Page(HTMLParser):
    """Tables of a page, as lists of rows of texts; its elements; the sources of its pictures."""

    def __init__(self, path):
        super().__init__()
        self.tables, self.elements, self.pictures, self.text = [], [], [], ""
        self.in_cell = False
        self.source = path.read_text()
        self.feed(self.source)

    def handle_starttag(self, tag, attributes):
        self.elements.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.in_cell = True
        elif tag == "img":
            self.pictures.append(dict(attributes)["src"])
        elif tag in ("small", "em") and self.in_cell:
            self.tables[-1][-1][-1] += " "

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.in_cell = False

    def handle_data(self, data):
        self.text += data
        if self.in_cell:
            self.tables[-1][-1][-1] += data.strip("\n")

    def table(self, corner, number=0):
        """The table with this first heading."""
        return [table for table in self.tables if table[0][0] == corner][number]

    def row(self, start, corner="task", number=0):
        """Cells of the row whose title begins so."""
        [row] = [row[1:] for row in self.table(corner, number) if row[0].startswith(start)]
        return row

    def columns(self, corner="task", number=0):
        return self.table(corner, number)[1]


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "runs" / "gems" / "1"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def report(tmp_path, run):
    """Write a report of one run or of several, and read it."""
    return lambda *runs: Page(write_report(list(runs or [run]), tmp_path / "out"))


def test_a_cell_has_mean_deviation_and_number_of_seeds(run, report):
    write_scores(run, GUE["tf/0"], [0.61, 0.62, 0.66])
    write_scores(run, GUE["tf/1"], [0.5])
    page = report()
    assert page.row("tf/0")[0] == f"63.00 ± {100 * stdev([0.61, 0.62, 0.66]):.2f} (3)"
    assert page.row("tf/1")[0] == "50.00 (1)"
    assert page.row("tf/2")[0] == "–"


def test_all_tasks_are_there_with_the_published_scores(run, report):
    write_score(run, GUE["tf/0"], 0.6)
    page = report()
    titles = [row[0] for row in page.table("task") if len(row) > 1]
    assert all(any(title.startswith(task) for title in titles) for task in GUE)
    assert page.columns() == [
        *("step 10,000", "DNABERT-2, BPE, 120K", "DNABERT, 6-mer, 120K", "NT 500M, human"),
        *("DNABERT-2, k-mer, 120K", *(2 * ["Global-PMI", "GeneMask", "CM-Step", "CM-GEMS"])),
    ]
    assert page.table("task")[0][1:] == [
        *("gems/1", "Published baselines, longer pretraining"),
        *("Published, DNABERT, 10K steps", "Published, LOGO, 10K steps"),
    ]
    assert page.row("tf/0")[1:] == [
        *("66.99", "66.84", "61.59", "67.99", "65.89", "67.40", "65.44", "66.07", "64.21", "67.09", "63.94", "65.34")
    ]
    assert set(page.row("virus/covid")) == {"–"}
    assert page.row("EMP/H3 yeast, histone mark")[-1] == "61.49"


def test_a_complete_group_has_the_published_means(run, report):
    scores = {name: 0.5 + number / 100 for number, name in enumerate(GUE)}
    for name, score in scores.items():
        write_score(run, GUE[name], score)
    page = report()
    for title, group, tasks in (("Human", "human", 12), ("Non-human", "non_human", 15)):
        row = page.row(f"{title} mean over {tasks} tasks")
        expected = mean(score for name, score in scores.items() if GUE[name].group == group)
        assert row[0] == f"{100 * expected:.2f} (1)"
        published_means = [mean for (_, of), mean in published().stated_means.items() if of == group]
        assert [float(cell) for cell in row[1:]] == pytest.approx(published_means, abs=0.011)


def test_a_mean_over_some_tasks_compares_with_published_means_over_the_same(run, report):
    write_scores(run, GUE["tf/0"], [0.6, 0.7])
    write_scores(run, GUE["tf/2"], [0.5, 0.5])
    page = report()
    row = page.row("Human mean over 2 of 12 tasks: tf/0, tf/2")
    assert row[0] == f"57.50 ± {100 * stdev([0.55, 0.6]):.2f} (2)"
    assert row[1] == f"{(66.99 + 61.4) / 2:.2f}"
    assert [row[0] for row in page.table("task") if row[0].startswith("Non-human mean")] == []


def test_columns_with_different_tasks_have_means_over_the_same_ones(run, report, tmp_path):
    other = tmp_path / "runs" / "span" / "1"
    for task in ("tf/0", "tf/1"):
        write_score(run, GUE[task], 0.6)
    for task in ("tf/1", "tf/2"):
        write_score(other, GUE[task], 0.4)
    page = report(run, other)
    assert page.table("task")[0][1:3] == ["gems/1", "span/1"]
    assert page.row("Human mean over 2 of 12 tasks: tf/0, tf/1")[:2] == ["60.00 (1)", "–"]
    assert page.row("Human mean over 2 of 12 tasks: tf/1, tf/2")[:2] == ["–", "40.00 (1)"]
    assert page.row("Human mean over 1 of 12 tasks: tf/1")[:2] == ["60.00 (1)", "40.00 (1)"]


def test_a_mean_is_over_the_seeds_that_all_tasks_have(run, report):
    write_scores(run, GUE["tf/0"], [0.6, 0.8])
    write_scores(run, GUE["tf/2"], [0.5])
    assert report().row("Human mean")[0] == "55.00 (1)"


def test_a_resplit_score_is_marked_and_in_no_mean(run, report):
    write_score(run, GUE["tf/0"], 0.6)
    write_score(run, GUE["tf/1"], 0.99, resplit=True)
    page = report()
    assert page.row("tf/1")[0] == "99.00 (1) resplit"
    assert page.row("Human mean over 1 of 12 tasks: tf/0")[0] == "60.00 (1)"
    assert page.row("human, transcription factor over 1 of 5 tasks: tf/0", "tasks")[0] == "60.00 (1)"
    assert "resplit: trained on a part of the published validation split" in page.text


def test_seeds_that_are_resplit_do_not_count_beside_others(run, report):
    write_score(run, GUE["tf/0"], 0.6)
    write_score(run, GUE["tf/0"], 0.99, seed=2, resplit=True)
    assert report().row("tf/0")[0] == "60.00 (1) 1 resplit left out"


def test_a_score_that_is_not_above_random_weights_is_marked(run, report):
    for task, score, baseline in (("tf/0", 0.6, 0.4), ("tf/1", 0.4, 0.4), ("tf/2", 0.1, 0.4)):
        write_score(run, GUE[task], score)
        write_score(run, GUE[task], baseline, subject="random-weights")
        write_score(run, GUE[task], 0.7, subject="kmer-regression")
    page = report()
    assert page.columns()[:3] == ["step 10,000", "random weights", "k-mer regression"]
    assert page.row("tf/0")[:3] == ["60.00 (1)", "40.00 (1)", "70.00 (1)"]
    assert page.row("tf/1")[0] == "40.00 (1) ≤ baseline"
    assert page.row("tf/2")[0] == "10.00 (1) ≤ baseline"
    assert page.row("Human mean over 3 of 12")[0] == f"{110 / 3:.2f} (1) ≤ baseline"


def test_a_baseline_that_runs_share_is_there_once(run, report, tmp_path):
    other = tmp_path / "runs" / "span" / "1"
    for folder, random in ((run, 0.3), (other, 0.2)):
        write_score(folder, GUE["tf/0"], 0.6)
        write_score(folder, GUE["tf/0"], 0.7, subject="kmer-regression")
        identity = {"weights": folder.parent.name}
        write_score(folder, GUE["tf/0"], random, subject="random-weights", identity=identity)
    page = report(run, other)
    assert page.columns()[:5] == [
        *("step 10,000", "step 10,000", "random weights: gems/1", "random weights: span/1", "k-mer regression")
    ]
    assert page.row("tf/0")[2:5] == ["30.00 (1)", "20.00 (1)", "70.00 (1)"]


def test_the_best_of_the_runs_and_of_the_published_are_bold(run, report):
    write_score(run, GUE["tf/0"], 0.6)
    write_score(run, GUE["tf/0"], 0.7, subject="step-00020000")
    write_score(run, GUE["tf/0"], 0.9, subject="random-weights")
    write_score(run, GUE["tf/1"], 0.99, resplit=True)
    write_score(run, GUE["tf/1"], 0.61)
    page = report()
    tf_0 = page.source[page.source.index(">tf/0<") : page.source.index(">tf/1<")]
    assert re.findall("<b>(.*?)</b>", tf_0) == ["70.00", "67.99"]


def test_several_steps_are_columns_in_their_order(run, report):
    for step, score in ((20000, 0.7), (5000, 0.5), (10000, 0.6)):
        write_score(run, GUE["tf/0"], score, subject=f"step-{step:08d}")
    page = report()
    assert page.columns()[:3] == ["step 5,000", "step 10,000", "step 20,000"]
    assert page.row("tf/0")[:3] == ["50.00 (1)", "60.00 (1)", "70.00 (1)"]


def test_shares_of_the_best_published_mean_over_the_same_tasks(run, report):
    write_score(run, GUE["tf/0"], 0.6)
    write_score(run, GUE["tf/1"], 0.5)
    write_score(run, GUE["mouse/0"], 0.4)
    page = report()
    assert page.table("tasks", 1)[0][1:] == ["Published", "gems/1"]
    best = (66.99 + 70.98) / 2
    row = page.row("Human over 2 of 12 tasks: tf/0, tf/1", "tasks", 1)
    assert row == [f"{best:.2f} DNABERT-2, BPE", f"{100 * 55 / best:.1f} % 55.00"]
    row = page.row("mouse, transcription factor over 1 of 5 tasks: mouse/0", "tasks", 1)
    assert row == ["48.96 DNABERT-2, k-mer", f"{100 * 40 / 48.96:.1f} % 40.00"]
    assert "Published values are of one seed" in page.text


def test_what_is_in_the_data(run, report):
    write_score(run, GUE["tf/0"], 0.6)
    cells = report().row("tf/0", "task", 1)
    assert cells == [
        *("1,000", "100", "120"),
        *("5", "–", "–"),
        *("–", "7 trained on", "–"),
        *("1", "2", "13", "11 of 1,220 input of 510 tokens"),
    ]


def test_few_shot_tasks_by_family_and_training_sequences(run, report):
    for name in ("Prom-core/10", "Prom-core/50", "Splice-40/10"):
        write_scores(run, FEW_SHOT[name], [0.6, 0.64], suite="fewshot")
    page = report()
    table = page.table("training sequences of each class")
    assert table[2][0] == "Prom-core (human, core promoter)"
    assert table[3] == ["10", "62.00 ± 2.83 (2)"]
    assert [row[0] for row in table if row[0].startswith("Splice-40")] == ["Splice-40 (human, splice site)"]
    assert ["100", "62.00 ± 2.83 (2)"] in table
    assert "accuracy in %" in page.text
    assert len(page.pictures) == 1


def test_a_suite_of_ones_own_is_shown_by_its_results(run, report, make_task):
    task = make_task(name="own/a", species="pig", kind="enhancer", group="farm")
    write_score(run, task, 0.8, suite="own")
    page = report()
    assert page.table("task")[1] == ["step 10,000"]
    assert page.row("own/a pig, enhancer") == ["80.00 (1)"]
    assert "tasks without any result are not known here" in page.text


def test_each_protocol_has_a_section_without_the_published_scores_of_another(run, report):
    for suffix, protocol, score in (("", "fine-tuning", 0.6), ("-probe", "probe", 0.5), ("-tuned", "tuned", 0.7)):
        write_scores(run, GUE["tf/0"], [score], suite=f"gue{suffix}", protocol=protocol)
        write_scores(run, GUE["tf/0"], [0.4], suite=f"gue{suffix}", protocol=protocol, subject="random-weights")
    page = report()
    titles = re.findall("<h2>(.*?)</h2>", page.source)
    assert titles == [
        *("Suite gue", "Suite gue, probed", "Suite gue, fine-tuned to fit the model"),
        "What is in the data: gue",
    ]
    expected = {0: "60.00 (1)", 1: "50.00 (1)", 2: "70.00 (1)"}
    assert {number: page.row("tf/0", "task", number)[0] for number in expected} == expected
    own = ["step 10,000", "random weights"]
    assert page.columns("task", 0)[:2] == page.columns("task", 1) == page.columns("task", 2) == own
    _, of_fine_tuning, probed, tuned, _ = page.source.split("<h2>")
    assert ("Published scores: " in of_fine_tuning, "<b>67.99</b>" in of_fine_tuning) == (True, True)
    for section, about in ((probed, "the model stays frozen"), (tuned, "the learning rate, of which each model")):
        assert about in section
        assert "67.99" not in section
        assert "EMP/H3" in section  # all tasks of the suite, as it ships
    assert page.row("tf/0", "task", 3)[:3] == ["1,000", "100", "120"]


def test_pictures_are_in_the_page_and_beside_it(run, report, tmp_path):
    for step, score in ((5000, 0.5), (10000, 0.6)):
        write_score(run, GUE["tf/0"], score, subject=f"step-{step:08d}")
    write_score(run, FEW_SHOT["silencer/10"], 0.6, suite="fewshot")
    write_journal(run, {0: 3000.0, 5000: 900.0, 10000: 700.0}, switch=5000)
    page = report()
    files = report_files(tmp_path / "out")
    assert [file.name for file in files] == [
        "report.html",
        *("report_fewshot_shots.png", "report_gue_differences.png", "report_gue_steps.png", "report_perplexity.png"),
    ]
    embedded = {base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in page.pictures}
    assert embedded == {file.read_bytes() for file in files[1:]}
    assert "gems/1: new stage after step 5,000" in page.text


def test_nothing_is_loaded_from_elsewhere(run, report):
    write_score(run, GUE["tf/0"], 0.6)
    page = report()
    assert not {"script", "iframe", "object"} & set(page.elements)
    assert re.findall(r"""(?:src|href)\s*=\s*["'](?!#|data:)""", page.source) == []
    assert "@import" not in page.source
    assert "url(" not in page.source


def test_perplexities_are_those_of_the_model_and_not_of_baselines(run):
    write_score(run, GUE["tf/0"], 0.6)
    write_journal(run, {500: 900.0, 1000: 40.0})
    [found] = read_runs([run])
    assert set(found.perplexities) == {"span", "genemask", "global_pmi", "stage"}


def test_a_run_without_a_journal_has_no_perplexities(run, report):
    write_score(run, GUE["tf/0"], 0.6, subject="own-model", model="someone/dna-model")
    page = report()
    assert page.columns()[0] == "own-model"
    assert page.tables[0][1][2] == "own-model (someone/dna-model)"
    assert len(page.pictures) == 1


def test_runs_folders_steps_and_version_come_first(run, report):
    write_score(run, GUE["tf/0"], 0.6)
    write_score(run, GUE["tf/0"], 0.6, subject="step-00000500")
    page = report()
    assert page.tables[0][1] == ["gems/1", str(run), "step 500, step 10,000"]
    assert f"by cmgems {cmgems.__version__}" in page.text


def test_the_same_folder_twice_is_one_run(run, report):
    write_score(run, GUE["tf/0"], 0.6)
    assert len(report(run, run / ".." / "1").tables[0]) == 2


def test_names_are_text(report, tmp_path):
    run, name = tmp_path / "<script>$x_{", "<script>alert('$x_')</script>"
    for subject in ("step-00000100", "step-00000200", "own"):
        write_score(run, GUE["tf/0"], 0.6, subject=subject, model=name)
        write_score(run, FEW_SHOT["silencer/10"], 0.6, subject=subject, suite="fewshot", model=name)
    write_score(run, GUE["tf/0"], 0.4, subject="random-weights")
    write_journal(run, {0: 3000.0, 5000: 900.0})
    page = report(run)
    assert "script" not in page.elements
    assert name in page.text
    assert page.table("task")[0][1] == "<script>$x_{"
    assert len(page.pictures) == 4


def test_baselines_alone_make_a_report(run, report):
    write_score(run, GUE["tf/0"], 0.4, subject="random-weights")
    page = report()
    assert page.tables[0][1][2] == "baselines only"
    assert page.row("Human mean over 1 of 12 tasks: tf/0")[0] == "40.00 (1)"
    assert page.pictures == []


def test_resplit_scores_alone_are_compared_with_nothing(run, report):
    write_score(run, GUE["tf/0"], 0.6, resplit=True)
    write_score(run, GUE["tf/0"], 0.7, subject="random-weights", resplit=True)
    page = report()
    assert page.row("tf/0")[:2] == ["60.00 (1) resplit", "70.00 (1) resplit"]
    assert len(page.tables) == 3
    assert page.pictures == []


def test_models_that_were_not_fine_tuned_alike_are_named(run, report):
    write_score(run, GUE["tf/0"], 0.6)
    write_score(run, GUE["tf/0"], 0.6, subject="random-weights", recipe={"batch": 8})
    assert "Not all models and seeds were fine-tuned with the same settings on: tf/0." in report().text


def test_different_data_of_a_task_are_told_apart(run, report, tmp_path):
    other = tmp_path / "runs" / "span" / "1"
    write_score(run, GUE["tf/0"], 0.6)
    write_score(other, GUE["tf/0"], 0.6, ambiguous=0)
    page = report(run, other)
    rows = [row for row in page.table("task", 1) if row[0].startswith("tf/0")]
    assert [(row[0], row[-2]) for row in rows] == [
        ("tf/0 gems/1, step 10,000", "13"),
        ("tf/0 span/1, step 10,000", "0"),
    ]


def test_a_folder_without_results(run, tmp_path):
    with pytest.raises(UserError, match=rf"^{run}: no results .*`cmgems benchmark` computes them"):
        write_report([run], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file(run, tmp_path):
    write_score(run, GUE["tf/0"], 0.6)
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="cannot be written to"):
        write_report([run], tmp_path / "out")


def test_a_report_takes_the_place_of_an_earlier_one(run, report, tmp_path):
    write_score(run, GUE["tf/0"], 0.6)
    write_score(run, GUE["tf/0"], 0.6, suite="own")
    write_journal(run, {0: 3000.0})
    report()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    (run / "tracking.jsonl").unlink()
    report()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("notes.txt", "report.html", "report_gue_differences.png")
    ]


def test_a_report_is_written_whole_or_not_at_all(run, report, tmp_path, monkeypatch):
    write_score(run, GUE["tf/0"], 0.6)
    report()
    before = (tmp_path / "out" / "report.html").read_bytes()

    def fail(path, target):
        if target.name == "report.html":
            raise OSError("disk full")
        return path.rename(target)

    monkeypatch.setattr(Path, "replace", fail)
    write_score(run, GUE["tf/0"], 0.7)
    with pytest.raises(UserError, match="disk full"):
        report()
    assert (tmp_path / "out" / "report.html").read_bytes() == before
    assert not list((tmp_path / "out").glob(".*"))


def write_example(folder):
    """Three runs with two steps, all of GUE in three seeds, baselines, few-shot sets, perplexities."""
    table = published()
    random = np.random.default_rng(1)
    runs = [folder / name / "1" for name in ("dnabert-cm-gems-15", "dnabert-genemask-15", "dnabert-span-15")]
    for number, run in enumerate(runs):
        for name, task in GUE.items():
            level = table.scores.get(("dnabert_cmgems_10k", name), 60.0) / 100
            baseline_draw = np.random.default_rng(crc32(name.encode()))
            baseline, regression = level * baseline_draw.uniform(0.3, 0.8), level * baseline_draw.uniform(0.4, 0.95)
            for step, share in ((5000, 0.86), (10000, 0.97)):
                reached = baseline + (level - baseline) * (share - 0.03 * number) * random.uniform(0.9, 1.06)
                reached = baseline - 0.01 if name == "EMP/H3K4me3" and number == 2 else reached
                scores = reached + 0.012 * random.standard_normal(3)
                write_scores(run, task, scores.tolist(), subject=f"step-{step:08d}")
            write_scores(
                run, task, (baseline + 0.01 * baseline_draw.standard_normal(3)).tolist(), subject="random-weights"
            )
            write_score(run, task, regression, subject="kmer-regression", lengths={})
        for task in FEW_SHOT.values():
            if task.shots:
                level = 0.5 + 0.08 * np.log10(task.shots) + 0.01 * number
                write_scores(run, task, (level + 0.02 * random.standard_normal(3)).tolist(), suite="fewshot")
                scores = (level - 0.06 + 0.02 * random.standard_normal(3)).tolist()
                write_scores(
                    run, task, scores, suite="fewshot", subject="random-weights", identity={"run": str(number)}
                )
        values = {step: 600 + 3000 * np.exp(-step / (1500 + 400 * number)) for step in range(0, 10001, 500)}
        write_journal(run, values, switch=4000 if number == 0 else None)
    return runs


@pytest.mark.slow
def test_a_browser_shows_the_page(tmp_path):
    sync_api = _browser()
    page_path = write_report(write_example(tmp_path), tmp_path / "out")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1500, "height": 1000}, color_scheme="dark")
        messages, requests = [], []
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda request: requests.append(request.url[:40]))
        page.goto(page_path.as_uri())
        assert page.locator("table").count() == 7
        assert page.locator("table").nth(1).locator("tbody tr").count() == 28 + 2 + 3
        assert page.get_by_role("row", name="tf/0").first.is_visible()
        widths = page.evaluate("[...document.images].map(image => image.complete ? image.naturalWidth : 0)")
        assert len(widths) == 4
        assert min(widths) > 500
        # Wide tables scroll by themselves; the page does not.
        assert page.evaluate("document.documentElement.scrollWidth") <= 1500
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        page.screenshot(path=tmp_path / "page.png", full_page=True)
        browser.close()
    assert messages == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    pixels = _pixels(tmp_path / "page.png")
    assert pixels.shape[0] > 2000
    assert 0.01 < (pixels[..., :3].mean(axis=-1) < 0.9).mean() < 0.6


def _browser():
    """The interface to the browser; skips the test where there is none."""
    if not CHROMIUM.exists():
        pytest.skip(f"there is no Chromium at {CHROMIUM}")
    return pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


def _pixels(path):
    from matplotlib.image import imread

    return imread(path)
