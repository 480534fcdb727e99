"""`timed_job`: records a function's whole lifecycle, or steps back where a job system already records it."""

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

# A function, a job system's task or a descriptor: what comes out is what went in, overloads and all.
F = TypeVar("F", bound="Callable[..., Any] | classmethod[Any, Any, Any] | staticmethod[Any, Any]")

NO_QUEUE = ""

# Ids of calls: only this process uses them, so they must be unlikely to meet and need not be hard to guess.
# Not in the runtime: an id must not come again after the runtime is replaced.
_numbers = itertools.count(int.from_bytes(os.urandom(7), "little"))


class _Timed:
    """A function under `timed_job`: its job, its target in seconds, and whose processor time is its own."""

    __slots__ = ("cpu", "job", "target")

    def __init__(self, job_type: str, target: float | None, cpu: str) -> None:
        self.job = Job(PYTHON, job_type, NO_QUEUE)
        self.target = target
        self.cpu = cpu

    @guarded("timed_job start")
    def start(self) -> Execution | None:
        """Record the start of an execution; None when it is not recorded."""
        return recorder.default().started(Started(self.job, next(_numbers), None, self.target, self.cpu))

    @guarded("timed_job end")
    def end(self, execution: Execution, error: BaseException | None = None) -> None:
        """Record the end of an execution: a failure if there is an error."""
        execution.recorder.ended(execution, Ended(SUCCESS if error is None else FAILURE, error))

    @guarded("timed_job target")
    def refine(self, execution: Execution, caller: str) -> None:
        """Give the job that runs this function its target, if this is the job's own function.

        It is when it has the job's name, or when the job system itself calls it: systems are named as their
        packages are. caller: the module that called it.
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
    """Record each call of a function as a job of system "python".

    Takes functions, coroutine functions, generator and async generator functions, methods, classmethods and
    staticmethods, and leaves name, signature and result as they are. An execution lasts from the call (a
    coroutine's or generator's first step) to the return (a generator's end, or its being closed).

    Inside a job that its job system or another `timed_job` already records, a call is not counted again; as that
    job's own function it gives it its target. A job system's task object is returned as it is: its job is recorded
    already.

    Args:
        function: what is decorated, when there are no options.
        name: the job type; the function's module and qualified name if it is not given.
        target: seconds within which a successful execution should end.

    Raises:
        InstrumentError: when name or target are not allowed, or the decorated is no function.
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
    cpu = CPU_OF_THREAD if wrap is _plain else CPU_OF_CALLER  # step by step, where it runs in steps
    timed = _Timed(name or _name_of(function), None if target is None else float(target), cpu)
    return with_signature_of(function, wrap(function, timed))


def _is_task(kind: type) -> bool:
    """Whether objects of this class are a job system's tasks. A lazy one is not woken for it."""
    return any(callable(getattr(kind, name, None)) for name in ("apply_async", "_get_current_object"))  # a lazy proxy's


def _name_of(function: Any) -> str:
    """module.qualname of a function, of what a partial calls, or of a callable object's class."""
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
    """The execution to record; None where another one is running.

    has_caller: whether this was called by what the function's own caller has called, and not in a step of it.
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
                    thrown = None  # it knows this frame: keeping it here would keep both
                try:
                    sent = yield item
                except BaseException as error:  # noqa: BLE001 - the body's to handle; it is closed by GeneratorExit
                    sent, thrown = None, error
        except BaseException as error:
            if execution is not None:
                timed.end(execution, _unless_closed(error))
            raise
        if execution is not None:
            timed.end(execution)

    return call


def _unless_closed(error: BaseException) -> BaseException | None:
    """The caller that closes a generator wants no more of it: that is not a failure."""
    return None if isinstance(error, GeneratorExit) else error


_KINDS: tuple[tuple[Callable[[Any], bool], Callable[[Callable[..., Any], _Timed], Callable[..., Any]]], ...] = (
    (inspect.iscoroutinefunction, _coroutine),
    (inspect.isasyncgenfunction, _async_generator),
    (inspect.isgeneratorfunction, _generator),
)


# An execution and its recorder's clock at the beginning; None outside a job.
_Begun = tuple[Execution, float] | None


class stage(TimedBlock[_Begun]):  # noqa: N801 - it is used as a function is
    """A named part of a job, timed however it ends: a context manager and a decorator, sync and async.

        with stage("download"): ...
        async with stage("download"): ...
        @stage("download")
        def download(): ...

    name: a value of the label `stage`: one of a few, never an id. Outside a job nothing is recorded. Make a new
    one for each block; as a decorator one serves all calls.
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
    """Add to the items that the running job has done. A negative number is dropped and counted.

    Outside a job nothing is recorded.
    """
    execution = current_execution()
    if execution is not None:
        execution.recorder.add_items(execution, count)


items = add_items  # its earlier name, kept for one release
