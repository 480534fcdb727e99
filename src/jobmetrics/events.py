"""What happened to a job, as frozen records: integrations build them, the recorder counts them.

Times are seconds: `at` and `published_at` since the epoch.
"""

from __future__ import annotations

from dataclasses import dataclass

SYSTEMS = ("celery", "rq", "python")

SUCCESS = "success"
FAILURE = "failure"
RETRY = "retry"
IGNORED = "ignored"
REJECTED = "rejected"
REVOKED = "revoked"
STATUSES = (SUCCESS, FAILURE, RETRY, IGNORED, REJECTED, REVOKED)

WITHDRAWN_REASONS = ("revoked", "expired", "rejected", "unknown")


@dataclass(frozen=True, slots=True)
class Job:
    """The labels every metric of a job has in common."""

    system: str
    job_type: str
    queue_name: str


@dataclass(frozen=True, slots=True)
class Started:
    """An execution starts in this process, now.

    execution_id: what the job system calls it, the same in every process that speaks of it.
    ready_at: the moment the job could have run (publish, or its ETA if later); None when unknown.
    """

    job: Job
    execution_id: str
    ready_at: float | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """An execution of this process ended. error: the exception of a failure, or its class name."""

    status: str
    error: BaseException | str | None = None


@dataclass(frozen=True, slots=True)
class Lost:
    """Another process reports the end of an execution whose own process could not.

    It counts only when no journal says that the execution had ended. process_died: whether the process
    that ran it is gone with it.
    """

    job: Job
    execution_id: str
    status: str
    error: BaseException | str | None = None
    process_died: bool = False


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """A job that never started. reason: one of WITHDRAWN_REASONS."""

    job: Job
    reason: str


@dataclass(frozen=True, slots=True)
class Published:
    """A job was sent."""

    job: Job
