"""Every counts table is read as it is, or refused by its file and line."""

import pytest

from cmgems.data.kmer_tables import kmers, read_counts
from cmgems.errors import UserError
from tests.inputs.tables import READ, REFUSED, TEXT

pytestmark = pytest.mark.slow


def write(folder, content):
    path = folder / "counts.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(("content", "counts"), list(READ.values()), ids=list(READ))
def test_it_is_read(tmp_path, capsys, content, counts):
    k, found = read_counts(write(tmp_path, content))
    assert k == 2
    assert {kmer: n for kmer, n in zip(kmers(2), found.tolist(), strict=True) if n} == counts
    assert f"{16 - len(counts)} of the 16 2-mers are not in this table, and count 0" in capsys.readouterr().err


@pytest.mark.parametrize(("content", "message"), list(REFUSED.values()), ids=list(REFUSED))
def test_it_is_refused(tmp_path, content, message):
    path = write(tmp_path, content)
    with pytest.raises(UserError, match=message) as error:
        read_counts(path)
    assert str(error.value).startswith(str(path))


def test_a_complete_table_is_read_without_a_word(tmp_path, capsys):
    read_counts(write(tmp_path, TEXT.splitlines()[0] + "\n" + "".join(f"{kmer},0\n" for kmer in kmers(2))))
    assert capsys.readouterr().err == ""
