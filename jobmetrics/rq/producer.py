"""Producers: count each job when it is sent.

New jobs are sent by the methods that are hooked here; one may call another. Jobs that RQ enqueues again for retries,
repetitions, dependents and schedules use `_enqueue_job` and `schedule_job`, and are not counted.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from types import MethodType
from typing import Any, TypeVar

from jobmetrics.integration import Published, current_recorder, guarded, register_system
from jobmetrics.rq import SYSTEM
from jobmetrics.rq.jobs import job_of

_METHODS = ("enqueue_call", "enqueue_at", "enqueue_many", "enqueue_job")
# The attribute of a hooked class or queue that holds its methods by name, None for an inherited one.
ORIGINALS = "_jobmetrics_originals"

# Ids of the jobs that the outermost running call has counted: enqueue_call calls enqueue_job, and a queue with
# is_async=False runs its jobs within the call, which may send others. Not in the runtime: it belongs to one call.
_counted: ContextVar[set[int] | None] = ContextVar("jobmetrics_rq_counted", default=None)

QueueOrClass = TypeVar("QueueOrClass")


def instrument_queue(queue: QueueOrClass) -> QueueOrClass:
    """Count the jobs that this queue sends, or all queues of this class. A second call changes nothing.

    Args:
        queue: A queue, or rq.Queue or a subclass of it.

    Returns:
        The same queue or class.

    Example:
        >>> import rq
        >>> from redis import Redis
        >>> from jobmetrics.rq import instrument_queue
        >>> emails = instrument_queue(rq.Queue("emails", connection=Redis()))
    """
    if ORIGINALS in vars(queue):
        return queue
    register_system(SYSTEM)
    originals = {}
    for name in _METHODS:
        originals[name] = vars(queue).get(name)
        if isinstance(queue, type):
            setattr(queue, name, _send_of(getattr(queue, name)))
        else:
            setattr(queue, name, MethodType(_send_of(getattr(type(queue), name)), queue))
    setattr(queue, ORIGINALS, originals)
    return queue


def uninstrument_queue(queue: QueueOrClass) -> QueueOrClass:
    """Stop counting the jobs that this queue or class sends.

    Args:
        queue: The queue or class that `instrument_queue` was called with.

    Returns:
        The same queue or class.

    Example:
        >>> import rq
        >>> from redis import Redis
        >>> from jobmetrics.rq import instrument_queue, uninstrument_queue
        >>> emails = instrument_queue(rq.Queue("emails", connection=Redis()))
        >>> uninstrument_queue(emails) is emails
        True
    """
    restore_methods(queue)
    return queue


def restore_methods(hooked: Any) -> bool:
    """Restore the methods of a class or an object that its attribute ORIGINALS holds. Return whether it was hooked."""
    originals = vars(hooked).get(ORIGINALS)
    if originals is None:
        return False
    for name, original in originals.items():
        if original is None:
            delattr(hooked, name)
        else:
            setattr(hooked, name, original)
    delattr(hooked, ORIGINALS)
    return True


def _send_of(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def send(self: Any, *args: Any, **kwargs: Any) -> Any:
        counted = _counted.get()
        token = None
        if counted is None:
            counted = set()
            token = _counted.set(counted)
        try:
            sent = original(self, *args, **kwargs)
            _count(sent if isinstance(sent, list) else [sent], counted)
            return sent
        finally:
            if token is not None:
                _counted.reset(token)

    return send


@guarded("rq publish")
def _count(jobs: Iterable[Any], counted: set[int]) -> None:
    for job in jobs:
        if job is not None and id(job) not in counted:
            counted.add(id(job))
            current_recorder().published(Published(job_of(job)))
