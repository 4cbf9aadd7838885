"""A run is the same however it is launched, and whatever kills it: the same windows, masks and losses.

Each launch runs tests/training/driver.py, the entry script with a recording around it.
"""

import json
import os
import random
import tempfile
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest
from filelock import FileLock

from cmgems.training.checkpoint import checkpoints
from tests.training.launching import REPOSITORY
from tests.training.recording import Launch, launch

PAGE = REPOSITORY / "docs/exactness.md"

ZERO2 = ("zero2", 2)
"""DeepSpeed ZeRO-2 on two processes."""

slow, matrix = pytest.mark.slow, pytest.mark.matrix


def masking(**rates):
    """A stage's masking: strategies, each with its rate."""
    return [{"strategy": strategy, "rate": rate} for strategy, rate in rates.items()]


# As the LOGO recipes, in small: two layers, wide in the middle. 25 windows divide by none of the numbers of processes.
RECIPE = {
    "name": "exact",
    "seed": 11,
    "curriculum": {
        "stages": [
            {"name": "genemask", "masking": masking(genemask=0.15), "until": {"kind": "step", "at": 7}},
            {"name": "mix", "masking": masking(genemask=0.15, global_pmi=0.3), "until": {"kind": "step", "at": 14}},
            {"name": "global", "masking": masking(global_pmi=0.15)},
        ]
    },
    "model": {"layers": 2, "hidden": 32, "intermediate": 384, "heads": 8, "dropout": 0.0, "max_positions": 64},
    "optimizer": {"learning_rate": 2e-3, "warmup_steps": 4},
    "training": {"steps": 20, "global_batch": 25, "micro_batch": 25, "precision": "fp32"},
    "evaluation": {"every": 5, "windows": 50, "micro_batch": 25},
    "checkpoint": {"every": 100, "milestones": []},
    "tracking": {"log_every": 1, "system_metrics": False},
    "launch": {"timeout": 600},
}


def with_trigger(steps, evaluate_every, checkpoint_every, below):
    """The recipe with dropout, and with a switch that the perplexity triggers."""
    until = {"kind": "perplexity_drop", "below": below}
    stages = [
        {"name": "genemask", "masking": masking(genemask=0.15), "until": until},
        {"name": "global", "masking": masking(global_pmi=0.15)},
    ]
    return RECIPE | {
        "curriculum": {"stages": stages},
        "model": {**RECIPE["model"], "dropout": 0.1},
        "training": {**RECIPE["training"], "steps": steps, "micro_batch": 7},
        "evaluation": {**RECIPE["evaluation"], "every": evaluate_every},
        "checkpoint": {"every": checkpoint_every, "milestones": []},
    }


@pytest.fixture(scope="module")
def train(tiny_corpus_path, tmp_path_factory):
    """Function that launches a run, by default in a new folder, and makes sure that it ends well, or by its fault."""

    def start(recipe, *arguments, folder=None, fault="", **options):
        folder = folder or tmp_path_factory.mktemp("exact")
        recipe = recipe | {"corpus": {"path": str(tiny_corpus_path)}}
        launched = launch(folder, recipe, *arguments, fault=fault, **options)
        if fault:
            assert launched.code != 0, launched.end
            assert launched.killed_by == (fault if fault.startswith("kill") else None), launched.end
        else:
            assert launched.code == 0, launched.end
        return launched

    return start


# ---- every launch is the same training

KINDS = {"ddp": "DDP", "zero0": "ZeRO-0", "zero1": "ZeRO-1", "zero2": "ZeRO-2", "zero3": "ZeRO-3"}
EVERY_LAUNCH = list(product(KINDS, (1, 2, 4), (1, 4), (0, 2)))
IN_CI = [("ddp", 2, 4, 0), ("zero3", 2, 4, 2)]


@pytest.fixture(scope="module")
def one_process(train):
    """The reference: one process, without DDP and DeepSpeed, loader workers, or accumulation."""
    return train(RECIPE, "plain", 1)


@pytest.mark.parametrize(
    ("kind", "processes", "accumulation", "workers"),
    [pytest.param(*case, marks=[matrix, slow] if case in IN_CI else matrix) for case in EVERY_LAUNCH],
)
def test_every_launch_trains_on_the_same_windows_with_the_same_masks_and_losses(
    train, one_process, kind, processes, accumulation, workers
):
    micro_batch = -(-25 // (processes * accumulation))
    launched = train(RECIPE, kind, processes, "--training.micro_batch", str(micro_batch), workers=workers)

    assert len(launched.ranks()) == processes
    assert all(len(record["micro_batches"]) == accumulation for rank in launched.ranks() for record in rank.values())
    assert launched.rows() == one_process.rows()
    difference = largest_difference(launched.losses(), one_process.losses())
    write_cell(kind, processes, accumulation, workers, difference)
    assert difference < 1e-4
    assert launched.perplexities() == pytest.approx(one_process.perplexities(), rel=1e-4)


def largest_difference(losses, reference):
    """Largest relative difference of 20 losses."""
    assert list(losses) == list(reference) == list(range(1, 21))
    return max(abs(losses[step] / reference[step] - 1) for step in reference)


def write_cell(kind, processes, accumulation, workers, difference):
    """Put a difference into the table in the docs, if that is asked for."""
    if not os.environ.get("WRITE_DOCS"):
        return
    row = f"| {KINDS[kind]} | {processes} |"
    column = list(product((1, 4), (0, 2))).index((accumulation, workers))
    with FileLock(Path(tempfile.gettempdir()) / "exactness.lock"):  # pytest -n 2 halves the time
        lines = PAGE.read_text().splitlines()
        [number] = [number for number, line in enumerate(lines) if line.startswith(row)]
        cells = lines[number].removeprefix(row).strip("| ").split(" | ")
        cells[column] = f"{difference:.0e}" if difference else "0"
        lines[number] = f"{row} {' | '.join(cells)} |"
        PAGE.write_text("\n".join(lines) + "\n")


# ---- a run that is killed and resumed is the run that is not


@dataclass(frozen=True)
class Course:
    """A run to kill, and how it goes when nothing happens."""

    recipe: dict
    undisturbed: Launch

    @property
    def model(self):
        """Path of the trained model, in the folder of the run."""
        return f"run/models/step-{self.recipe['training']['steps']:08d}/model.safetensors"


@pytest.fixture(scope="module")
def short(train):
    """A run of 20 steps with dropout and a switch, undisturbed."""
    recipe = with_trigger(steps=20, evaluate_every=2, checkpoint_every=3, below=8.5)
    return Course(recipe, train(recipe, *ZERO2, workers=2))


@pytest.fixture(scope="module")
def long(train):
    """The same with 120 steps."""
    recipe = with_trigger(steps=120, evaluate_every=5, checkpoint_every=5, below=1)
    return Course(recipe, train(recipe, *ZERO2, workers=2))


def check_that_kills_change_nothing(train, course, faults, folder):
    """Launch with each fault in turn, going on each time where the last one was killed, and then without one."""
    options = {"folder": folder, "workers": 2}
    launches = [train(course.recipe, *ZERO2, "--resume", "auto", fault=fault, **options) for fault in (*faults, "")]

    undisturbed = course.undisturbed.ranks()
    trained = [set() for _ in undisturbed]
    for number, launched in enumerate(launches, 1):
        for rank, records in enumerate(launched.ranks()):
            trained[rank] |= records.keys()
            for step, record in records.items():
                assert record == undisturbed[rank][step], f"launch {number}, rank {rank}, step {step}\n{launched.end}"
    assert trained == [records.keys() for records in undisturbed]
    assert (folder / course.model).read_bytes() == (course.undisturbed.folder / course.model).read_bytes()
    return launches


@slow
def test_dropout_is_the_same_whenever_a_run_is_launched_on_as_many_processes(train, short, one_process):
    again = train(short.recipe, *ZERO2, workers=2)
    assert again.ranks() == short.undisturbed.ranks()

    # And it takes place: without it, the same windows with the same masks have other losses.
    with_dropout, without = again.losses(), one_process.losses()
    same = [step for step in with_dropout if again.rows()[step] == one_process.rows().get(step)]
    assert 7 in same
    assert max(abs(with_dropout[step] / without[step] - 1) for step in same) > 3e-4


@slow
def test_a_switch_by_perplexity_comes_at_the_same_step_on_both_ranks(short):
    one, two = short.undisturbed.ranks()
    last = max(step for step in one if one[step]["stage"] == "genemask")
    assert 7 <= last < 15
    assert last % 2 == 0  # decided at an evaluation
    for records in (one, two):
        for step, record in records.items():
            expected = ("genemask", ["genemask"]) if step <= last else ("global", ["global_pmi"])
            assert (record["stage"], record["strategies"]) == expected


@slow
def test_a_run_killed_after_a_step_in_a_switch_and_in_a_checkpoint_comes_out_as_if_nothing_had_happened(
    train, short, tmp_path
):
    faults = ["kill 0.05 s after step 4", "kill within switch 1", "kill in the move of checkpoint 15"]
    launches = check_that_kills_change_nothing(train, short, faults, tmp_path)
    assert "resumed after step 12" in launches[-1].output


@matrix
def test_a_run_killed_twenty_times_comes_out_as_if_nothing_had_happened(train, long, tmp_path):
    moments = random.Random(0)
    steps = sorted(moments.sample(range(1, 111), 20))
    faults = [f"kill {moments.uniform(0, 0.4):.3f} s after step {step}" for step in steps]
    check_that_kills_change_nothing(train, long, faults, tmp_path)


@matrix
def test_a_run_killed_around_its_switch_and_in_its_checkpoints_comes_out_as_if_nothing_had_happened(
    train, long, tmp_path
):
    in_switch = [f"kill {moment} switch 1" for moment in ("before", "within", "after")]
    moments = {"staging": 75, "move": 80, "rename": 85, "removal": 90}
    in_checkpoint = [f"kill in the {moment} of checkpoint {step}" for moment, step in moments.items()]
    check_that_kills_change_nothing(train, long, in_switch + in_checkpoint, tmp_path)


@pytest.mark.parametrize(
    ("kind", "course"),
    [
        pytest.param("zero2", (1, 2, 1), marks=[matrix, slow]),
        *(pytest.param(kind, (2, 1, 2, 4, 3), marks=matrix) for kind in ("ddp", "zero0", "zero1", "zero2", "zero3")),
    ],
)
def test_a_run_killed_and_resumed_on_other_numbers_of_processes_trains_as_one_that_is_not(
    train, one_process, kind, course, tmp_path
):
    moments = random.Random(kind)
    recipe = RECIPE | {"checkpoint": {"every": 1, "milestones": []}}
    settings = ("--training.micro_batch", "4", "--resume", "auto")
    rows, losses = one_process.rows(), one_process.losses()
    for number, processes in enumerate(course):
        # Three steps or more of its own, so that a checkpoint by this number of processes is there.
        fault = f"kill in step {moments.randrange(4, 6)} of its own" if number < len(course) - 1 else ""
        launched = train(recipe, kind, processes, *settings, folder=tmp_path, workers=2, fault=fault)
        if number:
            assert f"processes: {course[number - 1]} then, {processes} now" in launched.output, launched.end
        trained = launched.rows()
        assert len(trained) >= 3
        assert trained == {step: rows[step] for step in trained}
        assert launched.losses() == pytest.approx({step: losses[step] for step in trained}, rel=1e-4)
    assert max(trained) == 20


# ---- the ranks are in the same stage, or the run ends


@slow
def test_each_of_40_stages_begins_on_both_ranks_at_its_step_however_far_the_loader_has_read_ahead(train):
    ends = sorted(random.Random(0).sample(range(1, 120), 39))
    strategies = ["genemask", "global_pmi"] * 20
    stages = [
        {"name": f"stage {number}", "masking": masking(**{strategy: 0.15}), "until": {"kind": "step", "at": end}}
        for number, (strategy, end) in enumerate(zip(strategies, ends, strict=False))
    ]
    stages.append({"name": "stage 39", "masking": masking(**{strategies[39]: 0.15})})
    recipe = RECIPE | {
        "curriculum": {"stages": stages},
        "training": {"steps": 120, "global_batch": 4, "micro_batch": 2, "precision": "fp32"},
        "evaluation": {"every": 60, "windows": 50},
    }
    launched = train(recipe, *ZERO2, "--corpus.prefetch", "16", workers=2)

    for records in launched.ranks():
        assert list(records) == list(range(1, 121))
        for step, record in records.items():
            number = sum(end < step for end in ends)
            assert (record["stage"], record["strategies"]) == (f"stage {number}", [strategies[number]])


@slow
def test_ranks_in_different_stages_end_the_run_before_another_checkpoint(train):
    recipe = RECIPE | {"checkpoint": {"every": 2, "milestones": []}}
    ended = train(recipe, *ZERO2, fault="rank 1 goes to stage 1 at step 5")
    assert [path.read_text() for path in sorted(ended.trace.glob("*.exit"))] == ["1", "1"], ended.end
    message = "error: the processes have masked step 5 under different stages: 1 in 'genemask', 1 in 'mix'"
    assert ended.output.count(message) == 1, ended.end
    assert [max(records) for records in ended.ranks()] == [4, 4]
    assert [path.name for path in checkpoints(ended.folder / "run/checkpoints")] == ["step-00000002", "step-00000004"]


# ---- processes that fail, die or go silent


@slow
def test_all_groups_of_processes_have_the_time_out(short):
    """DeepSpeed makes groups of its own, with half an hour."""
    for rank in (0, 1):
        seconds = json.loads((short.undisturbed.trace / f"rank-{rank}.timeouts").read_text())
        assert len(seconds) >= 2
        assert set(seconds) == {600}


@slow
@pytest.mark.parametrize(
    ("fault", "codes", "message"),
    [
        ("rank 0 fails", ["2", "2"], "No space left on device"),
        ("rank 1 fails", ["2", "2"], "No space left on device"),
        ("rank 1 dies", ["1"], "error: rank 0 has lost another process"),
    ],
)
def test_a_rank_that_fails_to_write_its_part_of_a_checkpoint_ends_the_run_on_all(train, fault, codes, message):
    recipe = RECIPE | {"checkpoint": {"every": 2, "milestones": []}}
    ended = train(recipe, *ZERO2, fault=f"{fault} while it writes checkpoint 4")
    assert [path.read_text() for path in sorted(ended.trace.glob("*.exit"))] == codes, ended.end
    assert message in ended.output, ended.end
    assert [path.name for path in checkpoints(ended.folder / "run/checkpoints")] == ["step-00000002"]
