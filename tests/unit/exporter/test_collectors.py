"""Collectors read in the background: whatever they do, a scrape only reads their last result."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from jobmetrics.collector_api import Collector, CollectorOptions, Reading, Target
from jobmetrics.errors import CollectorError, JobmetricsError, SettingsError
from jobmetrics.exporter import collectors
from jobmetrics.exporter.collectors import BackgroundCollector, BackgroundCollectors, CollectorState
from jobmetrics.families import JOBS_DURATION, JOBS_QUEUE_DEPTH
from jobmetrics.integration import ENTRY_POINT_GROUP, Option, System
from jobmetrics.log_throttle import ThrottledLog
from tests.unit.doubles import FakeClock

DEPTH = Reading(JOBS_QUEUE_DEPTH, ("rq", "main", "q"), 3.0)


class Fake:
    """A collector controlled by its test."""

    name = "fake"
    broker = "main"

    def __init__(self, *readings: Callable[[], Sequence[Reading]]) -> None:
        self._readings = iter(readings)
        self.closed = threading.Event()

    def collect(self) -> Sequence[Reading]:
        return next(self._readings)()

    def close(self) -> None:
        self.closed.set()


def good() -> list[Reading]:
    return [DEPTH]


def failing(error: BaseException) -> Callable[[], list[Reading]]:
    def collect() -> list[Reading]:
        raise error

    return collect


def background(collector: Fake, clock: FakeClock, refresh: float = 5.0, timeout: float = 2.0) -> BackgroundCollector:
    return BackgroundCollector(
        collector, refresh=refresh, timeout=timeout, log=ThrottledLog(clock), clock=clock, wall_clock=lambda: 1.7e9
    )


def states_of(clock: FakeClock, *readings: Callable[[], Sequence[Reading]]) -> list[CollectorState]:
    """The state after each reading."""
    runner = background(Fake(*readings), clock)
    states = []
    for _ in readings:
        runner._collect_once()
        states.append(runner.state())
    return states


def test_before_the_first_reading_nothing_is_known(clock: FakeClock) -> None:
    assert background(Fake(), clock).state() == CollectorState("fake", "main")


def test_a_good_reading_is_shown(clock: FakeClock) -> None:
    def slow() -> list[Reading]:
        clock.advance(0.25)
        return good()

    (state,) = states_of(clock, slow)
    assert state == CollectorState("fake", "main", True, [DEPTH], 0.25, 1.7e9)


def test_a_failure_is_absent_and_logged_once_a_minute_and_the_recovery_too(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    broken = failing(CollectorError("redis://u:secret@h is down"))
    with caplog.at_level(logging.INFO, "jobmetrics"):
        states = states_of(clock, good, broken, broken, good)
    assert [state.up for state in states] == [True, False, False, True]
    assert [list(state.readings) for state in states] == [[DEPTH], [], [], [DEPTH]]
    assert states[1].error == "redis://***@h is down"
    assert states[1].last_success == 1.7e9
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "secret" not in caplog.text


@pytest.mark.parametrize("error", [ValueError("secret"), SystemExit(3), KeyboardInterrupt(), MemoryError()])
def test_any_exception_is_a_failed_reading_whose_message_is_not_trusted(error: BaseException, clock: FakeClock) -> None:
    (state,) = states_of(clock, failing(error))
    assert state.up is False
    assert state.error == f"{type(error).__name__} in the collector"


@pytest.mark.parametrize(
    "nonsense",
    [
        None,
        5,
        ["x"],
        [Reading(JOBS_QUEUE_DEPTH, ("rq", "main"), 1.0)],
        [Reading(JOBS_QUEUE_DEPTH, ("rq", "main", 3), 1.0)],  # type: ignore[arg-type]
        [Reading(JOBS_QUEUE_DEPTH, "abc", 1.0)],  # type: ignore[arg-type]
        [Reading(JOBS_QUEUE_DEPTH, ("rq", "main", "q"), float("nan"))],
        [Reading(JOBS_QUEUE_DEPTH, ("rq", "main", "q"), "1")],  # type: ignore[arg-type]
        [Reading(JOBS_DURATION, ("rq", "main", "q"), 1.0)],
        [Reading("jobs_queue_depth", ("rq", "main", "q"), 1.0)],  # type: ignore[arg-type]
        [DEPTH, None],
    ],
)
def test_nonsense_is_a_failed_reading(nonsense: Sequence[Reading], clock: FakeClock) -> None:
    (state,) = states_of(clock, lambda: nonsense)
    assert state.up is False
    assert not state.readings


def test_a_series_that_is_read_twice_counts_once(clock: FakeClock) -> None:
    (state,) = states_of(clock, lambda: [DEPTH, DEPTH])
    assert list(state.readings) == [DEPTH]


def test_an_old_reading_is_not_shown(clock: FakeClock) -> None:
    runner = background(Fake(good), clock)
    runner._collect_once()
    clock.advance(7.0)
    assert runner.state().up is True
    clock.advance(0.1)
    state = runner.state()
    assert (state.up, list(state.readings)) == (False, [])


@contextmanager
def hanging(clock: FakeClock) -> Iterator[tuple[BackgroundCollector, threading.Event, threading.Event]]:
    """A started runner. Its second reading hangs until it is released."""
    entered, release, again = threading.Event(), threading.Event(), threading.Event()

    def hang() -> list[Reading]:
        entered.set()
        release.wait()
        return good()

    def after() -> list[Reading]:
        again.set()
        return good()

    runner = background(Fake(good, hang, after, *[good] * 100_000), clock, refresh=0.001)
    runner.start()
    assert entered.wait(60)
    try:
        yield runner, release, again
    finally:
        release.set()
        runner.stop()
        runner.join(60)


def test_a_hanging_reading_keeps_the_last_one_until_it_is_too_old(clock: FakeClock) -> None:
    with hanging(clock) as (runner, release, again):
        assert runner.state().up is True
        clock.advance(2.1)
        state = runner.state()
        assert (state.up, list(state.readings)) == (False, [])
        assert state.error == "no answer within 2 s"
        release.set()
        assert again.wait(60)
        assert runner.state().up is True


def test_closing_does_not_wait_for_a_reading_that_hangs(clock: FakeClock) -> None:
    with hanging(clock) as (runner, _, _):
        BackgroundCollectors([runner]).close()
        assert runner._thread.is_alive()
        assert runner._thread.daemon


def test_closing_ends_the_thread_and_closes_connections(clock: FakeClock) -> None:
    collector = Fake(good)
    collectors = BackgroundCollectors([background(collector, clock)])
    collectors.start()
    collectors.wait(60)
    assert [state.up for state in collectors.states()] == [True]
    collectors.close()
    assert collector.closed.wait(60)


def test_a_close_that_raises_still_ends_the_thread(clock: FakeClock) -> None:
    class Stubborn(Fake):
        def close(self) -> None:
            raise ValueError

    runner = background(Stubborn(good), clock)
    runner.start()
    runner.stop()
    runner.join(60)
    assert not runner._thread.is_alive()


RQ = CollectorOptions(rq_urls=(Target("main", "redis://localhost:1"),))


class Silent:
    """A third-party collector."""

    name = "third"
    broker = "b"

    def collect(self) -> Sequence[Reading]:
        return []

    def close(self) -> None: ...


def third_party(options: CollectorOptions) -> Iterable[Collector]:
    yield Silent()


def twins(options: CollectorOptions) -> Iterable[Collector]:
    return [Silent(), Silent()]


def broken(options: CollectorOptions) -> Iterable[Collector]:
    raise KeyError("secret")


def exits(options: CollectorOptions) -> Iterable[Collector]:
    raise SystemExit("secret")


def nameless(options: CollectorOptions) -> Iterable[Any]:
    return [None]


def missing(options: CollectorOptions) -> Iterable[Collector]:
    raise ModuleNotFoundError("no module", name="no_such_module")


THIRD = System("third", collectors=third_party)
TWINS = System("twins", collectors=twins)
BROKEN = System("bad", collectors=broken)
EXITING = System("bad", collectors=exits)
NAMELESS = System("bad", collectors=nameless)
UNIMPORTABLE = System("bad", collectors=missing)
ASKED = System(
    "rq", requirement="jobmetrics[rq]", options=[Option("rq_url", "URL", "", repeatable=True)], collectors=missing
)
NO_SYSTEM = "no system"


def install(monkeypatch: pytest.MonkeyPatch, **entries: str) -> None:
    found = [EntryPoint(name, value, ENTRY_POINT_GROUP) for name, value in entries.items()]
    monkeypatch.setattr(
        "importlib.metadata.entry_points", lambda group: [each for each in found if group == each.group]
    )


def test_without_options_no_collector_is_made_or_imported() -> None:
    code = (
        "import sys; from jobmetrics.collector_api import CollectorOptions; from jobmetrics.exporter import collectors;"
        "assert collectors.find(CollectorOptions()) == [];"
        "print(sorted({'celery', 'kombu', 'redis', 'rq'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_collectors_are_found_by_entry_point() -> None:
    options = CollectorOptions(
        celery_brokers=(Target("main", "redis://localhost:1"), Target("other", "redis://localhost:2")),
        rq_urls=(Target("main", "redis://localhost:1"),),
    )
    found = collectors.find(options)
    assert [(collector.name, collector.broker) for collector in found] == [
        ("celery", "main"),
        ("celery", "other"),
        ("rq", "main"),
    ]
    for collector in found:
        collector.close()


def test_third_parties_can_add_collectors(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, third=f"{__name__}:THIRD")
    assert [collector.name for collector in collectors.find(CollectorOptions())] == ["third"]


@pytest.mark.parametrize(
    "value",
    [f"{__name__}:{name}" for name in ("BROKEN", "EXITING", "NAMELESS", "UNIMPORTABLE", "NO_SYSTEM")]
    + ["no_such_module:x", "os:no_such"],
)
def test_a_third_party_collector_that_fails_is_left_out_and_logged(
    value: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(monkeypatch, bad=value, third=f"{__name__}:THIRD")
    with caplog.at_level(logging.WARNING):
        assert [collector.name for collector in collectors.find(CollectorOptions())] == ["third"]
    assert re.search("(job system|collectors of) bad cannot be ", caplog.text)
    assert "secret" not in caplog.text


def test_an_option_of_no_installed_system_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    with pytest.raises(SettingsError, match="no installed job system has the option rq_urls"):
        collectors.find(RQ)


def test_a_collector_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, rq=f"{__name__}:ASKED")
    with pytest.raises(JobmetricsError, match=r"needs no_such_module; pip install 'jobmetrics\[rq\]'"):
        collectors.find(RQ)


def test_brokers_of_the_same_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, third=f"{__name__}:TWINS")
    with pytest.raises(SettingsError, match="two third brokers are named 'b'"):
        collectors.find(CollectorOptions())


@pytest.mark.parametrize(
    "options",
    [
        CollectorOptions(celery_queues=("q",)),
        CollectorOptions(rq_queues=("q",)),
        CollectorOptions(celery_app="no_such_module:app"),
        CollectorOptions(celery_app="os:path"),
        *(
            CollectorOptions(celery_brokers=(Target("default", url),))
            for url in (
                "foo://:secret@h",
                "redis://:secret@h:x",
                "redis://:sec/secret@h",
                "redis://h/secret",
                "a.b://h",
            )
        ),
        *(
            CollectorOptions(rq_urls=(Target("default", url),))
            for url in ("amqp://:secret@h", "redis://:secret@h:x", "redis://:sec/secret@h", "redis://h/x")
        ),
    ],
)
def test_options_that_cannot_work_are_refused_before_anything_starts(options: CollectorOptions) -> None:
    with pytest.raises(SettingsError) as refused:
        collectors.find(options)
    message = str(refused.value)
    assert "--celery" in message or "--rq" in message
    assert "\n" not in message
    assert ":secret" not in message
    assert "sec/" not in message
