"""Jobs whose worker is gone, found by another worker's maintenance.

RQ moves them in StartedJobRegistry.cleanup. Releases from 2.0 on tell exception handlers, before they know
whether the job will run again, and without naming the execution; older ones tell nobody. So we look at what has
expired just before RQ does, by the same clock reading.
"""

from __future__ import annotations

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

from jobmetrics.guard import guarded
from jobmetrics.rq.ending import report_abandoned
from jobmetrics.rq.jobs import execution_id

# RQ 3 drops entries of jobs that are not started: their execution ended, and only the entry was left behind.
_ONLY_STARTED = int(VERSION.split(".")[0]) >= 3

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
