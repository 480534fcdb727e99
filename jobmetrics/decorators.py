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
from jobmetrics.events import FAILURE, PYTHON, SUCCESS, Job
from jobmetrics.guard import guarded, note
from jobmetrics.instruments.blocks import TimedBlock, with_signature_of
from jobmetrics.job_context import Execution, current_execution, running
from jobmetrics.recorder import JobSeries, Recorder

# A function, a job system's task or a descriptor: what comes out is what went in, overloads and all.
F = TypeVar("F", bound="Callable[..., Any] | classmethod[Any, Any, Any] | staticmethod[Any, Any]")

NO_QUEUE = ""

# Names of calls: nobody asks for them from outside, so they need not be hard to guess, only hard to meet.
_numbers = itertools.count(int.from_bytes(os.urandom(7), "little"))


class _Timed:
    """A function under `timed_job`: its job, its target in seconds, and its series once there are any.

    in_steps: whether its processor time is added step by step, by whoever runs the steps.
    """

    __slots__ = ("_record", "_series", "in_steps", "job", "target")

    def __init__(self, job_type: str, target: float | None, in_steps: bool) -> None:
        self.job = Job(PYTHON, job_type, NO_QUEUE)
        self.target = target
        self.in_steps = in_steps
        self._record: Recorder | None = None
        self._series: JobSeries | None = None

    def start(self) -> Execution | None:
        """Begin an execution; None when it is not recorded."""
        try:
            record, series = recorder.default(), self._series
            if series is None or record is not self._record:
                series = self._series = record.series_of(self.job)
                self._record = record
            if series.ignored:
                return None
            number = next(_numbers)
            execution = record.begin(series, number, number)
            if self.target is not None:
                record.set_target(execution, self.target)
            if not self.in_steps and execution.cpu is not None:
                execution.cpu_clock = clock = record.thread_cpu
                execution.cpu = -clock()
            return execution
        except Exception as error:  # noqa: BLE001 - noted; the function runs unrecorded
            note("timed_job start", error)
            return None

    def end(self, execution: Execution, error: BaseException | None = None) -> None:
        """Record the end of an execution: a failure if there is an error."""
        try:
            execution.series.recorder.end(execution, SUCCESS if error is None else FAILURE, error)
        except Exception as ours:  # noqa: BLE001 - noted; the function's result is not affected
            note("timed_job end", ours)

    @guarded("timed_job target")
    def refine(self, execution: Execution, target: float, caller: str) -> None:
        """Give the job that runs this function its target, if this is the job's own function.

        It is when it has the job's name, or when the job system itself calls it: systems are named as their
        packages are. caller: the module that called it.
        """
        job = execution.job
        if job.system != PYTHON and (job.job_type == self.job.job_type or caller.partition(".")[0] == job.system):
            execution.series.recorder.set_target(execution, target)


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
        raise InstrumentError(f"name={name!r} is not allowed for timed_job; it takes a non-empty text")
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
    timed = _Timed(name or _name_of(function), None if target is None else float(target), wrap is not _plain)
    return with_signature_of(function, wrap(function, timed))


def _is_task(kind: type) -> bool:
    """Whether objects of this class are a job system's tasks, lazy or not, told without waking a lazy one."""
    return any(callable(getattr(kind, name, None)) for name in ("apply_async", "_get_current_object"))  # a lazy proxy's


def _name_of(function: Any) -> str:
    """module.qualname of a function, of what a partial calls, or of a callable object's class."""
    while isinstance(function, functools.partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def _plain(function: Callable[..., Any], timed: _Timed) -> Callable[..., Any]:
    target, start, end = timed.target, timed.start, timed.end
    now, enter, leave = running.get, running.set, running.reset

    def call(*args: Any, **kwargs: Any) -> Any:
        outer = now()
        if outer is not None and not outer.ended:
            if target is not None:
                timed.refine(outer, target, sys._getframe(1).f_globals.get("__name__", ""))
            return function(*args, **kwargs)
        execution = start()
        if execution is None:
            return function(*args, **kwargs)
        token = enter(execution)
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            leave(token)
            end(execution, error)
            raise
        leave(token)
        try:  # as end() does, one call less: this is the way of nearly all calls
            execution.series.recorder.end(execution, SUCCESS)
        except Exception as ours:  # noqa: BLE001 - noted; the function's result is not affected
            note("timed_job end", ours)
        return result

    return call


def _begin(timed: _Timed) -> Execution | None:
    """For functions that run in steps: the execution to record, None where another one is running."""
    outer = running.get()
    if outer is None or outer.ended:
        return timed.start()
    if timed.target is not None:
        timed.refine(outer, timed.target, "")
    return None


def _coroutine(function: Callable[..., Any], timed: _Timed) -> Callable[..., Any]:
    async def call(*args: Any, **kwargs: Any) -> Any:
        execution = _begin(timed)
        if execution is None:
            return await function(*args, **kwargs)
        try:
            result = await Awaited(function(*args, **kwargs), execution, _clock(execution))
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
            result = yield from steps(function(*args, **kwargs), execution, _clock(execution))
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
                    item = await (step if execution is None else Awaited(step, execution, _clock(execution)))
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
    """Whoever closes a generator had enough of it: that is no failure."""
    return None if isinstance(error, GeneratorExit) else error


def _clock(execution: Execution) -> Callable[[], float]:
    record: Recorder = execution.series.recorder
    return record.thread_cpu


_KINDS: tuple[tuple[Callable[[Any], bool], Callable[[Callable[..., Any], _Timed], Callable[..., Any]]], ...] = (
    (inspect.iscoroutinefunction, _coroutine),
    (inspect.isasyncgenfunction, _async_generator),
    (inspect.isgeneratorfunction, _generator),
)


# An execution, whoever records it, and that recorder's clock at the beginning; None outside a job.
_Begun = tuple[Execution, Recorder, float] | None


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
        record: Recorder = execution.series.recorder
        return execution, record, record.clock()

    @guarded("stage end")
    def end(self, begun: _Begun) -> None:
        if begun is not None:
            execution, record, start = begun
            record.stage(execution, self._name, record.clock() - start)


@guarded("items")
def items(count: float = 1) -> None:
    """Add to the items that the running job has done. A negative number is dropped and counted.

    Outside a job nothing is recorded.
    """
    execution = current_execution()
    if execution is not None:
        record: Recorder = execution.series.recorder
        record.items(execution, count)
