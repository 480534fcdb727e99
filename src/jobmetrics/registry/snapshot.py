"""The read side: all slots of a directory, merged into one value a series.

Readers only read. Rows are copied with pread, never mapped, and added one after another in slot order:
another order could lose an ulp, which Prometheus takes for a counter reset. The last good row of a slot
stands in for it while it cannot be read.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import isnan

import numpy as np

from jobmetrics.errors import DirectoryMissing, RegistryError
from jobmetrics.families import HISTOGRAM, JOBS_ACTIVE, JOURNAL, LIVE_SUM, MAX, MIN, MOST_RECENT, SUM, Family
from jobmetrics.registry import layout
from jobmetrics.registry.descriptors import close
from jobmetrics.registry.directory import INDEX_NAME, Directory, same_file, slot_name
from jobmetrics.registry.index import SeriesIndex, read_header
from jobmetrics.registry.slot_reading import DAMAGED, FREE, LIVE, Cells, Columns, Reading, Scratch, SlotFile

logger = logging.getLogger("jobmetrics")

LOG_INTERVAL = 60.0  # seconds between two lines about the same file


@dataclass(frozen=True, slots=True)
class Sample:
    """One series. value: of a counter or gauge; buckets: a histogram's counts, not cumulated, +Inf last; sum:
    of its observations."""

    values: tuple[str, ...]
    value: float = 0.0
    buckets: tuple[float, ...] = ()
    sum: float = 0.0


@dataclass(frozen=True, slots=True)
class Active:
    """What runs of one jobs_active series: how many, and the earliest start (epoch seconds)."""

    values: tuple[str, ...]
    count: int
    oldest: float | None


@dataclass(frozen=True)
class Snapshot:
    """One reading of a registry directory. series: as Prometheus counts them here, a histogram as one."""

    taken_at: float
    families: list[tuple[Family, list[Sample]]] = field(default_factory=list)
    active: list[Active] = field(default_factory=list)
    owners: list[layout.Owner] = field(default_factory=list)
    live: int = 0
    free: int = 0
    damaged: int = 0
    series: int = 0
    limit: int = 0
    superseded: int = 0
    hidden: int = 0


class SnapshotReader:
    """Reads one directory again and again. Not for several threads at once; `close` when done.

    path: the registry directory. clock: epoch seconds. hide_after: seconds without a change after which a
    series is not shown until it changes again, None for never; no count is lost by it.
    """

    def __init__(self, path: str, clock: Callable[[], float] = time.time, hide_after: float | None = None) -> None:
        self._directory = Directory(path)
        self._clock = clock
        self._stale = None if hide_after is None else _Stale(hide_after)
        self._index: SeriesIndex | None = None
        self._index_fd: int | None = None
        self._slots: dict[int, SlotFile] = {}
        self._columns: Columns | None = None
        self._scratch = Scratch()
        self._logged_at: dict[str, float] = {}

    def close(self) -> None:
        """Close all descriptors; a later `read` opens them again."""
        self._forget_slots()
        if self._index_fd is not None:
            close(self._index_fd)
        self._index_fd = self._index = None

    def read(self) -> Snapshot:
        """The directory as it is now.

        Raises:
            RegistryError: when there is no directory, it is not safe to read, or its index is damaged.
            OSError: when it cannot be read.
        """
        self._directory.check()
        index = self._current_index()
        taken_at = self._clock()
        if index is None:
            return Snapshot(taken_at)
        return self._merge(index, taken_at)

    # ---------------------------------------------------------------- index

    def _current_index(self) -> SeriesIndex | None:
        """The index, caught up; None while no worker has made one."""
        path = self._directory.file(INDEX_NAME)
        if self._index_fd is not None and not same_file(self._index_fd, path):
            self.close()
        if self._index_fd is None:
            try:
                self._index_fd = self._directory.open(INDEX_NAME, os.O_RDONLY)
            except FileNotFoundError:
                return None
        if os.fstat(self._index_fd).st_size == 0:
            return None  # being made
        header, committed = read_header(self._index_fd)
        if self._index is None or self._index.identity != header.identity:
            self._forget_slots()
            self._index = SeriesIndex(header)
        index = self._index
        if committed > index.fed_to:
            index.feed(os.pread(self._index_fd, committed - index.fed_to, index.fed_to), committed)
        if index.damaged:
            self._log(INDEX_NAME, "jobmetrics: %d bytes of the index are damaged, the rest is served", index.damaged)
        return index

    def _forget_slots(self) -> None:
        for slot in self._slots.values():
            slot.close()
        self._slots.clear()
        self._columns = None
        if self._stale is not None:
            self._stale.forget()

    # ---------------------------------------------------------------- slots

    def _merge(self, index: SeriesIndex, taken_at: float) -> Snapshot:
        if self._columns is None or self._columns.count != index.next_cell:
            self._columns = Columns(index)
        total: Cells = np.zeros(index.next_cell)
        live_total: Cells = np.zeros(index.next_cell)
        extremes = _Extremes(index)
        running: dict[int, list[float]] = {}
        owners: list[layout.Owner] = []
        counts = {LIVE: 0, FREE: 0, DAMAGED: 0}
        inodes = self._directory.slot_inodes()
        for number in sorted({*inodes, *self._slots}):
            reading = self._read_slot(number, inodes.get(number), index, self._columns)
            if reading.state is not None:
                counts[reading.state] += 1
            if reading.row is not None:
                total[: len(reading.row)] += reading.row
                extremes.add(reading.row)
            if reading.owner is not None and reading.row is not None:
                owners.append(reading.owner)
                live_total[: len(reading.row)] += reading.row
            for entry in reading.running:
                running.setdefault(entry.series, []).append(entry.start)
        hidden = frozenset[int]() if self._stale is None else self._stale.look(index, total, taken_at)
        return Snapshot(
            taken_at,
            _families(index, total, live_total, extremes, hidden),
            _active(index, running),
            owners,
            **counts,
            series=len(index.series),
            limit=index.limit,
            hidden=len(hidden),
            superseded=sum(index.newest[index.families[number].name] != number for number, _ in index.series),
        )

    def _read_slot(self, number: int, inode: int | None, index: SeriesIndex, columns: Columns) -> Reading:
        slot = self._slots.get(number)
        if slot is None:
            slot = self._slots[number] = SlotFile(self._directory, number, self._scratch)
        if inode is None:
            return slot.last()
        try:
            reading = slot.read(index, columns, inode)
        except FileNotFoundError:
            return slot.last()
        except (OSError, RegistryError) as error:
            reading = slot.last(f"is served as it was last: {error}")
        if reading.problem:
            self._log(slot_name(number), "jobmetrics: %s %s", slot_name(number), reading.problem)
        return reading

    def _log(self, name: str, message: str, *arguments: object) -> None:
        now = self._clock()
        if now - self._logged_at.get(name, -LOG_INTERVAL) >= LOG_INTERVAL:
            self._logged_at[name] = now
            logger.warning(message, *arguments)


class _Stale:
    """Which series have not changed for long, by their first cells. Live gauges are never stale: theirs is now."""

    def __init__(self, hide_after: float) -> None:
        self._hide_after = hide_after
        self._last: Cells = np.zeros(0)
        self._changed_at: Cells = np.zeros(0)

    def forget(self) -> None:
        """A new generation: all begin anew."""
        self._last = self._changed_at = np.zeros(0)

    def look(self, index: SeriesIndex, total: Cells, now: float) -> frozenset[int]:
        """Take this reading into account; what is stale by now."""
        known = len(self._last)
        changed_at = np.full(len(total), now)
        unchanged = total[:known] == self._last
        changed_at[:known][unchanged] = self._changed_at[unchanged]
        self._last, self._changed_at = total.copy(), changed_at
        return frozenset(
            place.first
            for (number, _), place in index.series.items()
            if index.families[number].mode not in (LIVE_SUM, JOURNAL)
            and now - changed_at[place.first : place.first + place.width].max() > self._hide_after
        )


class _Extremes:
    """Max, min and most recent gauges, merged over the rows."""

    def __init__(self, index: SeriesIndex) -> None:
        self._modes = {
            place.first: index.families[number].mode
            for (number, _), place in index.series.items()
            if index.families[number].mode in (MAX, MIN, MOST_RECENT)
        }
        self._found: dict[int, tuple[float, float]] = {}

    def add(self, row: Cells) -> None:
        for first, mode in self._modes.items():
            if first + 1 >= len(row) or row[first] == 0.0:
                continue
            when, value = float(row[first]), float(row[first + 1])
            known = self._found.get(first)
            if known is None:
                better = True
            elif mode == MOST_RECENT:
                better = when > known[0]
            else:
                better = value > known[1] if mode == MAX else value < known[1]
            if better:
                self._found[first] = (when, value)

    def value(self, first: int) -> float | None:
        """The merged value, None when it was never set."""
        found = self._found.get(first)
        return None if found is None else found[1]


def _families(
    index: SeriesIndex, total: Cells, live_total: Cells, extremes: _Extremes, hidden: frozenset[int]
) -> list[tuple[Family, list[Sample]]]:
    samples: dict[int, list[Sample]] = {number: [] for number in index.newest.values()}
    for (number, values), place in index.series.items():
        if number not in samples:
            continue  # superseded
        if place.first in hidden:
            continue
        family = index.families[number]
        sample = _sample(family, values, place.first, place.width, total, live_total, extremes)
        if sample is not None:
            samples[number].append(sample)
    return [
        (index.families[number], found) for number, found in samples.items() if index.families[number].mode != JOURNAL
    ]


def _sample(
    family: Family,
    values: tuple[str, ...],
    first: int,
    width: int,
    total: Cells,
    live_total: Cells,
    extremes: _Extremes,
) -> Sample | None:
    if family.type == HISTOGRAM:
        cells = total[first : first + width].tolist()
        return Sample(values, buckets=tuple(cells[:-1]), sum=cells[-1])
    if family.mode == SUM:
        return Sample(values, float(total[first]))
    if family.mode == LIVE_SUM:
        return Sample(values, float(live_total[first]))
    value = extremes.value(first)
    return None if value is None else Sample(values, value)


def _active(index: SeriesIndex, running: dict[int, list[float]]) -> list[Active]:
    """One entry a jobs_active series, those with nothing running too: their 0 is known to be one."""
    number = index.newest.get(JOBS_ACTIVE.name)
    return [
        Active(values, len(starts), min((start for start in starts if not isnan(start)), default=None))
        for (family, values), place in index.series.items()
        if family == number
        for starts in [running.get(place.first, [])]
    ]


def is_missing(error: Exception) -> bool:
    """Whether the directory is simply not there yet."""
    return isinstance(error, DirectoryMissing)
