"""Snapshots: all slots of a directory, merged into one value for each series.

Readers write nothing. Rows are copied with pread, not mapped. The last good row of a slot is used while the slot cannot
be read.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from math import isnan

import numpy as np

from jobmetrics.errors import RegistryError
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
from jobmetrics.log_throttle import ThrottledLog
from jobmetrics.registry import layout
from jobmetrics.registry.cells import MAX_CLOCK_AHEAD, extreme
from jobmetrics.registry.directory import INDEX_NAME, Directory, same_file, slot_name
from jobmetrics.registry.files import close
from jobmetrics.registry.index import Placement, SeriesIndex, read_header
from jobmetrics.registry.journal import Entry
from jobmetrics.registry.read.slot_reader import (
    DAMAGED,
    FREE,
    LIVE,
    Cells,
    Columns,
    RunningExecution,
    RunningJobs,
    Sample,
    Scratch,
    SlotFile,
    SlotReading,
    without_copies,
)
from jobmetrics.registry.read.unresolved import JournalColumns, unresolved

KEPT_OPEN = 256  # descriptors of slots kept open at most; any further slot is opened for each reading


@dataclass(frozen=True)
class Snapshot:
    """One reading of a registry directory.

    series: of the newest declarations, a histogram as one; by_metric: the same for each metric; superseded: of earlier
    declarations, not shown; ahead: series that are omitted because their timestamps are in the future.
    """

    taken_at: float
    families: list[tuple[Family, list[Sample]]] = field(default_factory=list)
    active: list[RunningJobs] = field(default_factory=list)
    running: list[RunningExecution] = field(default_factory=list)
    owners: list[layout.ProcessIdentity] = field(default_factory=list)
    live: int = 0
    free: int = 0
    damaged: int = 0
    series: int = 0
    limit: int = 0
    by_metric: Counter[str] = field(default_factory=Counter)
    superseded: int = 0
    ahead: int = 0


class SnapshotReader:
    """Reads one directory repeatedly. Not thread-safe. Call `close` at the end.

    Args:
        directory: The registry directory, or its path.
        clock: Epoch seconds.
        hide_after: Seconds without a change after which a series is hidden until it changes again; None for never.
            A hidden series loses no count.
    """

    def __init__(
        self,
        directory: Directory | str,
        clock: Callable[[], float] = time.time,
        hide_after: float | None = None,
    ) -> None:
        self._directory = Directory(directory) if isinstance(directory, str) else directory
        self._clock = clock
        self._staleness = None if hide_after is None else Staleness(hide_after)
        self._index: SeriesIndex | None = None
        self._index_fd: int | None = None
        self._slots: dict[int, SlotFile] = {}
        self._columns: Columns | None = None
        self._scratch = Scratch()
        self._kept_open = _kept_open()
        self._log = ThrottledLog(clock)

    def close(self) -> None:
        """Close all descriptors; a later `read` opens them again."""
        self._forget_slots()
        if self._index_fd is not None:
            close(self._index_fd)
        self._index_fd = self._index = None

    def read(self) -> Snapshot:
        """Read the directory.

        Raises:
            RegistryError: when the directory is missing or not safe to read, or its index is damaged.
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
        """Return the index with all its records; None while no worker has made one."""
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
            end = min(
                committed, os.fstat(self._index_fd).st_size
            )  # a damaged length must not allocate more than the file has
            index.feed(os.pread(self._index_fd, max(0, end - index.fed_to), index.fed_to), committed)
        if index.damaged:
            self._log.warning(
                INDEX_NAME, "jobmetrics: %d bytes of the index are damaged, the rest is served", index.damaged
            )
        return index

    def _forget_slots(self) -> None:
        for slot in self._slots.values():
            slot.close()
        self._slots.clear()
        self._columns = None
        if self._staleness is not None:
            self._staleness.forget()

    # ---------------------------------------------------------------- slots

    def _merge(self, index: SeriesIndex, taken_at: float) -> Snapshot:
        if self._columns is None or self._columns.count != index.next_cell:
            self._columns = Columns(index)
        totals = SlotTotals(index, taken_at)
        inodes = self._directory.slot_inodes()
        numbers = sorted({*inodes, *self._slots})
        found = [self._read_slot(number, inodes.get(number), index, self._columns) for number in numbers]
        rows = without_copies(found, [self._slots[number].serial for number in numbers])
        for reading, row in zip(found, rows, strict=True):
            totals.add(reading, row)
        self._scratch.shrink()
        hidden = frozenset[int]() if self._staleness is None else self._staleness.look(index, totals.cells, taken_at)
        return Snapshot(
            taken_at,
            totals.families(hidden),
            totals.active(),
            totals.running(),
            totals.owners,
            **totals.slots,
            series=index.current,
            by_metric=index.by_metric,
            limit=index.limit,
            superseded=totals.superseded,
            ahead=totals.ahead,
        )

    def _read_slot(self, number: int, inode: int | None, index: SeriesIndex, columns: Columns) -> SlotReading:
        slot = self._slots.get(number)
        if slot is None:
            slot = self._slots[number] = SlotFile(
                self._directory, number, self._scratch, keep=len(self._slots) < self._kept_open
            )
        if inode is None:
            return slot.last()
        try:
            reading = slot.read(index, columns, inode)
        except FileNotFoundError:
            return slot.last()
        except (OSError, RegistryError) as error:
            reading = slot.last(f"cannot be read, its last good row is used: {error}")
        if reading.problem:
            self._log.warning(slot_name(number), "jobmetrics: %s %s", slot_name(number), reading.problem)
        return reading


def _kept_open() -> int:
    """Return the number of descriptors to keep open: at most a quarter of the process's limit."""
    try:
        import resource  # not on Windows
    except ImportError:
        return KEPT_OPEN // 4
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return KEPT_OPEN if soft == resource.RLIM_INFINITY else min(KEPT_OPEN, soft // 4)


SET_AHEAD = 1.0  # epoch seconds for a gauge set in the future: older than all others, but set


class SlotTotals:
    """All slots of one generation, added up.

    cells: the sum of each cell; owners: living owners in slot order; slots: counts of live, free and damaged slots.
    """

    def __init__(self, index: SeriesIndex, now: float) -> None:
        self._index = index
        self.cells: Cells = np.zeros(index.next_cell)
        self.owners: list[layout.ProcessIdentity] = []
        self.slots = {LIVE: 0, FREE: 0, DAMAGED: 0}
        self._live: Cells = np.zeros(index.next_cell)  # the same for slots with a living owner
        self._extremes = _Extremes(index, now)
        self._earlier = Earlier(index)
        self._starts: dict[int, list[float]] = {}  # of running executions, by first cell of their jobs_active series
        self._running: list[tuple[Entry, layout.ProcessIdentity]] = []
        self._journals: list[JournalColumns] = []
        self._now = now

    def add(self, reading: SlotReading, counted: Cells | None) -> None:
        """Add a slot. counted: the row to add to the sums; None when another slot has it too."""
        if reading.state is not None:
            self.slots[reading.state] += 1
        if counted is not None:
            self.cells[: len(counted)] += counted
        if reading.row is not None:
            self._extremes.add(reading.row)
        if reading.owner is not None and reading.row is not None:
            self.owners.append(reading.owner)
            self._live[: len(reading.row)] += reading.row
        if reading.journal is not None:
            self._journals.append(reading.journal)
        for entry in reading.running:
            self._starts.setdefault(entry.series, []).append(entry.start)
            if reading.owner is not None:
                self._running.append((entry, reading.owner))

    def families(self, hidden: frozenset[int]) -> list[tuple[Family, list[Sample]]]:
        """Return each family's newest declaration with its series. hidden: first cells of hidden series."""
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
        """Return whether a series was removed and not requested again, and the removed values of its cells."""
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
        """Series that are not shown because all their timestamps are in the future."""
        return self._extremes.ahead

    def active(self) -> list[RunningJobs]:
        """Return one entry for each jobs_active series, also for those with a known 0."""
        killed = unresolved(self._journals, self._now)
        return [
            RunningJobs(
                values,
                len(starts),
                min((start for start in starts if not isnan(start)), default=None),
                killed[place.first],
            )
            for values, place in self._index.series_of(JOBS_ACTIVE)
            for starts in [self._starts.get(place.first, [])]
        ]

    def running(self) -> list[RunningExecution]:
        """Return the running executions, without those of unknown series."""
        values = {place.first: values for values, place in self._index.series_of(JOBS_ACTIVE)}
        return [
            RunningExecution(values[entry.series], entry.job_id, entry.start, owner)
            for entry, owner in self._running
            if entry.series in values
        ]


class _Extremes:
    """Max, min, most recent and high-water gauges, merged over the rows.

    Timestamps in the future were written before the clock was set back. A high-water mark in the future does not count,
    and a gauge that was set there is older than all others: otherwise they would win until the clock catches up.
    """

    def __init__(self, index: SeriesIndex, now: float) -> None:
        self._latest = now + MAX_CLOCK_AHEAD
        self._ahead: set[int] = set()  # first cells of high-water marks with a value in the future
        self._extremes: dict[int, tuple[str, float]] = {}  # mode and value of max and min gauges, by first cell
        self._marked: dict[int, tuple[str, float, float]] = {}  # mode, timestamp and value of the others
        self._stamps: dict[int, tuple[float, float]] = {}  # timestamps of a series' last removal and last request
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
        """Return when the series was last removed, and when it was last requested. place: of its removed values."""
        return self._stamps[place.first + place.width - 2]

    @property
    def ahead(self) -> int:
        """High-water marks with all values in the future."""
        return sum(not self._marked[first][1] for first in self._ahead)

    def value(self, first: int) -> float | None:
        """Return the merged value.

        A max or min gauge that no process has set is 0. A most recent gauge or a high-water mark that was never set is
        None.
        """
        if first in self._extremes:
            return self._extremes[first][1] + 0.0  # makes -0.0 a plain 0
        _, when, value = self._marked.get(first, ("", 0.0, 0.0))
        return value if when else None


Labels = tuple[str, ...]


class Earlier:
    """Earlier declarations of one index that are shown under the newest one.

    superseded: series of earlier declarations that are not shown.
    """

    def __init__(self, index: SeriesIndex) -> None:
        self._index = index
        self._buckets: dict[int, list[int]] = {}  # by earlier declaration: for each of its buckets, that of the newest
        self._places: dict[tuple[int, Labels], list[tuple[int, Placement]]] = {}
        self.superseded = 0
        for number, family in index.families.items():
            newest = index.families[index.newest[family.name]]
            if newest is not family and _are_nested(family, newest):
                self._buckets[number] = [bisect_left(newest.buckets, bound) for bound in family.buckets]
        if len(index.families) > len(index.newest):
            self._look(index)

    def _look(self, index: SeriesIndex) -> None:
        for (number, values), place in index.series.items():
            newest = index.newest[index.families[number].name]
            if number in self._buckets:
                self._places.setdefault((newest, values), []).append((number, place))
            elif number != newest and index.families[number].mode != ERASED:
                self.superseded += 1

    def add(self, number: int, values: Labels, counts: list[float], cells: Cells) -> list[float]:
        """Return the cells of the newest declaration's series plus those of earlier declarations.

        The earliest is added first: a sum in a fixed order never falls by an ulp, also after another declaration.
        """
        found = self._places.pop((number, values), ()) if self._places else ()
        if not found:
            return counts
        total = [0.0] * len(counts)
        for earlier, place in sorted(found):
            own = self._counted(earlier, values, place, cells).tolist()
            for bucket, count in zip(self._buckets[earlier], own, strict=False):
                total[bucket] += count
            total[-2] += own[-2]
            total[-1] += own[-1]
        return [before + now for before, now in zip(total, counts, strict=True)]

    def _counted(self, number: int, values: Labels, place: Placement, cells: Cells) -> Cells:
        counted = cells[place.first : place.first + place.width]
        erased = self._index.find_erased(self._index.families[number], values)
        return counted if erased is None else counted - cells[erased.first : erased.first + place.width]

    def rest(self) -> list[tuple[int, Labels]]:
        """Return the newest declaration's number and the label values of series that only earlier ones have."""
        return list(self._places)

    def first_cells(self, number: int, values: Labels) -> list[int]:
        """Return the first cells of the earlier series that are shown in this one."""
        return [place.first for _, place in self._places.get((number, values), ())] if self._places else []


def _are_nested(earlier: Family, newest: Family) -> bool:
    if earlier.type != HISTOGRAM or newest.type != HISTOGRAM or earlier.labels != newest.labels:
        return False
    bounds, others = set(earlier.buckets), set(newest.buckets)
    return bounds <= others or bounds >= others


class Staleness:
    """Finds stale series in the totals of one generation. Live gauges are never stale: they show the present.

    hide_after: seconds without a change after which a series is stale.
    """

    def __init__(self, hide_after: float) -> None:
        self._hide_after = hide_after
        self._last: Cells = np.zeros(0)
        self._changed_at: Cells = np.zeros(0)

    def forget(self) -> None:
        """Forget all totals, for a new generation."""
        self._last = self._changed_at = np.zeros(0)

    def look(self, index: SeriesIndex, total: Cells, now: float) -> frozenset[int]:
        """Note a reading's totals. Returns the first cells of the stale series."""
        known = len(self._last)
        changed_at = np.full(len(total), now)
        unchanged = (total[:known] == self._last) | (np.isnan(total[:known]) & np.isnan(self._last))
        changed_at[:known][unchanged] = self._changed_at[unchanged]
        self._last, self._changed_at = total.copy(), changed_at
        return frozenset(
            place.first
            for (number, _), place in index.series.items()
            if index.families[number].mode not in (LIVE_SUM, JOURNAL, ERASED)
            and now - changed_at[place.first : place.first + place.width].max() > self._hide_after
        )
