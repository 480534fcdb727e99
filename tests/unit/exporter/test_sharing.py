"""Work is shared by those who come while the time before is under way, and is never older than the question."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from jobmetrics.exporter.sharing import Shared
from tests.support.readings import until


class Work:
    """Counts its rounds; each waits until it is released."""

    def __init__(self) -> None:
        self.began = 0
        self.release = threading.Semaphore(0)

    def __call__(self) -> int:
        self.began += 1
        number = self.began
        assert self.release.acquire(timeout=60)
        return number


def number(value: int) -> bytes:
    return str(value).encode()


def test_all_who_come_during_a_round_share_the_next_one() -> None:
    work = Work()
    shared = Shared(work)
    made = []

    def make(value: int) -> bytes:
        made.append(value)
        return number(value)

    with ThreadPoolExecutor(12) as pool:
        first = pool.submit(shared.get, "text", make)
        until(lambda: work.began == 1, "the first round")
        later = [pool.submit(shared.get, "text", make) for _ in range(10)]
        until(lambda: sum(thread.is_alive() for thread in pool._threads) >= 11, "all to have come")
        until(pool._work_queue.empty, "all to have begun")
        work.release.release()
        assert first.result(60) == b"1"
        work.release.release(3)
        answers = {each.result(60) for each in later}
    assert b"1" not in answers, "begun before they asked"
    assert work.began <= 3, "ten share one round, or two when one of them came late"
    assert len(made) == work.began


def test_each_format_is_made_once() -> None:
    work = Work()
    work.release.release(2)
    shared = Shared(work)
    assert shared.get("text", number) == b"1"
    assert shared.get("openmetrics", lambda value: b"open %d" % value) == b"open 2"


def test_an_error_reaches_who_asked_and_the_next_round_is_a_new_one() -> None:
    outcomes: Iterator[int | Exception] = iter([ValueError("once"), 7])

    def work() -> int:
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    shared = Shared(work)
    with pytest.raises(ValueError, match="once"):
        shared.get("text", number)
    assert shared.get("text", number) == b"7"
