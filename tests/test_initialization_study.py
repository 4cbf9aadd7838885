"""What benchmarks/initialization.py reads out of journals, and its tables."""

import json

import pytest

from benchmarks.initialization import (
    ENDPOINTS,
    RECIPE,
    Result,
    Run,
    arguments,
    last_table,
    read_result,
    show_ratio,
    show_steps,
    steps_table,
)
from cmgems.config.command_line import load_config
from cmgems.data.settings import PrepareConfig

HALF, TENTH, VISIBLE, BITS, CHAIN = ENDPOINTS


def evaluation(perplexity, bits, masking="span"):
    """Metrics of an evaluation; the k-mer frequencies score 4000, the composition 10 and 2 bits, the chain 1.8 bits."""
    return {
        "ppl/stage": perplexity,
        f"ppl/{masking}": perplexity,
        f"ppl_vs_unigram/{masking}": perplexity / 4000,
        f"ppl/{masking}_composition": 10.0,
        f"bits/{masking}": bits,
        f"bits/{masking}_composition": 2.0,
        f"bits/{masking}_chain": 1.8,
        f"bases_right/{masking}": 0.25,
    }


def result(start, seed, *values, every=50, **more):
    evaluations = {every * number: evaluation(*value, **more) for number, value in enumerate(values, 1)}
    return Result(Run(seed, "span", start), evaluations, None)


def test_an_endpoint_is_the_first_evaluation_strictly_past_it():
    found = result("bert", 1, (2000, 2.0), (1999, 1.9), (400, 1.89), (399, 1.95), (10, 1.8), (9.9, 1.79), (3000, 2.0))
    assert found.endpoints == {HALF: 100, TENTH: 200, VISIBLE: 300, BITS: 150, CHAIN: 300}


def test_an_endpoint_that_no_evaluation_is_past_is_none():
    assert set(result("bert", 1, (3000, 2.0), (2500, 1.99)).endpoints.values()) == {None}


def test_a_metric_that_was_not_finite_and_so_not_logged_is_past_no_endpoint():
    found = result("bert", 1, (1000, 1.5))
    del found.evaluations[50]["bits/span"]
    assert found.endpoints == {HALF: 50, TENTH: None, VISIBLE: None, BITS: None, CHAIN: None}


@pytest.mark.parametrize(
    ("steps", "shown"),
    [
        ([160], "160"),
        ([200, 150, 160], "160 (150 to 200)"),
        ([100, 150], "125 (100 to 150)"),
        ([50, None, 1200], "1,200 (50 to > 2,400)"),
        ([50, None], "> 2,400 (50 to > 2,400)"),
        ([None, None, None], "> 2,400"),
    ],
)
def test_steps_are_shown_as_median_and_range(steps, shown):
    assert show_steps(steps, 2400) == shown


@pytest.mark.parametrize(
    ("slow", "fast", "shown"),
    [
        ([1000, 1500, 800], [100, 200, 50], "10.0"),
        ([None, None, 800], [100, 200, 50], "> 24.0"),
        ([1200], [None], "< 0.5"),
        ([None], [None], ""),
    ],
)
def test_a_ratio_is_a_bound_where_one_start_does_not_get_there(slow, fast, shown):
    assert show_ratio(slow, fast, 2400) == shown


def cells(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_the_tables_have_a_row_for_each_start_with_its_number_of_seeds():
    results = [
        result("bert", 1, (3900, 2.0), (1900, 2.0)),
        result("bert", 2, (3900, 2.0), (3800, 2.0)),
        result("nucleotides", 1, (1900, 2.0), (9, 1.7)),
    ]
    assert cells(steps_table(results)) == [
        ["Span", "BERT's own", "2", "> 100 (100 to > 100)", "> 100", "> 100", "> 100", "> 100"],
        ["Span", "`+nucleotides`", "1", "50", "100", "100", "100", "100"],
        ["Span", "ratio", "", "> 2.0", "> 1.0", "> 1.0", "> 1.0", "> 1.0"],
    ]
    baselines = ["10.0", "2.0000", "1.8000", ""]
    assert cells(last_table(results)) == [
        ["Span", "BERT's own", "2", "2850.0 (1900.0 to 3800.0)", "2.0000", "25.0%", *baselines],
        ["Span", "`+nucleotides`", "1", "9.0", "1.7000", "25.0%", *baselines],
    ]


def test_with_one_start_only_there_is_no_ratio():
    assert [row[1] for row in cells(steps_table([result("nucleotides", 1, (1900, 2.0))]))] == ["`+nucleotides`"]


def test_cm_gems_is_scored_under_genemask_and_shows_when_it_switched():
    evaluations = {step: evaluation(1500, 1.9, masking="genemask") for step in (50, 100)}
    found = [Result(Run(1, "cm-gems", "bert"), evaluations, 50)]
    assert found[0].endpoints[HALF] == 50
    assert cells(last_table(found))[0][-1] == "50"


def write_journal(folder, *contents):
    folder.mkdir(exist_ok=True)
    lines = [{"run": "a", "uri": "sqlite:///x.db", "experiment": "x"}, *contents]
    (folder / "tracking.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_only_finished_runs_of_the_same_length_have_a_result(tmp_path):
    run, folder = Run(1, "span", "bert"), tmp_path / "span-bert-1"
    assert read_result(run, tmp_path, 100) is None
    found = [{"time": 0, "step": step, "metrics": evaluation(step, 2.0)} for step in (50, 100)]
    write_journal(folder, {"status": "RUNNING"}, found[0])
    assert read_result(run, tmp_path, 100) is None
    write_journal(folder, {"status": "RUNNING"}, *found, {"status": "FAILED"})
    assert read_result(run, tmp_path, 100) is None
    write_journal(folder, {"status": "RUNNING"}, *found, {"status": "FINISHED"})
    assert list(read_result(run, tmp_path, 100).evaluations) == [50, 100]
    assert read_result(run, tmp_path, 150) is None


def test_a_resumed_run_counts_each_step_once_and_switches_at_the_first_metric_of_its_second_stage(tmp_path):
    found = [{"time": 0, "step": step, "metrics": evaluation(step, 2.0)} for step in (50, 100)]
    stages = [{"time": 0, "step": step, "metrics": {"curriculum/stage": stage}} for step, stage in ((50, 0), (100, 1))]
    finished = {"status": "FINISHED"}
    write_journal(tmp_path / "span-bert-1", *found, *stages, {"status": "KILLED"}, *found, *stages, finished)
    read = read_result(Run(1, "span", "bert"), tmp_path, 100)
    assert list(read.evaluations) == [50, 100]
    assert read.switch == 100


def test_the_starts_of_a_curriculum_differ_in_their_initial_weights_alone(tmp_path):
    corpus = PrepareConfig(inputs=["one.fa", "two.fa"], validation_chromosomes=["chr9"])
    bert, variant = (
        load_config(arguments(Run(1, "cm-gems", start), RECIPE, corpus, tmp_path, 2400))
        for start in ("bert", "nucleotides")
    )
    assert bert.corpus.prepare == corpus
    changes = {"embedding_init": "nucleotides", "position_init": "sinusoidal", "attention_init": "neighbours"}
    assert bert.model.model_copy(update=changes) == variant.model
    for group in ("curriculum", "optimizer", "training", "evaluation", "seed", "corpus"):
        assert getattr(bert, group) == getattr(variant, group)
    assert [stage.name for stage in bert.curriculum.stages] == ["genemask", "global_pmi"]
    assert bert.checkpoint.every == bert.training.steps == 2400
