"""Parsers on changed inputs: each is read as an independent reader reads it, or refused, without a hang.

FUZZ_MINUTES is how long each parser is tried: ten minutes, by hand.
"""

import io
import os
import random
import re
import time
from collections import Counter

import pytest
import yaml

from cmgems.config.command_line import load_config
from cmgems.data import genome_text
from cmgems.data.annotation import Unreadable, read_genbank, read_gff
from cmgems.data.genomes import read_runs
from cmgems.data.kmer_tables import kmers, read_counts
from cmgems.errors import UserError
from tests.data.runs import joined
from tests.data.test_annotation import GENBANK, GFF, QUALIFIED
from tests.inputs import genomes, settings, tables

pytestmark = pytest.mark.matrix

SECONDS = 60 * float(os.environ.get("FUZZ_MINUTES", "10"))
LONGEST = 5  # seconds that one input may take
PIECES = [
    b"\n",
    b"\r",
    b"\r\n",
    b">",
    b">a\n",
    b"ACGT",
    b"N",
    b",",
    b'"',
    b"\t",
    b"\0",
    b"\xef\xbb\xbf",
    b"\xff",
    b"//\n",
]
PIECES += [
    b"LOCUS       x    4 bp    DNA\n",
    b"ORIGIN\n",
    b"9",
    b"  ",
    b"{",
    b"[",
    b"*a",
    b"&a ",
    b": ",
    b"- ",
    b"!!python/name:x",
    b"     CDS             1..9\n",
    b"                     /pseudo\n",
    b"complement(",
    b"join(",
    b"..",
    b",",
    b")",
    b"chr\t.\tCDS\t1\t9\t.\t+\t0\tID=x\n",
    b";Parent=a,b",
]


def changed(content, others, draw):
    """A few random changes of some bytes: flipped, deleted, doubled, inserted, or taken from another input."""
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(content) + 1)
        end = min(len(content), at + draw.choice([1, 1, 2, 8, 64]))
        new = draw.choice(
            [
                bytes(draw.randrange(256) for _ in range(end - at)),
                b"",
                content[at:end] * 2,
                draw.choice(PIECES) + content[at:end],
                draw.choice(others)[:end],
            ]
        )
        content = content[:at] + new + content[end:]
    return content


def as_bytes(content):
    return content if isinstance(content, bytes) else content.encode()


def fuzz(seeds, read, check, path, name):
    """Try a parser on changed seeds until the time is over."""
    seeds = [seed for seed in map(as_bytes, seeds) if len(seed) < 5000]
    seed = int(os.environ.get("FUZZ_SEED", time.time()))
    draw = random.Random(seed)
    accepted = refused = 0
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        content = changed(draw.choice(seeds), seeds, draw)
        path.write_bytes(content)
        begin, said = time.monotonic(), path.name
        try:
            found = read(path)
        except UserError as error:
            refused += 1
            said = str(error)
        except BaseException:
            print(f"{name}: {content!r}")
            raise
        else:
            accepted += 1
            check(content, found)
        assert path.name in said, (content, said)
        assert time.monotonic() - begin < LONGEST, content
    print(f"\n{name}, seed {seed}: {accepted + refused:,} inputs, {accepted:,} read, {refused:,} refused")
    assert accepted
    assert refused


def runs_of(name, sequence):
    """The runs of A, C, G and T in a sequence."""
    letters = re.sub(rb"\s", b"", sequence).upper().replace(b"U", b"T")
    return [(name, match.start(), match.group()) for match in re.finditer(rb"[ACGT]+", letters)]


def check_fasta(content, found):
    """Biopython reads the same names and bases."""
    fasta = pytest.importorskip("Bio.SeqIO.FastaIO")
    if re.search(rb"[\x1c-\x1f\x85\xa0]", content):  # white space in text, but not in ASCII
        return
    text = io.TextIOWrapper(io.BytesIO(content.removeprefix(b"\xef\xbb\xbf")), encoding="latin-1", newline=None)
    expected = []
    for title, sequence in fasta.SimpleFastaParser(text):
        name = title.encode("latin-1").split(maxsplit=1)[0].decode(errors="replace")
        expected += runs_of(name, sequence.encode("latin-1"))
    assert found == expected, content


def check_genbank(content, found):
    """A reader of whole lines finds the same names and bases."""
    expected, name, sequence = [], "", None
    for line in re.split(rb"\r\n|\r|\n", content.removeprefix(b"\xef\xbb\xbf")):
        if line.startswith(b"LOCUS"):
            name = line[5:].split(maxsplit=1)[0].decode(errors="replace")
        elif line.startswith(b"ORIGIN"):
            sequence = b"" if sequence is None else sequence
        elif line.startswith(b"//"):
            expected += runs_of(name, re.sub(rb"\d", b"", sequence or b""))
            sequence = None
        elif sequence is not None:
            sequence += line
    assert found == expected, content


def check_annotated_genbank(content, found):
    """The lines of features, and the numbers in their locations, are those of a plain reading."""
    lines = [line.rstrip(b" \t\n\r\v\f") for line in re.split(rb"\r\n|\r|\n", content.removeprefix(b"\xef\xbb\xbf"))]
    lines = [line for line in lines if line]
    expected = []
    for line, following in zip(lines, [*lines[1:], b""], strict=True):
        goes_on = not following[:21].strip() and following[21:].strip() and not following.strip().startswith(b"/")
        one_line = re.fullmatch(rb"     (gene|CDS) {12,13}(\d{1,15})\.\.(\d{1,15})", line)
        if one_line and line.index(one_line[2]) == 21 and not goes_on and 0 < int(one_line[2]) <= int(one_line[3]):
            expected.append((one_line[1].decode(), int(one_line[2]) - 1, int(one_line[3])))
    simple = [
        (feature.kind, feature.left, feature.right)
        for feature in found
        if not isinstance(feature, Unreadable) and len(feature.parts) == 1 and not feature.is_reverse
    ]
    assert not Counter(expected) - Counter(simple), content


def check_gff(content, found):
    """A plain split of lines and cells finds the same parts of coding sequences."""
    parts = Counter()
    for line in re.split(rb"\r\n|\r|\n", content.removeprefix(b"\xef\xbb\xbf")):
        if line.startswith(b"##FASTA"):
            break
        cells = line.split(b"\t")
        if line.startswith(b"#") or cells[2:3] != [b"CDS"]:
            continue
        found_parents = re.findall(r"(?:^|;)\s*Parent\s*=([^;]*)", cells[8].decode(errors="replace"))
        parents = found_parents[-1].strip() if found_parents else ""
        strand = cells[6] == b"-"
        parts[int(cells[3]) - 1, int(cells[4]), strand] += parents.count(",") + 1
    assert Counter((*part, feature.is_reverse) for feature in found for part in feature.parts) == parts, content


def check_counts(content, found):
    """A plain split of lines and cells finds the same counts, where there are no quotes."""
    k, counts = found
    if b'"' in content:
        return
    lines = re.split(r"\r\n|\r|\n", content.decode().removeprefix("\ufeff"))
    separator = next((separator for separator in ",\t;" if separator in lines[0]), ",")
    header = [cell.strip() for cell in lines[0].split(separator)]
    expected = {}
    for line in lines[1:]:
        if line:
            cells = dict(zip(header, (cell.lstrip(" ") for cell in line.split(separator)), strict=False))
            expected[cells["kmer"]] = int(cells["count"])
    assert {kmer: n for kmer, n in zip(kmers(k), counts.tolist(), strict=True) if n} == {
        kmer: n for kmer, n in expected.items() if n
    }, content


def test_fasta(tmp_path):
    seeds = [content for content, _ in genomes.READ.values() if content.lstrip(b"\xef\xbb\xbf\n \t").startswith(b">")]
    fuzz(seeds, lambda path: joined(read_runs(str(path))), _where(b">", check_fasta), tmp_path / "genome", "FASTA")


def test_genbank(tmp_path):
    seeds = [content for content, _ in genomes.READ.values() if b"LOCUS" in content[:10]]
    fuzz(
        seeds,
        lambda path: joined(read_runs(str(path))),
        _where(b"LOCUS", check_genbank),
        tmp_path / "genome",
        "GenBank",
    )


def test_annotated_genbank(tmp_path):
    fuzz(
        [GENBANK, QUALIFIED],
        lambda path: list(read_genbank(str(path))),
        _where(b"LOCUS", check_annotated_genbank),
        tmp_path / "genome.gb",
        "annotated GenBank",
    )


def test_gff(tmp_path):
    fuzz([GFF], lambda path: list(read_gff(path)), check_gff, tmp_path / "genes.gff3", "GFF3")


def _where(begin, check):
    """Check what begins as the format does; a change may have made the other one of it."""

    def checked(content, found):
        if content.removeprefix(b"\xef\xbb\xbf").lstrip(b"\r\n \t\v\f").startswith(begin):
            check(content, found)

    return checked


@pytest.mark.parametrize("block", [7, 1 << 20])
def test_compressed_genomes(tmp_path, monkeypatch, block):
    """A change is found, or made no difference."""
    monkeypatch.setattr(genome_text, "BLOCK", block)
    seeds = [content for content, _ in genomes.READ.values() if content[:1] in b"\x1fB\xfdP"]
    fuzz(
        seeds, lambda path: joined(read_runs(str(path))), lambda content, found: None, tmp_path / "genome", "compressed"
    )


def test_counts(tmp_path):
    seeds = [content for content, _ in tables.READ.values() if len(content) < 1000]
    fuzz(seeds, read_counts, _plain(check_counts), tmp_path / "counts.csv", "counts")


def _plain(check):
    """Check what is not compressed."""
    return lambda content, found: check(content, found) if content[:2] not in (b"\x1f\x8b", b"BZ", b"\xfd7") else None


def test_recipes(tmp_path):
    shipped = {
        "name": "x",
        "corpus": {"path": "c"},
        "curriculum": {"stages": [{"name": "a", "masking": [{"strategy": "span", "rate": 0.1}]}]},
    }
    seeds = [yaml.safe_dump(shipped), *(text for text, _ in settings.RECIPES.values() if len(text) < 1000)]
    fuzz(
        [seeds[0]] * len(seeds) + seeds,
        lambda path: load_config(["--config", str(path)]),
        lambda content, found: None,
        tmp_path / "recipe.yaml",
        "recipes",
    )
