"""What of an RQ job becomes labels, names and moments, without running anything that the job brought along."""

from __future__ import annotations

import json
from datetime import timezone
from typing import Any

from rq.job import Job as RQJob

from jobmetrics.events import Job

SYSTEM = "rq"
UNKNOWN = "unknown"

LONGEST_NAME = 1000  # characters read of a function's name; labels take fewer
_MOST_OPCODES = 8  # before the first text of a pickled tuple


def described(job: RQJob, queue: Any = None) -> Job:
    """The labels of a job."""
    return Job(SYSTEM, _job_type(job), getattr(queue, "name", None) or job.origin or UNKNOWN)


def execution_id(worker: Any, job: RQJob) -> str:
    """The same in the worker, in its work-horse and in whoever cleans up after both.

    Releases before 2.0 have no executions; there one is a job and when it was last put into its queue.
    """
    execution = getattr(worker, "execution", None)
    return f"{job.id}:{execution.id}" if execution is not None else f"{job.id}@{ready_at(job)}"


def ready_at(job: RQJob) -> float | None:
    """When the job was last put into its queue, in epoch seconds: every enqueue, retry and schedule resets it.

    RQ's moments were naive before 2.2, and meant UTC.
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
    """The first text, when nothing but a protocol, a frame and a mark stands before it."""
    at = 0
    for _ in range(_MOST_OPCODES):
        opcode = data[at : at + 1]
        if opcode == b"\x80":  # PROTO and its number
            at += 2
        elif opcode == b"\x95":  # FRAME and its length
            at += 9
        elif opcode == b"(":  # MARK
            at += 1
        elif opcode in (b"\x8c", b"X"):  # SHORT_BINUNICODE, BINUNICODE: length and UTF-8
            width = 1 if opcode == b"\x8c" else 4
            length = int.from_bytes(data[at + 1 : at + 1 + width], "little")
            start = at + 1 + width
            return data[start : start + min(length, LONGEST_NAME)].decode("utf-8", "replace")
        else:
            break
    return None
