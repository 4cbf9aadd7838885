"""Sequences of their own, given to `cmgems prepare --records transcripts`: what is kept and dropped, or the message."""

GENE = b"ATGGCAGATTGCGAATTTGGACATATCAAACTGATGAACTAA"
OTHER = b"ATGTGGTACGTCACCAGCCGACAACCAAATTTAGAAGACTGA"
FRAMESHIFT, STOP = "length not a multiple of 3", "stop codon inside"
COPY, SHORT = "same as another", "shorter than min_window_tokens"


def fasta(**records: bytes) -> bytes:
    """A FASTA file."""
    return b"".join(b">%s\n%s\n" % (name.encode(), bases) for name, bases in records.items())


READ = {
    "two": ("codon", fasta(a=GENE, b=OTHER), "ab", {}),
    "RNA": ("codon", fasta(a=GENE.replace(b"T", b"U"), b=OTHER), "ab", {}),
    "RNA and DNA of the same": ("codon", fasta(a=GENE, b=GENE.replace(b"T", b"U")), "a", {COPY: 1}),
    "lower case of the same": ("codon", fasta(a=GENE, b=GENE.lower()), "a", {COPY: 1}),
    "a nucleotide too many": ("codon", fasta(a=GENE, b=GENE[:10] + b"A" + GENE[10:]), "a", {FRAMESHIFT: 1}),
    "two nucleotides too few": ("codon", fasta(a=GENE, b=GENE[:-2]), "a", {FRAMESHIFT: 1}),
    "frameshifts in other tokens": ("nucleotide", fasta(a=GENE, b=GENE[:-2]), "ab", {}),
    "frameshifts in 6-mers that do not overlap": ("kmer:6:6", fasta(a=GENE, b=GENE[:-2]), "ab", {}),
    "a stop codon inside": ("codon", fasta(a=GENE, b=GENE + OTHER), "a", {STOP: 1}),
    "a stop codon inside, in other tokens": ("nucleotide", fasta(a=GENE, b=GENE + OTHER), "ab", {}),
    "a stop codon out of frame": ("codon", fasta(a=GENE, b=OTHER[:3] + b"CTAAGC" + OTHER[3:]), "ab", {}),
    "no stop codon": ("codon", fasta(a=GENE, b=OTHER[:-3]), "ab", {}),
    "no start codon": ("codon", fasta(a=GENE, b=OTHER[3:]), "ab", {}),
    "an N in it": ("codon", fasta(a=GENE, b=OTHER[:6] + b"N" + OTHER[7:]), "ab", {}),
    "an N in a stop codon": ("codon", fasta(a=GENE, b=OTHER[:6] + b"TAN" + OTHER[9:]), "ab", {}),
    "gaps of an alignment": ("codon", fasta(a=GENE, b=OTHER[:6] + b"---" + OTHER[6:]), "ab", {}),
    "a short one": ("codon", fasta(a=GENE, b=b"ATGTAA"), "a", {SHORT: 1}),
    "everything at once": (
        "codon",
        fasta(a=GENE, b=GENE, c=GENE[1:], d=GENE + OTHER, e=b"ATGTAA", f=OTHER),
        "af",
        {COPY: 1, FRAMESHIFT: 1, STOP: 1, SHORT: 1},
    ),
}
"""What is read: the tokens, the file's content, the names of the sequences that are kept, the numbers dropped."""

REFUSED = {
    "a protein": ("codon", fasta(a=GENE, p=b"MKVLAAGIVGLTQ"), "genome.fa, line 4: 'L' is not a nucleotide"),
    "a protein of the letters of nucleotides": ("codon", fasta(p=b"MKVDHAACDE"), "genome.fa, line 2: 'E' is not"),
    "the same name twice": ("codon", fasta(a=GENE) + fasta(a=OTHER), "record a has the name of another"),
    "only frameshifts": ("codon", fasta(a=GENE[1:], b=OTHER[:-1]), r"all 2 sequences are dropped: 2 \(length not a"),
    "only short ones": ("codon", fasta(a=b"ATGTAA", b=b"ATG"), r"all 2 sequences are dropped: 2 \(shorter than"),
    "one that is alone": ("codon", fasta(a=GENE, b=GENE), "no (training|validation) windows"),
    "all alike": ("codon", fasta(a=GENE, b=GENE[:-3]), "all sequences are similar"),
}
"""What `prepare` refuses: the tokens, the file's content, and what the message says."""
