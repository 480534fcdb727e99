"""The outcomes of RQ's executions, as its workers know them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from rq.exceptions import InvalidJobOperation
from rq.job import Job as RQJob
from rq.job import JobStatus

from jobmetrics import recorder
from jobmetrics.events import FAILURE, RETRY, REVOKED, SUCCESS, Ended, Lost
from jobmetrics.guard import guarded
from jobmetrics.job_context import Execution
from jobmetrics.registry import execution_hash
from jobmetrics.rq.jobs import described
from jobmetrics.rq.system import SYSTEM

Method = Callable[..., Any]  # of RQ's worker classes

_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes; getrusage(2)

KILLED = "WorkHorseKilled"  # error_type of jobs whose work-horse died
ABANDONED = "AbandonedJobError"  # of those whose worker died too, as RQ calls it
RETRIES_USED_UP = "MaxRetriesExceeded"
_TO_RUN_AGAIN = (JobStatus.QUEUED, JobStatus.SCHEDULED)


class Performing:
    """A job that this process performs, and what the worker's handlers learnt of it: error, asked_retry."""

    __slots__ = ("asked_retry", "error", "execution")

    def __init__(self, execution: Execution) -> None:
        self.execution = execution
        self.error: BaseException | None = None
        self.asked_retry = False

    def end(self, event: Ended) -> None:
        """Record the end, which is now."""
        self.execution.recorder.ended(self.execution, event)

    def outcome(self, job: RQJob, succeeded: bool) -> Ended:
        """How the job ended.

        RQ returns True for a success and for a job that returned Retry, and keeps the rest in the job's status.
        """
        if succeeded and not self.asked_retry:
            return Ended(SUCCESS)
        status = job.get_status(refresh=False)
        if succeeded:
            return Ended(RETRY) if status in _TO_RUN_AGAIN else Ended(FAILURE, RETRIES_USED_UP)
        if status in _TO_RUN_AGAIN:
            return Ended(RETRY)
        return Ended(REVOKED) if status == JobStatus.STOPPED else Ended(FAILURE, self.error)


class KilledHorse:
    """What the worker learnt of its work-horse's death. usage: of wait4; None when it never waited for it."""

    def __init__(self, usage: Any) -> None:
        self.cpu_seconds: float | None = None
        self.peak_bytes: int | None = None
        if usage is not None:
            self.cpu_seconds = usage.ru_utime + usage.ru_stime
            self.peak_bytes = usage.ru_maxrss * _MAXRSS_UNIT


@guarded("rq lost")
def report_lost(
    job: RQJob, queue: Any, execution_id: str, killed: KilledHorse | None, status: str | None = None
) -> bool:
    """The worker learns that its work-horse is gone; killed: None when an operator had it stopped.

    status: what it counts as, where the job's own status does not show it. Returns whether the end was counted.
    """
    if status is None:
        found = job.get_status(refresh=False)
        again = RETRY if found in _TO_RUN_AGAIN else FAILURE
        status = REVOKED if found == JobStatus.STOPPED else again
    cpu = None if killed is None else killed.cpu_seconds
    event = Lost(described(job, queue), execution_id, status, KILLED, process_died=killed is not None, cpu_seconds=cpu)
    return recorder.default().lost(event)


def report_outcome_in_redis(job: RQJob, queue: Any, execution_id: str) -> bool:
    """Count a dead work-horse and its job's end where only Redis has that end; returns whether they were counted."""
    status = outcome_in_redis(job)
    if status is None:
        return False
    return recorder.default().lost(Lost(described(job, queue), execution_id, status, process_died=True))


def outcome_in_redis(job: RQJob) -> str | None:
    """The status of the job's end in Redis; None when it is to run again, or has no end there.

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
    """The journal's name of an execution whose end was counted by a worker that found it abandoned."""
    return f"{execution_id} abandoned"


@guarded("rq abandoned")
def report_abandoned(job: RQJob, queue: Any, execution_id: str, again: bool) -> None:
    """A worker finds a job whose own worker is gone. The time of that death is unknown, and so is its run time."""
    record = recorder.default()
    found = record.writer.find_execution(execution_hash(SYSTEM, execution_id))
    ended = {entry.start for entry in found if not entry.running and not entry.lost}
    if any(entry.running for entry in found):
        return  # its worker only missed its heartbeats, and will count the end itself
    if found and all(entry.start in ended for entry in found):
        return
    status = RETRY if again else FAILURE
    # By a name of its own: under the other the journal knows its start, and its end is unknown.
    record.lost(Lost(described(job, queue), abandoned_name(execution_id), status, ABANDONED))
