"""Every order of instrument() on a class and its base: the classes, and a program that runs a worker of each.

A row's queue has its name, so that the label queue_name shows the counts of each class.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import rq
import rq.worker
from redis import Redis
from rq import Queue

from jobmetrics.rq import instrument
from tests.integration import rq_jobs as jobs

KINDS = tuple(name for name in ("Worker", "SpawnWorker") if hasattr(rq.worker, name))
ORDERS = ("base", "subclass", "base, then subclass", "subclass, then base", "each twice")
OVERRIDDEN = ("nothing", "hooks", "fork and super", "fork")


def _hooks(base: type[Any]) -> dict[str, Any]:
    """Override, in the subclass, the methods that jobmetrics wraps."""

    def method(name: str) -> Callable[..., Any]:
        def call_super(self: Any, *args: Any, **kwargs: Any) -> Any:
            return getattr(super(type_of[0], self), name)(*args, **kwargs)

        return call_super

    type_of: list[type[Any]] = []
    names = ("perform_job", "handle_exception", "handle_job_failure", "monitor_work_horse", "execute_job",
             "handle_work_horse_killed", "clean_registries", "register_birth")  # fmt: skip
    return {"_type_of": type_of, **{name: method(name) for name in names}}


def _super_fork(base: type[Any]) -> dict[str, Any]:
    def fork_work_horse(self: Any, *args: Any, **kwargs: Any) -> None:
        base.fork_work_horse(self, *args, **kwargs)

    return {"fork_work_horse": fork_work_horse}


def _overridden_fork(base: type[Any]) -> dict[str, Any]:
    def fork_work_horse(self: Any, job: Any, queue: Any) -> None:
        child = os.fork()
        if child == 0:
            os.setpgrp()
            self.main_work_horse(job, queue)
            os._exit(0)
        self._horse_pid = child

    return {"fork_work_horse": fork_work_horse}


_BODIES: dict[str, Callable[[type[Any]], dict[str, Any]]] = {
    "nothing": lambda base: {},
    "hooks": _hooks,
    "fork and super": _super_fork,
    "fork": _overridden_fork,
}


def _instrument(order: str, base: type[Any], subclass: type[Any]) -> None:
    steps = {
        "base": [base],
        "subclass": [subclass],
        "base, then subclass": [base, subclass],
        "subclass, then base": [subclass, base],
        "each twice": [base, subclass, subclass, base],
    }[order]
    for each in steps:
        instrument(each)


def _make(kind: str, order: str, overridden: str) -> type[Any]:
    stock = getattr(rq.worker, kind)
    suffix = "".join(part for part in f"{kind} {order} {overridden}".title() if part.isalpha())
    base = type(f"Base{suffix}", (stock,), {"__module__": __name__})
    body = _BODIES[overridden](base)
    subclass = type(f"Own{suffix}", (base,), {"__module__": __name__, **body})
    body.get("_type_of", []).append(subclass)
    globals()[base.__name__], globals()[subclass.__name__] = base, subclass  # where a spawned work-horse finds them
    _instrument(order, base, subclass)
    return subclass


ROWS = {
    f"{kind}: {order}; overrides {overridden}": _make(kind, order, overridden)
    for kind in KINDS
    for order in ORDERS
    for overridden in OVERRIDDEN
}
# RQ's own: a subclass of rq.Worker that starts work-horses differently.
STOCK: dict[str, Callable[[], list[type[Any]]]] = {
    "base": lambda: [rq.Worker],
    "subclass": lambda: [rq.worker.SpawnWorker],
    "base, then subclass": lambda: [rq.Worker, rq.worker.SpawnWorker],
    "subclass, then base": lambda: [rq.worker.SpawnWorker, rq.Worker],
}
STOCK_COUNTED = {order: KINDS if "base" in order else ("SpawnWorker",) for order in STOCK}


def run(name: str, worker_class: type[Any], connection: Redis) -> None:
    """Run three jobs in one worker; the second job kills its work-horse."""
    queue = Queue(name, connection=connection)
    for job in (jobs.fail, jobs.kill_itself, jobs.succeed):
        queue.enqueue(job)
    worker_class([queue], connection=connection).work(burst=True, logging_level="WARNING")


def main(url: str, kind: str, *orders: str) -> None:
    """Run the rows of a kind of worker, or RQ's own classes."""
    connection = Redis.from_url(url)
    if kind == "stock":
        for each in STOCK[orders[0]]():
            instrument(each)
        for name in KINDS:
            run(f"{name}", getattr(rq.worker, name), connection)
        return
    for name, worker_class in ROWS.items():
        if name.startswith(f"{kind}:"):
            run(name, worker_class, connection)


if __name__ == "__main__":
    # A spawned work-horse must find the classes under a name other than __main__.
    from tests.integration import rq_orders  # noqa: PLW0406 - on purpose, as said above

    rq_orders.main(*sys.argv[1:])
