"""Outcomes of RQ's executions: how a job ended, and the reports of lost and abandoned jobs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from rq.exceptions import InvalidJobOperation
from rq.job import Job as RQJob
from rq.job import JobStatus

from jobmetrics.integration import FAILURE, RETRY, REVOKED, SUCCESS, Ended, Execution, Lost, current_recorder, guarded
from jobmetrics.rq import SYSTEM
from jobmetrics.rq.jobs import job_of

Method = Callable[..., Any]  # a method of RQ's worker classes

_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes; getrusage(2)

KILLED = "WorkHorseKilled"  # error_type after the work-horse died
ABANDONED = "AbandonedJobError"  # error_type after the worker died too, RQ's name
RETRIES_USED_UP = "MaxRetriesExceeded"
_TO_RUN_AGAIN = (JobStatus.QUEUED, JobStatus.SCHEDULED)


class RunningJob:
    """A job that this process runs. error: the exception it raised; asked_retry: it returned Retry."""

    __slots__ = ("asked_retry", "error", "execution")

    def __init__(self, execution: Execution) -> None:
        self.execution = execution
        self.error: BaseException | None = None
        self.asked_retry = False

    def end(self, event: Ended) -> None:
        """Record the end."""
        self.execution.recorder.ended(self.execution, event)

    def outcome(self, job: RQJob, succeeded: bool) -> Ended:
        """Return how the job ended.

        Args:
            job: the job. Its status shows whether it failed, was stopped or runs again.
            succeeded: what RQ's perform_job returned: True for a success and for a job that returned Retry.
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
    """A work-horse that died. usage: its resource usage from wait4; None if the worker did not wait for it."""

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
    """Report the job lost unless its work-horse already recorded its end.

    Args:
        job: the job.
        queue: its queue.
        execution_id: the execution's id.
        killed: the dead work-horse; None if an operator stopped the job.
        status: the status to count; None for the one that the job's status shows.

    Returns:
        Whether the end was counted.
    """
    if status is None:
        found = job.get_status(refresh=False)
        failed = RETRY if found in _TO_RUN_AGAIN else FAILURE
        status = REVOKED if found == JobStatus.STOPPED else failed
    cpu = None if killed is None else killed.cpu_seconds
    event = Lost(job_of(job, queue), execution_id, status, KILLED, process_died=killed is not None, cpu_seconds=cpu)
    return current_recorder().lost(event)


def report_outcome_in_redis(job: RQJob, queue: Any, execution_id: str) -> bool:
    """Count a dead work-horse and its job's end if only Redis has that end. Return whether they were counted."""
    status = outcome_in_redis(job)
    if status is None:
        return False
    return current_recorder().lost(Lost(job_of(job, queue), execution_id, status, process_died=True))


def outcome_in_redis(job: RQJob) -> str | None:
    """Return the status of the job's end in Redis; None if the job will run again or has no end there.

    A job that is no longer in Redis has succeeded: its result was not kept.
    """
    try:
        status = job.get_status()
    except InvalidJobOperation:
        return SUCCESS
    if status == JobStatus.FAILED:
        return FAILURE
    return SUCCESS if status in (None, JobStatus.FINISHED) else None


def abandoned_name(execution_id: str) -> str:
    """Return the id under which the journal holds an execution that was counted as abandoned."""
    return f"{execution_id} abandoned"


@guarded("rq abandoned")
def report_abandoned(job: RQJob, queue: Any, execution_id: str, will_retry: bool) -> None:
    """Report a job that another worker left behind when it died. Its run time is unknown."""
    record = current_recorder()
    entries, unended = record.find_execution(SYSTEM, execution_id)
    if any(entry.running for entry in entries):
        return  # its worker is alive, only missed heartbeats, and will count the end
    if entries and not unended:
        return
    status = RETRY if will_retry else FAILURE
    # A separate id: under the execution's id the journal has a start, and the recorder would derive a run time from it.
    record.lost(Lost(job_of(job, queue), abandoned_name(execution_id), status, ABANDONED))
    record.counted_elsewhere(SYSTEM, execution_id)
