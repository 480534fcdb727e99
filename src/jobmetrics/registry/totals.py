"""The slots of one reading, merged into one value a series.

Rows are added one after another in the order they come in, which is that of the slots: another order could lose an
ulp, which Prometheus takes for a counter reset.
"""

from __future__ import annotations

from math import isnan

import numpy as np

from jobmetrics.families import (
    COUNTER,
    ERASED,
    HIGH_WATER,
    HISTOGRAM,
    JOBS_ACTIVE,
    JOURNAL,
    LIVE_SUM,
    MAX,
    MIN,
    MOST_RECENT,
    SUM,
    Family,
)
from jobmetrics.registry import layout
from jobmetrics.registry.earlier import Earlier
from jobmetrics.registry.index import Placement, SeriesIndex
from jobmetrics.registry.merging import AHEAD, extreme
from jobmetrics.registry.samples import Active, Sample
from jobmetrics.registry.slot_reading import DAMAGED, FREE, LIVE, Cells, Reading

SET_AHEAD = 1.0  # epoch seconds that stand for a gauge set in the future: before all others, and not never


class Totals:
    """All slots of one generation, added up. cells: the sums, by cell; owners: the living ones, in slot order;
    slots: how many are live, free and damaged. now: epoch seconds."""

    def __init__(self, index: SeriesIndex, now: float) -> None:
        self._index = index
        self.cells: Cells = np.zeros(index.next_cell)
        self.owners: list[layout.Owner] = []
        self.slots = {LIVE: 0, FREE: 0, DAMAGED: 0}
        self._live: Cells = np.zeros(index.next_cell)  # of slots with an owner only
        self._extremes = _Extremes(index, now)
        self._earlier = Earlier(index)
        self._starts: dict[int, list[float]] = {}  # of what runs, by the first cell of its jobs_active series

    def add(self, reading: Reading, counted: Cells | None) -> None:
        """Take the next slot. counted: what of its row counts towards the sums, None when another slot has it too."""
        if reading.state is not None:
            self.slots[reading.state] += 1
        if counted is not None:
            self.cells[: len(counted)] += counted
        if reading.row is not None:
            self._extremes.add(reading.row)
        if reading.owner is not None and reading.row is not None:
            self.owners.append(reading.owner)
            self._live[: len(reading.row)] += reading.row
        for entry in reading.running:
            self._starts.setdefault(entry.series, []).append(entry.start)

    def families(self, hidden: frozenset[int]) -> list[tuple[Family, list[Sample]]]:
        """Each family as it was declared last, with its series. hidden: first cells of those not to be shown."""
        index = self._index
        samples: dict[int, list[Sample]] = {number: [] for number in index.newest.values()}
        earlier = self._earlier
        for (number, values), place in index.series.items():
            if number not in samples:
                continue  # of an earlier declaration
            if place.first in hidden and hidden.issuperset(earlier.first_cells(number, values)):
                continue
            sample = self._sample(number, values, place)
            if sample is not None:
                samples[number].append(sample)
        for number, values in earlier.rest():
            if not hidden.issuperset(earlier.first_cells(number, values)):
                samples[number].append(self._histogram(number, values, [0.0] * index.families[number].width))
        return [
            (index.families[number], found)
            for number, found in samples.items()
            if index.families[number].mode not in (JOURNAL, ERASED)
        ]

    def _histogram(self, number: int, values: tuple[str, ...], cells: list[float]) -> Sample:
        cells = self._earlier.add(number, values, cells, self.cells)
        return Sample(values, buckets=tuple(cells[:-1]), sum=cells[-1])

    def _sample(self, number: int, values: tuple[str, ...], place: Placement) -> Sample | None:
        first, family = place.first, self._index.families[number]
        hidden, erased = self._erased(family, values)
        if family.type in (HISTOGRAM, COUNTER):
            counted = self.cells[first : first + place.width]
            if erased is not None:
                counted = counted - erased
            if hidden and not counted.any():
                return None
            cells = counted.tolist()
            return Sample(values, cells[0]) if family.type == COUNTER else self._histogram(number, values, cells)
        if family.mode == SUM:
            value: float | None = float(self.cells[first])
        elif family.mode == LIVE_SUM:
            value = float(self._live[first])
        else:
            value = self._extremes.value(first)
        return None if value is None or (hidden and not value) else Sample(values, value)

    def _erased(self, family: Family, values: tuple[str, ...]) -> tuple[bool, Cells | None]:
        """Whether a series was removed and not asked for again, and what was erased of its cells."""
        place = self._index.find_erased(family, values)
        if place is None:
            return False, None
        removed, shown = self._extremes.stamps(place)
        return removed > shown, self.cells[place.first : place.first + place.width - 2]

    @property
    def superseded(self) -> int:
        """Series of earlier declarations that are not shown."""
        return self._earlier.superseded

    @property
    def ahead(self) -> int:
        """Series that are not shown since all their timestamps lie in the future."""
        return self._extremes.ahead

    def active(self) -> list[Active]:
        """One entry a jobs_active series, those with nothing running too: their 0 is known to be one."""
        number = self._index.newest.get(JOBS_ACTIVE.name)
        return [
            Active(values, len(starts), min((start for start in starts if not isnan(start)), default=None))
            for (family, values), place in self._index.series.items()
            if family == number
            for starts in [self._starts.get(place.first, [])]
        ]


class _Extremes:
    """Max, min, most recent and high-water gauges, merged over the rows.

    Timestamps in the future are of a clock that was set back, and would be the latest for as long as it was ahead: a
    high-water mark there does not count, and a gauge that was set there is older than all others.
    """

    def __init__(self, index: SeriesIndex, now: float) -> None:
        self._latest = now + AHEAD
        self._ahead: set[int] = set()  # first cells of high-water marks of which one lies in the future
        self._extremes: dict[int, tuple[str, float]] = {}  # mode and value of max and min gauges, by first cell
        self._marked: dict[int, tuple[str, float, float]] = {}  # mode, when and value of the others
        self._stamps: dict[int, tuple[float, float]] = {}  # when a series was last removed, and asked for again
        for (number, _), place in index.series.items():
            mode = index.families[number].mode
            if mode in (MAX, MIN):
                self._extremes[place.first] = (mode, 0.0)
            elif mode in (MOST_RECENT, HIGH_WATER):
                self._marked[place.first] = (mode, 0.0, 0.0)
            elif mode == ERASED:
                self._stamps[place.first + place.width - 2] = (0.0, 0.0)

    def add(self, row: Cells) -> None:
        for first, (mode, found) in self._extremes.items():
            if first + 1 < len(row):
                own = extreme(mode, float(row[first]), float(row[first + 1]))
                self._extremes[first] = mode, extreme(mode, found, own)
        for first, (mode, known, found) in self._marked.items():
            if first + 1 >= len(row) or row[first] == 0.0:
                continue
            when, value = float(row[first]), float(row[first + 1])
            if mode == HIGH_WATER and value > self._latest:
                self._ahead.add(first)
                continue
            if when > self._latest:
                when = SET_AHEAD
            if known == 0.0 or (when > known if mode == MOST_RECENT else value > found):
                self._marked[first] = mode, when, value
        for first, (removed, shown) in self._stamps.items():
            if first + 1 < len(row):
                self._stamps[first] = max(removed, float(row[first])), max(shown, float(row[first + 1]))

    def stamps(self, place: Placement) -> tuple[float, float]:
        """When the series that this place is about was last removed, and when it was asked for again."""
        return self._stamps[place.first + place.width - 2]

    @property
    def ahead(self) -> int:
        """High-water marks of which all values lie in the future."""
        return sum(not self._marked[first][1] for first in self._ahead)

    def value(self, first: int) -> float | None:
        """The merged value. None for a most recent gauge or a high-water mark that was never set; 0 for a max or min
        gauge that no process has set."""
        if first in self._extremes:
            return self._extremes[first][1] + 0.0  # which makes -0.0 a plain 0
        _, when, value = self._marked.get(first, ("", 0.0, 0.0))
        return value if when else None
