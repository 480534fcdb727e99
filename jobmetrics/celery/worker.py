"""The worker's main process: its live gauges, sampled by bootsteps in the worker's event loop."""

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

from jobmetrics.celery import SYSTEM, lost_tasks
from jobmetrics.celery.messages import queue_of
from jobmetrics.integration import clear_worker_gauges, current_recorder, guarded, worker_gauges

SAMPLE_INTERVAL = 1.0  # seconds
PREFORK = "celery.concurrency.prefork"
CHILD = "child"  # the role of a pool process


def capacity_of(pool: Any) -> float | None:
    """Return how many tasks a pool can run at once; None while it ends.

    For prefork this is the number of children, which may differ from the configured concurrency. For other pools it
    is the limit: up to Celery 5.6 gevent's `num_processes` counts only busy greenlets.
    """
    found = getattr(pool, "num_processes" if is_prefork(pool) else "limit", None)
    return None if found is None else float(found)


def is_prefork(pool: Any) -> bool:
    """Return whether a pool runs its tasks in child processes."""
    return any(cls.__module__ == PREFORK for cls in type(pool).__mro__)


def reserved(consumer: Any) -> set[Any]:
    """Return the requests that the worker has received and not started.

    They wait for the pool, their ETA or their rate limit.
    """
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
    """Record the worker's gauges, and count pending ends of lost tasks."""
    current_recorder().tick()
    waiting = Counter(queue_of(request.app, request.delivery_info) for request in reserved(consumer))
    worker_gauges(SYSTEM, capacity_of(pool), waiting)
    lost_tasks.count_pending()


class WorkerStep(bootsteps.StartStopStep):
    """Describes the worker as soon as its pool exists, before the broker answers."""

    requires = ("celery.worker.components:Pool",)

    def start(self, worker: Any) -> None:
        _describe(worker)
        sample(worker.pool)

    def stop(self, worker: Any) -> None:
        """Do nothing: the pool is not stopped yet. `worker_shutdown` counts what is reported until then."""

    terminate = stop


class ConsumerStep(bootsteps.StartStopStep):
    """Samples at an interval. It restarts with each connection: Celery up to 5.6 loses its timers with the old one."""

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
    """Count messages that Celery cannot decode: it acknowledges them and sends no signal."""
    original = consumer.on_decode_error

    def counted(message: Any, exc: Any) -> Any:
        lost_tasks.rejected(sender=consumer, message=message)
        return original(message, exc)

    consumer.on_decode_error = counted


@guarded("celery worker start")
def _describe(worker: Any) -> None:
    """Make room in the journal for all tasks of a worker that runs them in this process."""
    if not is_prefork(worker.pool):
        capacity = max(int(worker.max_concurrency or 0), int(getattr(worker.pool, "limit", 0) or 0), 1)
        current_recorder().writer.describe(SYSTEM, "main", capacity)


# ---------------------------------------------------------------- handlers


@guarded("celery worker start")
def worker_init(sender: Any = None, **_: Any) -> None:
    """Describe the starting worker and add the bootsteps. Celery builds its blueprints after this signal."""
    writer = current_recorder().writer
    writer.describe(SYSTEM, "main")
    writer.prepare()
    steps = getattr(getattr(sender, "app", None), "steps", None)
    if steps is not None:
        steps["worker"].add(WorkerStep)
        steps["consumer"].add(ConsumerStep)
    pid = os.getpid()
    atexit.register(lambda: os.getpid() == pid and worker_shutdown())  # a cold shutdown sends no signal


@guarded("celery worker start")
def process_init(**_: Any) -> None:
    """Describe a pool process that has started. The solo pool sends this signal in the main process."""
    if current_process().name != "MainProcess":
        current_recorder().writer.describe(SYSTEM, CHILD)


@guarded("celery worker stop")
def process_shutdown(**_: Any) -> None:
    """Record the updates that still wait in memory: the pool process is about to leave by os._exit."""
    current_recorder().writer.settle()


@guarded("celery worker stop")
def worker_shutdown(**_: Any) -> None:
    """Count the last lost tasks and clear the gauges: the worker has stopped its pool."""
    lost_tasks.count_pending(final=True)
    clear_worker_gauges(SYSTEM)
