"""The instrumented worker classes, and `instrument` for others."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import rq
from rq.exceptions import ShutDownImminentException
from rq.timeouts import BaseTimeoutException

from jobmetrics.integration import (
    clear_worker_gauges,
    current_recorder,
    guarded,
    let_through,
    register_system,
    worker_gauges,
)
from jobmetrics.rq import SYSTEM, lost_jobs, running_jobs, spawn_horse
from jobmetrics.rq.outcomes import Method
from jobmetrics.rq.producer import ORIGINALS, restore_methods

WorkerClass = TypeVar("WorkerClass", bound=type)


@guarded("rq worker")
def _show_worker() -> None:
    current_recorder().writer.describe(SYSTEM, "worker")
    worker_gauges(SYSTEM)


@guarded("rq worker")
def _clear_worker() -> None:
    clear_worker_gauges(SYSTEM)


def _register_birth(original: Method) -> Method:
    @functools.wraps(original)
    def register_birth(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        _show_worker()
        return result

    return register_birth


def _register_death(original: Method) -> Method:
    @functools.wraps(original)
    def register_death(self: Any, *args: Any, **kwargs: Any) -> Any:
        _clear_worker()
        return original(self, *args, **kwargs)

    return register_death


def _clean_registries(original: Method) -> Method:
    @functools.wraps(original)
    def clean_registries(self: Any, *args: Any, **kwargs: Any) -> Any:
        with lost_jobs.cleaning():
            return original(self, *args, **kwargs)

    return clean_registries


_HOOKS: dict[str, Callable[[Method], Method]] = {
    "register_birth": _register_birth,
    "register_death": _register_death,
    "perform_job": running_jobs.perform_job_of,
    "handle_exception": running_jobs.handle_exception_of,
    "handle_job_retry": running_jobs.handle_job_retry_of,  # from RQ 2.1 on
    "handle_work_horse_killed": lost_jobs.handle_work_horse_killed_of,
    "handle_job_failure": lost_jobs.handle_job_failure_of,
    "clean_registries": _clean_registries,
    "monitor_work_horse": lost_jobs.monitor_work_horse_of,
    "wait_for_horse": lost_jobs.wait_for_horse_of,
}


def instrument(worker_class: WorkerClass) -> WorkerClass:
    """Record the jobs of this worker class. It changes the class in place and may be used as a decorator.

    A second call changes nothing. A class and its bases may be instrumented in any order: each execution is counted
    once. With rq.Worker, rq.SpawnWorker is instrumented too.

    Forked work-horses are instrumented. A class that starts its work-horses in another way than rq.Worker and
    rq.SpawnWorker must instrument them itself.

    Args:
        worker_class: A class of RQ's, such as rq.Worker or rq.SimpleWorker, or a subclass of one.

    Returns:
        The same class.

    Example:
        >>> import rq
        >>> from jobmetrics.rq import instrument
        >>> @instrument
        ... class QuietWorker(rq.Worker):
        ...     log_result_lifespan = False
    """
    register_system(SYSTEM)
    let_through(BaseTimeoutException, ShutDownImminentException)
    lost_jobs.hook_cleanup()
    wrappers = {**_HOOKS, **spawn_horse.hooks(worker_class)}
    # Only a work-horse that rq.Worker forks is known to share this process's memory.
    if getattr(worker_class, "fork_work_horse", None) is rq.Worker.fork_work_horse:
        wrappers["fork_work_horse"] = lost_jobs.fork_work_horse_of
    originals: dict[str, Any] = dict(worker_class.__dict__.get(ORIGINALS, {}))
    for name, wrap in wrappers.items():
        if _is_hooked(worker_class, name):
            continue
        originals[name] = worker_class.__dict__.get(name)
        setattr(worker_class, name, wrap(getattr(worker_class, name)))
    setattr(worker_class, ORIGINALS, originals)
    for each in _spawning(worker_class):
        instrument(each)
    return worker_class


def uninstrument(worker_class: WorkerClass) -> WorkerClass:
    """Stop recording the jobs of this class. Its bases and subclasses do not change.

    Args:
        worker_class: The class that `instrument` was called with.

    Returns:
        The same class.

    Example:
        >>> import rq
        >>> from jobmetrics.rq import instrument, uninstrument
        >>> class QuietWorker(rq.Worker):
        ...     log_result_lifespan = False
        >>> uninstrument(instrument(QuietWorker)) is QuietWorker
        True
    """
    if restore_methods(worker_class):
        for each in _spawning(worker_class):
            uninstrument(each)
    return worker_class


def _is_hooked(worker_class: type, name: str) -> bool:
    """Return whether a method is hooked in the class that defines it, or is missing in this release of RQ."""
    owner = next((cls for cls in worker_class.__mro__ if name in cls.__dict__), None)
    return owner is None or name in owner.__dict__.get(ORIGINALS, {})


def _spawning(worker_class: type) -> list[Any]:
    """Return RQ's SpawnWorker if it inherits from this class: its work-horses need different hooks."""
    stock = spawn_horse.STOCK
    return [stock] if stock is not None and stock is not worker_class and issubclass(stock, worker_class) else []


# ---------------------------------------------------------------- the instrumented classes


@instrument
class Worker(rq.Worker):
    """rq.Worker with metrics: one forked work-horse for each job."""

    __module__ = __package__  # the public path


@instrument
class SimpleWorker(rq.SimpleWorker):
    """rq.SimpleWorker with metrics: jobs run in the worker."""

    __module__ = __package__


if spawn_horse.STOCK is not None:

    @instrument
    class SpawnWorker(spawn_horse.STOCK):
        """rq.SpawnWorker with metrics: one spawned work-horse for each job. Needs RQ 2.2."""

        __module__ = __package__
