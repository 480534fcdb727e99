"""Series that are shown as 0 before their first update.

A definition touches no file, since a process that never records may import it. The series wait here until the process
first records, and are placed in the index then.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from typing import Protocol

from jobmetrics import runtime
from jobmetrics.registry.cells import BoundSeries

MAX_WAITING = 10_000  # a process that never records may request any number


class Metric(Protocol):
    """A metric without labels."""

    def at(self, values: tuple[str, ...], /) -> BoundSeries: ...


class Zeros:
    """known: metrics without labels; waiting: functions that return a series to show, or None once it is gone."""

    def __init__(self) -> None:
        self.known: weakref.WeakSet[Metric] = weakref.WeakSet()
        self.waiting: deque[Callable[[], BoundSeries | None]] = deque()


def define(metric: Metric) -> None:
    """Request a metric without labels, in this generation of the directory and in later ones."""
    runtime.state(Zeros).known.add(metric)
    _request(_of(metric))


def request(series: BoundSeries) -> None:
    """Request a series for which labels() was called."""
    _request(weakref.ref(series))


def request_all() -> None:
    """Request all metrics without labels, for a new generation or another directory."""
    for metric in list(runtime.state(Zeros).known):
        _request(_of(metric))


def any_waiting() -> bool:
    """Whether any series waits."""
    return bool(runtime.state(Zeros).waiting)


def take() -> list[BoundSeries]:
    """Return the waiting series, and forget them. Other threads may add more meanwhile."""
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


def _request(find: Callable[[], BoundSeries | None]) -> None:
    waiting = runtime.state(Zeros).waiting
    if len(waiting) < MAX_WAITING:
        waiting.append(find)


def _of(metric: Metric) -> Callable[[], BoundSeries | None]:
    known = weakref.ref(metric)

    def find() -> BoundSeries | None:
        metric = known()
        return None if metric is None else metric.at(())

    return find
