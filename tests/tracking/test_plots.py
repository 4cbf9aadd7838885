"""The picture of a run."""

from cmgems.curriculum.controller import Switch
from cmgems.tracking.plots import draw_validation

BASELINES = {
    "span": {
        "composition": {"name": "base composition", "bits": 1.96, "accuracy": 0.3, "perplexity": 3.9},
        "chain": {"name": "order 5, both flanks", "bits": 1.9, "accuracy": 0.35},
    }
}


def evaluation(step, stage, perplexity, bits=None):
    found = {"step": step, "stage": stage, "perplexity": {"span": perplexity, "stage": perplexity}}
    return found if bits is None else {**found, "bits": {"span": bits}, "accuracy": {"span": 0.3}}


def lines(axes):
    """Points of all lines of a part, by label; nameless ones are lines across it."""
    return {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}


def test_perplexities_and_bits_are_drawn_side_by_side_with_switch_and_baselines():
    evaluations = [evaluation(10, "easy", 90.0, 1.98), evaluation(20, "hard", 40.0, 1.93)]
    figure = draw_validation(evaluations, [Switch(10, "easy", "hard", ())], 500.0, BASELINES)
    perplexities, bits = figure.axes
    assert lines(perplexities)["span"] == [[10, 90.0], [20, 40.0]]
    assert lines(bits)["span"] == [[10, 1.98], [20, 1.93]]
    assert {"best Markov chain", "base composition"} <= set(lines(bits))
    levels = {line.get_ydata()[0] for line in bits.get_lines() if list(line.get_xdata()) == [0, 1]}
    assert levels >= {1.9, 1.96}
    for axes in (perplexities, bits):
        assert [text.get_text() for text in axes.texts] == [" hard from here"]


def test_a_run_resumed_from_an_older_checkpoint_has_bits_from_there_on():
    evaluations = [evaluation(10, "easy", 90.0), evaluation(20, "easy", 40.0, 1.93)]
    perplexities, bits = draw_validation(evaluations, [], 500.0, BASELINES).axes
    assert lines(perplexities)["span"] == [[10, 90.0], [20, 40.0]]
    assert lines(bits)["span"] == [[20, 1.93]]


def test_without_any_bits_there_is_nothing_to_name():
    _, bits = draw_validation([evaluation(10, "easy", 90.0)], [], 500.0, {}).axes
    assert bits.get_legend() is None
