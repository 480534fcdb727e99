"""Jobs that a worker records for other processes: its work-horses, and workers that abandoned their jobs.

A forked work-horse reports to its worker, which records for both. Any other work-horse records for itself. Then the
worker reports an end only if the work-horse recorded none, and the recorder checks the journals before it counts it.
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

from jobmetrics.integration import CPU_OF_CALLER, REVOKED, Job, Started, current_recorder, guarded
from jobmetrics.rq import SYSTEM
from jobmetrics.rq.fork_horse import ForkedJob, SharedPage, before_fork
from jobmetrics.rq.jobs import attempt_of, execution_id, function_name, job_of, passed_execution, ready_at
from jobmetrics.rq.outcomes import KilledHorse, Method, report_abandoned, report_lost, report_outcome_in_redis
from jobmetrics.rq.worker_state import WorkerState, state_of


@guarded("rq start")
def _start_forked(worker: Any, state: WorkerState, job: RQJob, queue: Any) -> ForkedJob | None:
    record = current_recorder()
    state.prepare(worker, record)
    name = function_name(job.data)
    if name is None:
        return None  # only unpickling gives the name: the work-horse does that, and records for itself
    if state.page is None:
        state.page = SharedPage()
    labels = Job(SYSTEM, name, queue.name)
    event = Started(
        labels, execution_id(worker, job), ready_at(job),
        cpu=CPU_OF_CALLER, attempt=attempt_of(job), job_id=job.id,
    )  # fmt: skip
    return before_fork(state.page, record, event)


@guarded("rq end")
def _after_exit(worker: Any, state: WorkerState, forked: ForkedJob, job: RQJob, queue: Any) -> None:
    reported = forked.record_reported()
    if worker.horse_pid:
        return  # the worker is shutting down and killed its work-horse
    if not reported:
        forked.record_exit(job, queue, _is_stopped(worker, job))
    if _has_died(worker, state, job):
        current_recorder().process_lost(forked.execution.job, str(forked.execution.execution_id))


@guarded("rq lost")
def _after_exit_of_another(worker: Any, state: WorkerState, job: RQJob, queue: Any, name: str) -> None:
    """Count the death of a work-horse that records for itself, and its job's end if only Redis has it."""
    if worker.horse_pid or not _has_died(worker, state, job):
        return
    if not report_outcome_in_redis(job, queue, name):
        current_recorder().process_lost(job_of(job, queue), name)


def _has_died(worker: Any, state: WorkerState, job: RQJob) -> bool:
    """Return whether the job's work-horse died without a shutdown or stop command, and is not counted yet.

    The stop command is the one that was active at the exit: RQ clears it when it handles the stop.
    """
    if state.exited is None or state.is_counted:
        return False
    (_, status, _), stopped = state.exited
    if not status or stopped == job.id:
        return False
    # On Heroku a warm shutdown makes the work-horse raise and exit with a code.
    return os.WIFSIGNALED(status) or worker._shutdown_requested_date is None


def _is_stopped(worker: Any, job: RQJob) -> bool:
    """Return whether an operator stopped the job and RQ has not handled the stop yet."""
    return bool(worker._stopped_job_id == job.id)


@guarded("rq end")
def _after_raising(worker: Any, job: RQJob, queue: Any, name: str) -> None:
    if _is_stopped(worker, job):
        report_lost(job, queue, name, None, REVOKED)


@guarded("rq execution")
def _execution_id_of(worker: Any, job: RQJob, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    return execution_id(worker, job, passed_execution(args, kwargs))


@guarded("rq worker")
def _prepare(worker: Any, state: WorkerState) -> None:
    state.prepare(worker, current_recorder())


@guarded("rq lost")
def _killed_horse(worker: Any, job: RQJob, usage: Any) -> KilledHorse:
    killed = KilledHorse(usage)
    if killed.peak_bytes is not None:
        worker.log.warning(
            "Worker %s: work-horse killed for job %s had used up to %.0f MiB of memory and %.2f s of processor time",
            worker.name, job.id, killed.peak_bytes / 2**20, killed.cpu_seconds,
        )  # fmt: skip
    return killed


def fork_work_horse_of(original: Method) -> Method:
    """Record the start of the job in the worker, before it forks the work-horse."""

    @functools.wraps(original)
    def fork_work_horse(self: Any, job: RQJob, queue: Any, *args: Any, **kwargs: Any) -> Any:
        state = state_of(self)
        state.forked = _start_forked(self, state, job, queue)
        return original(self, job, queue, *args, **kwargs)

    return fork_work_horse


def monitor_work_horse_of(original: Method) -> Method:
    """Record in the worker what is known after the work-horse exits.

    The end of a forked work-horse is recorded here, whether or not it reported one. Any other work-horse records for
    itself, and RQ reports its death. Before RQ 3 one case is missing: the callback of a stopped job raises.
    """

    @functools.wraps(original)
    def monitor_work_horse(self: Any, job: RQJob, queue: Any, *args: Any, **kwargs: Any) -> Any:
        state = state_of(self)
        forked = state.forked
        name = None
        if forked is None:
            _prepare(self, state)
            name = _execution_id_of(self, job, args, kwargs)
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
    """Remember how the work-horse exited: RQ reports a death only if the job has no end in Redis."""

    @functools.wraps(original)
    def wait_for_horse(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = original(self, *args, **kwargs)
        state_of(self).exited = found, getattr(self, "_stopped_job_id", None)
        return found

    return wait_for_horse


def handle_work_horse_killed_of(original: Method) -> Method:
    """Remember a killed work-horse's resource usage for the end that RQ reports next."""

    @functools.wraps(original)
    def handle_work_horse_killed(self: Any, job: RQJob, *args: Any, **kwargs: Any) -> Any:
        state, usage = state_of(self), kwargs.get("rusage", args[2] if len(args) > 2 else None)
        if state.killed is None:
            state.killed = _killed_horse(self, job, usage) or KilledHorse(None)
        return original(self, job, *args, **kwargs)

    return handle_work_horse_killed


def handle_job_failure_of(original: Method) -> Method:
    """Report the job lost unless the work-horse already recorded its end."""

    @functools.wraps(original)
    def handle_job_failure(self: Any, job: RQJob, queue: Any, *args: Any, **kwargs: Any) -> Any:
        state = state_of(self)
        in_job = self.is_horse or state.running is not None
        if in_job or state.is_failing:  # is_failing: a subclass and its base are both instrumented
            return original(self, job, queue, *args, **kwargs)
        name = _execution_id_of(self, job, args, kwargs)  # before RQ drops the execution
        killed, state.killed = state.killed, None
        state.is_failing = True
        try:
            return original(self, job, queue, *args, **kwargs)
        finally:  # also if RQ raises, as 2.0 does after some retries: the work-horse is gone
            state.is_failing = False
            if state.forked is not None:
                state.is_counted = bool(state.forked.record_lost(job, queue, killed))
            elif name is not None and is_cleaning():  # the job was lost between queue and start
                report_abandoned(job, queue, name, will_retry=False)
            elif name is not None:
                state.is_counted = bool(report_lost(job, queue, name, killed))

    return handle_job_failure


# RQ 3 removes the entry of a job that is not started without a retry: the execution has ended, and its entry remained.
_ONLY_STARTED = int(VERSION.split(".")[0]) >= 3

# Not in the runtime: a context variable has one name in a process, and RQ's class stays hooked for the process's life.
_is_cleaning: ContextVar[bool] = ContextVar("jobmetrics_rq_cleaning", default=False)
_original: Any = None  # StartedJobRegistry.cleanup, once it is hooked


class _Abandoned:
    """An execution that RQ is about to treat as abandoned. will_retry: the job has retries left."""

    __slots__ = ("execution_id", "job", "will_retry")

    def __init__(self, job: RQJob, execution_id: str, will_retry: bool) -> None:
        self.job = job
        self.execution_id = execution_id
        self.will_retry = will_retry


def hook_cleanup() -> None:
    """Hook StartedJobRegistry.cleanup, once for the life of the process.

    The hook counts only within `cleaning`. It is never removed: workers in other threads may be calling it.
    """
    global _original
    if _original is None:
        _original = StartedJobRegistry.cleanup
        StartedJobRegistry.cleanup = _cleanup  # type: ignore[method-assign]


@contextmanager
def cleaning() -> Iterator[None]:
    """Count the abandoned jobs that an instrumented worker finds within this block."""
    token = _is_cleaning.set(True)
    try:
        yield
    finally:
        _is_cleaning.reset(token)


def is_cleaning() -> bool:
    """Return whether this runs within `cleaning`."""
    return _is_cleaning.get()


def _cleanup(self: Any, timestamp: float | None = None, *args: Any, **kwargs: Any) -> Any:
    if not _is_cleaning.get():
        return _original(self, timestamp, *args, **kwargs)
    score = current_timestamp() if timestamp is None else timestamp
    found = _expired(self, score) or []
    result = _original(self, score, *args, **kwargs)
    for each in found:
        report_abandoned(each.job, None, each.execution_id, each.will_retry)
    return result


@guarded("rq abandoned")
def _expired(registry: Any, score: float) -> list[_Abandoned]:
    """Return the expired executions in the registry. Usually there are none, and this is one Redis command."""
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
