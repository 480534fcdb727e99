"""Blocks that are timed: context managers and decorators, sync and async, of which no part raises."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from jobmetrics.errors import InstrumentError

F = TypeVar("F", bound=Callable[..., Any])
Begun = TypeVar("Begun")


class TimedBlock(Generic[Begun]):
    """What `with`, `async with` and `@` of a timed block do. `begin` and `end` are the subclass's, and never raise."""

    __slots__ = ("_begun",)

    def __init__(self) -> None:
        self._begun: list[Begun] = []  # blocks of one object within each other

    def begin(self) -> Begun:
        """What `end` wants to know of the beginning."""
        raise NotImplementedError

    def end(self, begun: Begun) -> None:
        """The block is over, however it ended."""
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
        """A function or coroutine function each call of which is such a block.

        Raises:
            InstrumentError: for a generator function, whose call only makes the generator.
        """
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            kind = type(self).__name__
            raise InstrumentError(f"{kind} does not decorate the generator function {function!r}: use `with` in it")

        @functools.wraps(function)
        async def call_async(*args: Any, **kwargs: Any) -> Any:
            begun = self.begin()
            try:
                return await function(*args, **kwargs)
            finally:
                self.end(begun)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            begun = self.begin()
            try:
                return function(*args, **kwargs)
            finally:
                self.end(begun)

        wrapped: Any = call_async if inspect.iscoroutinefunction(function) else call
        return wrapped  # type: ignore[no-any-return]  # wraps() keeps what F is
