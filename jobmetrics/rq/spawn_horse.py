"""SpawnWorker's work-horse: a new Python process that needs the instrumentation and the settings made in code.

From RQ 3 on the work-horse has its worker's class and receives the worker's configuration as a pickle. The settings
are added to that pickle. Older releases run a stock rq.Worker, which would record nothing. For these a
jobmetrics.rq.Worker is started instead. Its configuration is in the environment, which only the same user can read.
RQ's own command line would show the Redis password.
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

from jobmetrics.integration import Settings, guarded, peek_settings, use_settings

HORSE_CONFIG = "_JOBMETRICS_WORK_HORSE"  # environment variable; JOBMETRICS_* are settings
COMMAND = "from jobmetrics.rq.spawn_horse import main; main()"

STOCK: Any = getattr(rq.worker, "SpawnWorker", None)  # from RQ 2.2 on

# Connection options that are not passed on, as in RQ's SpawnWorker: the new process makes them.
_NOT_PASSED = ("retry", "driver_info")


def hooks(worker_class: Any) -> dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]]:
    """Return the hooks for a worker class that spawns work-horses, by method; none for other classes."""
    if STOCK is None or not issubclass(worker_class, STOCK):
        return {}
    if hasattr(STOCK, "_dump_worker_config"):
        return {"_dump_worker_config": dump_worker_config_of}
    return {"fork_work_horse": fork_work_horse_of} if worker_class.fork_work_horse is STOCK.fork_work_horse else {}


# ------------------------------------------------------------------------------------------------ from RQ 3 on


class _Configuration:
    """RQ's pickled configuration of a work-horse. Unpickling it also instruments the work-horse's class."""

    def __init__(self, active_settings: Settings | None, pickled: bytes) -> None:
        self._settings = active_settings
        self._pickled = pickled

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return configured, (self._settings, self._pickled)


def configured(active_settings: Settings | None, pickled: bytes) -> tuple[Any, Any]:
    """Return RQ's configuration in the work-horse, after applying the worker's settings and instrumentation."""
    worker_class, attributes = pickle.loads(pickled)  # noqa: S301 - written by RQ in the parent process
    _prepare(active_settings, worker_class)
    return worker_class, attributes


@guarded("rq spawn")
def _prepare(active_settings: Settings | None, worker_class: Any) -> None:
    from jobmetrics.rq.worker import instrument

    if active_settings is not None:
        use_settings(active_settings)
    instrument(worker_class)


def dump_worker_config_of(original: Callable[..., bytes]) -> Callable[..., bytes]:
    """Add the worker's settings to the configuration that RQ sends to its work-horse."""

    @functools.wraps(original)
    def _dump_worker_config(self: Any, *args: Any, **kwargs: Any) -> bytes:
        pickled = original(self, *args, **kwargs)
        return _with_settings(pickled) or pickled

    return _dump_worker_config


@guarded("rq spawn")
def _with_settings(pickled: bytes) -> bytes:
    return pickle.dumps(_Configuration(peek_settings(), pickled))


# ------------------------------------------------------------------------------------------------ before RQ 3


def fork_work_horse_of(original: Callable[..., Any]) -> Callable[..., Any]:
    """Start an instrumented work-horse; RQ's own if the configuration cannot be passed on."""

    @functools.wraps(original)
    def spawn_work_horse(self: Any, job: Any, queue: Any, *args: Any, **kwargs: Any) -> Any:
        config = _horse_config(self, job, queue)
        if config is None:
            return original(self, job, queue, *args, **kwargs)
        environment = {
            **os.environ,
            HORSE_CONFIG: config,
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
def _horse_config(worker: Any, job: Any, queue: Any) -> str:
    """Return the configuration of the work-horse, pickled and encoded in base64."""
    connection = {
        name: value
        for name, value in worker.connection.connection_pool.connection_kwargs.items()
        if name not in _NOT_PASSED and _is_passed(value)
    }
    config = {
        "settings": peek_settings(),
        "redis": type(worker.connection),
        "connection_class": worker.connection.connection_pool.connection_class,
        "connection": connection,
        "serializer": worker.serializer,
        "worker": worker.key,
        "job": job.id,
        "queue": queue.name,
        "execution": worker.execution.id,
    }
    return base64.b64encode(pickle.dumps(config)).decode("ascii")


def _is_passed(value: object) -> bool:
    if type(value) is object:
        return False  # redis-py's sentinel for an option that was not given: compared by identity
    try:
        pickle.dumps(value)
    except Exception:  # noqa: BLE001 - pickling may raise anything; such an option is left out
        return False
    return True


def main() -> None:
    """Run the spawned work-horse as RQ's does, with an instrumented worker."""
    config = pickle.loads(base64.b64decode(os.environ.pop(HORSE_CONFIG)))  # noqa: S301 - written by the parent process
    from redis import ConnectionPool
    from rq import Queue
    from rq.executions import Execution
    from rq.job import Job

    if config["settings"] is not None:
        use_settings(config["settings"])
    from jobmetrics.rq import Worker

    pool = ConnectionPool(connection_class=config["connection_class"], **config["connection"])
    connection, serializer = config["redis"](connection_pool=pool), config["serializer"]
    worker = Worker.find_by_key(config["worker"], connection=connection, serializer=serializer)
    if worker is None:
        sys.exit(1)
    job = Job.fetch(config["job"], connection=connection, serializer=serializer)
    queue = Queue(config["queue"], connection=connection, serializer=serializer)
    worker.execution = Execution.fetch(config["execution"], job.id, connection=connection)
    os.setpgrp()
    worker._is_horse = True  # as RQ's work-horse does
    worker.main_work_horse(job, queue)
