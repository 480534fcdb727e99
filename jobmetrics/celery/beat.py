"""Celery beat: when each entry of the schedule was last sent, how late, and when it is due next."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from celery.signals import beat_init

from jobmetrics import families as f
from jobmetrics import recorder
from jobmetrics.celery.messages import SYSTEM
from jobmetrics.guard import guarded
from jobmetrics.instruments import BoundGauge, Labelled, label_value

_UID = "jobmetrics.beat"
_MARK = "jobmetrics_observed"


class Schedule:
    """Records what one scheduler sends. wall: epoch seconds."""

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self._recorder = recorder.default()
        self._wall = wall
        writer = self._recorder.writer
        self._last_sent = Labelled(BoundGauge, f.JOBS_SCHEDULE_LAST_SENT, writer)
        self._next_due = Labelled(BoundGauge, f.JOBS_SCHEDULE_NEXT_DUE, writer)
        self._lateness = Labelled(BoundGauge, f.JOBS_SCHEDULE_LATENESS, writer)

    @guarded("celery beat")
    def begins(self, entries: Any) -> None:
        """Beat starts: each entry is due at some time from now on, or was while no beat ran."""
        for entry in list(entries):
            self._due(entry, entry.last_run_at)

    @guarded("celery beat")
    def late_by(self, entry: Any) -> float | None:
        """Seconds since the entry was due, before its last run is moved on."""
        return max(0.0, -_seconds_left(entry, entry.last_run_at))

    @guarded("celery beat")
    def sent(self, entry: Any, lateness: float | None) -> None:
        """The broker took the entry's message."""
        self._recorder.tick()
        labels = (SYSTEM, label_value(entry.name))
        self._last_sent.at(labels).set(self._wall())
        if lateness is not None:
            self._lateness.at(labels).set(lateness)
        self._due(entry, entry.schedule.now())

    def _due(self, entry: Any, since: Any) -> None:
        self._next_due.at((SYSTEM, label_value(entry.name))).set(self._wall() + _seconds_left(entry, since))


def _seconds_left(entry: Any, since: Any) -> float:
    """Until the entry is due after a run at `since`; negative when that has passed."""
    return float(entry.schedule.remaining_estimate(since).total_seconds())


def observe(scheduler: Any, schedule: Schedule) -> None:
    """Hear of every entry that this scheduler sends; doing it again changes nothing.

    The signals of publishing do not say which entry a message is of, and each scheduler, whatever stores its
    entries, sends them through this method.
    """
    if getattr(scheduler, _MARK, False):
        return
    send = scheduler.apply_async

    def observed(entry: Any, *args: Any, **options: Any) -> Any:
        lateness = schedule.late_by(entry)
        result = send(entry, *args, **options)  # raises when it was not sent
        schedule.sent(entry, lateness)
        return result

    scheduler.apply_async = observed
    setattr(scheduler, _MARK, True)
    schedule.begins(scheduler.schedule.values())


@guarded("celery beat")
def _beat_init(sender: Any = None, **_: Any) -> None:
    recorder.default().writer.describe(SYSTEM, "beat")
    observe(sender.scheduler, Schedule())


def connect() -> None:
    """Begin to listen."""
    beat_init.connect(_beat_init, weak=False, dispatch_uid=_UID)


def disconnect() -> None:
    """Stop it; a beat that runs already is observed until it ends."""
    beat_init.disconnect(dispatch_uid=_UID)
