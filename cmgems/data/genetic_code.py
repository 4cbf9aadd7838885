"""Genetic codes: the amino acid of each codon, and which codons end a protein."""

from functools import cache
from itertools import product

import numpy as np
import numpy.typing as npt

from cmgems.data.alphabet import BASES

CODON = 3
"""Nucleotides of a codon."""

STOP = "*"
"""Stands for a stop codon where others have an amino acid."""

# NCBI's numbers and order (TTT, TTC, TTA, TTG, TCT, ...), "The Genetic Codes", version 4.6. Codes 27, 28 and 31 are
# left out: in these a stop codon also has an amino acid.
_CODES = {
    1: "FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG",
    2: "FFLLSSSSYY**CCWWLLLLPPPPHHQQRRRRIIMMTTTTNNKKSS**VVVVAAAADDEEGGGG",
    3: "FFLLSSSSYY**CCWWTTTTPPPPHHQQRRRRIIMMTTTTNNKKSSRRVVVVAAAADDEEGGGG",
    4: "FFLLSSSSYY**CCWWLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG",
    5: "FFLLSSSSYY**CCWWLLLLPPPPHHQQRRRRIIMMTTTTNNKKSSSSVVVVAAAADDEEGGGG",
    6: "FFLLSSSSYYQQCC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG",
    9: "FFLLSSSSYY**CCWWLLLLPPPPHHQQRRRRIIIMTTTTNNNKSSSSVVVVAAAADDEEGGGG",
    10: "FFLLSSSSYY**CCCWLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG",
    11: "FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG",
    12: "FFLLSSSSYY**CC*WLLLSPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG",
    13: "FFLLSSSSYY**CCWWLLLLPPPPHHQQRRRRIIMMTTTTNNKKSSGGVVVVAAAADDEEGGGG",
    14: "FFLLSSSSYYY*CCWWLLLLPPPPHHQQRRRRIIIMTTTTNNNKSSSSVVVVAAAADDEEGGGG",
    15: "FFLLSSSSYY*QCC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG",
    16: "FFLLSSSSYY*LCC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG",
    21: "FFLLSSSSYY**CCWWLLLLPPPPHHQQRRRRIIMMTTTTNNNKSSSSVVVVAAAADDEEGGGG",
    22: "FFLLSS*SYY*LCC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG",
    23: "FF*LSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG",
    24: "FFLLSSSSYY**CCWWLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSSKVVVVAAAADDEEGGGG",
    25: "FFLLSSSSYY**CCGWLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG",
    26: "FFLLSSSSYY**CC*WLLLAPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG",
    29: "FFLLSSSSYYYYCC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG",
    30: "FFLLSSSSYYEECC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG",
    32: "FFLLSSSSYY*WCC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG",
    33: "FFLLSSSSYYY*CCWWLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSSKVVVVAAAADDEEGGGG",
}
_NCBI_ORDER = tuple(map("".join, product("TCAG", repeat=CODON)))

GENETIC_CODES = tuple(_CODES)
"""NCBI's numbers of the codes that are known: 1 is the standard code, 2 that of vertebrate mitochondria, ..."""


def amino_acids(code: int = 1) -> str:
    """Return the amino acids of the 64 codons in the order of their token ids, one letter each, * for a stop codon.

    Examples
    --------
    >>> amino_acids()[:4]
    'KNNK'
    """
    of_codon = dict(zip(_NCBI_ORDER, _CODES[code], strict=True))
    return "".join(of_codon["".join(codon)] for codon in product(BASES, repeat=CODON))


@cache
def stop_codons(code: int = 1) -> frozenset[bytes]:
    """Return the codons that end a protein.

    Examples
    --------
    >>> sorted(stop_codons())
    [b'TAA', b'TAG', b'TGA']
    """
    return frozenset(codon.encode() for codon, letter in zip(_NCBI_ORDER, _CODES[code], strict=True) if letter == STOP)


def has_stop_inside(sequence: bytes, code: int = 1) -> bool:
    """Return whether any codon of a sequence in frame but the last one ends a protein.

    Examples
    --------
    >>> has_stop_inside(b"ATGGCATAA"), has_stop_inside(b"ATGTAAGCA")
    (False, True)
    """
    stops = stop_codons(code)
    return any(sequence[i : i + CODON] in stops for i in range(0, len(sequence) - CODON, CODON))


def synonyms(code: int = 1) -> npt.NDArray[np.bool_]:
    """Return which codons have the same amino acid, bool [64, 64], in the order of the token ids."""
    letters = np.frombuffer(amino_acids(code).encode(), dtype=np.uint8)
    same: npt.NDArray[np.bool_] = letters[:, None] == letters
    return same
