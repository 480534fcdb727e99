"""Blocks that record at their end: context managers and decorators, sync and async. Recording never raises."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar, cast

from jobmetrics.errors import InstrumentError

F = TypeVar("F", bound=Callable[..., Any])
Begun = TypeVar("Begun")


def with_signature_of(function: Callable[..., Any], wrapped: Any) -> Any:
    """Give a wrapper the name and the signature of the function.

    Some job systems check arguments by the signature and do not follow `__wrapped__`.
    """
    wrapped = functools.wraps(function)(wrapped)
    try:
        wrapped.__signature__ = inspect.signature(function)
    except (TypeError, ValueError):
        pass  # a builtin without a signature
    return wrapped


def in_block(function: F, begin: Callable[[], Begun], end: Callable[[Begun, BaseException | None], object]) -> F:
    """Return a function or coroutine function that calls `begin` before each call and `end` after it."""

    async def call_async(*args: Any, **kwargs: Any) -> Any:
        begun = begin()
        try:
            result = await function(*args, **kwargs)
        except BaseException as error:
            end(begun, error)
            raise
        end(begun, None)
        return result

    def call(*args: Any, **kwargs: Any) -> Any:
        begun = begin()
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            end(begun, error)
            raise
        end(begun, None)
        return result

    return cast("F", with_signature_of(function, call_async if inspect.iscoroutinefunction(function) else call))


class TimedBlock(Generic[Begun]):
    """`with`, `async with` and `@` of a timed block. Subclasses implement `begin` and `end`, which never raise."""

    __slots__ = ("_begun",)

    def __init__(self) -> None:
        self._begun: list[Begun] = []  # of nested blocks of one object

    def begin(self) -> Begun:
        """Return the value that `end` is called with."""
        raise NotImplementedError

    def end(self, begun: Begun) -> None:
        """Called at the block's end, also after an exception."""
        raise NotImplementedError

    def __enter__(self) -> None:
        self._begun.append(self.begin())

    def __exit__(self, *_: object) -> None:
        self.end(self._begun.pop())

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(self, *_: object) -> None:
        self.__exit__()

    def __call__(self, function: F) -> F:
        """Decorate a function or coroutine function: each call is such a block.

        Raises:
            InstrumentError: for a generator function. Its call only makes the generator.
        """
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            kind = type(self).__name__
            raise InstrumentError(f"{kind} does not decorate the generator function {function!r}: use `with` in it")

        return in_block(function, self.begin, lambda begun, _: self.end(begun))


class MetricBlock(Generic[Begun]):
    """A block of a metric, as in prometheus_client: it can be kept, entered again, and nested in itself.

    Subclasses implement `_begin` and `_end`. On a generator function the block is the call that makes the generator.
    """

    __slots__ = ("_begun",)

    def __init__(self) -> None:
        self._begun: list[Begun] = []

    def _begin(self) -> Begun:
        raise NotImplementedError

    def _end(self, begun: Begun, error: BaseException | None) -> None:
        raise NotImplementedError

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._end(self._begun.pop(), error)

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._end(self._begun.pop(), error)

    def __call__(self, function: F) -> F:
        return in_block(function, self._begin, self._end)


class Timer(MetricBlock[float]):
    """Records the seconds that a block or a call of a decorated function took.

    duration: seconds of the block that ended last; None before.
    """

    __slots__ = ("_labelled", "_series", "_update", "duration")

    def __init__(self, metric: Any, update: str) -> None:
        """metric: a metric or series with a method named `update`; `labels` needs a metric."""
        super().__init__()
        self._labelled = self._series = metric
        self._update = update
        self.duration: float | None = None

    def labels(self, *labelvalues: object, **labelkwargs: object) -> None:
        """Record into the series with these label values. May be called in the block, once they are known."""
        self._series = self._labelled.labels(*labelvalues, **labelkwargs)

    def __enter__(self) -> Timer:  # noqa: PYI034 - Self is not in the standard library of Python 3.10
        self._begun.append(self._begin())
        return self

    async def __aenter__(self) -> Timer:  # noqa: PYI034 - as above
        return self.__enter__()

    def _begin(self) -> float:
        return time.perf_counter()

    def _end(self, begun: float, error: BaseException | None) -> None:
        self.duration = time.perf_counter() - begun
        if hasattr(self._series, "writer"):  # a series; a metric calls look() itself
            self._series.writer.look()
        getattr(self._series, self._update)(self.duration)


class _Silent(MetricBlock[None]):
    """A block that returns nothing on entry."""

    __slots__ = ()

    def __enter__(self) -> None:
        self._begun.append(self._begin())

    async def __aenter__(self) -> None:
        self._begun.append(self._begin())


class _Inc(Protocol):
    def inc(self, amount: float = 1.0) -> None: ...


class _IncDec(_Inc, Protocol):
    def dec(self, amount: float = 1.0) -> None: ...


class InProgress(_Silent):
    """Counts a block, or the calls of a decorated function, while it runs."""

    __slots__ = ("_gauge",)

    def __init__(self, gauge: _IncDec) -> None:
        super().__init__()
        self._gauge = gauge

    def _begin(self) -> None:
        self._gauge.inc()

    def _end(self, begun: None, error: BaseException | None) -> None:
        self._gauge.dec()


class ExceptionCounter(_Silent):
    """Counts the exceptions that leave a block or a decorated function."""

    __slots__ = ("_counter", "_exception")

    def __init__(self, counter: _Inc, exception: type[BaseException] | tuple[type[BaseException], ...]) -> None:
        super().__init__()
        self._counter = counter
        self._exception = exception

    def _begin(self) -> None:
        return None

    def _end(self, begun: None, error: BaseException | None) -> None:
        if isinstance(error, self._exception):
            self._counter.inc()
