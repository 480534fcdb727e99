"""RQ's methods of a worker that has work-horses, as events.

The worker reports an end only where its work-horse recorded none; the recorder asks the journals before it counts it.
Where both share memory, the worker records for both.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from rq.exceptions import NoSuchJobError
from rq.job import Job as RQJob
from rq.job import JobStatus
from rq.registry import StartedJobRegistry
from rq.utils import current_timestamp
from rq.version import VERSION

from jobmetrics import recorder
from jobmetrics.events import CPU_OF_FAMILY, REVOKED, Job, Started
from jobmetrics.guard import guarded
from jobmetrics.job_context import running
from jobmetrics.rq.fork_horse import Forked, SharedPage, before_fork
from jobmetrics.rq.jobs import described, execution_id, named_in, passed_execution, ready_at
from jobmetrics.rq.outcomes import (
    KilledHorse,
    Method,
    Performing,
    report_abandoned,
    report_lost,
    report_outcome_in_redis,
)
from jobmetrics.rq.system import SYSTEM
from jobmetrics.rq.worker_state import WorkerState, state_of


@guarded("rq start")
def _before_fork(worker: Any, state: WorkerState, job: RQJob, queue: Any) -> Forked | None:
    record = recorder.default()
    state.prepare(worker, record)
    name = named_in(job.data)
    if name is None:
        return None  # naming it would unpickle the job's arguments: its work-horse may, and records for itself
    if state.page is None:
        state.page = SharedPage()
    return before_fork(
        state.page, record, Job(SYSTEM, name, queue.name), execution_id(worker, job), ready_at(job)
    )  # fmt: skip


@guarded("rq end")
def _after_exit(worker: Any, state: WorkerState, forked: Forked, job: RQJob, queue: Any) -> None:
    reported = forked.record_reported()
    if worker.horse_pid:
        return  # this worker ends, and killed its work-horse
    if not reported:
        forked.record_exit(job, queue, _is_stopped(worker, job))
    if _has_died(worker, state, job):
        recorder.default().process_lost(forked.execution.job, str(forked.execution.execution_id))


@guarded("rq lost")
def _after_exit_of_another(worker: Any, state: WorkerState, job: RQJob, queue: Any, name: str) -> None:
    """Count the death of a work-horse that records for itself, and its job's end where only Redis has it."""
    if worker.horse_pid or not _has_died(worker, state, job):
        return
    if not report_outcome_in_redis(job, queue, name):
        recorder.default().process_lost(described(job, queue), name)


def _has_died(worker: Any, state: WorkerState, job: RQJob) -> bool:
    """Whether the job's work-horse died, of no shutdown and no stop command, and is not counted yet.

    The stop command is looked up as it was at the exit: RQ forgets it when it handles the stop.
    """
    if state.exited is None or state.is_counted:
        return False
    (_, status, _), stopped = state.exited
    if not status or stopped == job.id:
        return False
    # A warm shutdown on Heroku makes a work-horse raise, and exit with a code.
    return os.WIFSIGNALED(status) or worker._shutdown_requested_date is None


def _is_stopped(worker: Any, job: RQJob) -> bool:
    """Whether an operator had the job's work-horse killed, and RQ has not handled it yet."""
    return bool(worker._stopped_job_id == job.id)


@guarded("rq end")
def _after_raising(worker: Any, job: RQJob, queue: Any, name: str) -> None:
    if _is_stopped(worker, job):
        report_lost(job, queue, name, None, REVOKED)


@guarded("rq execution")
def _named(worker: Any, job: RQJob, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    return execution_id(worker, job, passed_execution(args, kwargs))


@guarded("rq worker")
def _prepare(worker: Any, state: WorkerState) -> None:
    state.prepare(worker, recorder.default())


@guarded("rq lost")
def _killed(worker: Any, job: RQJob, usage: Any) -> KilledHorse:
    killed = KilledHorse(usage)
    if killed.peak_bytes is not None:
        worker.log.warning(
            "Worker %s: work-horse killed for job %s had used up to %.0f MiB of memory and %.2f s of processor time",
            worker.name, job.id, killed.peak_bytes / 2**20, killed.cpu_seconds,
        )  # fmt: skip
    return killed


def fork_work_horse_of(original: Method) -> Method:
    """The worker records the start of the job whose work-horse it forks."""

    @functools.wraps(original)
    def fork_work_horse(self: Any, job: RQJob, queue: Any, *args: Any, **kwargs: Any) -> Any:
        state = state_of(self)
        state.forked = _before_fork(self, state, job, queue)
        return original(self, job, queue, *args, **kwargs)

    return fork_work_horse


def monitor_work_horse_of(original: Method) -> Method:
    """The worker records what is known once its work-horse is gone.

    A work-horse that shares the worker's memory has its end recorded here, whether or not it reported one. Any other
    one records for itself, and RQ reports all deaths but one: a stopped job whose callback raises, before RQ 3.
    """

    @functools.wraps(original)
    def monitor_work_horse(self: Any, job: RQJob, queue: Any, *args: Any, **kwargs: Any) -> Any:
        state = state_of(self)
        forked = state.forked
        name = None
        if forked is None:
            _prepare(self, state)
            name = _named(self, job, args, kwargs)
        state.exited, state.is_counted = None, False
        try:
            return original(self, job, queue, *args, **kwargs)
        except Exception:
            if name is not None:
                _after_raising(self, job, queue, name)
            raise
        finally:
            if name is not None:
                _after_exit_of_another(self, state, job, queue, name)
            if forked is not None:
                state.forked = None
                _after_exit(self, state, forked, job, queue)

    return monitor_work_horse


def wait_for_horse_of(original: Method) -> Method:
    """Keep how the work-horse exited: RQ reports a death only where the job has no end in Redis."""

    @functools.wraps(original)
    def wait_for_horse(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = original(self, *args, **kwargs)
        state_of(self).exited = found, getattr(self, "_stopped_job_id", None)
        return found

    return wait_for_horse


def handle_work_horse_killed_of(original: Method) -> Method:
    """What the system reported of a killed work-horse is kept for the end that follows."""

    @functools.wraps(original)
    def handle_work_horse_killed(self: Any, job: RQJob, *args: Any, **kwargs: Any) -> Any:
        state, usage = state_of(self), kwargs.get("rusage", args[2] if len(args) > 2 else None)
        if state.killed is None:
            state.killed = _killed(self, job, usage) or KilledHorse(None)
        return original(self, job, *args, **kwargs)

    return handle_work_horse_killed


def handle_job_failure_of(original: Method) -> Method:
    """Report the job lost unless the work-horse already recorded its end."""

    @functools.wraps(original)
    def handle_job_failure(self: Any, job: RQJob, queue: Any, *args: Any, **kwargs: Any) -> Any:
        state = state_of(self)
        in_job = self.is_horse or state.performing is not None
        if in_job or state.is_failing:  # the last: a subclass and its base again
            return original(self, job, queue, *args, **kwargs)
        name = _named(self, job, args, kwargs)  # before RQ forgets the execution
        killed, state.killed = state.killed, None
        state.is_failing = True
        try:
            return original(self, job, queue, *args, **kwargs)
        finally:  # also when RQ raises (2.0 does after some retries): the work-horse is gone all the same
            state.is_failing = False
            if state.forked is not None:
                state.is_counted = bool(state.forked.record_lost(job, queue, killed))
            elif name is not None and is_cleaning():  # it got stuck between queue and start
                report_abandoned(job, queue, name, again=False)
            elif name is not None:
                state.is_counted = bool(report_lost(job, queue, name, killed))

    return handle_job_failure


@guarded("rq start")
def _start(
    worker: Any, state: WorkerState, job: RQJob, queue: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Performing | None:
    record = recorder.default()
    state.prepare(worker, record)
    name = execution_id(worker, job, passed_execution(args, kwargs))
    execution = record.started(Started(described(job, queue), name, ready_at(job), cpu=CPU_OF_FAMILY))
    return None if execution is None else Performing(execution)


@guarded("rq end")
def _end(performing: Performing, job: RQJob, succeeded: bool) -> None:
    performing.end(performing.outcome(job, succeeded))


def perform_job_of(original: Method) -> Method:
    """A job starts here, and ends."""

    @functools.wraps(original)
    def perform_job(self: Any, job: RQJob, queue: Any, *args: Any, **kwargs: Any) -> Any:
        state = state_of(self)
        if state.performing is not None:  # a subclass and its base are both instrumented
            return original(self, job, queue, *args, **kwargs)
        performing: Performing | None = state.forked
        if state.forked is not None:
            state.forked.begin()
        else:
            performing = _start(self, state, job, queue, args, kwargs)
        if performing is None:
            return original(self, job, queue, *args, **kwargs)
        state.performing = performing
        token = running.set(performing.execution)
        try:
            succeeded = original(self, job, queue, *args, **kwargs)
            _end(performing, job, bool(succeeded))
            return succeeded
        finally:
            running.reset(token)
            state.performing = None

    return perform_job


def handle_exception_of(original: Method) -> Method:
    """Remember the exception for error_type."""

    @functools.wraps(original)
    def handle_exception(self: Any, job: RQJob, *exc_info: Any) -> Any:
        performing = state_of(self).performing
        if performing is not None and len(exc_info) > 1:
            performing.error = exc_info[1]
        return original(self, job, *exc_info)

    return handle_exception


def handle_job_retry_of(original: Method) -> Method:
    """Remember that the job returned Retry."""

    @functools.wraps(original)
    def handle_job_retry(self: Any, *args: Any, **kwargs: Any) -> Any:
        performing = state_of(self).performing
        if performing is not None:
            performing.asked_retry = True
        return original(self, *args, **kwargs)

    return handle_job_retry


# RQ 3 drops entries of jobs that are not started: their execution ended, and only the entry was left behind.
_ONLY_STARTED = int(VERSION.split(".")[0]) >= 3

# Not in the runtime: a context variable has one name in a process, and RQ's class stays hooked for the process's life.
_is_cleaning: ContextVar[bool] = ContextVar("jobmetrics_rq_cleaning", default=False)
_original: Any = None  # StartedJobRegistry.cleanup, once it is hooked


class _Abandoned:
    """An execution that RQ is about to call abandoned. again: whether the job has retries left."""

    __slots__ = ("again", "execution_id", "job")

    def __init__(self, job: RQJob, execution_id: str, again: bool) -> None:
        self.job = job
        self.execution_id = execution_id
        self.again = again


def hook() -> None:
    """Hook StartedJobRegistry.cleanup, once for the life of the process.

    The hook counts only within `cleaning`. It is never removed: workers in other threads may be inside.
    """
    global _original
    if _original is None:
        _original = StartedJobRegistry.cleanup
        StartedJobRegistry.cleanup = _cleanup  # type: ignore[method-assign]


@contextmanager
def cleaning() -> Iterator[None]:
    """While it lasts, an instrumented worker cleans up here: the abandoned jobs that it finds are counted."""
    token = _is_cleaning.set(True)
    try:
        yield
    finally:
        _is_cleaning.reset(token)


def is_cleaning() -> bool:
    """Whether an instrumented worker cleans up here."""
    return _is_cleaning.get()


def _cleanup(self: Any, timestamp: float | None = None, *args: Any, **kwargs: Any) -> Any:
    if not _is_cleaning.get():
        return _original(self, timestamp, *args, **kwargs)
    score = current_timestamp() if timestamp is None else timestamp
    found = _expired(self, score) or []
    result = _original(self, score, *args, **kwargs)
    for each in found:
        report_abandoned(each.job, None, each.execution_id, each.again)
    return result


@guarded("rq abandoned")
def _expired(registry: Any, score: float) -> list[_Abandoned]:
    """What has expired in the registry; usually nothing, for one question to Redis."""
    found = []
    for member in registry.connection.zrangebyscore(registry.key, 0, score):
        entry = member.decode("utf-8", "replace") if isinstance(member, bytes) else str(member)
        parse = getattr(registry, "parse_job_id", None)  # from 2.0 on an entry is JOB:EXECUTION
        try:
            job = registry.job_class.fetch(
                parse(entry) if parse else entry, connection=registry.connection, serializer=registry.serializer
            )
        except NoSuchJobError:
            continue
        if _ONLY_STARTED and job.get_status(refresh=False) != JobStatus.STARTED:
            continue
        name = entry if entry != job.id else execution_id(None, job)
        found.append(_Abandoned(job, name, bool(job.retries_left and job.retries_left > 0)))
    return found
