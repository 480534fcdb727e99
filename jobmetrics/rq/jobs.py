"""Labels, ids and timestamps of an RQ job, without unpickling its arguments."""

from __future__ import annotations

import json
import re
from datetime import timezone
from typing import Any

from rq.job import Job as RQJob

from jobmetrics.integration import Job
from jobmetrics.rq import SYSTEM

try:
    from rq.executions import Execution as RQExecution
except ImportError:  # before RQ 2.0
    RQExecution = ()  # type: ignore[assignment, misc]  # isinstance is False

UNKNOWN = "unknown"

LONGEST_NAME = 1000  # characters read of a function's name; a label holds fewer

# PROTO with its number, FRAME with its length, MARK; then SHORT_BINUNICODE or BINUNICODE with the length of its UTF-8.
_PICKLED_NAME = re.compile(rb"(?:\x80.|\x95.{8}|\(){0,7}(?:\x8c(.)|X(.{4}))", re.DOTALL)


def job_of(job: RQJob, queue: Any = None) -> Job:
    """Return the labels of a job."""
    return Job(SYSTEM, _job_type(job), getattr(queue, "name", None) or job.origin or UNKNOWN)


def execution_id(worker: Any, job: RQJob, execution: Any = None) -> str:
    """Return the id that the worker, its work-horse and a worker that cleans up after both agree on.

    RQ before 2.0 has no executions. There the id is made of the job's id and the time of its last enqueue.

    Args:
        worker: the worker or work-horse that runs the job; None when another worker cleans up.
        job: the job.
        execution: the execution, if RQ passes it to the method that is called.
    """
    if execution is None:
        execution = _known_execution(worker, job)
    return f"{job.id}:{execution.id}" if execution is not None else f"{job.id}@{ready_at(job)}"


def _known_execution(worker: Any, job: RQJob) -> Any:
    if worker is None:
        return None
    attributes = vars(worker)  # before RQ 2.0 it has neither, and a user's class may have its own __getattr__
    known = attributes.get("executions")
    if known is None:
        return attributes.get("execution")
    # From RQ 3 on the property `execution` falls back to Redis and caches what it finds. After RQ has dropped the
    # execution it finds a dead job, which the worker would then treat as its current one.
    return next((each for each in known.values() if each.job_id == job.id), None)


def passed_execution(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the execution among the arguments of a worker's method; None before RQ 3, which does not pass it."""
    found = kwargs.get("execution")
    return found or next((each for each in args if isinstance(each, RQExecution)), None)


def ready_at(job: RQJob) -> float | None:
    """Return when the job was last enqueued, in epoch seconds. Every enqueue, retry and schedule sets it.

    Before RQ 2.2 timestamps are naive and in UTC.
    """
    at = job.enqueued_at
    if at is None:
        return None
    return (at if at.tzinfo else at.replace(tzinfo=timezone.utc)).timestamp()


def attempt_of(job: RQJob) -> int:
    """Return the number of this execution among those of its job, beginning with 1.

    RQ counts the retries that a job returns. A job with `Retry(max=...)` that fails stores only how many are left, and
    each of its executions counts as the first.
    """
    retries = getattr(job, "number_of_retries", None)  # from RQ 2.1 on
    return 1 + (retries or 0)


def _job_type(job: RQJob) -> str:
    """Return the path of the job's function.

    RQ's `func_name` unpickles all arguments. That takes memory and runs code of the job in the worker. The same
    code may have killed the work-horse.
    """
    try:
        return function_name(job.data) or job.func_name or UNKNOWN
    except Exception:  # noqa: BLE001 - unpickling may raise anything
        return UNKNOWN


def function_name(data: object) -> str | None:
    """Return the function's name at the start of a serialised job; None if it is neither pickle nor JSON."""
    if not isinstance(data, bytes):
        return None
    return _name_in_json(data) if data.startswith(b'["') else _name_in_pickle(data)


def _name_in_json(data: bytes) -> str | None:
    text = data[1 : 6 * LONGEST_NAME].decode("utf-8", "replace")
    try:
        name, _ = json.JSONDecoder().raw_decode(text)
    except ValueError:
        return None
    return name if isinstance(name, str) else None


def _name_in_pickle(data: bytes) -> str | None:
    """Return the first string, if only a protocol, a frame and marks come before it."""
    head = _PICKLED_NAME.match(data)
    if head is None:
        return None
    start, length = head.end(), int.from_bytes(head[1] or head[2], "little")
    return data[start : start + min(length, LONGEST_NAME)].decode("utf-8", "replace")
