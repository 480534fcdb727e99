"""Series that are shown as 0 before their first update.

A definition touches no file: it may be imported by a process that never records. So what is to be shown waits here
until the process records something, and is placed in the index then.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from typing import Protocol

from jobmetrics.registry.cells import BoundSeries

MAX_WAITING = 10_000  # a process that never records may go on asking


class Metric(Protocol):
    """A metric without labels."""

    def at(self, values: tuple[str, ...], /) -> BoundSeries: ...


_known: weakref.WeakSet[Metric] = weakref.WeakSet()
_waiting: deque[Callable[[], BoundSeries | None]] = deque()


def define(metric: Metric) -> None:
    """Show a metric without labels, in this generation of the directory and in those that follow."""
    _known.add(metric)
    _ask(_of(metric))


def ask(series: BoundSeries) -> None:
    """Show a series for which labels() was called."""
    _ask(weakref.ref(series))


def again() -> None:
    """Show all metrics without labels, in a new generation of the directory or in another directory."""
    for metric in list(_known):
        _ask(_of(metric))


def any_wait() -> bool:
    """Whether anything is to be shown."""
    return bool(_waiting)


def take() -> list[BoundSeries]:
    """What is to be shown now; other threads may add more meanwhile."""
    taken = []
    for _ in range(len(_waiting)):
        try:
            series = _waiting.popleft()()
        except IndexError:  # another thread took it
            break
        if series is not None:
            taken.append(series)
    return taken


def _ask(find: Callable[[], BoundSeries | None]) -> None:
    if len(_waiting) < MAX_WAITING:
        _waiting.append(find)


def _of(metric: Metric) -> Callable[[], BoundSeries | None]:
    known = weakref.ref(metric)

    def find() -> BoundSeries | None:
        metric = known()
        return None if metric is None else metric.at(())

    return find
