"""RQ's worker methods as events.

The work-horse speaks of its job's end. The worker speaks only where its work-horse was silent; the recorder
asks the journals before it believes it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from datetime import timezone
from typing import Any, TypeVar

from rq.job import Job as RQJob
from rq.job import JobStatus
from rq.timeouts import BaseTimeoutException

from jobmetrics import guard, recorder
from jobmetrics.context import Execution, running
from jobmetrics.events import FAILURE, RETRY, REVOKED, SUCCESS, Ended, Job, Lost, Started
from jobmetrics.guard import guarded

SYSTEM = "rq"
UNKNOWN_JOB_TYPE = "unknown"
KILLED = "WorkHorseKilled"  # error_type of jobs whose work-horse died
RETRIES_USED_UP = "MaxRetriesExceeded"
_TO_RUN_AGAIN = (JobStatus.QUEUED, JobStatus.SCHEDULED)

WorkerClass = TypeVar("WorkerClass", bound=type)
Method = Callable[..., Any]


class _Performing:
    """What a worker's handlers told of the job that it performs."""

    def __init__(self, execution: Execution) -> None:
        self.execution = execution
        self.error: BaseException | None = None
        self.asked_retry = False


def _job(job: RQJob, queue: Any = None) -> Job:
    try:
        job_type = job.func_name or UNKNOWN_JOB_TYPE
    except Exception:  # noqa: BLE001 - it unpickles the job's arguments, whose classes may raise anything
        job_type = UNKNOWN_JOB_TYPE
    return Job(SYSTEM, job_type, getattr(queue, "name", None) or job.origin or "unknown")


def _execution_id(worker: Any, job: RQJob) -> str:
    """The same in the worker and in its work-horse; releases before 2.0 have no executions, only jobs."""
    execution = getattr(worker, "execution", None)
    return f"{job.id}:{execution.id}" if execution is not None else job.id


def _ready_at(job: RQJob) -> float | None:
    """When the job was last put into its queue, in epoch seconds: every enqueue, retry and schedule resets it."""
    moment = job.enqueued_at
    if moment is None:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()


@guarded("rq start")
def _start(worker: Any, job: RQJob, queue: Any) -> _Performing | None:
    record = recorder.default()
    record.writer.describe(SYSTEM, "work-horse" if worker.is_horse else "worker")
    execution = record.started(Started(_job(job, queue), _execution_id(worker, job), _ready_at(job)))
    return None if execution is None else _Performing(execution)


@guarded("rq end")
def _end(performing: _Performing, job: RQJob, succeeded: object) -> None:
    status, error = _status(performing, job, bool(succeeded))
    recorder.default().ended(performing.execution, Ended(status, error))


def _status(performing: _Performing, job: RQJob, succeeded: bool) -> tuple[str, BaseException | str | None]:
    """RQ says True for a success and for a job that returned Retry, and keeps the rest in the job's status."""
    status = job.get_status(refresh=False)
    if performing.asked_retry and succeeded:
        return (RETRY, None) if status in _TO_RUN_AGAIN else (FAILURE, RETRIES_USED_UP)
    if succeeded:
        return SUCCESS, None
    if status in _TO_RUN_AGAIN:
        return RETRY, None
    return (REVOKED, None) if status == JobStatus.STOPPED else (FAILURE, performing.error)


@guarded("rq lost")
def _report_lost(job: RQJob, queue: Any, execution_id: str, killed: bool) -> None:
    """The worker learns that its work-horse is gone."""
    status = job.get_status(refresh=False)
    again = RETRY if status in _TO_RUN_AGAIN else FAILURE
    ended = REVOKED if status == JobStatus.STOPPED else again
    recorder.default().lost(Lost(_job(job, queue), execution_id, ended, KILLED, process_died=killed))


@guarded("rq worker")
def _before_fork(worker: Any) -> None:
    writer = recorder.default().writer
    writer.describe(SYSTEM, "worker")
    writer.prepare()  # once here, and not in each work-horse


def _execute_job(original: Method) -> Method:
    @functools.wraps(original)
    def execute_job(self: Any, *args: Any, **kwargs: Any) -> Any:
        _before_fork(self)
        return original(self, *args, **kwargs)

    return execute_job


def _perform_job(original: Method) -> Method:
    @functools.wraps(original)
    def perform_job(self: Any, job: RQJob, queue: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(self, "_jobmetrics", None) is not None:  # a subclass and its base are both instrumented
            return original(self, job, queue, *args, **kwargs)
        self._jobmetrics = performing = _start(self, job, queue)
        if performing is None:
            return original(self, job, queue, *args, **kwargs)
        token = running.set(performing.execution)
        try:
            succeeded = original(self, job, queue, *args, **kwargs)
            _end(performing, job, succeeded)
            return succeeded
        finally:
            running.reset(token)
            self._jobmetrics = None

    return perform_job


def _handle_exception(original: Method) -> Method:
    @functools.wraps(original)
    def handle_exception(self: Any, job: RQJob, *exc_info: Any) -> Any:
        performing = getattr(self, "_jobmetrics", None)
        if performing is not None and len(exc_info) > 1:
            performing.error = exc_info[1]
        return original(self, job, *exc_info)

    return handle_exception


def _handle_job_retry(original: Method) -> Method:
    @functools.wraps(original)
    def handle_job_retry(self: Any, *args: Any, **kwargs: Any) -> Any:
        performing = getattr(self, "_jobmetrics", None)
        if performing is not None:
            performing.asked_retry = True
        return original(self, *args, **kwargs)

    return handle_job_retry


def _handle_work_horse_killed(original: Method) -> Method:
    @functools.wraps(original)
    def handle_work_horse_killed(self: Any, *args: Any, **kwargs: Any) -> Any:
        self._jobmetrics_killed = True
        return original(self, *args, **kwargs)

    return handle_work_horse_killed


def _handle_job_failure(original: Method) -> Method:
    @functools.wraps(original)
    def handle_job_failure(self: Any, job: RQJob, queue: Any, *args: Any, **kwargs: Any) -> Any:
        if self.is_horse or getattr(self, "_jobmetrics", None) is not None:
            return original(self, job, queue, *args, **kwargs)
        execution_id = _execution_id(self, job)  # RQ forgets the execution in here
        killed, self._jobmetrics_killed = getattr(self, "_jobmetrics_killed", False), False
        result = original(self, job, queue, *args, **kwargs)
        _report_lost(job, queue, execution_id, killed)
        return result

    return handle_job_failure


_HOOKS: dict[str, Callable[[Method], Method]] = {
    "execute_job": _execute_job,
    "perform_job": _perform_job,
    "handle_exception": _handle_exception,
    "handle_job_retry": _handle_job_retry,  # from RQ 2.1 on
    "handle_work_horse_killed": _handle_work_horse_killed,
    "handle_job_failure": _handle_job_failure,
}
_ORIGINALS = "_jobmetrics_originals"


def instrument(worker_class: WorkerClass) -> WorkerClass:
    """Record what this worker class does, in place; usable as a decorator. Calling it again changes nothing."""
    guard.let_through(BaseTimeoutException)
    if any(_ORIGINALS in cls.__dict__ for cls in worker_class.__mro__):
        return worker_class
    originals: dict[str, Any] = {}
    for name, hook in _HOOKS.items():
        if hasattr(worker_class, name):
            originals[name] = worker_class.__dict__.get(name)
            setattr(worker_class, name, hook(getattr(worker_class, name)))
    setattr(worker_class, _ORIGINALS, originals)
    return worker_class


def uninstrument(worker_class: WorkerClass) -> WorkerClass:
    """Stop recording what this very class does."""
    for name, original in worker_class.__dict__.get(_ORIGINALS, {}).items():
        if original is None:
            delattr(worker_class, name)
        else:
            setattr(worker_class, name, original)
    if _ORIGINALS in worker_class.__dict__:
        delattr(worker_class, _ORIGINALS)
    return worker_class
