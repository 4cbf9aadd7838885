"""The `cmgems` command as a user calls it."""

import csv
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import datasets
import numpy as np
import pytest

import cmgems
from cmgems import cli
from cmgems.cli import main
from cmgems.data.corpus import load_corpus
from cmgems.data.tokenizer import count_kmers
from cmgems.masking.npmi import npmi_from_counts, read_npmi


@pytest.fixture(scope="module")
def genome(tmp_path_factory):
    path = tmp_path_factory.mktemp("genome") / "genome.fa"
    random = np.random.default_rng(1)
    with path.open("w") as file:
        for name in ("a", "b", "c"):
            file.write(f">{name}\n{''.join(random.choice(list('ACGT'), 3000))}\n")
    return path


@pytest.fixture(scope="module")
def corpus(genome, tmp_path_factory):
    path = tmp_path_factory.mktemp("corpora") / "corpus"
    main(["prepare", str(genome), "--output", str(path), "-k", "5", "--window_tokens", "60"])
    return path


def fails(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_prepare_writes_a_corpus(corpus):
    assert load_corpus(corpus).k == 5
    assert set(datasets.load_from_disk(str(corpus))) == {"train", "validation"}


def test_prepare_says_what_the_corpus_holds(genome, tmp_path, capsys):
    main(["prepare", str(genome), "--output", str(tmp_path / "c"), "--validation_chromosomes", "b"])
    shown = capsys.readouterr().out
    assert "train: " in shown
    assert "6-mers" in shown
    assert set(load_corpus(tmp_path / "c").validation["chromosome"]) == {"b"}


def test_npmi_of_a_corpus_is_that_of_its_training_split(corpus, tmp_path, capsys):
    output = tmp_path / "npmi.csv"
    main(["npmi", "--corpus", str(corpus), "--output", str(output)])
    opened = load_corpus(corpus)
    expected = npmi_from_counts(count_kmers(opened.train["sequence"], 5), 5)
    table = read_npmi(output)
    assert (table.npmi == expected.npmi).all()
    assert table.fingerprint == expected.fingerprint
    with output.open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["kmer", "count", "pmi", "npmi"]
    assert rows[0]["kmer"] in capsys.readouterr().out


@pytest.mark.parametrize("k", [2, 3, 8])
def test_npmi_of_another_k_counts_the_windows_again(corpus, tmp_path, k):
    output = tmp_path / "npmi.csv"
    main(["npmi", "--corpus", str(corpus), "-k", str(k), "--output", str(output)])
    table = read_npmi(output)
    assert table.k == k
    assert (table.counts == count_kmers(load_corpus(corpus).train["sequence"], k)).all()


def test_npmi_of_the_human_counts_that_ship_with_cmgems(tmp_path):
    output = tmp_path / "human.csv"
    main(["npmi", "--counts", "human", "--method", "published", "--output", str(output)])
    assert read_npmi(output).counts.sum() == 669_128_271


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["preprae", "x"], "preprae: cmgems has no such subcommand (did you mean prepare?)"),
        (["prepare", "x", "--windowtokens", "20", "--output", "x"], "--windowtokens: unknown option (did you mean --w"),
        (["prepare", "--output", "x"], "command line: the following arguments are required: INPUTS"),
        (["prepare", "/no/such.fa", "--output", "x"], "/no/such.fa"),
        (["prepare", "a.fa", "--output", "x", "-k", "9"], "k: Input should be less than or equal to 8"),
        (["prepare", "a.fa", "--otput", "x"], "--otput"),
        (["npmi", "--output", "x.csv"], "give either --corpus or --counts"),
        (["npmi", "--corpus", "/no/such", "--output", "x.csv"], "/no/such"),
        (["npmi", "--counts", "human", "-k", "5", "--output", "x.csv"], "-k belongs to --corpus"),
        (["npmi", "--counts", "human", "--method", "guess", "--output", "x.csv"], "method"),
        (["npmi", "--counts", "human", "--output", "/no/such/folder/x.csv"], "there is no folder /no/such/folder"),
        (["npmi", "--counts", "human", "--output", "/dev/null/x.csv"], "/dev/null/x.csv: there is no folder /dev/null"),
        (["npmi", "--counts", "human", "--output", "/"], "/: this is a folder"),
        (["sync"], "FOLDERS"),
        (["sync", "/no/such"], "/no/such is not the folder of a run"),
    ],
)
def test_a_mistake_gives_one_message_and_exit_code_2(capsys, arguments, message):
    error = fails(capsys, arguments)
    assert error.startswith("error: ")
    assert message in error
    assert "Traceback" not in error


def test_alone_it_shows_its_subcommands(capsys):
    shown = fails(capsys, [])
    for name, field in cli.Commands.model_fields.items():
        assert re.search(rf"^ +{field.alias or name} +{re.escape(field.description.split()[0])}", shown, re.MULTILINE)


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"cmgems {cmgems.__version__}\n"


@pytest.mark.parametrize(
    "name",
    [
        "[chr1].fa",
        "{a}.fa",
        "chr1,chr2.fa",
        '"x".fa',
        "null",
        "a b.fa",
        "é.fa",
        "q'.fa",
        "b\\.fa",
        "$x;.fa",
        "1.5",
        "true",
    ],
)
def test_any_name_of_a_file_is_taken(genome, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    shutil.copy(genome, name)
    main(["prepare", name, "--output", "corpus"])
    assert load_corpus(tmp_path / "corpus").manifest["inputs"][0]["name"] == name


@pytest.mark.parametrize(
    "lists", [["a", "b"], ["a,b"], ["a", "--validation_chromosomes", "b"], ['["a", "b"]'], ["a, b"]]
)
def test_a_list_has_commas_or_blanks(genome, tmp_path, lists):
    main(["prepare", str(genome), "--validation_chromosomes", *lists, "--output", str(tmp_path / "c")])
    assert set(load_corpus(tmp_path / "c").validation["chromosome"]) == {"a", "b"}


def test_what_follows_a_list_is_the_input_where_none_stands_before_it(genome, tmp_path):
    main(["prepare", "--output", str(tmp_path / "c"), "--validation_chromosomes", "a,b", str(genome)])
    assert set(load_corpus(tmp_path / "c").validation["chromosome"]) == {"a", "b"}


@pytest.mark.parametrize("option", ["-k", "--k"])
def test_an_option_of_one_letter_has_one_dash_or_two(genome, tmp_path, option):
    main(["prepare", str(genome), option, "4", "--output", str(tmp_path / "c")])
    assert load_corpus(tmp_path / "c").k == 4


def test_prepare_says_what_is_in_no_window(tmp_path, capsys):
    twice = "".join(np.random.default_rng(2).choice(list("ACGT"), 30))
    (tmp_path / "genome.fa").write_text(f">a\n{twice}NNNACGT{'N' * 3}{twice}\n>b\n{twice[::-1]}AC\n")
    main(["prepare", str(tmp_path / "genome.fa"), "--output", str(tmp_path / "c"), "--full_length_share", "1"])
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"{tmp_path}/c: 62 of 102 nucleotides; left out: 6 other than A, C, G, T, 30 in 1 duplicate windows, "
        "4 in stretches of fewer than 5 tokens"
    )


def test_a_changed_corpus_is_refused_and_an_intact_one_verified(genome, tmp_path, capsys):
    main(["prepare", str(genome), "--output", str(tmp_path / "c")])
    main(["verify", str(tmp_path / "c")])
    assert f"{tmp_path}/c: intact, " in capsys.readouterr().out
    with (tmp_path / "c" / "kmer_counts.csv").open("a") as file:
        file.write("\n")
    for command in (["verify", str(tmp_path / "c")], ["npmi", "--corpus", str(tmp_path / "c"), "--output", "x.csv"]):
        assert "kmer_counts.csv: not the file that `cmgems prepare` wrote" in fails(capsys, command)


def test_an_output_that_cannot_be_made_is_named(genome, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    for output in ("/dev/null/x", str(tmp_path / "file" / "corpus")):
        error = fails(capsys, ["prepare", str(genome), "--output", output])
        assert error.startswith(f"error: {output}: the corpus cannot be written (")
        assert len(error.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_encrypted_archive_is_named(tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "locked.zip", "w") as archive:
        archive.writestr("genome.fa", ">a\nACGT\n")
    content = bytearray((tmp_path / "locked.zip").read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag that says so
    (tmp_path / "locked.zip").write_bytes(content)
    error = fails(capsys, ["prepare", str(tmp_path / "locked.zip"), "--output", str(tmp_path / "corpus")])
    assert error.startswith(f"error: {tmp_path}/locked.zip/genome.fa: cannot be unpacked (")
    assert len(error.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["locked.zip"]


def test_the_training_split_of_a_corpus_is_an_input(corpus, tmp_path):
    main(["prepare", str(corpus / "train"), "--output", str(tmp_path / "c"), "-k", "5", "--window_tokens", "60"])
    again = load_corpus(tmp_path / "c")
    assert not set(again.train["chromosome"]) & set(again.validation["chromosome"])


def test_a_region_without_a_position_is_named(tmp_path, capsys):
    rows = {"sequence": ["ACGT" * 9] * 2, "chromosome": ["a", "a"], "start": [0, -4]}
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "genome"))
    capsys.readouterr()
    error = fails(capsys, ["prepare", str(tmp_path / "genome"), "--output", str(tmp_path / "corpus")])
    assert error.startswith(f"error: {tmp_path}/genome, row 1: start is -4; it must be an integer")
    assert len(error.splitlines()) == 1


def test_an_existing_corpus_is_not_overwritten(corpus, genome, capsys):
    assert str(corpus) in fails(capsys, ["prepare", str(genome), "--output", str(corpus)])
    assert load_corpus(corpus).k == 5


def test_a_deprecated_option_is_taken_with_a_warning(monkeypatch, capsys):
    taken = []
    monkeypatch.setattr(cli.Benchmark, "cli_cmd", taken.append)
    main(["benchmark", "--model", "m", "--data", "d", "--no-floors"])
    assert [config.baselines for config in taken] == [False]
    assert capsys.readouterr().err == "warning: --no-floors is deprecated, and is --no-baselines now\n"


@pytest.fixture(scope="module")
def large_genome(tmp_path_factory):
    """20 million bases, of which a corpus takes seconds."""
    path = tmp_path_factory.mktemp("genome") / "large.fa"
    bases = np.frombuffer(b"ACGT", dtype=np.uint8)[np.random.default_rng(2).integers(0, 4, 20_000_000)]
    path.write_bytes(b">a\n" + bases[:-2_000_000].tobytes() + b"\n>b\n" + bases[-2_000_000:].tobytes() + b"\n")
    return path


def stop_while_writing(number, genome, output):
    """Send a signal to `cmgems prepare` while it writes a corpus; returns its exit code and what it printed."""
    command = [sys.executable, "-m", "cmgems", "prepare", str(genome), "--output", str(output)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not any(output.parent.glob(".*.partial/*/*.arrow")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.005)
        process.send_signal(number)
        return process.wait(60), process.stderr.read()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_prepare_that_a_signal_stops_leaves_nothing_behind(large_genome, tmp_path, number):
    code, printed = stop_while_writing(number, large_genome, tmp_path / "made" / "corpus")
    assert code == 75
    assert printed.endswith(f"stopped by {number.name}; what is complete is kept; run the same command again\n")
    assert "Traceback" not in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_a_killed_prepare_leaves_goes_with_the_next_one(large_genome, genome, tmp_path):
    output = tmp_path / "corp[u]s*"
    assert stop_while_writing(signal.SIGKILL, large_genome, output)[0] == -signal.SIGKILL
    [partial] = tmp_path.iterdir()
    assert partial.name.startswith(".corp[u]s*.")
    main(["prepare", str(genome), "--output", str(output)])
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.slow
def test_a_prepare_leaves_alone_what_another_one_is_writing(large_genome, genome, tmp_path):
    output = tmp_path / "corpus"
    command = [sys.executable, "-m", "cmgems", "prepare", str(large_genome), "--output", str(output)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not any(tmp_path.glob(".*.partial/*/*.arrow")):
            time.sleep(0.005)
        process.send_signal(signal.SIGSTOP)
        main(["prepare", str(genome), "--output", str(output)])
        assert len(list(tmp_path.glob(".*.partial"))) == 1
        process.send_signal(signal.SIGCONT)
        assert process.wait(60) == 2
        assert "another process has written it in the meantime; its corpus stays" in process.stderr.read()
    assert list(tmp_path.iterdir()) == [output]
    assert len(load_corpus(output).train) == 15
