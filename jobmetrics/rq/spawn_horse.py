"""SpawnWorker's work-horse: a new Python, which must be instrumented and know the settings made in code.

From RQ 3 on it is of its worker's own class and gets its worker's configuration as a pickle: ours travels with it.
Older releases run a stock rq.Worker in it, whose jobs would not be recorded. There it runs jobmetrics.rq.Worker
instead; everything else is as in RQ. What it needs travels in the environment, where only the same user can read it,
and not on the command line, which holds Redis's password in RQ.
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
from jobmetrics.settings import Settings

ORDER = "_JOBMETRICS_WORK_HORSE"  # not JOBMETRICS_*: those are settings
COMMAND = "from jobmetrics.rq.spawn_horse import main; main()"

STOCK: Any = getattr(rq.worker, "SpawnWorker", None)  # from RQ 2.2 on

# RQ's SpawnWorker leaves them out as well: the new process makes its own.
_OF_THE_PROCESS = ("retry", "driver_info")


def hooks(worker_class: Any) -> dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]]:
    """What to hook in a worker class for its spawned work-horses, by method; nothing where it spawns none."""
    if STOCK is None or not issubclass(worker_class, STOCK):
        return {}
    if hasattr(STOCK, "_dump_worker_config"):
        return {"_dump_worker_config": dump_worker_config_of}
    return {"fork_work_horse": fork_work_horse_of} if worker_class.fork_work_horse is STOCK.fork_work_horse else {}


# ------------------------------------------------------------------------------------------------ from RQ 3 on


class _Configuration:
    """RQ's pickled configuration of a work-horse. Unpickling it instruments the work-horse's class, too."""

    def __init__(self, made: Settings | None, pickled: bytes) -> None:
        self._made = made
        self._pickled = pickled

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return configured, (self._made, self._pickled)


def configured(made: Settings | None, pickled: bytes) -> tuple[Any, Any]:
    """In the work-horse: what RQ pickled, with settings and class as they are in the worker."""
    worker_class, attributes = pickle.loads(pickled)  # noqa: S301 - written by RQ in our own parent
    _prepare(made, worker_class)
    return worker_class, attributes


@guarded("rq spawn")
def _prepare(made: Settings | None, worker_class: Any) -> None:
    from jobmetrics.rq.worker import instrument

    if made is not None:
        settings.use(made)
    instrument(worker_class)


def dump_worker_config_of(original: Callable[..., bytes]) -> Callable[..., bytes]:
    """The worker's settings travel with what RQ sends to its work-horse."""

    @functools.wraps(original)
    def _dump_worker_config(self: Any, *args: Any, **kwargs: Any) -> bytes:
        pickled = original(self, *args, **kwargs)
        return _with_settings(pickled) or pickled

    return _dump_worker_config


@guarded("rq spawn")
def _with_settings(pickled: bytes) -> bytes:
    return pickle.dumps(_Configuration(settings.peek(), pickled))


# ------------------------------------------------------------------------------------------------ before RQ 3


def fork_work_horse_of(original: Callable[..., Any]) -> Callable[..., Any]:
    """Start an instrumented work-horse; the stock one when what it needs cannot be passed on."""

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
    if type(value) is object:
        return False  # redis-py's mark of an option that was not given, known by its identity
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
