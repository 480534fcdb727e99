"""Bound series, the rows of cells that they record into (in a slot or in process memory), and how values merge."""

from __future__ import annotations

import threading
from collections.abc import Callable
from math import copysign
from typing import Protocol

from jobmetrics.families import HIGH_WATER, LIVE_SUM, MAX, MIN, MOST_RECENT, SUM, Family
from jobmetrics.registry.layout import MAX_WIDTH

CAPACITY = 16_384  # cells: about 128 KiB, several hundred histograms
NO_CELLS = memoryview(bytearray()).cast("d")  # writable: setting raises IndexError, as adding does


class Row:
    """The cells that bound series record into.

    A fork, a lease and a growth replace `cells`; the offset of a series stays the same.

    before: the cells when the process left this row for another one, in a new generation or another slot.
    """

    __slots__ = ("before", "cells")

    def __init__(self, cells: memoryview[float] = NO_CELLS) -> None:
        self.cells = cells
        self.before = NO_CELLS

    def empty(self) -> None:
        """Drop the cells: in a forked child they are the parent's."""
        self.cells = self.before = NO_CELLS


UNBOUND = (Row(), 0)
NOWHERE = (
    Row(memoryview(bytearray(MAX_WIDTH * 8)).cast("d")),
    0,
)  # updates recorded here are discarded


class Memory:
    """A row in process memory for series that have no cells in a slot yet."""

    def __init__(self) -> None:
        self.row = Row()
        self._used = 0

    def place(self, width: int) -> tuple[Row, int] | None:
        """Return the row and the offset for one series; None when the memory is full."""
        if not len(self.row.cells):
            self.row.cells = memoryview(bytearray(CAPACITY * 8)).cast("d")
        if self._used + width > CAPACITY:
            return None
        self._used += width
        return self.row, self._used - width

    def clear(self) -> None:
        """Begin with an empty row, once all series were moved to a slot."""
        self.row = Row()
        self._used = 0


MAX_CLOCK_AHEAD = 60.0  # seconds; a timestamp further ahead was written before the clock was set back

PRESENT = frozenset({LIVE_SUM, MAX, MIN})  # modes with the present value of the slot's process in the first cell

# First cell and merge mode of a series in a mode of PRESENT: the slot's next owner settles it.
PresentCell = tuple[int, str]


def is_set(cell: float) -> bool:
    """Whether a max or min gauge's cell holds a value: a new cell is 0.0, so the value 0 is stored as -0.0."""
    return cell != 0.0 or copysign(1.0, cell) < 0.0


def extreme(mode: str, one: float, other: float) -> float:
    """Return the greater or lesser of two cells of a max or min gauge. A value beats no value, a number beats NaN."""
    if not is_set(one) or (one != one and is_set(other)):  # noqa: PLR0124 - NaN is not equal to itself
        return other
    if not is_set(other) or other != other:  # noqa: PLR0124 - as above
        return one
    return max(one, other) if mode == MAX else min(one, other)


def end_ownership(mode: str, cells: memoryview[float], i: int) -> None:
    """Settle the last owner's value in the present cell of a series, before the slot's next owner begins.

    A live gauge begins at 0. The last value of a max or min gauge is merged into the cell after it, with those of
    earlier owners. A kill between the two steps loses nothing, and repeating them changes nothing.
    """
    if mode in (MAX, MIN):
        cells[i + 1] = extreme(mode, cells[i], cells[i + 1])
    cells[i] = 0.0


def move_present_value(mode: str, source: memoryview[float], i: int, target: memoryview[float], j: int) -> None:
    """Move this process's present value from a row that it has left. Repeating it changes nothing."""
    if i >= len(source) or not is_set(source[i]):
        return
    if mode == LIVE_SUM:
        target[j] += source[i]
    elif not is_set(target[j]):
        target[j] = source[i]
    source[i] = 0.0  # a slot of the same generation is still read


def raise_to(cells: memoryview[float], i: int, value: float, now: float) -> None:
    """Raise a high-water mark of timestamps. Cell i is 1.0 once it was set, cell i + 1 is the value.

    A mark in the future is replaced: otherwise it would stay until the clock has caught up with it.
    """
    if cells[i] == 0.0 or value > cells[i + 1] or cells[i + 1] > now + MAX_CLOCK_AHEAD:
        cells[i + 1] = value
        cells[i] = 1.0


def set_at(cells: memoryview[float], i: int, value: float, at: float, now: float) -> None:
    """Set a most recent gauge. Cell i is the time it was set (epoch seconds, 0 for never), cell i + 1 the value.

    A value that was set in the future is replaced, as a high-water mark is.
    """
    if at >= cells[i] or cells[i] > now + MAX_CLOCK_AHEAD:
        cells[i + 1] = value
        cells[i] = at


def merge(
    mode: str, width: int, source: memoryview[float], i: int, target: memoryview[float], j: int, now: float
) -> None:
    """Merge this process's cells of one series at source[i] into those at target[j]. now: epoch seconds."""
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
    """The part of `Writer` that a bound series and its metric use; `Writer` documents the methods.

    clock: monotonic seconds; check_at: when `look` is due.
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
    """One series as this process records it: its family, its label values and the place of its cells."""

    __slots__ = ("__weakref__", "dropped", "family", "values", "where", "writer")

    def __init__(self, writer: SeriesWriter, family: Family, values: tuple[str, ...]) -> None:
        self.writer = writer
        self.family = family
        self.values = values
        self.where: tuple[Row, int] = UNBOUND
        self.dropped = False  # beyond the cap and recorded as __other__

    def leased(self, row: Row, first: int) -> None:
        """Called when the series gets cells in a slot, before this process records in them."""
