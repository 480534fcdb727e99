"""Producers: jobs are counted where they are sent.

RQ puts jobs back for retries, repetitions, dependents and schedules by `_enqueue_job` and `schedule_job`; those
are not new jobs. What sends new ones goes through the methods here, one of which may call another.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from types import MethodType
from typing import Any, TypeVar

from jobmetrics import recorder
from jobmetrics.events import Published
from jobmetrics.guard import guarded
from jobmetrics.integration import register_system
from jobmetrics.rq.jobs import described
from jobmetrics.rq.system import SYSTEM

_METHODS = ("enqueue_call", "enqueue_at", "enqueue_many", "enqueue_job")
_ORIGINALS = "_jobmetrics_originals"

# The jobs counted within the outermost call that runs now: enqueue_call goes through enqueue_job. A queue that is
# not asynchronous runs its jobs inside, and those may send others. Not in the runtime: it belongs to one call.
_counted: ContextVar[set[int] | None] = ContextVar("jobmetrics_rq_counted", default=None)

QueueOrClass = TypeVar("QueueOrClass")


def instrument_queue(queue: QueueOrClass) -> QueueOrClass:
    """Count what is sent by this queue, or by all queues of this class; calling it again changes nothing.

    Returns the same queue or class.
    """
    if _ORIGINALS in vars(queue):
        return queue
    register_system(SYSTEM)
    originals = {}
    for name in _METHODS:
        originals[name] = vars(queue).get(name)
        if isinstance(queue, type):
            setattr(queue, name, _sending(getattr(queue, name)))
        else:
            setattr(queue, name, MethodType(_sending(getattr(type(queue), name)), queue))
    setattr(queue, _ORIGINALS, originals)
    return queue


def uninstrument_queue(queue: QueueOrClass) -> QueueOrClass:
    """Stop counting what this very queue or class sends."""
    for name, original in vars(queue).get(_ORIGINALS, {}).items():
        if original is None:
            delattr(queue, name)
        else:
            setattr(queue, name, original)
    if _ORIGINALS in vars(queue):
        delattr(queue, _ORIGINALS)
    return queue


def _sending(original: Callable[..., Any]) -> Callable[..., Any]:
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
            recorder.default().published(Published(described(job)))
