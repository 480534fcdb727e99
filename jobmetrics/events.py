"""What happened to a job, as frozen records: integrations build them, the recorder counts them.

They are named tuples and not frozen dataclasses, since several are made for each job and those take a third of
the time to make, to hash and to compare.
Times are seconds: `at` and `published_at` since the epoch.
"""

# Annotations are no texts here: NamedTuple would compile each of them at import.
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


class Started(NamedTuple):
    """An execution starts in this process, now.

    execution_id: what the job system calls it, the same in every process that speaks of it.
    ready_at: the moment the job could have run (publish, or its ETA if later); None when unknown.
    """

    job: Job
    execution_id: str
    ready_at: float | None = None


class Ended(NamedTuple):
    """An execution of this process ended.

    error: the exception of a failure, or its class name. cpu_seconds: its processor time, where the job system
    knows better than the recorder's own clocks.
    """

    status: str
    error: BaseException | str | None = None
    cpu_seconds: float | None = None


class Lost(NamedTuple):
    """Another process reports the end of an execution whose own process could not.

    It counts only when no journal says that the execution had ended. process_died: whether the process
    that ran it is gone with it. cpu_seconds: its processor time, None when unknown. run_time_known: False where
    nobody knows when it ended, whatever is known of its start; one that still runs is not counted then.
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
