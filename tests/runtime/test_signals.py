"""Signals that ask a program to stop, at moments in which the interpreter ignores exceptions too."""

import signal
import time

import pytest

from cmgems.errors import Interrupted
from cmgems.runtime.signals import SIGNALS, noting_signals, stopping_on_signals


class SignalledInItsFinalizer:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_the_program_by_an_exception_with_its_name(number):
    with pytest.raises(Interrupted, match=f"stopped by {number.name}; go on"), stopping_on_signals("go on"):
        signal.raise_signal(number)


def test_a_signal_whose_exception_is_ignored_comes_again():
    reached = []

    def work():
        SignalledInItsFinalizer()
        reached.append("the line after it")
        time.sleep(10)

    with pytest.raises(Interrupted, match="stopped by SIGTERM"), stopping_on_signals():
        work()
    assert reached == ["the line after it"]


def test_one_that_comes_again_while_a_loop_runs_is_noted():
    with stopping_on_signals():
        SignalledInItsFinalizer()
        with noting_signals() as request:
            time.sleep(1)
    assert request.received is signal.SIGTERM


def test_handlers_are_as_before_at_the_end():
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(Interrupted), stopping_on_signals():
        signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in SIGNALS] == before
