"""The events of a job as immutable records. Integrations build them, and the recorder counts them.

Durations are in seconds, and timestamps in seconds since the epoch.
"""

# No `from __future__ import annotations`: NamedTuple would compile each string at import.
from typing import NamedTuple

PYTHON = "python"  # the system of plain functions under `timed_job`; job systems register their own names

SUCCESS = "success"
FAILURE = "failure"
RETRY = "retry"
IGNORED = "ignored"
REJECTED = "rejected"
REVOKED = "revoked"
STATUSES = (SUCCESS, FAILURE, RETRY, IGNORED, REJECTED, REVOKED)

# Values of the label `attempt`: ranges of the number of an execution among those of its job, beginning with 1.
ATTEMPTS = ("2-5", "6-20", "21+")

WITHDRAWN_REASONS = ("revoked", "expired", "rejected", "unknown")


class Job(NamedTuple):
    """The labels that all metrics of a job have in common."""

    system: str
    job_type: str
    queue_name: str


# The CPU time that counts for an execution, from its start to its end.
CPU_OF_JOB = "job"  # in the main thread that of the process with all its threads, in another thread that of the thread
CPU_OF_THREAD = "thread"
CPU_OF_FAMILY = "family"  # of the process and its children that have ended
CPU_OF_CALLER = "caller"  # the caller adds it to `Execution.cpu` or reports it in `Ended`


class Started(NamedTuple):
    """An execution starts now in this process.

    execution_id: the job system's id, the same in every process that reports the execution, or a number of at most 64
    bits if only this process reports it. ready_at: when the job could have run (when it was published, or its ETA if
    later); None if unknown. target: seconds within which it should succeed; None for the target of its job type. cpu:
    the CPU time that counts, `CPU_OF_JOB` or another of these constants. attempt: 1 for the job's first execution, 2
    for its first retry; 1 also if unknown. job_id: the id that the job system's commands take, if it is not
    execution_id.
    """

    job: Job
    execution_id: str | int
    ready_at: float | None = None
    target: float | None = None
    cpu: str = CPU_OF_JOB
    attempt: int = 1
    job_id: str | None = None


class Ended(NamedTuple):
    """An execution of this process ended.

    error: the exception of a failure, or its class name. cpu_seconds, run_seconds: CPU time and run time, if the job
    system knows them better than the recorder's clocks.
    """

    status: str
    error: BaseException | str | None = None
    cpu_seconds: float | None = None
    run_seconds: float | None = None


class Lost(NamedTuple):
    """Another process reports the end of an execution that its own process could not report.

    The event counts only if no journal has the end of the execution. process_died: whether the process that ran it
    died. cpu_seconds: its CPU time; None if unknown. run_time_known: False if the time of its end is unknown, even if
    its start is known; an execution that still runs is then not counted.
    """

    job: Job
    execution_id: str
    status: str
    error: BaseException | str | None = None
    process_died: bool = False
    cpu_seconds: float | None = None
    run_time_known: bool = True


class Withdrawn(NamedTuple):
    """A job that never started. reason: one of WITHDRAWN_REASONS."""

    job: Job
    reason: str


class Published(NamedTuple):
    """A job was sent."""

    job: Job
