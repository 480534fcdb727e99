"""SpawnWorker's work-horse, instrumented.

RQ starts it as a new Python that runs a stock rq.Worker, whose jobs nobody would see. Here it runs
jobmetrics.rq.Worker instead; everything else is as in RQ. What it needs travels in the environment, where
only the same user can read it, and not on the command line, which holds Redis's password in RQ.
"""

from __future__ import annotations

import base64
import functools
import os
import pickle
import sys
import time
from collections.abc import Callable
from typing import Any

import rq.worker

from jobmetrics import settings
from jobmetrics.guard import guarded

ORDER = "_JOBMETRICS_WORK_HORSE"  # not JOBMETRICS_*: those are settings
COMMAND = "from jobmetrics.rq.spawned import main; main()"

STOCK: Any = getattr(rq.worker, "SpawnWorker", None)  # from RQ 2.2 on

# RQ's SpawnWorker leaves them out as well: the new process makes its own.
_OF_THE_PROCESS = ("retry", "driver_info")


def uses_stock_work_horse(worker_class: Any) -> bool:
    """Whether a class starts its work-horses as rq.SpawnWorker does."""
    return STOCK is not None and getattr(worker_class, "fork_work_horse", None) is STOCK.fork_work_horse


def fork_work_horse(original: Callable[..., Any]) -> Callable[..., Any]:
    """Start an instrumented work-horse; the stock one when what it needs cannot be told."""

    @functools.wraps(original)
    def spawn_work_horse(self: Any, job: Any, queue: Any, *args: Any, **kwargs: Any) -> Any:
        order = _order(self, job, queue)
        if order is None:
            return original(self, job, queue, *args, **kwargs)
        environment = {
            **os.environ,
            ORDER: order,
            "RQ_WORKER_ID": self.name,
            "RQ_JOB_ID": job.id,
            "RQ_EXECUTION_ID": self.execution.id,
        }
        child = os.spawnve(os.P_NOWAIT, sys.executable, [sys.executable, "-c", COMMAND], environment)  # noqa: S606
        self._horse_pid = child
        self.procline(f"Spawned {child} at {time.time()}")
        return None

    return spawn_work_horse


@guarded("rq spawn")
def _order(worker: Any, job: Any, queue: Any) -> str:
    """What the new process must know, as text."""
    connection = {
        name: value
        for name, value in worker.connection.connection_pool.connection_kwargs.items()
        if name not in _OF_THE_PROCESS and _travels(value)
    }
    order = {
        "settings": settings.peek(),
        "redis": type(worker.connection),
        "connection_class": worker.connection.connection_pool.connection_class,
        "connection": connection,
        "serializer": worker.serializer,
        "worker": worker.key,
        "job": job.id,
        "queue": queue.name,
        "execution": worker.execution.id,
    }
    return base64.b64encode(pickle.dumps(order)).decode("ascii")


def _travels(value: object) -> bool:
    try:
        pickle.dumps(value)
    except Exception:  # noqa: BLE001 - whatever it is, it stays; RQ would have put its repr into source code
        return False
    return True


def main() -> None:
    """The spawned work-horse: does what RQ's own one does, as an instrumented worker."""
    order = pickle.loads(base64.b64decode(os.environ.pop(ORDER)))  # noqa: S301 - written by our own parent
    from redis import ConnectionPool
    from rq import Queue
    from rq.executions import Execution
    from rq.job import Job

    if order["settings"] is not None:
        settings.use(order["settings"])
    from jobmetrics.rq import Worker

    pool = ConnectionPool(connection_class=order["connection_class"], **order["connection"])
    connection, serializer = order["redis"](connection_pool=pool), order["serializer"]
    worker = Worker.find_by_key(order["worker"], connection=connection, serializer=serializer)
    if worker is None:
        sys.exit(1)
    job = Job.fetch(order["job"], connection=connection, serializer=serializer)
    queue = Queue(order["queue"], connection=connection, serializer=serializer)
    worker.execution = Execution.fetch(order["execution"], job.id, connection=connection)
    os.setpgrp()
    worker._is_horse = True  # as RQ's own does
    worker.main_work_horse(job, queue)
