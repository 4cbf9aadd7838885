"""`cmgems score`: a field in a VCF file, a column in a table; what has no score is counted and said."""

import csv
import random

import numpy as np
import pyarrow.parquet as pq
import pytest

import cmgems
from cmgems.cli import main
from cmgems.inference.scoring import SCORE
from tests.data.corpora import write_fasta
from tests.downstream import models

RECORD = "".join(random.Random(3).choices("ACGT", k=400))


def another(base):
    return "ACGT".replace(base, "")[0]


@pytest.fixture
def folder(tmp_path):
    return models.ours(tmp_path / "model", k=3)


@pytest.fixture
def genome(tmp_path):
    return str(write_fasta(tmp_path / "genome.fa", chr1=RECORD))


@pytest.fixture
def vcf(tmp_path):
    rows = [
        f"chr1\t51\trs1\t{RECORD[50]}\t{another(RECORD[50])},<DEL>\t.\tPASS\tAF=0.1\tGT\t0/1",
        f"chr2\t51\t.\t{RECORD[50]}\t{another(RECORD[50])}\t.\t.\t.",
        f"chr1\t61\t.\t{RECORD[60]}\t{another(RECORD[60])}\t.\t.\t.",
    ]
    text = "##fileformat=VCFv4.3\n##source=test\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tx\n"
    (tmp_path / "v.vcf").write_text(text + "\n".join(rows) + "\n")
    return tmp_path / "v.vcf"


def score(*arguments):
    main(["score", *map(str, arguments)])


def expected(folder, genome):
    variants = [("chr1", i + 1, RECORD[i], another(RECORD[i])) for i in (50, 60)]
    return cmgems.load(folder).score_variants(variants, genome)


def test_a_vcf_file_gets_a_field(tmp_path, folder, genome, vcf, capsys):
    score(vcf, "--model", folder, "--genome", genome, "--output", tmp_path / "o.vcf")
    said = capsys.readouterr().out
    assert "o.vcf: 2 scored, 1 record not in the genome, 1 symbolic allele" in said
    before, after = (path.read_text().splitlines() for path in (vcf, tmp_path / "o.vcf"))
    [header] = [line for line in after if line not in before and line.startswith("##")]
    assert header.startswith(f"##INFO=<ID={SCORE},Number=A,Type=Float,")
    assert after.index(header) == 2
    rows = [line.split("\t") for line in after if not line.startswith("#")]
    first, last = expected(folder, genome)
    assert [row[7] for row in rows] == [f"AF=0.1;{SCORE}={first:.6g},.", f"{SCORE}=.", f"{SCORE}={last:.6g}"]
    for row in rows:
        row[7] = row[7].partition(";")[0] if row[7].startswith("AF") else "."
    assert ["\t".join(row) for row in rows] == before[3:]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_has_a_row_for_each_allele(tmp_path, folder, genome, vcf, kind):
    output = tmp_path / f"o.{kind}"
    score(vcf, "--model", folder, "--genome", genome, "--output", output)
    if kind == "csv":
        with output.open() as file:
            rows = list(csv.DictReader(file))
        values = [float(row["cmgems_llr"] or "nan") for row in rows]
        assert rows[1]["alternative"] == "<DEL>"
    else:
        table = pq.read_table(output)
        assert table["position"].to_pylist() == [51, 51, 51, 61]
        values = [np.nan if value is None else value for value in table["cmgems_llr"].to_pylist()]
    first, last = expected(folder, genome)
    np.testing.assert_allclose(values, [first, np.nan, np.nan, last], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--output", "o.txt"), "output o.txt: a name that ends with .vcf, .parquet or .csv"),
        (("--output", "o.vcf", "--genome", "no.fa"), "no.fa: there is no such file"),
        (("--output", "o.vcf", "--model", "/no/model"), "model /no/model cannot be loaded"),
        (("--output", "no/such/../../o.vcf", "--max_tokens", "500"), "--max_tokens is 500, but model"),
    ],
)
def test_a_mistake_is_one_message_and_nothing_is_written(
    tmp_path, folder, genome, vcf, options, message, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        score(vcf, "--model", folder, "--genome", genome, *options)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["genome.fa", "model", "v.vcf"]
