"""Counts tables of 2-mers: the file's content, and the counts by k-mer or the message."""

import bz2
import gzip
import lzma

AB = {"AA": 1, "CG": 2}
TEXT = "kmer,count\nAA,1\nCG,2\n"

READ = {
    "commas": (TEXT, AB),
    "no line end at the end": (TEXT[:-1], AB),
    "CR LF": (TEXT.replace("\n", "\r\n"), AB),
    "CR": (TEXT.replace("\n", "\r"), AB),
    "byte-order mark": ("\ufeff" + TEXT, AB),
    "tabs": (TEXT.replace(",", "\t"), AB),
    "semicolons": (TEXT.replace(",", ";"), AB),
    "quotes": ('"kmer","count"\n"AA","1"\n"CG","2"\n', AB),
    "blanks after commas": (TEXT.replace(",", ", "), AB),
    "blank lines": (TEXT.replace("\n", "\n\n"), AB),
    "other columns": ("note,count,kmer\nx,1,AA\ny,2,CG\n", AB),
    "an empty other column": ("kmer,count,note\nAA,1,\nCG,2,\n", AB),
    "leading zeros": (TEXT.replace("1", "0001"), AB),
    "5,000 leading zeros": (TEXT.replace("1", "0" * 5000 + "1"), AB),
    "any order": ("kmer,count\nCG,2\nAA,1\n", AB),
    "the largest count": ("kmer,count\nAA,9223372036854775807\n", {"AA": 2**63 - 1}),
    "gzip": (gzip.compress(TEXT.encode()), AB),
    "bzip2": (bz2.compress(TEXT.encode()), AB),
    "xz": (lzma.compress(TEXT.encode()), AB),
    "gzip, byte-order mark": (gzip.compress(("\ufeff" + TEXT).encode()), AB),
}

REFUSED = {
    "empty": ("", "line 1: the header has no column 'kmer'"),
    "a header alone": ("kmer,count\n", "there are no k-mers below the header"),
    "no header": ("AA,1\nCG,2\n", "line 1: the header has no column 'kmer'"),
    "another column": ("kmer,number\nAA,1\n", "line 1: the header has no column 'count'"),
    "a column twice": ("kmer,count,count\nAA,1,2\n", "line 1: the header has more than one column 'count'"),
    "capitals in the header": ("Kmer,Count\nAA,1\n", "line 1: the header has no column 'kmer'"),
    "a separator inside a number": (
        "kmer,count\nAA,1,234\n",
        "line 2: 3 cells, the header has 2; is there a separator",
    ),
    "a separator inside a quoted number": ('kmer,count\nAA,"1,234"\n', "line 2: count is '1,234'"),
    "a blank inside a number": ("kmer,count\nAA,1 234\n", "line 2: count is '1 234'"),
    "a point inside a number": ("kmer,count\nAA,1.234\n", "line 2: count is '1.234'"),
    "an underscore inside a number": ("kmer,count\nAA,1_234\n", "line 2: count is '1_234'"),
    "a cell too many": ("kmer,count\nAA,1\nCG,2,x\n", "line 3: 3 cells, the header has 2"),
    "a cell too few": ("kmer,count\nAA,1\nCG\n", "line 3: there is no cell in the column count"),
    "an empty count": ("kmer,count\nAA,\n", "line 2: count is ''"),
    "an empty k-mer": ("kmer,count\n,1\n", "line 2: '' must have 2 to 8 nucleotides"),
    "a negative count": ("kmer,count\nAA,-1\n", "line 2: count is '-1'"),
    "a sign": ("kmer,count\nAA,+1\n", "line 2: count is '[+]1'"),
    "a fraction": ("kmer,count\nAA,2.5\n", "line 2: count is '2.5'"),
    "an exponent": ("kmer,count\nAA,1e3\n", "line 2: count is '1e3'"),
    "nan": ("kmer,count\nAA,nan\n", "line 2: count is 'nan'"),
    "infinity": ("kmer,count\nAA,inf\n", "line 2: count is 'inf'"),
    "a word": ("kmer,count\nAA,many\n", "line 2: count is 'many'"),
    "other digits": ("kmer,count\nAA,\u0661\n", "line 2: count is"),
    "superscript digits": ("kmer,count\nAA,\u00b2\n", "line 2: count is"),
    "10^30": (f"kmer,count\nAA,{10**30}\n", "line 2: count is 1000.*; it must be below 2\\^63"),
    "2^63": (f"kmer,count\nAA,{2**63}\n", "line 2: count is 9223372036854775808; it must be below 2\\^63"),
    "5,000 digits": (f"kmer,count\nAA,{'9' * 5000}\n", "line 2: count is 9{30}\\.\\.\\.; it must be below 2\\^63"),
    "counts that overflow together": (
        f"kmer,count\nAA,{2**62}\nCG,{2**62}\n",
        "the counts add up to 9.22e\\+18; the total must",
    ),
    "a letter that is none": ("kmer,count\nAA,1\nAN,2\n", "line 3: 'AN' has a letter other than A, T, C and G"),
    "lower case": ("kmer,count\naa,1\n", "line 2: 'aa' has a letter other than"),
    "RNA": ("kmer,count\nAU,1\n", "line 2: 'AU' has a letter other than"),
    "a k-mer twice": ("kmer,count\nAA,1\nAA,1\n", "line 3: 'AA' stands in the file twice; first: .*line 2"),
    "another length": ("kmer,count\nAA,1\nACG,2\n", "line 3: 'ACG' has 3 nucleotides, the k-mers above it have 2"),
    "1-mers": ("kmer,count\nA,1\n", "line 2: 'A' must have 2 to 8 nucleotides"),
    "9-mers": ("kmer,count\nAAAAAAAAA,1\n", "line 2: 'AAAAAAAAA' must have 2 to 8 nucleotides"),
    "a quote that does not end": ('kmer,count\n"AA,1\nCG,2\n', "cannot be read as CSV"),
    "text after a quote": ('kmer,count\n"AA"x,1\n', "cannot be read as CSV"),
    "UTF-16": (TEXT.encode("utf-16"), "text in UTF-16; save it as UTF-8"),
    "Latin-1": (TEXT.encode() + b"\xe9\xe9,3\n", "cannot be read as CSV"),
    "a byte of zero": ("kmer,count\nA\0,1\n", "line 2: 'A.' has a letter other than|cannot be read as CSV"),
    "gzip cut short": (gzip.compress(TEXT.encode())[:-9], "damaged or cut short"),
    "a zip archive": (b"PK\x03\x04" + bytes(30), "a zip archive in another file; unpack it"),
    "a field of 200,000 letters": (f"kmer,count\n{'A' * 200_000},1\n", "cannot be read as CSV"),
}
