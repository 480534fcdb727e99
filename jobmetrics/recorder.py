"""The recorder updates instruments from events.

The process that learns how an execution ended counts it. Each execution is counted once: a process that reports the
end of another process's execution reads the journals first.
"""

from __future__ import annotations

import fnmatch
import logging
import os
import threading
import time
from collections.abc import Callable
from threading import get_ident

from jobmetrics import families as f
from jobmetrics import guard, job_context, runtime
from jobmetrics.events import (
    ATTEMPTS,
    CPU_OF_CALLER,
    CPU_OF_FAMILY,
    CPU_OF_THREAD,
    FAILURE,
    RETRY,
    SUCCESS,
    Ended,
    Job,
    Lost,
    Published,
    Started,
    Withdrawn,
)
from jobmetrics.instruments import BoundCounter, BoundGauge, BoundHistogram, Labelled, label_value
from jobmetrics.job_context import Execution, ExecutionSeries
from jobmetrics.registry import BoundSeries, Entry, Writer, current, execution_hash, fork_hooks, unended
from jobmetrics.settings import ActiveSettings, Settings, making

logger = logging.getLogger("jobmetrics")

UNKNOWN_ERROR = "unknown"
MAX_REPORTED = 1_000  # lost processes to remember, so that none is counted twice
FLUSH_INTERVAL = 1.0  # seconds between two updates of the metrics of dropped updates and internal errors


class ErrorType(str):
    """A value of the label error_type that another process's recorder determined."""

    __slots__ = ()


class JobSeries:
    """The series of one job's labels, looked up once because most jobs run again."""

    __slots__ = (
        "active", "cpu", "duration", "ignored", "job", "labels", "last_success", "recorder", "success", "target",
        "wait",
    )  # fmt: skip

    def __init__(self, recorder: Recorder, job: Job) -> None:
        self.recorder = recorder
        self.job = job
        self.ignored = recorder.ignores(job.job_type)
        labels = (job.system, label_value(job.job_type), label_value(job.queue_name))
        self.labels = labels
        self.active = recorder.active.at(labels)
        self.duration = recorder.duration.at(labels)
        self.wait = recorder.wait.at(labels)
        self.cpu = recorder.cpu.at(labels)
        self.success = recorder.jobs.at((*labels, SUCCESS))
        self.last_success = recorder.last_success.at(labels)
        self.target = job_context.of(job.job_type)


def _family_cpu() -> float:
    """Return the CPU seconds of this process and its children that have ended."""
    now = os.times()  # its coarse resolution is sufficient for whole processes
    return time.process_time() + now.children_user + now.children_system


def _has_greenlets() -> bool:
    """Whether gevent or eventlet has replaced the threads of this process by greenlets."""
    return threading.local.__module__ != "_thread"


def _range_of(attempt: int) -> str:
    """Return the value of the label attempt for an attempt after the first."""
    few, many, more = ATTEMPTS
    return few if attempt <= 5 else many if attempt <= 20 else more


class Recorder:
    """Records events into a writer's cells.

    Executions begin with `started` and end with `ended`. `lost` counts the end of an execution of another process.
    `Started.cpu` selects the CPU time of an execution. With greenlets CPU time cannot be attributed, so none is
    recorded.

    Args:
        writer: The writer.
        settings: The settings.
        wall: Returns epoch seconds.
        clock: Returns monotonic seconds, for durations.
        process_cpu: Returns the CPU seconds of this process.
        thread_cpu: Returns the CPU seconds of the calling thread.
        family_cpu: Returns the CPU seconds of this process and its children that have ended.
    """

    def __init__(
        self,
        writer: Writer,
        settings: Settings,
        *,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.perf_counter,
        process_cpu: Callable[[], float] = time.process_time,
        thread_cpu: Callable[[], float] = time.thread_time,
        family_cpu: Callable[[], float] = _family_cpu,
    ) -> None:
        self.writer = writer
        self._ignore = settings.ignore
        self._error_types = settings.error_types
        self._wall = wall
        self.clock = clock
        self._process_cpu = process_cpu
        self.thread_cpu = thread_cpu
        self._family_cpu = family_cpu
        self._greenlets = _has_greenlets()
        self.jobs = Labelled(BoundCounter, f.JOBS, writer)
        self.duration = Labelled(BoundHistogram, f.JOBS_DURATION, writer)
        self.wait = Labelled(BoundHistogram, f.JOBS_QUEUE_WAIT, writer)
        self.last_success = Labelled(BoundGauge, f.JOBS_LAST_SUCCESS, writer)
        self.active = Labelled(BoundSeries, f.JOBS_ACTIVE, writer)
        self.cpu = Labelled(BoundCounter, f.JOBS_CPU, writer)
        self._within_target = Labelled(BoundCounter, f.JOBS_WITHIN_TARGET, writer)
        self._target_duration = Labelled(BoundGauge, f.JOBS_TARGET_DURATION, writer)
        self._stage_duration = Labelled(BoundHistogram, f.JOBS_STAGE_DURATION, writer)
        self._items = Labelled(BoundCounter, f.JOBS_ITEMS_PROCESSED, writer)
        self._withdrawn = Labelled(BoundCounter, f.JOBS_WITHDRAWN, writer)
        self._duration_unknown = Labelled(BoundCounter, f.JOBS_DURATION_UNKNOWN, writer)
        self._failures = Labelled(BoundCounter, f.JOBS_FAILURES, writer)
        self._retries = Labelled(BoundCounter, f.JOBS_RETRIES, writer)
        self._attempts = Labelled(BoundCounter, f.JOBS_ATTEMPTS, writer)
        self._published = Labelled(BoundCounter, f.JOBS_PUBLISHED, writer)
        self._processes_lost = Labelled(BoundCounter, f.JOBS_WORKER_PROCESSES_LOST, writer)
        self._worker_starts = Labelled(BoundCounter, f.JOBS_WORKER_STARTS, writer)
        self._workers_lost = Labelled(BoundCounter, f.JOBS_WORKERS_LOST, writer)
        self._dropped_updates = Labelled(BoundCounter, f.DROPPED_UPDATES, writer)
        self._dropped_series = Labelled(BoundCounter, f.DROPPED_SERIES, writer)
        self._internal_errors = Labelled(BoundCounter, f.INTERNAL_ERRORS, writer)
        self._reported_processes: set[tuple[str, float]] = set()  # of the executions after which they died
        self._jobs: dict[tuple[str, str, str], JobSeries] = {}
        self._flush_at = 0.0

    # ---------------------------------------------------------------- this process runs the job

    def started(self, event: Started) -> Execution | None:
        """Record the start of an execution in this process.

        Returns:
            The execution, for `ended`; None if the job type is ignored.
        """
        series = self.series_of(event.job)
        if series.ignored:
            return None
        name, writer = event.execution_id, self.writer
        writer.tick()
        at, start = self._wall(), self.clock()
        if start >= self._flush_at:
            self._flush(start)
        if isinstance(name, int):
            entry = writer.begin(series.active, name, at)
        else:
            entry = writer.begin(
                series.active, execution_hash(event.job.system, name), at, str(event.job_id or name)
            )  # fmt: skip
        execution = Execution(series, name, at, start, entry, fork_hooks.hooks.count)
        if event.ready_at is not None:
            series.wait.observe(max(0.0, at - event.ready_at))  # the clocks of two hosts may differ
        if event.attempt > 1:
            self._attempts.at((*series.labels, _range_of(event.attempt))).inc()
        target = series.target if event.target is None else event.target
        if target is not None:
            self.set_target(execution, target)
        if self._greenlets:
            execution.cpu = None
        elif event.cpu != CPU_OF_CALLER:
            execution.cpu_clock = clock = self._cpu_clock(event.cpu)
            execution.cpu = -clock()
        return execution

    def ended(self, execution: Execution, event: Ended) -> None:
        """Record the end of an execution of this process. A second end is ignored."""
        if execution.ended:
            return
        execution.ended = True
        if execution.forks != fork_hooks.hooks.count:
            return  # a copy in a forked child: the execution runs in the parent
        series, at = execution.series, self._wall()
        status, error, cpu, seconds = event
        if seconds is None:
            seconds = self.clock() - execution.clock_start
        if cpu is None:
            cpu = execution.cpu_seconds()
        if execution.entry is not None:
            journal, entry = execution.entry
            journal.end(entry, at)
        series.duration.observe(seconds)
        if cpu is not None:
            series.cpu.inc(cpu)
        self._count_end(series, status, error, at)
        if status == SUCCESS and execution.target is not None and seconds <= execution.target:
            self._within_target.at(series.labels).inc()
        self.writer.flush()

    def abandoned(self, execution: Execution) -> None:
        """Record that another process will report the end of this execution."""
        execution.ended = True

    def counted_as_lost(self, execution: Execution) -> None:
        """End the journal entry of an execution of this process that `lost` has counted."""
        execution.ended = True
        if execution.entry is not None:
            journal, entry = execution.entry
            journal.end(entry, execution.started_at)

    def taken_over(self, execution: Execution, started_at: float) -> None:
        """Continue an execution that a dead process started, and mark that process's start as ended in this journal.

        Args:
            execution: The execution in this process.
            started_at: Epoch seconds of the start in the dead process's journal.
        """
        series, name = execution.series, str(execution.execution_id)
        number = execution_hash(series.job.system, name)
        self._note_end(series, number, started_at, execution.started_at)
        self.writer.mark_counted(number, started_at)

    # ---------------------------------------------------------------- inside the job

    def set_target(self, execution: Execution, seconds: float) -> None:
        """Declare the duration, in seconds, within which this execution should succeed."""
        execution.target = seconds
        labels = execution.series.labels
        self._target_duration.at(labels).set(seconds)
        self._within_target.at(labels).inc(0.0)  # create the series now, so that a ratio is 0 instead of absent

    def stage(self, execution: Execution, name: str, seconds: float) -> None:
        """Record the duration, in seconds, of a named part of an execution."""
        self.writer.look()
        self._stage_duration.at((*execution.series.labels, label_value(name))).observe(seconds)

    def add_items(self, execution: Execution, count: float) -> None:
        """Add to the items that an execution has processed."""
        self.writer.look()
        self._items.at(execution.series.labels).inc(count)

    # ---------------------------------------------------------------- one process reports for another

    def find_execution(self, system: str, execution_id: str) -> tuple[list[Entry], list[Entry]]:
        """Find an execution in the journals of all processes of this directory.

        Returns:
            All its entries, the latest start first, and the entries without an end. An entry is `running`, or `lost` if
            its process died, or has an end.
        """
        entries = self.writer.find_execution(execution_hash(system, execution_id))
        return entries, unended(entries)

    def lost(self, event: Lost) -> bool:
        """Count the end of an execution that its own process could not report, unless a journal has its end.

        Returns:
            Whether it was counted.
        """
        job = self.series_of(event.job)
        if job.ignored:
            return False
        system, name = event.job.system, event.execution_id
        with self.writer.reporting():
            entries, unended_ones = self.find_execution(system, name)
            if entries and not unended_ones:
                return False
            # An entry of a dead process comes before one that still runs.
            entry = min(unended_ones, key=lambda each: not each.lost, default=None)
            if entry is not None and entry.running and not event.run_time_known:
                return False  # it still runs, and its own process will count its end
            now, number = self._wall(), execution_hash(system, name)
            self._note_end(job, number, entry.start if entry is not None else now, now)
            if entry is not None and entry.lost:
                self.writer.mark_counted(number, entry.start)
        if event.process_died:
            self._processes_lost.at((system,)).inc()
        duration = max(0.0, now - entry.start) if entry is not None and event.run_time_known else None
        self._count_lost(job, event, duration, now)
        return True

    def counted_elsewhere(self, system: str, execution_id: str) -> None:
        """Mark the executions of this id in the slots of dead owners as counted: their end has another id."""
        number = execution_hash(system, execution_id)
        for entry in unended(self.writer.find_execution(number)):
            if entry.lost:
                self.writer.mark_counted(number, entry.start)

    def process_lost(self, job: Job, execution_id: str) -> None:
        """Count a process that died after it recorded the end of this execution. The end is not counted again.

        A process that died before the end is counted by `lost`.
        """
        if self.series_of(job).ignored:
            return
        entries, unended_ones = self.find_execution(job.system, execution_id)
        if unended_ones or not entries:
            return
        start = entries[0].start  # the latest start comes first
        died = (execution_id, start)
        if any(entry.lost and entry.start == start for entry in entries) or died in self._reported_processes:
            return
        if len(self._reported_processes) >= MAX_REPORTED:
            self._reported_processes.clear()
        self._reported_processes.add(died)
        self._processes_lost.at((job.system,)).inc()

    def worker_started(self, system: str) -> None:
        """Count the start of a worker, and the workers of this directory that were killed since the last start."""
        self._worker_starts.at((system,)).inc()
        self._workers_lost.at((system,)).inc(0.0)  # show 0 now, so that the first loss is an increase
        self.writer.settle_free_slots()

    def withdrawn(self, event: Withdrawn) -> None:
        """Record a job that will never start."""
        job = self.series_of(event.job)
        if not job.ignored:
            self._withdrawn.at((*job.labels, event.reason)).inc()

    def published(self, event: Published) -> None:
        """Record a job that was sent."""
        self.writer.look()
        job = self.series_of(event.job)
        if not job.ignored:
            self._published.at(job.labels).inc()
        self._flush_if_due()

    # ---------------------------------------------------------------- counting

    def _note_end(self, series: ExecutionSeries, execution: int, start: float, at: float) -> None:
        """Note the end of another process's execution in this journal, where a second report finds it."""
        noted = self.writer.begin(series.active, execution, start)
        if noted is not None:
            journal, entry = noted
            journal.end(entry, at)

    def _count_lost(self, series: JobSeries, event: Lost, duration: float | None, now: float) -> None:
        if duration is None:
            self._duration_unknown.at(series.labels).inc()
        else:
            series.duration.observe(duration)
        if event.cpu_seconds is not None:
            series.cpu.inc(event.cpu_seconds)
        self._count_end(series, event.status, event.error, now)

    def _count_end(self, series: ExecutionSeries, status: str, error: BaseException | str | None, at: float) -> None:
        if status == SUCCESS:
            series.success.inc()
            series.last_success.set(at)
            return
        self.jobs.at((*series.labels, status)).inc()
        if status == FAILURE:
            self._failures.at((*series.labels, self.error_type(error))).inc()
        elif status == RETRY:
            self._retries.at(series.labels).inc()

    def _cpu_clock(self, cpu: str) -> Callable[[], float]:
        if cpu == CPU_OF_THREAD:
            return self.thread_cpu
        if cpu == CPU_OF_FAMILY:
            return self._family_cpu
        return self._process_cpu if get_ident() == fork_hooks.hooks.main_thread else self.thread_cpu

    def series_of(self, job: Job) -> JobSeries:
        """Return the series of a job's labels. Their number is limited, so that hostile job names use little memory."""
        known = self._jobs.get(job)
        if known is None:
            if len(self._jobs) >= self.writer.max_series:
                self._jobs.clear()
            known = self._jobs[job] = JobSeries(self, job)
        return known

    def ignores(self, job_type: str) -> bool:
        return any(fnmatch.fnmatchcase(job_type, pattern) for pattern in self._ignore)

    def error_type(self, error: BaseException | str | None) -> str:
        """Return the value of the label error_type: the name from the settings, else the name of the class."""
        if error is None:
            return UNKNOWN_ERROR
        if isinstance(error, ErrorType):
            return str(error)
        if isinstance(error, str):
            return label_value(self._error_types.get(error, error.rpartition(".")[2] or UNKNOWN_ERROR))
        for cls in type(error).__mro__:
            name = self._error_types.get(f"{cls.__module__}.{cls.__qualname__}")
            if name is not None:
                return label_value(name)
        return label_value(type(error).__name__)

    def tick(self) -> None:
        """Follow the directory and count what was dropped. Processes that run no jobs call this regularly."""
        self.writer.tick()
        self._flush_if_due()

    def show_dropped(self) -> None:
        """Count dropped updates and internal errors now."""
        self._flush(self.clock())

    def _flush_if_due(self) -> None:
        now = self.clock()
        if now >= self._flush_at:
            self._flush(now)

    def _flush(self, now: float) -> None:
        """Count the dropped updates and internal errors since the last call."""
        self._flush_at = now + FLUSH_INTERVAL
        for where, count in guard.take_counts().items():
            self._internal_errors.at((where,)).inc(count)
        for labels, count in self.writer.take_dropped_updates().items():
            self._dropped_updates.at(labels).inc(count)
        dropped = self.writer.take_dropped_series()
        if dropped:
            self._dropped_series.at(()).inc(dropped)


class DefaultRecorder:
    """The recorder of this process and the settings that it was made from. replacement: a recorder for tests."""

    def __init__(self) -> None:
        self.active = runtime.state(ActiveSettings)  # held, so that each job looks up one state
        self.recorder: Recorder | None = None
        self.made_from: Settings | None = None
        self.replacement: Recorder | None = None


def default() -> Recorder:
    """Return the recorder of this process, for the directory of the active settings."""
    known = runtime.state(DefaultRecorder)
    if known.replacement is not None:
        return known.replacement
    if known.recorder is not None and known.made_from is known.active.settings:
        return known.recorder
    writer = current.writer()
    with making():
        if known.recorder is None or known.recorder.writer is not writer:
            known.recorder = Recorder(writer, current.reported_settings())
        known.made_from = known.active.settings
    return known.recorder


def _show_dropped() -> None:
    """Count what was dropped in a process that may run no jobs."""
    found = default()
    if found.writer is current.writer():
        found.show_dropped()


current.show_dropped = _show_dropped


def use(recorder: Recorder | None) -> None:
    """Use a recorder for tests instead of the default one; None restores the default."""
    runtime.state(DefaultRecorder).replacement = recorder
