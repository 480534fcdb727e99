"""Series that are shown as 0 before their first update.

A definition touches no file: it may be imported by a process that never records. So what is to be shown waits here
until the process records something, and is placed in the index then.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from typing import Protocol

from jobmetrics import runtime
from jobmetrics.registry.cells import BoundSeries

MAX_WAITING = 10_000  # a process that never records may go on asking


class Metric(Protocol):
    """A metric without labels."""

    def at(self, values: tuple[str, ...], /) -> BoundSeries: ...


class Zeros:
    """known: metrics without labels; waiting: what gives a series to be shown, or None."""

    def __init__(self) -> None:
        self.known: weakref.WeakSet[Metric] = weakref.WeakSet()
        self.waiting: deque[Callable[[], BoundSeries | None]] = deque()


def define(metric: Metric) -> None:
    """Show a metric without labels, in this generation of the directory and in those that follow."""
    runtime.state(Zeros).known.add(metric)
    _ask(_of(metric))


def ask(series: BoundSeries) -> None:
    """Show a series for which labels() was called."""
    _ask(weakref.ref(series))


def again() -> None:
    """Show all metrics without labels, in a new generation of the directory or in another directory."""
    for metric in list(runtime.state(Zeros).known):
        _ask(_of(metric))


def any_wait() -> bool:
    """Whether anything is to be shown."""
    return bool(runtime.state(Zeros).waiting)


def take() -> list[BoundSeries]:
    """What is to be shown now; other threads may add more meanwhile."""
    taken = []
    waiting = runtime.state(Zeros).waiting
    for _ in range(len(waiting)):
        try:
            series = waiting.popleft()()
        except IndexError:  # another thread took it
            break
        if series is not None:
            taken.append(series)
    return taken


def _ask(find: Callable[[], BoundSeries | None]) -> None:
    waiting = runtime.state(Zeros).waiting
    if len(waiting) < MAX_WAITING:
        waiting.append(find)


def _of(metric: Metric) -> Callable[[], BoundSeries | None]:
    known = weakref.ref(metric)

    def find() -> BoundSeries | None:
        metric = known()
        return None if metric is None else metric.at(())

    return find
