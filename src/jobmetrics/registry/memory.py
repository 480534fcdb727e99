"""Cells in this process's own memory, for what cannot be recorded in the directory just now."""

from __future__ import annotations

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
