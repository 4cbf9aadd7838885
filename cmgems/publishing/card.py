"""The model card: metadata that the hub reads, and a text for people, both from the description of a model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

import cmgems
from cmgems.downstream.results import Score
from cmgems.model.codons import CODON_BITS
from cmgems.publishing.description import Description
from cmgems.report.cells import NONE
from cmgems.report.comparison import Column, Comparison, TaskRow, groups_of
from cmgems.report.tables import baseline_name

MASKINGS = {"span": "random spans", "genemask": "GeneMask", "global_pmi": "Global-PMI"}
"""The maskings that every run is scored under, and what the card calls them."""

TAGS = ("genomics", "biology", "masked-language-modeling", "curriculum-learning", "cmgems")
"""Tags of every model, beside its alphabet."""

HUB_METRICS = {"mcc": "matthews_correlation", "spearman": "spearmanr", "pearson": "pearsonr"}
"""Metrics that have another name on the hub."""


@dataclass(frozen=True, slots=True)
class Publication:
    """What a card says that is not in the run."""

    name: str
    """What the model is loaded by: `OWNER/NAME`, or the name of its folder."""
    license: str | None
    """Identifier of the licence."""
    kg_co2: float | None
    """Emissions of the training, in kg of CO2 equivalents."""


@dataclass(frozen=True)
class ScoreTable:
    """Downstream scores of a suite by a protocol, as text."""

    title: str
    about: str
    metric: str
    columns: list[str]
    rows: list[tuple[str, list[str]]]
    """Name of a task or mean, and a cell for each column."""
    seeds: list[int]
    not_above: list[str]
    """Tasks in which the model is not above random weights of its architecture."""


def write_card(model: Description, publication: Publication) -> str:
    """Return the card as Markdown, with its metadata in front."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"cell": _cell, "masking": _masking, "settings": _settings, "number": _number}
    body = environment.get_template("card.md").render(
        model=model,
        tokens=model.tokenization,
        config=model.config,
        publication=publication,
        version=cmgems.__version__,
        maskings=MASKINGS,
        scores=[_score_table(comparison, model.step) for comparison in model.comparisons],
        codon_bits=CODON_BITS,
        worse=_no_better_than_chains(model),
    )
    return str(ModelCard(f"---\n{metadata(model, publication).to_yaml()}\n---\n\n{body}"))


def metadata(model: Description, publication: Publication) -> ModelCardData:
    """Return what the hub reads: licence, tags, data sets, and the downstream scores of the model as its index."""
    start = model.config.model.init_from
    scores = [each for comparison in model.comparisons for each in _eval_results(comparison, model.step)]
    emissions: dict[str, Any] = {}
    if publication.kg_co2 is not None:
        grams = {"emissions": 1000 * publication.kg_co2, "training_type": "pre-training"}
        emissions["co2_eq_emissions"] = grams | {"source": "given by the publisher"}
    return ModelCardData(
        license=publication.license,
        library_name="transformers",
        pipeline_tag="fill-mask",
        tags=[model.tokenization.alphabet, *TAGS],
        datasets=[each["name"] for each in model.corpus["inputs"] if "/" in each["name"]] or None,
        base_model=start if start and "/" in start else None,
        model_name=model.config.name if scores else None,
        eval_results=scores or None,
        **emissions,
    )


def _eval_results(comparison: Comparison, step: int) -> list[EvalResult]:
    """Return the scores of a model on the published splits of tasks, as the hub has them."""
    column = _own_column(comparison, step)
    metric = comparison.metric
    found = []
    for task in comparison.tasks:
        if (score := column.score(task.name)) is not None:
            result = next(result for result in column.results if result.task == task.name)
            found.append(
                EvalResult(
                    task_type="text-classification" if result.value is None else "tabular-regression",
                    task_name="Sequence classification" if result.value is None else "Sequence regression",
                    dataset_type=comparison.base,
                    dataset_name=f"{comparison.base}: {task.name}",
                    dataset_config=task.name,
                    dataset_split="test",
                    metric_type=HUB_METRICS.get(metric, metric),
                    metric_value=round(score.mean, 6),
                    metric_name=f"{metric}, {comparison.protocol.name}, {_spread(score)}",
                )
            )
    return found


def _spread(score: Score) -> str:
    if score.sd is None:
        return "one seed"
    return f"mean of {len(score.values)} seeds, standard deviation {score.sd:.6f}"


def _own_column(comparison: Comparison, step: int) -> Column:
    return next(column for column in comparison.models if column.step == step)


def _score_table(comparison: Comparison, step: int) -> ScoreTable:
    own = _own_column(comparison, step)
    starts = [column for column in comparison.models if column is not own]
    columns = [own, *starts, *comparison.baselines]
    names = [f"this model (step {step:,})", *("untrained (same initial weights)" for _ in starts)]
    rows = []
    for group, tasks in groups_of(comparison.tasks).items():
        scored = [task for task in tasks if any(_task_cell(column, task) != NONE for column in columns)]
        rows += [(task.name, [_task_cell(column, task) for column in columns]) for task in scored]
        common = [task for task in tasks if own.score(task.name)]
        if group is not None and len(common) > 1:
            means = (column.mean(common) for column in columns)
            name = f"mean of {len(common)} of {len(tasks)} tasks, {group.replace('_', '-')}"
            rows.append((name, [mean.percent if mean else NONE for mean in means]))
    protocol = comparison.protocol
    return ScoreTable(
        title=f"{comparison.base}, {protocol.title or protocol.name}",
        about=protocol.about,
        metric=comparison.metric.upper() if comparison.metric == "mcc" else comparison.metric,
        columns=names + [baseline_name(comparison, baseline) for baseline in comparison.baselines],
        rows=rows,
        seeds=sorted({result.seed for result in own.results}),
        not_above=[task.name for task in comparison.tasks if _is_not_above(comparison, own, task)],
    )


def _task_cell(column: Column, task: TaskRow) -> str:
    if (score := column.score(task.name)) is not None:
        return score.percent
    resplit = column.resplit_score(task.name)
    return NONE if resplit is None else f"{resplit.percent}, resplit"


def _is_not_above(comparison: Comparison, own: Column, task: TaskRow) -> bool:
    score = own.score(task.name)
    baseline = comparison.baseline_value(own, lambda column: column.score(task.name))
    return score is not None and baseline is not None and score.mean <= baseline


def _no_better_than_chains(model: Description) -> list[str]:
    """Return the maskings under which hidden bases take the model as many bits as a Markov chain, or more."""
    bits = {name: (model.metrics.get(f"bits/{name}"), model.metrics.get(f"bits/{name}_chain")) for name in MASKINGS}
    return [MASKINGS[name] for name, (own, chain) in bits.items() if own is not None and chain and own >= chain]


def _cell(text: object) -> str:
    """Return a text for a cell of a table, whatever is in it."""
    return str(text).replace("\n", " ").replace("|", "\\|").replace("<", "&lt;")


def _masking(strategies: list[dict[str, Any]]) -> str:
    """Return a masking in words; a single strategy has no need of a weight."""
    alone = len(strategies) == 1
    shown = [{name: value for name, value in each.items() if not (alone and name == "weight")} for each in strategies]
    return "; ".join(_settings(each, "strategy") for each in shown)


def _settings(values: dict[str, Any], first: str) -> str:
    """Return settings in words, beginning with the value of `first`; those that are not set are left out."""
    rest = (f"{name} {value}" for name, value in values.items() if name != first and value is not None)
    return ", ".join([str(values[first]), *rest])


def _number(value: float | None, digits: int) -> str:
    return NONE if value is None else f"{value:,.{digits}f}"
