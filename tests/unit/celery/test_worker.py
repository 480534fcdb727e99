from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery.signals import beat_init, before_task_publish
from celery.worker.request import Request

from jobmetrics import recorder
from jobmetrics.celery import beat, instrument, signals, uninstrument, worker
from jobmetrics.settings import Settings
from tests.support.readings import samples, values
from tests.unit.doubles import die


@pytest.fixture(autouse=True)
def clean(active_settings: Settings) -> Iterator[None]:
    yield
    die(recorder.default().writer)


def waiting(queue: str) -> Any:
    return SimpleNamespace(app=None, delivery_info={"exchange": "", "routing_key": queue})


def test_gauges_follow_what_waits(registry_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [waiting("a"), waiting("a"), waiting("b")]
    monkeypatch.setattr(worker, "reserved", lambda _: found)
    pool = SimpleNamespace(limit=3, num_processes=0)
    worker.sample(pool)
    assert values(registry_dir, "jobs_reserved") == {("celery", "a"): 2, ("celery", "b"): 1}
    assert values(registry_dir, "jobs_worker_capacity") == {("celery",): 3}
    del found[:2]
    worker.sample(pool)
    assert values(registry_dir, "jobs_reserved") == {("celery", "b"): 1}
    worker.worker_shutdown()
    assert values(registry_dir, "jobs_reserved") == values(registry_dir, "jobs_workers") == {}


def test_a_pool_that_ends_keeps_the_last_capacity(registry_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "reserved", lambda _: [])
    worker.sample(SimpleNamespace(limit=2))
    worker.sample(SimpleNamespace())
    assert values(registry_dir, "jobs_worker_capacity") == {("celery",): 2}


def test_an_undecodable_message_is_counted_and_still_handled(registry_dir: Path) -> None:
    handled: list[object] = []
    consumer = SimpleNamespace(app=None, on_decode_error=lambda message, exc: handled.append(message))
    worker._count_undecodable(consumer)
    message = SimpleNamespace(delivery_info={"exchange": "", "routing_key": "jobs"})
    consumer.on_decode_error(message, ValueError())
    assert handled == [message]
    assert values(registry_dir, "jobs_withdrawn_total") == {("celery", "unknown", "jobs", "rejected"): 1}


def test_instrumenting_twice_is_once_and_can_be_undone() -> None:
    assert not signals.is_connected()
    methods = {name: getattr(Request, name) for name in signals._WRAPPERS}
    instrument()
    instrument()
    assert signals.is_connected()
    assert {name: getattr(Request, name).__wrapped__ for name in methods} == methods
    for signal, _ in signals._HANDLERS:
        ours = [receiver for _, receiver in signal.receivers if "jobmetrics" in getattr(receiver, "__module__", "")]
        assert len(ours) == 1, signal
    uninstrument()
    assert {name: getattr(Request, name) for name in methods} == methods
    assert not signals.is_connected()
    for signal in (*(each for each, _ in signals._HANDLERS), before_task_publish, beat_init):
        assert not [r for _, r in signal.receivers if "jobmetrics" in getattr(r, "__module__", "")]


class Entry:
    """An entry of a schedule, due `left` seconds after its last run."""

    last_run_at = "last"
    name = "nightly"

    def __init__(self) -> None:
        self.schedule = self
        self.left = {"last": -2.5, "now": 60.0}

    def now(self) -> str:
        return "now"

    def remaining_estimate(self, since: str) -> Any:
        return SimpleNamespace(total_seconds=lambda: self.left[since])


def test_a_sent_entry_shows_its_lateness_and_when_it_is_due(registry_dir: Path) -> None:
    sent: list[object] = []
    entry = Entry()
    scheduler = SimpleNamespace(schedule={"nightly": entry}, apply_async=lambda entry, **_: sent.append(entry))
    schedule = beat.Schedule(lambda: 1000.0)
    beat.observe(scheduler, schedule)
    beat.observe(scheduler, schedule)
    labels = ("celery", "nightly")
    assert values(registry_dir, "jobs_schedule_next_due_timestamp_seconds") == {labels: 997.5}
    scheduler.apply_async(entry, producer=None)
    assert sent == [entry]
    assert values(registry_dir, "jobs_schedule_last_sent_timestamp_seconds") == {labels: 1000.0}
    assert values(registry_dir, "jobs_schedule_next_due_timestamp_seconds") == {labels: 1060.0}
    assert values(registry_dir, "jobs_schedule_lateness_seconds") == {labels: 2.5}


def test_an_entry_that_could_not_be_sent_was_not(registry_dir: Path) -> None:
    def refuse(entry: object) -> None:
        raise OSError("no broker")

    scheduler = SimpleNamespace(schedule={}, apply_async=refuse)
    beat.observe(scheduler, beat.Schedule())
    with pytest.raises(OSError, match="no broker"):
        scheduler.apply_async(Entry())
    assert samples(registry_dir, "jobs_schedule_last_sent_timestamp_seconds") == {}
