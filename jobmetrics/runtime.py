"""The state of a process, in one object that tests replace.

A module with per-process state defines a class for it and gets the only instance with `state(ThatClass)`. A forked
child starts with a copy of its parent's state.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


class Runtime:
    """One instance of each state class, made on first use."""

    def __init__(self) -> None:
        self._states: dict[type, Any] = {}

    def state(self, kind: type[T]) -> T:
        """Return the instance of this class."""
        found: T | None = self._states.get(kind)
        return self._states.setdefault(kind, kind()) if found is None else found


_current = Runtime()


def state(kind: type[T]) -> T:
    """Return the instance of this class in the current runtime."""
    return _current.state(kind)


def use(runtime: Runtime) -> Runtime:
    """Make a runtime the current one, and return the previous one."""
    global _current
    before, _current = _current, runtime
    return before


@contextmanager
def replaced() -> Iterator[None]:
    """Run the block with a new runtime, as in a process that has not recorded anything yet."""
    before = use(Runtime())
    try:
        yield
    finally:
        use(before)
