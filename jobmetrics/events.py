"""What happened to a job, as frozen records: integrations build them, the recorder counts them.

Times are seconds. Those that are timestamps count from the epoch.
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

WITHDRAWN_REASONS = ("revoked", "expired", "rejected", "unknown")


class Job(NamedTuple):
    """The labels every metric of a job has in common."""

    system: str
    job_type: str
    queue_name: str


# Whose processor time is an execution's, from its start to its end.
CPU_OF_JOB = "job"  # its process's in a process's main thread (helper threads and all), its thread's in any other
CPU_OF_THREAD = "thread"
CPU_OF_FAMILY = "family"  # its process's, with the children of the process that have ended
CPU_OF_CALLER = "caller"  # who runs it adds to `Execution.cpu`, or reports it in `Ended`


class Started(NamedTuple):
    """An execution starts in this process, now.

    execution_id: what the job system calls it, the same in every process that speaks of it; a number of at most 64
    bits where no other process will. ready_at: when the job could have run (publish, or its ETA if later); None when
    unknown. target: seconds within which it should succeed; None where only its job type's own counts. cpu: whose
    processor time is its own.
    """

    job: Job
    execution_id: str | int
    ready_at: float | None = None
    target: float | None = None
    cpu: str = CPU_OF_JOB


class Ended(NamedTuple):
    """An execution of this process ended.

    error: the exception of a failure, or its class name. cpu_seconds, run_seconds: its processor time and its run
    time, where the job system knows better than the recorder's own clocks.
    """

    status: str
    error: BaseException | str | None = None
    cpu_seconds: float | None = None
    run_seconds: float | None = None


class Lost(NamedTuple):
    """Another process reports the end of an execution whose own process could not.

    It counts only when no journal says that the execution had ended. process_died: whether the process
    that ran it is gone with it. cpu_seconds: its processor time, None when unknown. run_time_known: False where the
    time of its end is unknown, even if its start is known; one that still runs is not counted then.
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
