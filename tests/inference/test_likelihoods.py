"""Scores of variants are those of a plain loop over them: one context, one forward pass, one strand after the other."""

import random

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

import cmgems
from cmgems.data.tokenization import Tokenization
from cmgems.data.tokenizer import save_tokenizer, vocabulary_size
from cmgems.errors import UserError
from cmgems.inference.likelihoods import AT_END, DIFFERENT, LONG, MISSING, SAME, SYMBOLIC, Scorer
from cmgems.inference.variants import Trimmed, Variant, read_variants, trim
from tests.data.corpora import write_fasta
from tests.downstream import models

COMPLEMENT = str.maketrans("ACGT", "TGCA")
RECORD = "".join(random.Random(3).choices("ACGT", k=400))
LIMIT = 62  # tokens


@pytest.fixture
def genome(tmp_path):
    records = {"other": "ACGT" * 30, "chr1": RECORD, "gap": RECORD[:100] + "N" + RECORD[100:]}
    return str(write_fasta(tmp_path / "genome.fa", **records))


def another(base):
    """A nucleotide that is not `base`."""
    return "ACGT".replace(base, "")[0]


def given(variants):
    """Variants as users give them."""
    return [(v.chromosome, v.position + 1, v.reference, v.alternative) for v in variants]


def variant(start, end, alternative, record=RECORD):
    return Variant(0, "chr1", start, record[start:end], alternative)


def substitutions(number, seed=0):
    draw = random.Random(seed)
    places = sorted(draw.sample(range(len(RECORD)), number))
    return [variant(i, i + 1, draw.choice("ACGT".replace(RECORD[i], ""))) for i in places]


class Plainly:
    """Log-probabilities of hidden nucleotides, one sequence and one nucleotide at a time."""

    def __init__(self, folder, k):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForMaskedLM.from_pretrained(folder).eval()
        self.k = k

    def log_probability(self, sequence, place, hidden, base):
        """That of `base` at `place` of `sequence`, where all places in `hidden` are hidden."""
        kmers = [sequence[i : i + self.k] for i in range(len(sequence) - self.k + 1)]
        masked = ["[MASK]" if any(i <= h < i + self.k for h in hidden) else kmer for i, kmer in enumerate(kmers)]
        inputs = self.tokenizer(" ".join(masked), return_tensors="pt")
        with torch.no_grad():
            logits = self.model(input_ids=inputs["input_ids"]).logits[0]
        of_base = []
        names = self.tokenizer.convert_ids_to_tokens(range(5, len(self.tokenizer)))
        for i in range(max(place - self.k + 1, 0), min(place, len(kmers) - 1) + 1):
            probabilities = logits[i + 1, 5:].softmax(-1)
            has_base = torch.tensor([name[place - i] == base for name in names])
            of_base.append(probabilities[has_base].sum().item())
        return np.log(np.mean(of_base))

    def score(self, record, start, reference, alternative, strands=2):
        """The score of a variant that is written without what its alleles share."""
        flank = int(len(reference) != len(alternative))
        total = 0.0
        for allele, sign in ((alternative, 1), (reference, -1)):
            end = start + len(reference) + flank
            hidden = record[start - flank : start] + allele + record[end - flank : end]
            beside = (LIMIT + self.k - 1 - len(hidden)) // 2
            begin = max(start - flank - max(beside, 2 * beside - (len(record) - end)), 0)
            context = (record[begin : start - flank] + hidden + record[end:])[: 2 * beside + len(hidden)]
            places = range(start - flank - begin, start - flank - begin + len(hidden))
            for strand in range(strands):
                text, where = context, list(places)
                if strand:
                    text = context.translate(COMPLEMENT)[::-1]
                    where = [len(text) - 1 - place for place in places]
                logs = [self.log_probability(text, place, where, text[place]) for place in where]
                total += sign * (np.mean(logs) if flank else np.sum(logs)) / strands
        return total


@pytest.mark.parametrize("k", [1, 3])
def test_they_are_those_of_a_plain_loop(tmp_path, genome, k):
    folder = models.ours(tmp_path / "model", k=k, max_positions=LIMIT + 2) if k > 1 else nucleotides(tmp_path / "model")
    model, plainly = cmgems.load(folder), Plainly(folder, k)
    plainly.model = plainly.model.double()
    variants = [
        *substitutions(12),
        variant(0, 1, another(RECORD[0])),
        variant(399, 400, another(RECORD[399])),
        variant(200, 203, "".join(another(base) for base in RECORD[200:203])),
    ]
    scores = model.score_variants(given(variants), genome)
    expected = [plainly.score(RECORD, v.position, v.reference, v.alternative) for v in variants]
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def nucleotides(folder):
    models._save_bert(folder, vocabulary_size(1), LIMIT + 2, 0)
    save_tokenizer(folder, Tokenization(1), LIMIT + 2)
    return folder


def test_insertions_and_deletions_are_those_of_a_plain_loop(tmp_path, genome):
    folder = models.ours(tmp_path / "model", k=3, max_positions=LIMIT + 2)
    model, plainly = cmgems.load(folder), Plainly(folder, 3)
    variants = [
        variant(99, 103, RECORD[99]),
        variant(150, 151, RECORD[150] + "GATTACA"),
        variant(300, 302, RECORD[300] + "ACGT"),
    ]
    scores = model.score_variants(given(variants), genome)
    changes = [trim(v) for v in variants]
    expected = [plainly.score(RECORD, c.start, c.reference, c.alternative) for c in changes]
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_the_other_allele_and_the_other_strand(tmp_path, genome):
    """Exchanged alleles change the sign, and on the other strand of the record the score is the same."""
    model = cmgems.load(models.ours(tmp_path / "model", k=3, max_positions=LIMIT + 2))
    places = range(100, 300, 40)
    forward = [("chr1", i + 1, RECORD[i], another(RECORD[i])) for i in places]
    scores = model.score_variants(forward, genome)
    reverse = RECORD.translate(COMPLEMENT)[::-1]
    other = str(write_fasta(tmp_path / "other.fa", chr1=reverse))
    turned = [(c, 401 - i, r.translate(COMPLEMENT), a.translate(COMPLEMENT)) for c, i, r, a in forward]
    np.testing.assert_allclose(model.score_variants(turned, other), scores, atol=1e-5)
    changed = RECORD
    for _, i, _, alternative in forward:
        changed = changed[: i - 1] + alternative + changed[i:]
    back = str(write_fasta(tmp_path / "changed.fa", chr1=changed))
    exchanged = model.score_variants([(c, i, a, r) for c, i, r, a in forward[:1]], back)
    # The other places differ too, but are out of the context of a model of 62 tokens.
    np.testing.assert_allclose(exchanged, -scores[:1], atol=1e-5)


def test_codons_are_read_in_frame_and_on_their_strand(tmp_path):
    folder = tmp_path / "model"
    models._save_bert(folder, vocabulary_size(3), 34, 0)
    save_tokenizer(folder, Tokenization(3, 3), 34)
    gene = RECORD[:300]
    genome = str(write_fasta(tmp_path / "genome.fa", gene=gene))
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForMaskedLM.from_pretrained(folder).eval()
    places = [0, 1, 2, 100, 150, 296]
    variants = [("gene", i + 1, gene[i], another(gene[i])) for i in places]
    expected = []
    names = tokenizer.convert_ids_to_tokens(range(5, len(tokenizer)))
    for _, position, reference, alternative in variants:
        place = position - 1
        begin = -(-min(max(place - 47, 0), 300 - 95) // 3) * 3
        end = min((begin if begin else 0) + 95, 300)
        codons = [gene[i : i + 3] for i in range(begin, end - 2, 3)]
        hidden = (place - begin) // 3
        ids = tokenizer("".join(codons), return_tensors="pt")["input_ids"]
        ids[0, hidden + 1] = tokenizer.mask_token_id
        with torch.no_grad():
            shares = model(input_ids=ids).logits[0, hidden + 1, 5:].softmax(-1).tolist()
        of = {base: sum(p for p, name in zip(shares, names, strict=True) if name[place % 3] == base) for base in "ACGT"}
        expected.append(np.log(of[alternative] / of[reference]))
    np.testing.assert_allclose(cmgems.load(folder).score_variants(variants, genome), expected, atol=1e-5)


@pytest.mark.slow
def test_what_breaks_a_word_that_always_comes_back_is_unlikely(tmp_path, monkeypatch):
    """A genome of repeats and of random stretches: the effect of a variant is known from its place alone."""
    monkeypatch.chdir(tmp_path)
    draw, word = random.Random(1), "CTGACATTGGA"
    records = {f"c{i}": "".join(word * 6 + "".join(draw.choices("ACGT", k=60)) for _ in range(48)) for i in range(6)}
    write_fasta(tmp_path / "genome.fa", **records)
    prepare = {
        "inputs": ["genome.fa"],
        "k": 3,
        "window_tokens": 60,
        "min_window_tokens": 30,
        "validation_chromosomes": ["c5"],
    }
    run = cmgems.train(
        "demo",
        corpus={"path": "corpus", "workers": 0, "prepare": prepare},
        curriculum={"stages": [{"name": "span", "masking": [{"strategy": "span", "rate": 0.15}]}]},
        model={"layers": 1, "hidden": 64, "heads": 4, "intermediate": 128, "max_positions": 64},
        optimizer={"warmup_steps": 20, "learning_rate": 3e-3},
        training={"steps": 200, "global_batch": 32, "micro_batch": 32},
        evaluation={"every": 200, "windows": 20},
        checkpoint={"every": 200, "milestones": []},
        tracking={"uri": f"sqlite:///{tmp_path}/mlflow.db", "system_metrics": False},
    )
    repeated = [126 * i + j for i in range(2, 12) for j in (22, 30, 38)]
    at_random = [126 * i + j for i in range(2, 12) for j in (80, 96, 112)]
    variants = [Variant(0, "c5", i, records["c5"][i], another(records["c5"][i])) for i in repeated + at_random]
    in_word, elsewhere = np.split(cmgems.load(run).score_variants(given(variants), "genome.fa"), 2)
    assert in_word.max() < -1
    assert abs(elsewhere.mean()) < 0.3


def test_what_has_no_score_says_why(tmp_path, genome):
    model = cmgems.load(models.ours(tmp_path / "model", k=3, max_positions=LIMIT + 2))
    wrong = another(RECORD[10])
    variants = [
        variant(10, 11, wrong),
        variant(10, 11, wrong)._replace(chromosome="chr2"),
        variant(10, 11, wrong)._replace(reference=wrong, alternative=RECORD[10]),
        variant(10, 11, "<DEL>"),
        variant(10, 11, "*"),
        variant(10, 11, "A" * 51),
        variant(10, 11, RECORD[10]),
        variant(398, 400, RECORD[398]),
        Variant(0, "gap", 99, RECORD[99], RECORD[99] + another(RECORD[99])),
        Variant(0, "gap", 100, "N", "A"),
    ]
    scores, reasons = Scorer(model.base_reader, "both", 4096).score(variants, genome)
    expected = ["", MISSING, DIFFERENT, SYMBOLIC, SYMBOLIC, LONG, SAME, AT_END, AT_END, SYMBOLIC]
    assert reasons == expected
    assert np.isfinite(scores).tolist() == [not reason for reason in expected]


def test_a_model_whose_tokens_have_no_places_is_refused(tmp_path, genome):
    with pytest.raises(UserError, match="its tokens are not k-mers"):
        cmgems.load(models.byte_pairs(tmp_path / "model")).score_variants([("chr1", 1, "A", "C")], genome)


@pytest.mark.parametrize("kind", ["dnabert", "nucleotide_transformer"])
def test_other_models_of_k_mers_have_scores(tmp_path, genome, kind):
    model = cmgems.load(models.NATIVE[kind](tmp_path / "model"))
    scores = model.score_variants(given(substitutions(3)), genome)
    assert np.isfinite(scores).all()


def test_hidden_nucleotides_are_predicted(tmp_path):
    folder = models.ours(tmp_path / "model", k=3, max_positions=LIMIT + 2)
    model, plainly = cmgems.load(folder), Plainly(folder, 3)
    text = RECORD[:30]
    sequences = [text[:4] + "N" + text[5:], text[:10] + "NN" + text[12:20].lower(), text]
    found = model.predict_masked(sequences, batch=2)
    assert [len(of_sequence) for of_sequence in found] == [1, 2, 0]
    for sequence, of_sequence in zip(sequences, found, strict=True):
        places = [place for place, base in enumerate(sequence) if base == "N"]
        for place, row in zip(places, of_sequence, strict=True):
            known = sequence.upper().replace("N", "A")
            expected = [plainly.log_probability(known, place, places, base) for base in "ACGT"]
            np.testing.assert_allclose(np.log(row), expected, atol=1e-5)
            assert row.sum() == pytest.approx(1)
    with pytest.raises(UserError, match="sequence 0 makes 0 tokens; it can be 1 to 62"):
        model.predict_masked(["NA"])


@pytest.mark.parametrize(
    ("reference", "alternative", "expected"),
    [
        ("A", "C", Trimmed(100, "A", "C")),
        ("GCA", "GA", Trimmed(101, "C", "")),
        ("G", "GTT", Trimmed(101, "", "TT")),
        ("AAA", "AA", Trimmed(100, "A", "")),
        ("ACG", "ATG", Trimmed(101, "C", "T")),
        ("ACG", "TTC", Trimmed(100, "ACG", "TTC")),
    ],
)
def test_what_a_variant_changes(reference, alternative, expected):
    assert trim(Variant(0, "1", 100, reference, alternative)) == expected


VCF = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\nchr1\t5\t.\ta\tC,<DEL>\nchr2\t7\trs1\tACG\tA\n"


def test_every_alternative_allele_of_a_file_is_a_variant(tmp_path):
    (tmp_path / "v.vcf").write_text(VCF)
    expected = [Variant(0, "chr1", 4, "A", "C"), Variant(0, "chr1", 4, "A", "<DEL>"), Variant(1, "chr2", 6, "ACG", "A")]
    assert list(read_variants(tmp_path / "v.vcf")) == expected
    (tmp_path / "v.csv").write_text("effect,chromosome,position,reference,alternative\n0.1,chr1,5,A,C\n,chr2,7,ACG,A\n")
    assert list(read_variants(tmp_path / "v.csv")) == [expected[0], expected[2]]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("v.vcf", VCF[1:], "line 1: not VCF"),
        ("v.vcf", VCF.replace("\t5\t", "\t0\t"), "line 3: position '0'"),
        ("v.vcf", VCF.replace("chr2\t7\trs1", "chr2 7 rs1"), "line 4: 3 columns"),
        (
            "v.csv",
            "chromosome,position,ref,alt\n",
            "line 1: there is no column `reference`; the columns are: chromosome,",
        ),
        ("v.csv", "chromosome,position,reference,alternative\n1,x,A,C\n", "line 2: position 'x'"),
        ("v.txt", "", "no variants|not VCF"),
    ],
)
def test_a_damaged_file_is_an_error_of_its_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        list(read_variants(tmp_path / name))
