"""The decorator `timed_job`, and what a job records about itself: `stage` and `add_items`."""

from __future__ import annotations

import functools
import inspect
import itertools
import math
import os
import sys
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any, TypeVar, overload

from jobmetrics import job_context, recorder
from jobmetrics.cpu_time import Awaited, steps
from jobmetrics.errors import InstrumentError
from jobmetrics.events import CPU_OF_CALLER, CPU_OF_THREAD, FAILURE, PYTHON, SUCCESS, Ended, Job, Started
from jobmetrics.guard import guarded
from jobmetrics.instruments.blocks import TimedBlock, with_signature_of
from jobmetrics.job_context import Execution, current_execution, running

# A function, a job system's task or a descriptor. The decorator returns the same type, with its overloads.
F = TypeVar("F", bound="Callable[..., Any] | classmethod[Any, Any, Any] | staticmethod[Any, Any]")

NO_QUEUE = ""

# Ids of calls. They must be unlikely to collide, but may be easy to guess, because only this process uses them.
# Not in the runtime: ids must not repeat after the runtime is replaced.
_numbers = itertools.count(int.from_bytes(os.urandom(7), "little"))


class _Timed:
    """A function under `timed_job`: its job, its target in seconds, and the CPU time that counts."""

    __slots__ = ("cpu", "job", "target")

    def __init__(self, job_type: str, target: float | None, cpu: str) -> None:
        self.job = Job(PYTHON, job_type, NO_QUEUE)
        self.target = target
        self.cpu = cpu

    @guarded("timed_job start")
    def start(self) -> Execution | None:
        """Record the start of an execution. Returns None if it is not recorded."""
        return recorder.default().started(Started(self.job, next(_numbers), None, self.target, self.cpu))

    @guarded("timed_job end")
    def end(self, execution: Execution, error: BaseException | None = None) -> None:
        """Record the end of an execution: a failure with an error, else a success."""
        execution.recorder.ended(execution, Ended(SUCCESS if error is None else FAILURE, error))

    @guarded("timed_job target")
    def refine(self, execution: Execution, caller: str) -> None:
        """Set the target of the job that calls this function, if it is the job's own function.

        It is the job's own function if its name is the job type, or if a module of the job system calls it (the
        system's name is the name of its package). caller: the module that called the function.
        """
        job = execution.job
        is_own = job.job_type == self.job.job_type or caller.partition(".")[0] == job.system
        if self.target is not None and job.system != PYTHON and is_own:
            execution.recorder.set_target(execution, self.target)


@overload
def timed_job(function: F, /) -> F: ...


@overload
def timed_job(*, name: str | None = None, target: float | None = None) -> Callable[[F], F]: ...


def timed_job(function: Any = None, /, *, name: str | None = None, target: float | None = None) -> Any:
    """Record each call of a function as a job of the system "python".

    It accepts functions, coroutine functions, generator and async generator functions, methods, classmethods and
    staticmethods. The function keeps its name, signature and result. An execution lasts from the call to the return.
    For a coroutine or generator, it begins with the first step. For a generator, it ends when the generator is
    exhausted or closed.

    A call inside a running job is part of that job and is not counted as another one. If the function is that job's
    function, its target becomes the job's target. A job system's task object is returned unchanged, because the job
    system's integration records it.

    Args:
        function: The function, if the decorator has no options.
        name: The job type; by default the function's module and qualified name.
        target: Seconds within which an execution should succeed.

    Returns:
        The decorated function; with options, the decorator.

    Raises:
        InstrumentError: The name or the target is not allowed, or the decorated object is not a function.

    Example:
        >>> from jobmetrics import timed_job
        >>> @timed_job(name="nightly.report", target=60.0)
        ... def report():
        ...     return "sent"
        >>> report()
        'sent'
    """
    _check(name, target)
    if function is None:
        return functools.partial(_decorate, name=name, target=target)
    return _decorate(function, name=name, target=target)


def _check(name: object, target: object) -> None:
    if name is not None and (not isinstance(name, str) or not name):
        raise InstrumentError(f"name={name!r} is not allowed for timed_job; it takes a non-empty string")
    if target is None:
        return
    if isinstance(target, bool) or not isinstance(target, (int, float)) or not 0.0 < target < math.inf:
        raise InstrumentError(f"target={target!r} is not allowed for timed_job; it takes seconds above 0")


def _decorate(function: Any, *, name: str | None, target: float | None) -> Any:
    kind = type(function)
    if kind in (classmethod, staticmethod):
        return kind(_decorate(function.__func__, name=name, target=target))
    if _is_task(kind):
        if target is not None:
            job_context.declare(function, float(target))
        return function
    if not callable(function):
        raise InstrumentError(f"timed_job takes a function, not {function!r}")
    wrap = next((wrap for is_kind, wrap in _KINDS if is_kind(function)), _plain)
    cpu = CPU_OF_THREAD if wrap is _plain else CPU_OF_CALLER  # measured step by step
    timed = _Timed(name or _name_of(function), None if target is None else float(target), cpu)
    return with_signature_of(function, wrap(function, timed))


def _is_task(kind: type) -> bool:
    """Whether objects of this class are tasks of a job system. A lazy task is not evaluated."""
    return any(callable(getattr(kind, name, None)) for name in ("apply_async", "_get_current_object"))  # a lazy proxy's


def _name_of(function: Any) -> str:
    """Return module.qualname of a function, of a partial's function, or of a callable object's class."""
    while isinstance(function, functools.partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def _plain(function: Callable[..., Any], timed: _Timed) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        execution = _begin(timed, has_caller=True)
        if execution is None:
            return function(*args, **kwargs)
        token = running.set(execution)
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            running.reset(token)
            timed.end(execution, error)
            raise
        running.reset(token)
        timed.end(execution)
        return result

    return call


def _begin(timed: _Timed, has_caller: bool = False) -> Execution | None:
    """Start an execution; return None if another one is running.

    has_caller: whether the frame above is the caller of the decorated function, and not one of its steps.
    """
    outer = running.get()
    if outer is None or outer.ended:
        return timed.start()
    if timed.target is not None:
        timed.refine(outer, sys._getframe(2).f_globals.get("__name__", "") if has_caller else "")
    return None


def _coroutine(function: Callable[..., Any], timed: _Timed) -> Callable[..., Any]:
    async def call(*args: Any, **kwargs: Any) -> Any:
        execution = _begin(timed)
        if execution is None:
            return await function(*args, **kwargs)
        try:
            result = await Awaited(function(*args, **kwargs), execution)
        except BaseException as error:
            timed.end(execution, error)
            raise
        timed.end(execution)
        return result

    return call


def _generator(function: Callable[..., Any], timed: _Timed) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        execution = _begin(timed)
        if execution is None:
            return (yield from function(*args, **kwargs))
        try:
            result = yield from steps(function(*args, **kwargs), execution)
        except BaseException as error:
            timed.end(execution, _unless_closed(error))
            raise
        timed.end(execution)
        return result

    return call


def _async_generator(function: Callable[..., Any], timed: _Timed) -> Callable[..., Any]:
    async def call(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        execution = _begin(timed)
        body = function(*args, **kwargs)
        sent: Any = None
        thrown: BaseException | None = None
        try:
            while True:
                step = body.asend(sent) if thrown is None else body.athrow(thrown)
                try:
                    item = await (step if execution is None else Awaited(step, execution))
                except StopAsyncIteration:
                    break
                finally:
                    thrown = None  # its traceback refers to this frame: drop the reference cycle
                try:
                    sent = yield item
                except BaseException as error:  # noqa: BLE001 - the body handles it; GeneratorExit closes it
                    sent, thrown = None, error
        except BaseException as error:
            if execution is not None:
                timed.end(execution, _unless_closed(error))
            raise
        if execution is not None:
            timed.end(execution)

    return call


def _unless_closed(error: BaseException) -> BaseException | None:
    """Return the error, or None for GeneratorExit: a generator that its caller closes has not failed."""
    return None if isinstance(error, GeneratorExit) else error


_KINDS: tuple[tuple[Callable[[Any], bool], Callable[[Callable[..., Any], _Timed], Callable[..., Any]]], ...] = (
    (inspect.iscoroutinefunction, _coroutine),
    (inspect.isasyncgenfunction, _async_generator),
    (inspect.isgeneratorfunction, _generator),
)


# An execution and the reading of its recorder's clock at the start of the stage; None outside a job.
_Begun = tuple[Execution, float] | None


class stage(TimedBlock[_Begun]):  # noqa: N801 - it is used like a function
    """A named, timed part of a job: a context manager and a decorator, sync and async.

    `jobs_stage_duration_seconds` has its duration in seconds, even if the block raises. Outside a job nothing is
    recorded. Use a new object for each `with` block; a decorator works for all calls.

    Args:
        name: The value of the label `stage`. Use a few fixed names, never ids.

    Example:
        >>> from jobmetrics import stage
        >>> with stage("download"):
        ...     lines = ["a b", "c d"]
        >>> @stage("parse")
        ... def parse():
        ...     return [line.split() for line in lines]
        >>> parse()
        [['a', 'b'], ['c', 'd']]
    """

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    @guarded("stage start")
    def begin(self) -> _Begun:
        execution = current_execution()
        if execution is None:
            return None
        return execution, execution.recorder.clock()

    @guarded("stage end")
    def end(self, begun: _Begun) -> None:
        if begun is not None:
            execution, start = begun
            execution.recorder.stage(execution, self._name, execution.recorder.clock() - start)


@guarded("items")
def add_items(count: float = 1) -> None:
    """Add to the items that the running job has processed. Outside a job nothing is recorded.

    Args:
        count: The number of items. A negative number is dropped and counted in `jobmetrics_dropped_updates_total`.

    Example:
        >>> from jobmetrics import add_items, timed_job
        >>> @timed_job
        ... def import_rows(rows):
        ...     add_items(len(rows))
        >>> import_rows(["a", "b"])
    """
    execution = current_execution()
    if execution is not None:
        execution.recorder.add_items(execution, count)


items = add_items  # the old name, kept for one release
