"""From events to instruments: the one place that knows which event counts as what.

Metrics are counted in the process that learns how an execution ended, each execution once: a process that
speaks for another one asks the journals first.
"""

from __future__ import annotations

import fnmatch
import logging
import os
import time
from collections.abc import Callable

from jobmetrics import families as f
from jobmetrics import guard
from jobmetrics.context import Execution
from jobmetrics.events import FAILURE, RETRY, SUCCESS, Ended, Job, Lost, Published, Started, Withdrawn
from jobmetrics.instruments import BoundCounter, BoundGauge, BoundHistogram, Labelled, label_value
from jobmetrics.registry import current
from jobmetrics.registry.journal import Entry
from jobmetrics.registry.layout import execution_hash
from jobmetrics.registry.writer import BoundSeries, Writer
from jobmetrics.settings import Settings, making

logger = logging.getLogger("jobmetrics")

UNKNOWN_ERROR = "unknown"
FLUSH_INTERVAL = 1.0  # seconds between two looks at what was dropped or kept from jobs

_forks = 0


def _count_fork() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count_fork)


class _JobInstruments:
    """The series of one job's common labels, found once: most jobs come again."""

    __slots__ = ("active", "duration", "ignored", "labels", "last_success", "success", "wait")

    def __init__(self, recorder: Recorder, job: Job) -> None:
        self.ignored = recorder.ignores(job.job_type)
        labels = (job.system, label_value(job.job_type), label_value(job.queue_name))
        self.labels = labels
        self.active = recorder.active.at(labels)
        self.duration = recorder.duration.at(labels)
        self.wait = recorder.wait.at(labels)
        self.success = recorder.jobs.at((*labels, SUCCESS))
        self.last_success = recorder.last_success.at(labels)


class Recorder:
    """Records events into a writer's cells.

    wall: epoch seconds; clock: seconds that never go back, for durations.
    """

    def __init__(
        self,
        writer: Writer,
        settings: Settings,
        *,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.writer = writer
        self._ignore = settings.ignore
        self._error_types = settings.error_types
        self._wall = wall
        self._clock = clock
        self.jobs = Labelled(BoundCounter, f.JOBS, writer)
        self.duration = Labelled(BoundHistogram, f.JOBS_DURATION, writer)
        self.wait = Labelled(BoundHistogram, f.JOBS_QUEUE_WAIT, writer)
        self.last_success = Labelled(BoundGauge, f.JOBS_LAST_SUCCESS, writer)
        self.active = Labelled(BoundSeries, f.JOBS_ACTIVE, writer)
        self._withdrawn = Labelled(BoundCounter, f.JOBS_WITHDRAWN, writer)
        self._duration_unknown = Labelled(BoundCounter, f.JOBS_DURATION_UNKNOWN, writer)
        self._failures = Labelled(BoundCounter, f.JOBS_FAILURES, writer)
        self._retries = Labelled(BoundCounter, f.JOBS_RETRIES, writer)
        self._published = Labelled(BoundCounter, f.JOBS_PUBLISHED, writer)
        self._processes_lost = Labelled(BoundCounter, f.JOBS_WORKER_PROCESSES_LOST, writer)
        self._dropped_updates = Labelled(BoundCounter, f.DROPPED_UPDATES, writer)
        self._dropped_series = Labelled(BoundCounter, f.DROPPED_SERIES, writer)
        self._internal_errors = Labelled(BoundCounter, f.INTERNAL_ERRORS, writer)
        self._jobs: dict[Job, _JobInstruments] = {}
        self._flush_at = 0.0

    # ---------------------------------------------------------------- this process runs the job

    def started(self, event: Started) -> Execution | None:
        """An execution starts here. Returns what `ended` wants; None for a job type that is ignored."""
        job = self._instruments(event.job)
        if job.ignored:
            return None
        self.writer.tick()
        at, start = self._wall(), self._clock()
        if start >= self._flush_at:
            self._flush(start)
        entry = self.writer.begin(job.active, execution_hash(event.job.system, event.execution_id), at)
        if event.ready_at is not None:
            job.wait.observe(max(0.0, at - event.ready_at))  # clocks of two hosts may disagree
        return Execution(event.job, event.execution_id, at, start, entry, _forks)

    def ended(self, execution: Execution, event: Ended) -> None:
        """An execution of this process ended; the second end of one is not counted."""
        if execution.ended or execution.forks != _forks:
            return
        execution.ended = True
        if execution.entry is not None:
            journal, entry = execution.entry
            journal.end(entry, self._wall())
        self._count_end(execution.job, event, self._clock() - execution.clock_start)
        self.writer.flush()

    def abandoned(self, execution: Execution) -> None:
        """An execution left this process without an end known here: somebody else will report it."""
        execution.ended = True

    # ---------------------------------------------------------------- one process speaks for another

    def lost(self, event: Lost) -> bool:
        """Count the end of an execution whose own process could not, if no journal says that it had ended.

        Returns whether it was counted.
        """
        job = self._instruments(event.job)
        if job.ignored:
            return False
        execution = execution_hash(event.job.system, event.execution_id)
        entry, known = _unended(self.writer.find_execution(execution))
        if entry is None and known:
            return False
        if event.process_died:
            self._processes_lost.at((event.job.system,)).inc()
        now = self._wall()
        own = self.writer.begin(job.active, execution, entry.start if entry is not None else now)
        if own is not None:
            own[0].end(own[1], now)  # whoever hears of it again, finds it here
        duration = max(0.0, now - entry.start) if entry is not None else None
        self._count_end(event.job, Ended(event.status, event.error), duration)
        return True

    def withdrawn(self, event: Withdrawn) -> None:
        """A job will never start."""
        job = self._instruments(event.job)
        if not job.ignored:
            self._withdrawn.at((*job.labels, event.reason)).inc()

    def published(self, event: Published) -> None:
        """A job was sent."""
        job = self._instruments(event.job)
        if not job.ignored:
            self._published.at(job.labels).inc()
        now = self._clock()
        if now >= self._flush_at:
            self._flush(now)

    # ---------------------------------------------------------------- counting

    def _count_end(self, job: Job, event: Ended, duration: float | None) -> None:
        known = self._instruments(job)
        if duration is None:
            self._duration_unknown.at(known.labels).inc()
        else:
            known.duration.observe(duration)
        if event.status == SUCCESS:
            known.success.inc()
            known.last_success.set(self._wall())
            return
        self.jobs.at((*known.labels, event.status)).inc()
        if event.status == FAILURE:
            self._failures.at((*known.labels, self.error_type(event.error))).inc()
        elif event.status == RETRY:
            self._retries.at(known.labels).inc()

    def _instruments(self, job: Job) -> _JobInstruments:
        known = self._jobs.get(job)
        if known is None:
            if len(self._jobs) >= self.writer.max_series:
                self._jobs.clear()  # hostile job names must not fill the memory
            known = self._jobs[job] = _JobInstruments(self, job)
        return known

    def ignores(self, job_type: str) -> bool:
        return any(fnmatch.fnmatchcase(job_type, pattern) for pattern in self._ignore)

    def error_type(self, error: BaseException | str | None) -> str:
        """The name the error_type label shows: a user's mapping, else the class's name."""
        if error is None:
            return UNKNOWN_ERROR
        if isinstance(error, str):
            return label_value(self._error_types.get(error, error.rpartition(".")[2] or UNKNOWN_ERROR))
        for cls in type(error).__mro__:
            name = self._error_types.get(f"{cls.__module__}.{cls.__qualname__}")
            if name is not None:
                return label_value(name)
        return label_value(type(error).__name__)

    def _flush(self, now: float) -> None:
        """Show what was dropped, and what was kept from jobs, since the last time."""
        self._flush_at = now + FLUSH_INTERVAL
        for where, count in guard.take_counts().items():
            self._internal_errors.at((where,)).inc(count)
        for reason, count in self.writer.take_dropped_updates().items():
            self._dropped_updates.at((reason,)).inc(count)
        dropped = self.writer.take_dropped_series()
        if dropped:
            self._dropped_series.at(()).inc(dropped)


def _unended(entries: list[Entry]) -> tuple[Entry | None, bool]:
    """The execution among a name's journal entries that has no end yet, and whether there are any entries.

    One execution is one start: a rerun under the same name has another. What a dead owner left comes before
    what still runs.
    """
    ended = {entry.start for entry in entries if not entry.running and not entry.lost}
    open_ones = [entry for entry in entries if (entry.running or entry.lost) and entry.start not in ended]
    return next((entry for entry in open_ones if entry.lost), open_ones[0] if open_ones else None), bool(entries)


_default: Recorder | None = None


def default() -> Recorder:
    """This process's recorder, into the directory of the settings in force."""
    global _default
    writer = current.writer()
    if _default is None or _default.writer is not writer:
        with making():
            if _default is None or _default.writer is not writer:
                _default = Recorder(writer, current.settings_or_off())
    return _default
