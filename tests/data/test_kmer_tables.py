"""Tables of k-mer counts, read and checked."""

from pathlib import Path

import pytest

from cmgems.data.kmer_tables import read_counts
from cmgems.data.tokenizer import SPECIAL_TOKENS, vocabulary
from cmgems.errors import UserError


def test_counts_come_in_any_order_and_absent_kmers_count_0(tmp_path: Path) -> None:
    path = tmp_path / "counts.csv"
    path.write_text("count,kmer\n7,GG\n3,AA\n")
    k, counts = read_counts(path)
    assert k == 2
    assert {kmer: n for kmer, n in zip(vocabulary(2)[len(SPECIAL_TOKENS) :], counts, strict=True) if n} == {
        "AA": 3,
        "GG": 7,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kmer,number\nAA,1\n", "counts.csv, line 1: the header has no column 'count'"),
        ("", "line 1: the header has no column 'kmer'"),
        ("kmer,count\n", "there are no k-mers"),
        ("kmer,count\nAA,1\nAN,2\n", "line 3: 'AN' has a letter other than A, T, C and G"),
        ("kmer,count\nAA,1\nACG,2\n", "line 3: 'ACG' has 3 nucleotides, the k-mers above it have 2"),
        ("kmer,count\nAA,1\nAC,-2\n", "line 3: count is '-2'"),
        ("kmer,count\nAA,1\nAC,2.5\n", "line 3: count is '2.5'"),
        ("kmer,count\nAA,1\nAC\n", "line 3: there is no cell in the column count"),
        ("kmer,count\nAA,1\nAC,2\nAA,3\n", "line 4: 'AA' stands in the file twice; first: .*line 2"),
        ("kmer,count\nA,1\n", "line 2: 'A' must have 2 to 8 nucleotides"),
    ],
)
def test_mistakes_in_counts_are_named_with_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "counts.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read_counts(path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.csv: cannot be read"):
        read_counts(tmp_path / "absent.csv")
