import numpy as np
import pytest
import torch

from cmgems.masking.counters import WORD, Counters, Stream, _starts, threshold
from tests.masking.reference import random_word

ROWS, COLUMNS = 512, 512


def words(seed: int = 42, stream: Stream = Stream.CENTRE, epoch: int = 0, first_id: int = 0) -> np.ndarray:
    """The bits of 512 samples, [512, 512]."""
    sample_id = torch.arange(first_id, first_id + ROWS)
    return Counters(seed, torch.full((ROWS,), epoch), sample_id).bits(stream, COLUMNS).numpy()


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return abs(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def test_bits_are_fixed_for_ever() -> None:
    sample_id = torch.tensor([0, 7, 2**62, -1])
    bits = Counters(42, torch.tensor([0, 3, 2**31, 0]), sample_id).bits(Stream.CENTRE, 2)
    assert bits.tolist() == [
        [730687497, 1006188071],
        [1172531278, 1200781464],
        [438980076, 1325473080],
        [958565642, 3995526459],
    ]


def test_bits_equal_the_hash_in_plain_integers() -> None:
    epochs, ids = [0, 1, 999, 2**32], [0, 2**31, 2**32 + 5, -1]
    for seed in (0, 42, 2**31 - 1):
        for stream in Stream:
            bits = Counters(seed, torch.tensor(epochs), torch.tensor(ids)).bits(stream, 600)
            for row, (epoch, sample_id) in enumerate(zip(epochs, ids, strict=True)):
                for column in (0, 1, 511, 599):
                    assert bits[row, column] == random_word(seed, stream, epoch, sample_id, column)


def test_bits_are_32_bit_words() -> None:
    bits = words()
    assert bits.dtype == np.int64
    assert bits.min() >= 0
    assert 0.9999 * 2**32 < bits.max() < 2**32


def test_wider_and_larger_batches_change_no_bits() -> None:
    all_rows = Counters(1, torch.zeros(8, dtype=torch.long), torch.arange(8)).bits(Stream.CENTRE, 100)
    one_row = Counters(1, torch.zeros(1, dtype=torch.long), torch.tensor([5])).bits(Stream.CENTRE, 60)
    assert torch.equal(all_rows[5:6, :60], one_row)


@pytest.mark.parametrize("shift", [0, 8, 16, 24])
@pytest.mark.parametrize("stream", list(Stream))
def test_each_byte_is_uniform(stream: Stream, shift: int) -> None:
    observed = np.bincount((words(stream=stream) >> shift & 255).ravel(), minlength=256)
    expected = ROWS * COLUMNS / 256
    chi_square = ((observed - expected) ** 2 / expected).sum()
    assert 255 - 5 * (2 * 255) ** 0.5 < chi_square < 255 + 5 * (2 * 255) ** 0.5


def test_each_column_and_each_row_is_uniform() -> None:
    halves = words() < 2**31
    standard_deviation = 0.5 / 512**0.5
    assert abs(halves.mean(axis=0) - 0.5).max() < 5 * standard_deviation
    assert abs(halves.mean(axis=1) - 0.5).max() < 5 * standard_deviation


def test_neighbours_are_uncorrelated() -> None:
    bits = words()
    limit = 5 / (ROWS * COLUMNS) ** 0.5
    assert correlation(bits[:, 1:], bits[:, :-1]) < limit
    assert correlation(bits[1:], bits[:-1]) < limit
    assert correlation(bits[:, 6:], bits[:, :-6]) < limit
    assert correlation(bits, words(epoch=1)) < limit
    assert correlation(bits, words(seed=43)) < limit
    assert correlation(bits, words(first_id=2**32)) < limit
    assert correlation(words(epoch=1)[:-1], words(epoch=0)[1:]) < limit


def test_streams_are_uncorrelated_and_share_no_draw() -> None:
    bits = [words(stream=stream) for stream in Stream]
    limit = 5 / (ROWS * COLUMNS) ** 0.5
    for i, a in enumerate(bits):
        for b in bits[i + 1 :]:
            assert correlation(a, b) < limit
            assert (a == b).sum() <= 1


def test_each_input_bit_flips_each_output_bit_half_of_the_time() -> None:
    base = torch.arange(4000) * 7919
    zeros = torch.zeros_like(base)
    reference = Counters(0, zeros, base).bits(Stream.CENTRE, 2)
    for i in [*range(0, 62, 3), 61]:
        for changed in (Counters(0, zeros, base ^ (1 << i)), Counters(0, zeros | (1 << i % 31), base)):
            flipped = reference ^ changed.bits(Stream.CENTRE, 2)
            share = torch.stack([(flipped >> bit & 1).double().mean() for bit in range(32)])
            assert (share - 0.5).abs().max() < 0.05


def test_a_threshold_is_met_with_its_probability() -> None:
    assert threshold(0.0) == 0
    assert threshold(1.0) == 2**32
    for probability in (0.0176, 0.025, 0.8):
        standard_deviation = (probability * (1 - probability) / (ROWS * COLUMNS)) ** 0.5
        assert abs((words() < threshold(probability)).mean() - probability) < 4 * standard_deviation


def test_some_places_alone_have_the_same_bits() -> None:
    counters = Counters(42, torch.tensor([0, 3, 1]), torch.tensor([7, 2**62, -1]))
    row, column = torch.tensor([2, 0, 0, 1]), torch.tensor([599, 0, 17, 3])
    columns = torch.stack([column + shift for shift in range(len(Stream))])
    found = counters.bits_at(list(Stream), row, columns)
    for stream in Stream:
        assert torch.equal(found[stream], counters.bits(stream, 700)[row, columns[stream]])


def test_other_devices_hash_tensors_to_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.tensor([0, 3, 2**32, -1]), torch.tensor([0, 7, 2**62, -1])
    row, column = torch.tensor([0, 1, 2, 3, 3]), torch.tensor([5, 0, 599, 1, 2])

    def drawn() -> list[torch.Tensor]:
        counters = Counters(2**31 - 1, *rows)
        return [counters.bits_at(list(Stream), row, column[None]), *(counters.bits(s, 600) for s in Stream)]

    here = drawn()
    # As of a tensor that is elsewhere, and so are the words that a run's streams begin with.
    monkeypatch.setattr("cmgems.masking.counters._words", lambda values: values & WORD)
    monkeypatch.setattr("cmgems.masking.counters._starts", _starts.__wrapped__)
    assert all(torch.equal(a, b) for a, b in zip(here, drawn(), strict=True))
