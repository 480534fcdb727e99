"""Celery beat: when each entry of the schedule was last sent, how late, and when it is due next."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from celery.signals import beat_init

from jobmetrics import families as f
from jobmetrics.celery import SYSTEM
from jobmetrics.integration import BoundGauge, Labelled, current_recorder, guarded, label_value

_UID = "jobmetrics.beat"
_MARK = "jobmetrics_observed"


class Schedule:
    """Records the entries that one scheduler sends. wall: returns epoch seconds."""

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self._recorder = current_recorder()
        self._wall = wall
        writer = self._recorder.writer
        self._last_sent = Labelled(BoundGauge, f.JOBS_SCHEDULE_LAST_SENT, writer)
        self._next_due = Labelled(BoundGauge, f.JOBS_SCHEDULE_NEXT_DUE, writer)
        self._lateness = Labelled(BoundGauge, f.JOBS_SCHEDULE_LATENESS, writer)

    @guarded("celery beat")
    def started(self, entries: Any) -> None:
        """Record when each entry is due. An entry may have become due while no beat ran."""
        for entry in list(entries):
            self._due(entry, entry.last_run_at)

    @guarded("celery beat")
    def lateness(self, entry: Any) -> float | None:
        """Return the seconds since the entry was due. Call it before the entry's last run changes."""
        return max(0.0, -_seconds_left(entry, entry.last_run_at))

    @guarded("celery beat")
    def sent(self, entry: Any, lateness: float | None) -> None:
        """Record an entry that the broker accepted. lateness: seconds; None when it is not known."""
        self._recorder.tick()
        labels = (SYSTEM, label_value(entry.name))
        self._last_sent.at(labels).set(self._wall())
        if lateness is not None:
            self._lateness.at(labels).set(lateness)
        self._due(entry, entry.schedule.now())

    def _due(self, entry: Any, since: Any) -> None:
        self._next_due.at((SYSTEM, label_value(entry.name))).set(self._wall() + _seconds_left(entry, since))


def _seconds_left(entry: Any, since: Any) -> float:
    """Return the seconds until the entry is due after a run at `since`; negative when it is overdue."""
    return float(entry.schedule.remaining_estimate(since).total_seconds())


def observe(scheduler: Any, schedule: Schedule) -> None:
    """Record every entry that this scheduler sends. A second call changes nothing.

    This wraps `apply_async`, because the publish signals do not name the entry. Every scheduler sends its entries
    through this method, wherever it stores them.
    """
    if getattr(scheduler, _MARK, False):
        return
    send = scheduler.apply_async

    def observed(entry: Any, *args: Any, **options: Any) -> Any:
        lateness = schedule.lateness(entry)
        result = send(entry, *args, **options)  # raises if it cannot send the message
        schedule.sent(entry, lateness)
        return result

    scheduler.apply_async = observed
    setattr(scheduler, _MARK, True)
    schedule.started(scheduler.schedule.values())


@guarded("celery beat")
def _beat_init(sender: Any = None, **_: Any) -> None:
    current_recorder().writer.describe(SYSTEM, "beat")
    observe(sender.scheduler, Schedule())


def connect() -> None:
    """Connect the signal handler."""
    beat_init.connect(_beat_init, weak=False, dispatch_uid=_UID)


def disconnect() -> None:
    """Disconnect the signal handler. A beat that runs already is recorded until it ends."""
    beat_init.disconnect(dispatch_uid=_UID)
