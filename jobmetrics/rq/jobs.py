"""Labels, ids and timestamps of an RQ job, without unpickling its arguments."""

from __future__ import annotations

import json
import re
from datetime import timezone
from typing import Any

from rq.job import Job as RQJob

from jobmetrics.events import Job
from jobmetrics.rq.system import SYSTEM

try:
    from rq.executions import Execution as RQExecution
except ImportError:  # before RQ 2.0
    RQExecution = ()  # type: ignore[assignment, misc]  # isinstance says no

UNKNOWN = "unknown"

LONGEST_NAME = 1000  # characters read of a function's name; labels take fewer

# PROTO with its number, FRAME with its length, MARK; then SHORT_BINUNICODE or BINUNICODE with the length of its UTF-8.
_PICKLED_NAME = re.compile(rb"(?:\x80.|\x95.{8}|\(){0,7}(?:\x8c(.)|X(.{4}))", re.DOTALL)


def described(job: RQJob, queue: Any = None) -> Job:
    """The labels of a job."""
    return Job(SYSTEM, _job_type(job), getattr(queue, "name", None) or job.origin or UNKNOWN)


def execution_id(worker: Any, job: RQJob, execution: Any = None) -> str:
    """Return the id that the worker, its work-horse and a worker that cleans up after both agree on.

    Releases before 2.0 have no executions; there one is a job and when it was last put into its queue.

    Args:
        worker: the worker or work-horse that runs the job; None when another worker cleans up.
        job: the job.
        execution: the execution, where RQ passes it to the method that is called.
    """
    if execution is None:
        execution = _known_execution(worker, job)
    return f"{job.id}:{execution.id}" if execution is not None else f"{job.id}@{ready_at(job)}"


def _known_execution(worker: Any, job: RQJob) -> Any:
    known = getattr(worker, "executions", None)
    if known is None:
        return getattr(worker, "execution", None)
    # From RQ 3 on. There the property `execution` falls back to Redis and caches what it finds: once RQ has dropped
    # the execution, that is a dead job, which the worker would hold for its current one from then on.
    return next((each for each in known.values() if each.job_id == job.id), None)


def passed_execution(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The execution among the arguments of a worker's method; None before RQ 3, which is the first to pass it."""
    found = kwargs.get("execution")
    return found or next((each for each in args if isinstance(each, RQExecution)), None)


def ready_at(job: RQJob) -> float | None:
    """When the job was last put into its queue, in epoch seconds: every enqueue, retry and schedule resets it.

    RQ's timestamps were naive before 2.2, and meant UTC.
    """
    moment = job.enqueued_at
    if moment is None:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()


def _job_type(job: RQJob) -> str:
    """The function's path.

    RQ's own `func_name` unpickles all arguments: that costs memory, and runs what the job brings along, in the
    worker too, whose work-horse may have died of just that.
    """
    try:
        return named_in(job.data) or job.func_name or UNKNOWN
    except Exception:  # noqa: BLE001 - the arguments' classes may raise anything
        return UNKNOWN


def named_in(data: object) -> str | None:
    """The function's name at the head of a serialised job, by pickle or as JSON; None for what is neither."""
    if not isinstance(data, bytes):
        return None
    return _named_in_json(data) if data.startswith(b'["') else _named_in_pickle(data)


def _named_in_json(data: bytes) -> str | None:
    text = data[1 : 6 * LONGEST_NAME].decode("utf-8", "replace")
    try:
        name, _ = json.JSONDecoder().raw_decode(text)
    except ValueError:
        return None
    return name if isinstance(name, str) else None


def _named_in_pickle(data: bytes) -> str | None:
    """The first string, when nothing but a protocol, a frame and a mark stands before it."""
    head = _PICKLED_NAME.match(data)
    if head is None:
        return None
    start, length = head.end(), int.from_bytes(head[1] or head[2], "little")
    return data[start : start + min(length, LONGEST_NAME)].decode("utf-8", "replace")
