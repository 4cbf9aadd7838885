"""Every file of transcripts is read, with what is dropped and why, or refused by a message."""

import pytest

from cmgems.data.prepare import prepare_corpus
from cmgems.data.sequences import Dropped, read_sequences
from cmgems.data.settings import PrepareConfig
from cmgems.errors import UserError
from tests.inputs.sequences import READ, REFUSED

pytestmark = pytest.mark.slow


def settings(tmp_path, content, tokens):
    path = tmp_path / "genome.fa"
    path.write_bytes(content)
    return PrepareConfig(
        inputs=[str(path)], records="transcripts", tokens=tokens, window_tokens=40, min_window_tokens=4
    )


@pytest.mark.parametrize(("tokens", "content", "kept", "expected"), list(READ.values()), ids=list(READ))
def test_it_is_read(tmp_path, tokens, content, kept, expected):
    dropped = Dropped()
    found = [piece.chromosome for piece in read_sequences(settings(tmp_path, content, tokens), dropped)]
    assert (found, dropped) == (list(kept), expected)


@pytest.mark.parametrize(("tokens", "content", "message"), list(REFUSED.values()), ids=list(REFUSED))
def test_it_is_refused(tmp_path, tokens, content, message):
    with pytest.raises(UserError, match=message):
        prepare_corpus(settings(tmp_path, content, tokens), tmp_path / "corpus", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["genome.fa"]
