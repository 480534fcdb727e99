"""RQ's worker classes, instrumented: which of their methods are hooked, and what hooks them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import rq
from rq.exceptions import ShutDownImminentException
from rq.timeouts import BaseTimeoutException

from jobmetrics import guard, recorder
from jobmetrics.guard import guarded
from jobmetrics.integration import clear_worker_gauges, register_system, worker_gauges
from jobmetrics.rq import hooks as horses
from jobmetrics.rq import spawn_horse
from jobmetrics.rq.outcomes import Method
from jobmetrics.rq.system import SYSTEM

WorkerClass = TypeVar("WorkerClass", bound=type)


@guarded("rq worker")
def _show_worker() -> None:
    recorder.default().writer.describe(SYSTEM, "worker")
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
        with horses.cleaning():
            return original(self, *args, **kwargs)

    return clean_registries


_HOOKS: dict[str, Callable[[Method], Method]] = {
    "register_birth": _register_birth,
    "register_death": _register_death,
    "perform_job": horses.perform_job_of,
    "handle_exception": horses.handle_exception_of,
    "handle_job_retry": horses.handle_job_retry_of,  # from RQ 2.1 on
    "handle_work_horse_killed": horses.handle_work_horse_killed_of,
    "handle_job_failure": horses.handle_job_failure_of,
    "clean_registries": _clean_registries,
    "monitor_work_horse": horses.monitor_work_horse_of,
    "wait_for_horse": horses.wait_for_horse_of,
}
_ORIGINALS = "_jobmetrics_originals"


def instrument(worker_class: WorkerClass) -> WorkerClass:
    """Record what this worker class does, in place; usable as a decorator.

    Calling it again changes nothing. A class and its bases may be instrumented in any order: each execution is
    counted once. With rq.Worker, rq.SpawnWorker is instrumented too.

    A class that starts its work-horses in a way of its own, other than rq.Worker and rq.SpawnWorker do, must make
    sure that they are instrumented too. Work-horses that it forks are.

    Args:
        worker_class: rq.Worker, rq.SimpleWorker, rq.SpawnWorker or a subclass of these.

    Returns:
        The same class.
    """
    register_system(SYSTEM)
    guard.let_through(BaseTimeoutException, ShutDownImminentException)
    horses.hook()
    hooks = {**_HOOKS, **spawn_horse.hooks(worker_class)}
    # Only what rq.Worker forks is known to share our memory.
    if getattr(worker_class, "fork_work_horse", None) is rq.Worker.fork_work_horse:
        hooks["fork_work_horse"] = horses.fork_work_horse_of
    originals: dict[str, Any] = dict(worker_class.__dict__.get(_ORIGINALS, {}))
    for name, hook in hooks.items():
        if _is_hooked(worker_class, name):
            continue
        originals[name] = worker_class.__dict__.get(name)
        setattr(worker_class, name, hook(getattr(worker_class, name)))
    setattr(worker_class, _ORIGINALS, originals)
    for each in _spawning(worker_class):
        instrument(each)
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
        for each in _spawning(worker_class):
            uninstrument(each)
    return worker_class


def _is_hooked(worker_class: type, name: str) -> bool:
    """Whether a method is hooked already where it is defined; also when RQ's release has none of this name."""
    owner = next((cls for cls in worker_class.__mro__ if name in cls.__dict__), None)
    return owner is None or name in owner.__dict__.get(_ORIGINALS, {})


def _spawning(worker_class: type) -> list[Any]:
    """RQ's SpawnWorker where it inherits from this class: what it spawns is not what its base forks."""
    stock = spawn_horse.STOCK
    return [stock] if stock is not None and stock is not worker_class and issubclass(stock, worker_class) else []


# ---------------------------------------------------------------- classes of the package jobmetrics.rq


@instrument
class Worker(rq.Worker):
    """rq.Worker, recorded: one forked work-horse a job."""

    __module__ = __package__  # where users find it


@instrument
class SimpleWorker(rq.SimpleWorker):
    """rq.SimpleWorker, recorded: jobs run in the worker itself."""

    __module__ = __package__


if spawn_horse.STOCK is not None:

    @instrument
    class SpawnWorker(spawn_horse.STOCK):
        """rq.SpawnWorker, recorded: one spawned work-horse a job. RQ has it from 2.2 on."""

        __module__ = __package__
