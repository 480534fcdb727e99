from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery.schedules import schedule

from jobmetrics import guard, recorder
from jobmetrics.celery import beat
from jobmetrics.settings import Settings
from tests.support.readings import values
from tests.unit.doubles import die

NOW = datetime(2030, 1, 1, tzinfo=timezone.utc)
LABELS = ("celery", "hourly")


class Scheduler:
    """A scheduler as far as it is looked at; keeps what it sends, unless its broker is down."""

    def __init__(self, last_run_at: datetime) -> None:
        due = schedule(timedelta(hours=1), nowfun=lambda: NOW)
        self.entry = SimpleNamespace(name="hourly", schedule=due, last_run_at=last_run_at)
        self.schedule = {"hourly": self.entry}
        self.sent: list[Any] = []
        self.is_down = False

    def apply_async(self, entry: Any) -> str:
        if self.is_down:
            raise ConnectionError
        self.sent.append(entry)
        return "result"


@pytest.fixture(autouse=True)
def clean(active_settings: Settings) -> Iterator[None]:
    yield
    die(recorder.default().writer)


@pytest.fixture
def scheduler() -> Scheduler:
    """Observed at 1000 s by the wall clock, half an hour after its entry was due."""
    scheduler = Scheduler(NOW - timedelta(hours=1.5))
    beat.observe(scheduler, beat.Schedule(wall=lambda: 1000.0))
    return scheduler


def test_an_entry_that_was_not_sent_shows_when_it_was_due(scheduler: Scheduler, registry_dir: Path) -> None:
    assert values(registry_dir, "jobs_schedule_next_due_timestamp_seconds") == {LABELS: -800.0}
    scheduler.is_down = True
    with pytest.raises(ConnectionError):
        scheduler.apply_async(scheduler.entry)
    assert values(registry_dir, "jobs_schedule_last_sent_timestamp_seconds") == {}


def test_an_entry_that_was_sent_shows_when_how_late_and_when_again(scheduler: Scheduler, registry_dir: Path) -> None:
    assert scheduler.apply_async(scheduler.entry) == "result"
    assert scheduler.sent == [scheduler.entry]
    assert values(registry_dir, "jobs_schedule_last_sent_timestamp_seconds") == {LABELS: 1000.0}
    assert values(registry_dir, "jobs_schedule_lateness_seconds") == {LABELS: 1800.0}
    assert values(registry_dir, "jobs_schedule_next_due_timestamp_seconds") == {LABELS: 4600.0}


def test_a_scheduler_is_observed_once(scheduler: Scheduler) -> None:
    beat.observe(scheduler, beat.Schedule())
    scheduler.apply_async(scheduler.entry)
    assert scheduler.sent == [scheduler.entry]


def test_a_beat_shows_what_was_dropped_and_kept_from_it(scheduler: Scheduler, registry_dir: Path) -> None:
    recorder.default().writer.drop("not finite", "m")
    guard.count("celery beat")
    guard.count("celery beat")
    scheduler.apply_async(scheduler.entry)
    assert values(registry_dir, "jobmetrics_dropped_updates_total") == {("not finite", "m"): 1}
    assert values(registry_dir, "jobmetrics_internal_errors_total") == {("celery beat",): 2}
