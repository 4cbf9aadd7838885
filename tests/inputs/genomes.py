"""Genomes: files by name, what is given to `cmgems prepare`, and the runs that are read or the message."""

import bz2
import gzip
import io
import lzma
import os
import random
import tarfile
import zipfile

FASTA = b">a\nACGT\nAC\n>b\nGG\n"
RUNS = [("a", 0, b"ACGTAC"), ("b", 0, b"GG")]
GENBANK = (
    b"LOCUS       a    70 bp    DNA     linear   PLN 01-JAN-2020\nORIGIN\n"
    b"        1 ccacaccaca cccacacacc cacacaccac accacacacc acaccacacc cacacacaca\n       61 acacgtacgt\n//\n"
)
GENBANK_RUN = [("a", 0, b"CCACACCACACCCACACACCCACACACCACACCACACACCACACCACACCCACACACACAACACGTACGT")]
BGZIP_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
LOCUS = b"LOCUS       a    4 bp    DNA     linear   PLN 01-JAN-2020\n"


def bgzip(*parts: bytes, end: bytes = BGZIP_END) -> bytes:
    """Blocks as bgzip writes them, one a part."""
    blocks = b""
    for part in parts:
        data = gzip.compress(part, mtime=0)
        # The extra field after the fixed header: BC, two bytes, the size of the block less one.
        blocks += data[:3] + b"\x04" + data[4:10] + b"\x06\x00BC\x02\x00" + (len(data) + 8 - 1).to_bytes(2, "little")
        blocks += data[10:]
    return blocks + end


def archive(compression: int = zipfile.ZIP_DEFLATED, **members: bytes) -> bytes:
    """A zip archive; two underscores in a name stand for a dot, three for a slash."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name.replace("___", "/").replace("__", "."), content)
    return buffer.getvalue()


def named(name: str, content: bytes) -> bytes:
    """A zip archive of one file of any name."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(name, content)
    return buffer.getvalue()


def tar(content: bytes) -> bytes:
    """A tar archive of one file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        info = tarfile.TarInfo("genome.fa")
        info.size = len(content)
        file.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def damaged(content: bytes, at: int) -> bytes:
    """The same with one byte changed."""
    changed = bytearray(content)
    changed[at] ^= 0xFF
    return bytes(changed)


LONG = b">a\n" + bytes(random.Random(0).choices(b"ACGT", k=100_000)) + b"\n"

READ = {
    "fasta": (FASTA, RUNS),
    "fasta, no line end at the end": (FASTA[:-1], RUNS),
    "fasta, CR LF": (FASTA.replace(b"\n", b"\r\n"), RUNS),
    "fasta, CR alone": (FASTA.replace(b"\n", b"\r"), RUNS),
    "fasta, line ends of all kinds": (b">a\rACGT\r\nAC\n>b\n\rGG", RUNS),
    "fasta, CR CR LF": (FASTA.replace(b"\n", b"\r\r\n"), RUNS),
    "fasta, byte-order mark": (b"\xef\xbb\xbf" + FASTA, RUNS),
    "fasta, byte-order mark and CR": (b"\xef\xbb\xbf" + FASTA.replace(b"\n", b"\r"), RUNS),
    "fasta, blank lines first": (b"\n \n\t\n" + FASTA, RUNS),
    "fasta, blank lines within": (FASTA.replace(b"\n", b"\n\n"), RUNS),
    "fasta, blanks and tabs in lines": (b">a\n AC GT\t\nA C\n>b\nG\x0bG\x0c\n", RUNS),
    "fasta, lower case": (FASTA.replace(b"ACGT", b"acgt"), RUNS),
    "fasta, RNA": (FASTA.replace(b"T", b"u"), RUNS),
    "fasta, descriptions": (b">a Homo sapiens|x > y\nACGTAC\n>b\tz\nGG\n", RUNS),
    "fasta, N": (b">a\nACNNGT\n", [("a", 0, b"AC"), ("a", 4, b"GT")]),
    "fasta, IUPAC codes": (b">a\nACRYKMSWBDHVNGT\n", [("a", 0, b"AC"), ("a", 13, b"GT")]),
    "fasta, gaps": (b">a\nAC--*GT\n", [("a", 0, b"AC"), ("a", 5, b"GT")]),
    "fasta, N alone": (b">a\nNNN\n", []),
    "fasta, one line of 100,000": (LONG, [("a", 0, LONG[3:-1])]),
    "fasta, names in UTF-8": (">é\nAC\n".encode(), [("é", 0, b"AC")]),
    "fasta, names in Latin-1": (">é\nAC\n".encode("latin-1"), [("\ufffd", 0, b"AC")]),
    "fasta, a name of 10,000 letters": (b">" + b"x" * 10_000 + b"\nAC\n", [("x" * 10_000, 0, b"AC")]),
    "genbank": (GENBANK, GENBANK_RUN),
    "genbank, CR LF": (GENBANK.replace(b"\n", b"\r\n"), GENBANK_RUN),
    "genbank, CR alone": (GENBANK.replace(b"\n", b"\r"), GENBANK_RUN),
    "genbank, byte-order mark": (b"\xef\xbb\xbf" + GENBANK, GENBANK_RUN),
    "genbank, two records": (
        GENBANK + GENBANK.replace(b"LOCUS       a", b"LOCUS       b"),
        [*GENBANK_RUN, ("b", 0, GENBANK_RUN[0][2])],
    ),
    "genbank, LOCUS without a length": (b"LOCUS a\nORIGIN\n 1 acgt\n//\n", [("a", 0, b"ACGT")]),
    "gzip": (gzip.compress(FASTA), RUNS),
    "gzip of genbank": (gzip.compress(GENBANK), GENBANK_RUN),
    "gzip, several members": (gzip.compress(FASTA[:5]) + gzip.compress(FASTA[5:]), RUNS),
    "gzip, zeros after it": (gzip.compress(FASTA) + b"\0" * 512, RUNS),
    "bgzip": (bgzip(FASTA[:5], FASTA[5:]), RUNS),
    "bgzip, two files one after the other": (bgzip(FASTA[:12]) + bgzip(FASTA[12:]), RUNS),
    "bzip2": (bz2.compress(FASTA), RUNS),
    "bzip2, two files one after the other": (bz2.compress(FASTA[:12]) + bz2.compress(FASTA[12:]), RUNS),
    "xz": (lzma.compress(FASTA), RUNS),
    "zip": (archive(chr1__fa=FASTA), RUNS),
    "zip, stored": (archive(zipfile.ZIP_STORED, chr1__fa=FASTA), RUNS),
    "zip, bzip2": (archive(zipfile.ZIP_BZIP2, chr1__fa=FASTA), RUNS),
    "zip, LZMA": (archive(zipfile.ZIP_LZMA, chr1__fa=FASTA), RUNS),
    "zip, in a folder": (archive(x___y___chr1__fa=FASTA), RUNS),
    "zip, a name of another kind": (archive(chr1__txt=FASTA), RUNS),
    "zip, a name without an ending": (archive(chr1=FASTA), RUNS),
    "zip, members of four kinds": (
        archive(c1__fa=b">1\nAC\n", c2__fa__bz2=bz2.compress(b">2\nAC\n"), c3__fsa=b">3\nAC\n", c4__txt=b">4\nAC\n"),
        [(str(i), 0, b"AC") for i in (1, 2, 3, 4)],
    ),
    "zip, members in gzip and xz": (
        archive(a__fa__gz=gzip.compress(b">a\nAC\n"), b__xz=lzma.compress(b">b\nAC\n")),
        [("a", 0, b"AC"), ("b", 0, b"AC")],
    ),
    "zip, what macOS adds": (archive(chr1__fa=FASTA, __MACOSX=b"x", __MACOSX_____chr1__fa=b"\0\5\x16\7"), RUNS),
    "zip, hidden files": (archive(chr1__fa=FASTA, __DS_Store=b"\0\0"), RUNS),
    "zip, proteins": (archive(chr1__fa=FASTA, p__faa=b">p\nMKV\n"), RUNS),
    "zip, a read-me file and an empty one": (archive(chr1__fa=FASTA, README=b"hello", empty=b""), RUNS),
    "zip, a path that leads out of it": (named("../../etc/chr1.fa", FASTA), RUNS),
}
"""What is read: the file's content, and the runs of A, C, G and T in it."""

SAID = {
    "zip, members of other kinds are named": (
        archive(chr1__fa=FASTA, README__md=b"hello", p__faa=b">p\nMKV\n", empty=b""),
        r"3 of 4 files are passed over: README.md \(neither .*\); p.faa \(proteins\); empty \(the file is empty\)",
    ),
    "zip, many members are counted": (
        archive(chr1__fa=FASTA, **{f"t{i}": b"hello" for i in range(9)}),
        r"9 of 10 files are passed over: t0, t1, t2, t3, t4 and 4 more \(neither",
    ),
    "zip, what macOS adds is no loss": (archive(chr1__fa=FASTA, __MACOSX_____chr1__fa=b"\0\5\x16\7"), r"^$"),
}
"""What a warning says of what is not read."""

REFUSED = {
    "empty": (b"", "line 1: the file is empty"),
    "blank lines alone": (b"\n \n", "line 1: the file is empty"),
    "byte-order mark alone": (b"\xef\xbb\xbf", "line 1: the file is empty"),
    "prose": (b"\nhello\n", "line 2: neither FASTA .* nor GenBank"),
    "JSON": (b'{"a": 1}', "line 1: neither FASTA"),
    "FASTQ": (b"@r\nACGT\n+\nIIII\n", "line 1: neither FASTA"),
    "GFF": (b"##gff-version 3\n", "line 1: neither FASTA"),
    "EMBL": (b"ID   X; SV 1\n", "line 1: neither FASTA"),
    "PNG": (b"\x89PNG\r\n\x1a\n", "line 1: neither FASTA"),
    "ELF": (b"\x7fELF" + bytes(100), "line 1: neither FASTA"),
    "random bytes": (bytes(range(128, 256)), "line 1: neither FASTA"),
    "zeros": (bytes(5000), "line 1: neither FASTA"),
    "2 MB without a line end": (b"x" * 2_000_000, "line 1: neither FASTA"),
    "UTF-16, little-endian": (FASTA.decode().encode("utf-16"), "text in UTF-16; save it as UTF-8"),
    "UTF-16, big-endian": (b"\xfe\xff" + FASTA.decode().encode("utf-16-be"), "text in UTF-16; save it as UTF-8"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(20), "compressed by zstd; unpack it"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(20), "a 7z archive; unpack it"),
    "RAR": (b"Rar!\x1a\x07" + bytes(20), "a RAR archive; unpack it"),
    "tar": (tar(FASTA), "a tar archive; unpack it"),
    "tar in gzip": (gzip.compress(tar(FASTA)), "a tar archive; unpack it"),
    "zip in gzip": (gzip.compress(archive(chr1__fa=FASTA)), "a zip archive in another file; unpack it"),
    "gzip in gzip": (gzip.compress(gzip.compress(FASTA)), "compressed twice \\(gzip\\); unpack it once"),
    "xz in bzip2": (bz2.compress(lzma.compress(FASTA)), "compressed twice \\(xz\\); unpack it once"),
    "2bit": (b"\x43\x27\x41\x1a" + bytes(20), "a 2bit file; convert it with twoBitToFa"),
    "BAM": (gzip.compress(b"BAM\x01" + bytes(20)), "a BAM file; convert it"),
    "CRAM": (b"CRAM\x03\x00" + bytes(20), "a CRAM file; convert it"),
    "a letter that is none": (b">a\nACGT\nACEF\n", "line 3: 'E' is not a nucleotide"),
    "a digit": (b">a\nACGT\n>b\nAC\n\nA7C\n", "line 6: '7' is not a nucleotide"),
    "a letter that is none, CR LF": (b">a\r\nACGT\r\nACEF\r\n", "line 3: 'E' is not a nucleotide"),
    "a letter that is none, CR": (b">a\rACGT\rACEF\r", "line 3: 'E' is not a nucleotide"),
    "> in a line": (b">a\nAC>GT\n", "line 2: '>' is not a nucleotide"),
    "a byte of zero": (b">a\nAC\0GT\n", r"line 2: '\\x00' is not a nucleotide"),
    "Latin-1 in a sequence": (b">a\nAC\xe9\n", r"line 2: '\\xe9' is not a nucleotide"),
    "proteins": (b">p\nMKVLAA\n", "line 2: 'L' is not a nucleotide"),
    "a comment": (b">a\nACGT\n;comment\n", "line 3: ';' is not a nucleotide"),
    "a header without a name": (b">a\nAC\n> \nGT\n", "line 3: a record without a name"),
    "a header of 2 MB": (b">" + b"x" * 2_000_000 + b"\nAC\n", "line 1: a header of more than 1,048,576 bytes"),
    "a second header of 2 MB": (b">a\nAC\n>" + b"x" * 2_000_000 + b"\nAC\n", "line 3: a header of more than 1,048,576"),
    "a record without a sequence": (b">a\n>b\nAC\n", "line 1: record a has no sequence"),
    "a last record without a sequence": (b">a\nAC\n>b\n", "line 3: record b has no sequence"),
    "two records of one name": (b">a\nAC\n>a\nGT\n", "line 3: record a has the name of another: .* line 1"),
    "genbank without its end": (GENBANK[:-3], "line 4: record a does not end in //; is the file cut short?"),
    "genbank cut after LOCUS": (GENBANK[:50], "line 1: record a does not end in //"),
    "genbank with fewer nucleotides than it says": (
        GENBANK.replace(b"70 bp", b"5000 bp"),
        "record a has 70 nucleotides, its LOCUS line says 5,000; is the file cut short?",
    ),
    "genbank with more nucleotides than it says": (
        GENBANK.replace(b"70 bp", b"69 bp"),
        "record a has 70 nucleotides, its LOCUS line says 69",
    ),
    "genbank without a sequence": (LOCUS + b"FEATURES\nORIGIN\n//\n", "record a has no sequence"),
    "genbank of contigs": (LOCUS + b"CONTIG join(x:1..4)\n//\n", "record a has no sequence"),
    "genbank without a name": (b"LOCUS\nORIGIN\n 1 acgt\n//\n", "line 1: a record without a name"),
    "genbank of a protein": (LOCUS.replace(b"bp", b"aa") + b"ORIGIN\n 1 mkvl\n//\n", "line 3: 'l' is not a nucleotide"),
    "genbank, ORIGIN outside of a record": (
        LOCUS + b"ORIGIN\n 1 acgt\n//\nORIGIN\n",
        "line 5: a sequence without a LOCUS line",
    ),
    "gzip cut short": (gzip.compress(LONG)[:-400], r"after line \d+: damaged or cut short"),
    "gzip cut in its header": (gzip.compress(FASTA)[:5], "after line 0: damaged or cut short"),
    "gzip with a wrong checksum": (damaged(gzip.compress(FASTA), -6), r"after line \d+: damaged or cut short \(CRC"),
    "gzip with a byte changed": (damaged(gzip.compress(LONG), 9000), r"damaged or cut short|is not a nucleotide"),
    "gzip with something else after it": (gzip.compress(FASTA) + b"more", "damaged or cut short"),
    "bgzip cut at a block's end": (bgzip(FASTA, end=b""), "the empty block at the end of a bgzip file is missing"),
    "bgzip cut in a block": (bgzip(LONG, end=b"")[:-100], "damaged or cut short"),
    "bgzip cut in its last block": (bgzip(FASTA)[:-5], "damaged or cut short"),
    "bzip2 cut short": (bz2.compress(LONG)[:-400], "damaged or cut short"),
    "bzip2 with a byte changed": (damaged(bz2.compress(LONG), 5000), "damaged or cut short"),
    "xz cut short": (lzma.compress(LONG)[:-100], "damaged or cut short"),
    "xz with a byte changed": (damaged(lzma.compress(LONG), 2000), "damaged or cut short"),
    "zip without a genome": (archive(README=b"hello"), r"no FASTA or GenBank files in this archive: README \(neither"),
    "zip without a file": (archive(), "no FASTA or GenBank files in this archive"),
    "zip with a genome's name and no genome": (archive(chr1__fa=b"hello"), "chr1.fa, line 1: neither FASTA"),
    "zip with an empty genome": (archive(chr1__fa=b""), "chr1.fa, line 1: the file is empty"),
    "zip with the same record twice": (
        archive(a__fa=FASTA, b__fa=FASTA),
        "b.fa, line 1: record a has the name of another",
    ),
    "zip cut short": (archive(chr1__fa=FASTA)[:-30], "damaged or cut short"),
    "zip with a damaged member": (damaged(archive(chr1__fa=LONG), 5000), "damaged or cut short|is not a nucleotide"),
    "zip with a damaged stored member": (
        damaged(archive(zipfile.ZIP_STORED, chr1__fa=LONG), 5000),
        "damaged or cut short|is not a nucleotide",
    ),
    "zip with a damaged LZMA member": (
        damaged(archive(zipfile.ZIP_LZMA, chr1__fa=LONG), 3000),
        "damaged or cut short|is not a nucleotide",
    ),
    "zip with a damaged bzip2 member": (
        damaged(archive(zipfile.ZIP_BZIP2, chr1__fa=LONG), 3000),
        "damaged or cut short",
    ),
    "zip with a damaged member of another name": (
        archive(chr1__fa=FASTA, chr2=gzip.compress(LONG.replace(b">a", b">z"))[:-400]),
        "chr2, after line .*: damaged or cut short",
    ),
    "zip of a later version": (
        archive(chr1__fa=FASTA).replace(b"PK\x01\x02\x14\x03\x14", b"PK\x01\x02\x14\x03\x91"),
        "damaged or cut short \\(zip file version 14.5\\)",
    ),
    "zip with a name that is not in UTF-8, as it says": (
        named("é.fa", FASTA).replace("é".encode(), b"\xe9\xe9"),
        "damaged or cut short \\('utf-8' codec",
    ),
    "zip with a cut gzip member": (
        archive(chr1__fa__gz=gzip.compress(LONG)[:-400]),
        "chr1.fa.gz, after line .*: damaged or cut",
    ),
}
"""What is refused: the file's content, and what the message says after the file's name."""

NOT_FILES = {
    "nothing there": ("no-such.fa", "there is no such file or folder"),
    "a hub name of a file's kind": ("owner/name.fa", "there is no such file or folder"),
    "standard input": ("-", "standard input can be read only once"),
    "a device": (os.devnull, "a pipe or a device, which can be read only once"),
    "an empty folder": ("{folder}", "not a Hugging Face dataset that can be read"),
    "an empty name": ("", "there is no such file or folder|not a Hugging Face dataset"),
    "a name with a zero": ("a\0b", "there is no such file or folder|cannot be read"),
    "a name of 10,000 letters": ("x" * 10_000, "there is no such file or folder|cannot be read"),
}
"""What is no file: the argument, and what the message says."""
