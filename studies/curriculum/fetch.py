"""Fetch the genomes of the study: human chromosomes X (1-70 Mb, hs37) and 22 (21.6 Mb of it, hg19), in Debian packages.

    python studies/curriculum/fetch.py [--mirror URL]

Writes data/genomes/human-x.fa and data/genomes/human-22.fa, below the current folder. The last 10 Mb of the piece of
chromosome X become a record of their own, `X_validation`. What the alignment of chromosome 22 leaves out is N.
"""

import argparse
import gzip
import io
import lzma
import sys
import tarfile
import urllib.request
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from cmgems.runtime.files import atomic_file

MIRROR = "https://deb.debian.org/debian"
CHROMOSOME_X = (
    "pool/main/s/smalt/smalt-examples_0.7.6-12_all.deb",
    "ffb01b7ff91cd29bd45c980cdeea90d986146dd2e907fd9e365d3a8fa75b0751",
    "./usr/share/doc/smalt/test/data/hs37chrXtrunc.fa.gz",
)
CHROMOSOME_22 = (
    "pool/main/m/maffilter/maffilter-examples_1.3.1+dfsg-4_all.deb",
    "16a25c6cdbe6b89bb6520bb6f192e75abf348602f98b5481f37d8a13d56ee8cc",
    "./usr/share/doc/maffilter/examples/Gorilla/"
    "Compara.epo_5_catarrhini_hsap-projected.chr22.subset.nogap.cleaned_aln.maf.gz",
)
"""Package, its SHA-256, and the file in it."""

VALIDATION_START = 60_000_000
"""Position on chromosome X, from 0, from which it is for validation."""

_AR_HEADER = 60


def main() -> None:
    """Fetch what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mirror", default=MIRROR, help=f"Debian mirror (default: {MIRROR})")
    mirror = parser.parse_args().mirror
    folder = Path("data/genomes")
    folder.mkdir(parents=True, exist_ok=True)
    for name, package, convert in (
        ("human-x.fa", CHROMOSOME_X, chromosome_x),
        ("human-22.fa", CHROMOSOME_22, chromosome_22),
    ):
        if not (folder / name).exists():
            text = gzip.decompress(fetch(mirror, *package)).decode()
            with atomic_file(folder / name) as partial, partial.open("w") as file:
                for record, sequence in convert(text):
                    file.write(f">{record}\n{sequence}\n")
        print(f"{folder / name} is there", flush=True)


def fetch(mirror: str, package: str, digest: str, member: str) -> bytes:
    """Download a Debian package, check it, and return a file of it."""
    url = f"{mirror.rstrip('/')}/{package}"
    print(f"fetching {url}", flush=True)
    with urllib.request.urlopen(url) as response:  # what it returns is checked below
        content = response.read()
    if sha256(content).hexdigest() != digest:
        sys.exit(f"{url} is not the package that the study was made with (SHA-256 {digest})")
    data = lzma.decompress(archive_member(content, "data.tar.xz"))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        file = tar.extractfile(member)
        assert file is not None
        return file.read()


def archive_member(archive: bytes, wanted: str) -> bytes:
    """Return a member of an ar archive, such as a Debian package."""
    at = len("!<arch>\n")
    while at < len(archive):
        name, size = archive[at : at + 16].decode().rstrip(" /"), int(archive[at + 48 : at + 58])
        at += _AR_HEADER
        if name == wanted:
            return archive[at : at + size]
        at += size + size % 2
    raise ValueError(f"no member {wanted}")


def chromosome_x(fasta: str) -> Iterator[tuple[str, str]]:
    """Yield the records of the piece of chromosome X: for training and for validation."""
    _, _, rest = fasta.partition("\n")
    sequence = rest.replace("\n", "")
    yield "X", sequence[:VALIDATION_START]
    yield "X_validation", sequence[VALIDATION_START:]


def chromosome_22(maf: str) -> Iterator[tuple[str, str]]:
    """Yield the record of chromosome 22: the human rows of the alignment, without gaps, at their positions."""
    blocks = []
    for line in maf.splitlines():
        if line.startswith("s Hsap.22 "):
            _, _, start, _, _, _, sequence = line.split()
            blocks.append((int(start), sequence.replace("-", "")))
    parts, end = [], 0
    for start, sequence in sorted(blocks):
        parts += ["N" * (start - end), sequence]
        end = start + len(sequence)
    yield "22", "".join(parts)


if __name__ == "__main__":
    main()
