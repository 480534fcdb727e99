from __future__ import annotations

import functools
import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobmetrics.families import HIGH_WATER, JOURNAL, LIVE_SUM, MAX, MIN, MOST_RECENT, SUM
from jobmetrics.registry.cells import (
    CAPACITY,
    MAX_CLOCK_AHEAD,
    NOWHERE,
    UNBOUND,
    Memory,
    end_ownership,
    extreme,
    is_set,
    merge,
    raise_to,
    set_at,
)
from jobmetrics.registry.layout import MAX_WIDTH


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


def test_a_refused_series_takes_no_space() -> None:
    memory = Memory()
    memory.place(CAPACITY - 2)
    memory.place(3)
    assert memory.place(2) is not None


def test_cleared_memory_starts_empty() -> None:
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


def test_the_null_cells_fit_the_widest_series() -> None:
    row, offset = NOWHERE
    assert len(row.cells) - offset == MAX_WIDTH


ADDED = (SUM, LIVE_SUM)
CHOSEN = (HIGH_WATER, MOST_RECENT)

NOW = math.inf  # no value is in the future

values = st.floats(allow_nan=False, allow_infinity=False)
timestamps = st.floats(min_value=1.0, max_value=1e10)
# Whole numbers add up exactly in any order.
counts = st.integers(-(2**40), 2**40).map(float)


def cells(*numbers: float) -> memoryview[float]:
    view = memoryview(bytearray(8 * len(numbers))).cast("d")
    for i, number in enumerate(numbers):
        view[i] = number
    return view


def merged(mode: str, *rows: Sequence[float]) -> list[float]:
    """Merge all rows into an empty one, one after another."""
    width = len(rows[0])
    target = cells(*[0.0] * width)
    for row in rows:
        merge(mode, width, cells(*row), 0, target, 0, NOW)
    return list(map(float, target.tolist()))


def rows_of(mode: str) -> st.SearchStrategy[tuple[float, float]]:
    if mode in ADDED:
        return st.tuples(counts, counts)
    return st.tuples(timestamps if mode == MOST_RECENT else st.just(1.0), values) | st.just((0.0, 0.0))


@pytest.mark.parametrize("mode", [*ADDED, *CHOSEN])
@given(st.data())
def test_unset_row_changes_nothing(mode: str, data: st.DataObject) -> None:
    row = data.draw(rows_of(mode))
    assert merged(mode, row, (0.0, 0.0)) == merged(mode, row) == merged(mode, (0.0, 0.0), row) == list(row)


@pytest.mark.parametrize("mode", [SUM, LIVE_SUM, HIGH_WATER])
@given(st.data())
def test_order_of_two_rows_does_not_matter(mode: str, data: st.DataObject) -> None:
    one, other = data.draw(rows_of(mode)), data.draw(rows_of(mode))
    assert merged(mode, one, other) == merged(mode, other, one)


@pytest.mark.parametrize("mode", [*ADDED, *CHOSEN])
@given(st.data())
def test_grouping_of_rows_does_not_matter(mode: str, data: st.DataObject) -> None:
    one, two, three = data.draw(st.tuples(rows_of(mode), rows_of(mode), rows_of(mode)))
    assert merged(mode, merged(mode, one, two), three) == merged(mode, one, merged(mode, two, three))


@pytest.mark.parametrize("mode", CHOSEN)
@given(st.data())
def test_row_merged_twice_is_as_merged_once(mode: str, data: st.DataObject) -> None:
    one, other = data.draw(rows_of(mode)), data.draw(rows_of(mode))
    assert merged(mode, one, other, other) == merged(mode, one, other)


@given(st.lists(st.tuples(timestamps, values), min_size=1, max_size=5, unique_by=lambda row: row[0]))
def test_most_recent_is_the_latest_in_any_order(rows: list[tuple[float, float]]) -> None:
    assert merged(MOST_RECENT, *rows) == list(max(rows))


@given(st.lists(values, min_size=1, max_size=5))
def test_high_water_mark_is_the_largest_ever_set(numbers: list[float]) -> None:
    view = cells(0.0, 0.0)
    for number in numbers:
        raise_to(view, 0, number, NOW)
    assert view.tolist() == [1.0, max(numbers)]


def test_a_timestamp_in_the_future_is_replaced() -> None:
    """It was set before the clock was set back."""
    high, recent = cells(1.0, 1000.0), cells(1000.0, 5.0)
    raise_to(high, 0, 900.0, 1000.0 - MAX_CLOCK_AHEAD)
    set_at(recent, 0, 7.0, 900.0, 1000.0 - MAX_CLOCK_AHEAD)
    assert (high.tolist(), recent.tolist()) == ([1.0, 1000.0], [1000.0, 5.0])
    raise_to(high, 0, 900.0, 999.0 - MAX_CLOCK_AHEAD)
    set_at(recent, 0, 7.0, 900.0, 999.0 - MAX_CLOCK_AHEAD)
    assert (high.tolist(), recent.tolist()) == ([1.0, 900.0], [900.0, 7.0])


UNSET, ZERO = 0.0, -0.0  # as max and min gauges store them
present_cells = st.one_of(values.map(lambda value: value or ZERO), st.just(UNSET), st.just(math.nan))


@given(st.lists(present_cells, min_size=1, max_size=5), st.randoms())
def test_the_extreme_covers_all_values_set_in_any_order(cells_of_slots: list[float], order: random.Random) -> None:
    numbers = [cell for cell in cells_of_slots if is_set(cell) and not math.isnan(cell)]
    order.shuffle(cells_of_slots)
    for mode, choose in ((MAX, max), (MIN, min)):
        found = functools.reduce(functools.partial(extreme, mode), cells_of_slots, UNSET)
        if numbers:
            assert (is_set(found), found) == (True, choose(numbers))
        else:
            assert math.isnan(found) == any(map(math.isnan, cells_of_slots))


@given(st.lists(present_cells, min_size=1, max_size=5))
def test_the_last_values_of_a_slots_owners_are_merged_to_their_extreme(last_values: list[float]) -> None:
    for mode in (MAX, MIN):
        view = cells(UNSET, UNSET)
        for value in last_values:
            view[0] = value
            end_ownership(mode, view, 0)
            end_ownership(mode, view, 0)  # its next owner was killed before it recorded
        expected = functools.reduce(functools.partial(extreme, mode), last_values)
        assert not is_set(view[0])
        assert view[1] == expected or math.isnan(view[1]) == math.isnan(expected)


@pytest.mark.parametrize("mode", [MAX, MIN])
def test_a_present_value_from_memory_replaces_that_of_the_slot(mode: str) -> None:
    target = cells(5.0, 9.0)
    merge(mode, 2, cells(UNSET, UNSET), 0, target, 0, NOW)
    assert target.tolist() == [5.0, 9.0]
    merge(mode, 2, cells(ZERO, UNSET), 0, target, 0, NOW)
    assert (target.tolist(), is_set(target[0])) == ([0.0, 9.0], True)


def test_earlier_value_does_not_replace_a_later_one() -> None:
    view = cells(0.0, 0.0)
    set_at(view, 0, 5.0, 20.0, NOW)
    set_at(view, 0, 7.0, 10.0, NOW)
    assert view.tolist() == [20.0, 5.0]


def test_a_value_with_the_same_timestamp_replaces() -> None:
    view = cells(20.0, 5.0)
    set_at(view, 0, 7.0, 20.0, NOW)
    assert view.tolist() == [20.0, 7.0]


def test_sum_adds_every_cell_of_a_histogram() -> None:
    assert merged(SUM, (1.0, 2.0, 3.0), (10.0, 20.0, 30.0)) == [11.0, 22.0, 33.0]


@pytest.mark.parametrize("mode", [SUM, LIVE_SUM, *CHOSEN])
def test_neighbouring_cells_do_not_change(mode: str) -> None:
    source, target = cells(9.0, 1.0, 5.0, 9.0), cells(7.0, 7.0, 0.0, 0.0, 7.0)
    merge(mode, 2, source, 1, target, 2, NOW)
    assert target.tolist() == [7.0, 7.0, 1.0, 5.0, 7.0]


def test_cells_of_journal_series_are_not_merged() -> None:
    assert merged(JOURNAL, (3.0,)) == [0.0]
