from __future__ import annotations

import pytest

from jobmetrics.registry.layout import MAX_WIDTH
from jobmetrics.registry.memory import CAPACITY, NOWHERE, UNBOUND, Memory


def test_series_are_placed_one_after_another() -> None:
    memory = Memory()
    assert [memory.place(width) for width in (3, 1, 2)] == [(memory.row, 0), (memory.row, 3), (memory.row, 4)]


def test_cells_begin_at_zero() -> None:
    memory = Memory()
    memory.place(3)
    assert memory.row.cells.tolist() == [0.0] * CAPACITY


def test_nothing_is_taken_before_the_first_series() -> None:
    assert len(Memory().row.cells) == 0


def test_series_that_just_fits_is_placed() -> None:
    memory = Memory()
    memory.place(CAPACITY - 2)
    assert memory.place(2) == (memory.row, CAPACITY - 2)


def test_series_that_does_not_fit_has_no_place() -> None:
    memory = Memory()
    memory.place(CAPACITY - 2)
    assert memory.place(3) is None


def test_refused_series_takes_no_room() -> None:
    memory = Memory()
    memory.place(CAPACITY - 2)
    memory.place(3)
    assert memory.place(2) is not None


def test_cleared_memory_begins_anew() -> None:
    memory = Memory()
    memory.place(CAPACITY)
    old = memory.row
    memory.clear()
    assert memory.place(1) == (memory.row, 0)
    assert memory.row is not old


def test_unbound_series_has_no_cell() -> None:
    row, offset = UNBOUND
    with pytest.raises(IndexError):
        row.cells[offset] += 1.0


def test_nowhere_has_room_for_the_widest_series() -> None:
    row, offset = NOWHERE
    assert len(row.cells) - offset == MAX_WIDTH
