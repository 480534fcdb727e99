"""RQ's worker classes, instrumented: which of their methods are heard, and by whom."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import rq
from rq.exceptions import ShutDownImminentException
from rq.timeouts import BaseTimeoutException

from jobmetrics import guard, recorder
from jobmetrics.guard import guarded
from jobmetrics.rq import abandoned, horses, performing, presence, spawned
from jobmetrics.rq.ending import Method

WorkerClass = TypeVar("WorkerClass", bound=type)


@guarded("rq worker")
def _before_job(worker: Any) -> None:
    horses.prepared(worker, recorder.default())


def _register_birth(original: Method) -> Method:
    @functools.wraps(original)
    def register_birth(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        presence.tell(alive=True)
        return result

    return register_birth


def _register_death(original: Method) -> Method:
    @functools.wraps(original)
    def register_death(self: Any, *args: Any, **kwargs: Any) -> Any:
        presence.tell(alive=False)
        return original(self, *args, **kwargs)

    return register_death


def _execute_job(original: Method) -> Method:
    @functools.wraps(original)
    def execute_job(self: Any, *args: Any, **kwargs: Any) -> Any:
        _before_job(self)
        return original(self, *args, **kwargs)

    return execute_job


def _clean_registries(original: Method) -> Method:
    @functools.wraps(original)
    def clean_registries(self: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(self, "_jobmetrics_cleaning", False):
            return original(self, *args, **kwargs)
        self._jobmetrics_cleaning = True
        try:
            with abandoned.counted():
                return original(self, *args, **kwargs)
        finally:
            self._jobmetrics_cleaning = False

    return clean_registries


_HOOKS: dict[str, Callable[[Method], Method]] = {
    "register_birth": _register_birth,
    "register_death": _register_death,
    "execute_job": _execute_job,
    "perform_job": performing.perform_job_of,
    "handle_exception": performing.handle_exception_of,
    "handle_job_retry": performing.handle_job_retry_of,  # from RQ 2.1 on
    "handle_work_horse_killed": horses.handle_work_horse_killed_of,
    "handle_job_failure": horses.handle_job_failure_of,
    "clean_registries": _clean_registries,
    "monitor_work_horse": horses.monitor_unshared_of,
}
_ORIGINALS = "_jobmetrics_originals"


def instrument(worker_class: WorkerClass) -> WorkerClass:
    """Record what this worker class does, in place; usable as a decorator. Calling it again changes nothing.

    A class that starts its work-horses in a way of its own, other than rq.Worker and rq.SpawnWorker do, must see to
    it that they are instrumented too.
    """
    guard.let_through(BaseTimeoutException, ShutDownImminentException)
    if any(_ORIGINALS in cls.__dict__ for cls in worker_class.__mro__):
        return worker_class
    hooks = dict(_HOOKS)
    start = getattr(worker_class, "fork_work_horse", None)
    if spawned.uses_stock_work_horse(worker_class):
        hooks["fork_work_horse"] = spawned.fork_work_horse
    elif start is rq.Worker.fork_work_horse:  # of any other way nobody knows that what it starts shares our memory
        hooks["fork_work_horse"], hooks["monitor_work_horse"] = horses.fork_work_horse_of, horses.monitor_work_horse_of
        del hooks["execute_job"]  # the same is done at the fork
    originals: dict[str, Any] = {}
    for name, hook in hooks.items():
        if hasattr(worker_class, name):
            originals[name] = worker_class.__dict__.get(name)
            setattr(worker_class, name, hook(getattr(worker_class, name)))
    setattr(worker_class, _ORIGINALS, originals)
    return worker_class


def uninstrument(worker_class: WorkerClass) -> WorkerClass:
    """Stop recording what this very class does."""
    for name, original in worker_class.__dict__.get(_ORIGINALS, {}).items():
        if original is None:
            delattr(worker_class, name)
        else:
            setattr(worker_class, name, original)
    if _ORIGINALS in worker_class.__dict__:
        delattr(worker_class, _ORIGINALS)
    return worker_class
