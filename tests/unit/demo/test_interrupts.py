from __future__ import annotations

import os
import signal
import threading

import pytest

from jobmetrics.demo.errors import Interrupted
from jobmetrics.demo.interrupts import SIGNALS, Interrupts


def test_a_signal_is_noted_and_raised_where_it_is_asked_for() -> None:
    with Interrupts() as interrupts:
        interrupts.check()
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.count == 1  # and nothing was raised here
        with pytest.raises(Interrupted) as caught:
            interrupts.check()
        assert caught.value.signum == signal.SIGTERM


def test_a_pause_ends_with_the_signal() -> None:
    with Interrupts() as interrupts:
        timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(Interrupted):
            interrupts.pause(240)
        timer.join()


def test_an_accepted_signal_is_over() -> None:
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGINT)
        interrupts.accept()
        assert interrupts.count == 0
        interrupts.pause(0)
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Interrupted):
            interrupts.pause(240)


def test_the_handlers_of_before_come_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with Interrupts():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before
