"""How RQ's executions ended, as its workers know it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

from rq.exceptions import InvalidJobOperation
from rq.job import Job as RQJob
from rq.job import JobStatus

from jobmetrics import recorder
from jobmetrics.events import FAILURE, RETRY, REVOKED, SUCCESS, Lost
from jobmetrics.guard import guarded
from jobmetrics.job_context import Execution
from jobmetrics.registry.layout import execution_hash
from jobmetrics.rq.jobs import described
from jobmetrics.rq.system import SYSTEM

Method = Callable[..., Any]  # of RQ's worker classes

_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes; getrusage(2)

KILLED = "WorkHorseKilled"  # error_type of jobs whose work-horse died
ABANDONED = "AbandonedJobError"  # of those whose worker died too, as RQ calls it
RETRIES_USED_UP = "MaxRetriesExceeded"
_TO_RUN_AGAIN = (JobStatus.QUEUED, JobStatus.SCHEDULED)


class Performing:
    """A job that this process performs, and what the worker's handlers told of it: error, asked_retry."""

    __slots__ = ("asked_retry", "error", "execution")

    def __init__(self, execution: Execution) -> None:
        self.execution = execution
        self.error: BaseException | None = None
        self.asked_retry = False

    def begin(self) -> None:
        """The job starts now."""
        self.execution.cpu_clock, self.execution.cpu = cpu_seconds, -cpu_seconds()

    def end(self, status: str, error: BaseException | str | None) -> None:
        """The job ended now."""
        recorder.default().end(self.execution, status, error)

    def how(self, job: RQJob, succeeded: bool) -> tuple[str, BaseException | str | None]:
        """Status and error; RQ says True for a success and for a job that returned Retry, and keeps the rest in the
        job's status."""
        status = job.get_status(refresh=False)
        if self.asked_retry and succeeded:
            return (RETRY, None) if status in _TO_RUN_AGAIN else (FAILURE, RETRIES_USED_UP)
        if succeeded:
            return SUCCESS, None
        if status in _TO_RUN_AGAIN:
            return RETRY, None
        return (REVOKED, None) if status == JobStatus.STOPPED else (FAILURE, self.error)


class Killed:
    """What the worker learnt of its work-horse's death. usage: of wait4; None when it never waited for it."""

    def __init__(self, usage: Any) -> None:
        self.cpu_seconds: float | None = None
        self.peak_bytes: int | None = None
        if usage is not None:
            self.cpu_seconds = usage.ru_utime + usage.ru_stime
            self.peak_bytes = usage.ru_maxrss * _MAXRSS_UNIT


def cpu_seconds() -> float:
    """Processor time of this process and of its children that have ended."""
    now = os.times()  # its resolution is coarse, which matters less for whole processes
    return time.process_time() + now.children_user + now.children_system


@guarded("rq lost")
def report_lost(job: RQJob, queue: Any, execution_id: str, killed: Killed | None, ended: str | None = None) -> bool:
    """The worker learns that its work-horse is gone; killed: None when an operator had it stopped.

    ended: the status it counts as, where the job's own does not tell. Returns whether the end was counted.
    """
    if ended is None:
        status = job.get_status(refresh=False)
        again = RETRY if status in _TO_RUN_AGAIN else FAILURE
        ended = REVOKED if status == JobStatus.STOPPED else again
    record, event = recorder.default(), described(job, queue)
    counted = record.lost(Lost(event, execution_id, ended, KILLED, process_died=killed is not None))
    if counted and killed is not None and killed.cpu_seconds is not None:
        record.series_of(event).cpu.inc(killed.cpu_seconds)
    return counted


def report_ended(job: RQJob, queue: Any, execution_id: str) -> bool:
    """Count a dead work-horse and its job's end where only Redis has that end; returns whether they were counted."""
    ended = ended_in_redis(job)
    if ended is None:
        return False
    return recorder.default().lost(Lost(described(job, queue), execution_id, ended, process_died=True))


def ended_in_redis(job: RQJob) -> str | None:
    """How the job ended as Redis has it; None when it is to run again, or has no end there.

    A job that is gone from there is a success whose result was not kept.
    """
    try:
        status = job.get_status()
    except InvalidJobOperation:
        return SUCCESS
    if status == JobStatus.FAILED:
        return FAILURE
    return SUCCESS if status in (None, JobStatus.FINISHED) else None


def abandoned_name(execution_id: str) -> str:
    """What journals call an execution whose end was counted by somebody who found it abandoned."""
    return f"{execution_id} abandoned"


@guarded("rq abandoned")
def report_abandoned(job: RQJob, queue: Any, execution_id: str, again: bool) -> None:
    """A worker finds a job whose own worker is gone. When it died, and so how long it ran, nobody knows."""
    record = recorder.default()
    found = record.writer.find_execution(execution_hash(SYSTEM, execution_id))
    ended = {entry.start for entry in found if not entry.running and not entry.lost}
    if any(entry.running for entry in found):
        return  # its worker only missed its heartbeats, and will count the end itself
    if found and all(entry.start in ended for entry in found):
        return
    status = RETRY if again else FAILURE
    # By a name of its own, since the journal knows its start under the other, and nobody its end.
    record.lost(Lost(described(job, queue), abandoned_name(execution_id), status, ABANDONED))
