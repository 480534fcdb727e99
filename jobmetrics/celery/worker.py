"""A worker's main process: its live gauges, sampled by bootsteps in its own event loop."""

from __future__ import annotations

import atexit
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

from billiard.process import current_process
from celery import bootsteps
from celery.worker import state
from celery.worker.request import Request

from jobmetrics import recorder
from jobmetrics.celery import lost_tasks
from jobmetrics.celery.messages import SYSTEM, queue_of
from jobmetrics.guard import guarded
from jobmetrics.integration import clear_worker_gauges, worker_gauges

SAMPLE_INTERVAL = 1.0  # seconds
PREFORK = "celery.concurrency.prefork"
CHILD = "child"  # the role of a pool process


def capacity_of(pool: Any) -> float | None:
    """How many tasks a pool can run at once; None while it ends.

    Children may be fewer or more than was asked for. Up to 5.6 gevent's pool calls its busy greenlets processes.
    """
    found = getattr(pool, "num_processes" if is_prefork(pool) else "limit", None)
    return None if found is None else float(found)


def is_prefork(pool: Any) -> bool:
    """Whether a pool's tasks run in processes of their own."""
    return any(cls.__module__ == PREFORK for cls in type(pool).__mro__)


def reserved(consumer: Any) -> set[Any]:
    """The requests that were taken from the broker and have not started: they wait for the pool, their ETA
    or their rate limit."""
    active = set(state.active_requests)
    waiting = set(state.reserved_requests) - active
    if consumer is not None:
        waiting.update(request for request in _delayed(consumer) if request not in active)
    return waiting


def _delayed(consumer: Any) -> Iterator[Any]:
    schedule = getattr(consumer.timer, "schedule", None)
    for waiting in list(getattr(schedule, "queue", None) or ()):  # as `celery inspect scheduled` finds them
        entry = getattr(waiting, "entry", None)
        first = next(iter(getattr(entry, "args", None) or ()), None)
        if isinstance(first, Request):
            yield first
    for bucket in list(consumer.task_buckets.values()):
        for item in list(bucket.contents) if bucket is not None else ():
            if isinstance(item[0], Request):
                yield item[0]


@guarded("celery sample")
def sample(pool: Any, consumer: Any = None) -> None:
    """Sample this process's worker, and count what it reported too early."""
    recorder.default().tick()
    waiting = Counter(queue_of(request.app, request.delivery_info) for request in reserved(consumer))
    worker_gauges(SYSTEM, capacity_of(pool), waiting)
    lost_tasks.settle()


class WorkerStep(bootsteps.StartStopStep):
    """Describes the worker as soon as its pool is there, before a broker answers."""

    requires = ("celery.worker.components:Pool",)

    def start(self, worker: Any) -> None:
        _describe(worker)
        sample(worker.pool)

    def stop(self, worker: Any) -> None:
        """The pool is still to be stopped: what is reported of it afterwards is counted by `ended`."""

    terminate = stop


class ConsumerStep(bootsteps.StartStopStep):
    """Samples again and again. Started anew with each connection: Celery up to 5.6 forgets timers when it loses one."""

    requires = ("celery.worker.consumer.connection:Connection",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._timer: Any = None
        _count_undecodable(consumer)

    def start(self, consumer: Any) -> None:
        self.stop(consumer)
        self._timer = consumer.timer.call_repeatedly(SAMPLE_INTERVAL, sample, (consumer.pool, consumer))

    def stop(self, consumer: Any) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    terminate = shutdown = stop


def _count_undecodable(consumer: Any) -> None:
    """Celery acknowledges a message it cannot decode without any signal."""
    original = consumer.on_decode_error

    def counted(message: Any, exc: Any) -> Any:
        lost_tasks.rejected(sender=consumer, message=message)
        return original(message, exc)

    consumer.on_decode_error = counted


@guarded("celery worker start")
def _describe(worker: Any) -> None:
    """A worker whose jobs run in this very process needs a journal for all of them."""
    if not is_prefork(worker.pool):
        capacity = max(int(worker.max_concurrency or 0), int(getattr(worker.pool, "limit", 0) or 0), 1)
        recorder.default().writer.describe(SYSTEM, "main", capacity)


# ---------------------------------------------------------------- handlers


@guarded("celery worker start")
def worker_init(sender: Any = None, **_: Any) -> None:
    """A worker starts: its blueprints are built after this signal."""
    writer = recorder.default().writer
    writer.describe(SYSTEM, "main")
    writer.prepare()
    steps = getattr(getattr(sender, "app", None), "steps", None)
    if steps is not None:
        steps["worker"].add(WorkerStep)
        steps["consumer"].add(ConsumerStep)
    pid = os.getpid()
    atexit.register(lambda: os.getpid() == pid and lost_tasks.settle(final=True))  # a cold shutdown sends no signal


@guarded("celery worker start")
def process_init(**_: Any) -> None:
    """A pool process has started; the solo pool sends this in the main process."""
    if current_process().name != "MainProcess":
        recorder.default().writer.describe(SYSTEM, CHILD)


@guarded("celery worker stop")
def process_ends(**_: Any) -> None:
    """A pool process is about to leave, by os._exit: what it could not record waits in its memory."""
    recorder.default().writer.settle()


@guarded("celery worker stop")
def ended(**_: Any) -> None:
    """A worker has stopped its pool."""
    lost_tasks.settle(final=True)
    clear_worker_gauges(SYSTEM)
