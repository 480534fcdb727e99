"""Cells in this process's own memory, for what cannot be recorded in the directory just now."""

from __future__ import annotations

import threading
from collections.abc import Callable
from math import copysign
from typing import Protocol

from jobmetrics.families import HIGH_WATER, LIVE_SUM, MAX, MIN, MOST_RECENT, SUM, Family
from jobmetrics.registry.layout import MAX_WIDTH

CAPACITY = 16_384  # cells: about 128 KiB, several hundred histograms
NO_CELLS = memoryview(bytearray()).cast("d")  # writable, so that setting raises IndexError as adding does


class Row:
    """The cells that bound series record into. They change under it at a fork, a lease and a growth, while
    a series' offset in it stays true.

    before: what `cells` was when the process left this row for another, in a new generation or another slot.
    """

    __slots__ = ("before", "cells")

    def __init__(self, cells: memoryview[float] = NO_CELLS) -> None:
        self.cells = cells
        self.before = NO_CELLS

    def empty(self) -> None:
        """In a forked child: what was recorded here is the parent's."""
        self.cells = self.before = NO_CELLS


UNBOUND = (Row(), 0)
NOWHERE = (
    Row(memoryview(bytearray(MAX_WIDTH * 8)).cast("d")),
    0,
)  # what is recorded here is meant to be lost


class Memory:
    """A row in process memory that series are placed in one after another, until it is full."""

    def __init__(self) -> None:
        self.row = Row()
        self._used = 0

    def place(self, width: int) -> tuple[Row, int] | None:
        """Room for one series; None when there is none."""
        if not len(self.row.cells):
            self.row.cells = memoryview(bytearray(CAPACITY * 8)).cast("d")
        if self._used + width > CAPACITY:
            return None
        self._used += width
        return self.row, self._used - width

    def clear(self) -> None:
        """Forget what is in it: its series were moved."""
        self.row = Row()
        self._used = 0


AHEAD = 60.0  # seconds a timestamp may lie in the future; one further ahead was written before the clock was set back

PRESENT = frozenset({LIVE_SUM, MAX, MIN})  # modes whose first cell is the present value of the slot's process

# First cell and merge mode of a series whose value is its process's own: what a slot's next owner must settle.
PresentCell = tuple[int, str]


def is_set(cell: float) -> bool:
    """Whether a max or min gauge's cell holds a value: a new cell is 0.0, so the value 0 is stored as -0.0."""
    return cell != 0.0 or copysign(1.0, cell) < 0.0


def extreme(mode: str, one: float, other: float) -> float:
    """The greater (max) or the lesser (min) of two such cells. A value beats none, and a number beats NaN."""
    if not is_set(one) or (one != one and is_set(other)):  # noqa: PLR0124 - NaN is not equal to itself
        return other
    if not is_set(other) or other != other:  # noqa: PLR0124 - as above
        return one
    return max(one, other) if mode == MAX else min(one, other)


def end_ownership(mode: str, cells: memoryview[float], i: int) -> None:
    """Settle what a slot's last owner left in the present cell of a series, before the next owner begins.

    A live gauge begins at 0. A max or min gauge's last value joins those of earlier owners, in the cell after it;
    a kill between the two steps loses nothing, and doing it twice changes nothing.
    """
    if mode in (MAX, MIN):
        cells[i + 1] = extreme(mode, cells[i], cells[i + 1])
    cells[i] = 0.0


def take_along(mode: str, source: memoryview[float], i: int, target: memoryview[float], j: int) -> None:
    """Move this process's present value from a row that it has left; twice is as good as once."""
    if i >= len(source) or not is_set(source[i]):
        return
    if mode == LIVE_SUM:
        target[j] += source[i]
    elif not is_set(target[j]):
        target[j] = source[i]
    source[i] = 0.0  # a slot of the same generation is still read


def raise_to(cells: memoryview[float], i: int, value: float, now: float) -> None:
    """A high-water mark of timestamps: cell i tells whether it was ever set, i + 1 is the value.

    A mark in the future is replaced: nothing true would exceed it for as long as the clock was ahead.
    """
    if cells[i] == 0.0 or value > cells[i + 1] or cells[i + 1] > now + AHEAD:
        cells[i + 1] = value
        cells[i] = 1.0


def set_at(cells: memoryview[float], i: int, value: float, at: float, now: float) -> None:
    """A most recent gauge: cell i is when it was set (epoch seconds, 0 for never), i + 1 the value.

    What was set in the future is replaced, as a high-water mark is.
    """
    if at >= cells[i] or cells[i] > now + AHEAD:
        cells[i + 1] = value
        cells[i] = at


def merge(
    mode: str, width: int, source: memoryview[float], i: int, target: memoryview[float], j: int, now: float
) -> None:
    """Add one series' cells at source[i], which are this process's own, to those at target[j]. now: epoch seconds."""
    if mode in (SUM, LIVE_SUM):
        for step in range(width):
            target[j + step] += source[i + step]
    elif mode in (MAX, MIN):
        if is_set(source[i]):
            target[j] = source[i]
    elif source[i] == 0.0:
        return
    elif mode == HIGH_WATER:
        raise_to(target, j, source[i + 1], now)
    elif mode == MOST_RECENT:
        set_at(target, j, source[i + 1], source[i], now)


class SeriesWriter(Protocol):
    """What a bound series and its metric ask of their writer; `Writer` documents each method.

    clock: seconds that never go back; check_at: when `look` is due.
    """

    clock: Callable[[], float]
    check_at: float

    @property
    def lock(self) -> threading.RLock: ...

    def bind(self, series: BoundSeries, redo: Callable[[float], object], value: float = 0.0) -> bool: ...

    def drop(self, reason: str, metric: str) -> None: ...

    def erase(self, series: BoundSeries, *, hide: bool) -> None: ...

    def left(self, row: Row, i: int) -> float: ...

    def look(self) -> None: ...

    def show_zeros(self) -> None: ...


class BoundSeries:
    """One series as this process records it: its family, label values, and where its cells are."""

    __slots__ = ("__weakref__", "dropped", "family", "values", "where", "writer")

    def __init__(self, writer: SeriesWriter, family: Family, values: tuple[str, ...]) -> None:
        self.writer = writer
        self.family = family
        self.values = values
        self.where: tuple[Row, int] = UNBOUND
        self.dropped = False  # beyond the cap: recorded under __other__

    def leased(self, row: Row, first: int) -> None:
        """Called when the series gets cells in a slot, before anything of this process is in them."""
