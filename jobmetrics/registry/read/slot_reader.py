"""Reads one slot file repeatedly: its present row, or the last good one while it cannot be read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobmetrics.errors import Damaged
from jobmetrics.families import ERASED, GAUGE, SUM
from jobmetrics.registry import journal, layout
from jobmetrics.registry.directory import Directory, slot_name
from jobmetrics.registry.files import close, is_ready
from jobmetrics.registry.index import SeriesIndex
from jobmetrics.registry.read.unresolved import JournalColumns, read_journal

Cells = NDArray[np.float64]

LIVE, FREE, DAMAGED = "live", "free", "damaged"
_ATTEMPTS = 3


class Columns:
    """The kind of each cell of a row. An impossible value is damage and is not added up."""

    def __init__(self, index: SeriesIndex) -> None:
        self.count = index.next_cell
        self._rising = np.zeros(self.count, bool)  # counters and bucket counts: not negative, never fall
        self._whole = np.zeros(self.count, bool)  # bucket counts
        self._sums: NDArray[np.intp] = np.full(self.count, -1, np.intp)  # by bucket: the sum of its histogram
        self._unknown = np.zeros(self.count, bool)  # gauges, where NaN is a value
        self._single = np.zeros(self.count, bool)  # cells that are not added up over the files of one name
        for (number, _), place in index.series.items():
            family, first, end = index.families[number], place.first, place.first + place.width
            if family.mode == ERASED:  # like the series it belongs to; the last two cells are timestamps
                self._single[end - 2 : end] = True
                self._count(first, end - 2)
            elif family.type == GAUGE:
                self._unknown[first:end] = True
                self._single[first:end] = family.mode != SUM
            else:
                self._count(first, end)

    def _count(self, first: int, end: int) -> None:
        """Note the cell of a counter, or the cells of a histogram."""
        self._rising[first] = True
        if end > first + 1:
            buckets = slice(first, end - 1)
            self._rising[buckets] = self._whole[buckets] = True
            self._sums[buckets] = end - 1

    def added_up(self, row: Cells) -> Cells:
        """Return a copy of a row with only the cells that still count after another file replaced its file."""
        kept = row.copy()
        kept[: self.count][self._single[: len(kept)]] = 0.0
        return kept

    def impossible(self, row: Cells, last: Cells) -> NDArray[np.intp]:
        """Return the changed cells with impossible values. last: the last good row of the same file."""
        if len(last) < len(row):
            last = np.concatenate([last, np.zeros(len(row) - len(last))])
        changed = np.flatnonzero(row != last)
        if not len(changed):
            return changed
        values, before = row[changed], last[changed]
        bad: NDArray[np.bool_] = ~np.isfinite(values) & ~(self._unknown[changed] & np.isnan(values))
        bad |= self._rising[changed] & (values < before)
        bad |= self._whole[changed] & (values != np.floor(values))
        return changed[bad]

    def sums_of(self, cells: NDArray[np.intp]) -> NDArray[np.intp]:
        """Return the sum cells of the histograms that have these buckets."""
        sums = np.unique(self._sums[cells])
        return sums[sums >= 0]

    def could_begin_with(self, cells: NDArray[np.intp], values: Cells) -> NDArray[np.bool_]:
        """Whether these cells may have counted from 0 to these values."""
        could: NDArray[np.bool_] = np.isfinite(values) & (values > 0.0)
        could &= ~self._whole[cells] | (values == np.floor(values))
        return could


@dataclass(frozen=True, slots=True)
class SlotReading:
    """One reading of a slot.

    row: valid until the slot is read again, None when none of its cells count; owner: its living owner; state: None for
    a slot that is missing or of another generation; problem: a description of the damage, for the log.
    """

    row: Cells | None
    owner: layout.ProcessIdentity | None = None
    running: tuple[journal.Entry, ...] = ()
    journal: JournalColumns | None = None
    state: str | None = None
    problem: str | None = None


class Scratch:
    """A buffer for the content of one file at a time."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._largest = 0  # bytes asked for since the last `shrink`

    def view(self, size: int) -> memoryview[int]:
        """Return a view of this number of bytes, which are not cleared."""
        self._largest = max(self._largest, size)
        if len(self._buffer) < size:
            self._buffer = bytearray(size)
        return memoryview(self._buffer)[:size]

    def shrink(self) -> None:
        """Release unused memory. Called once for each reading, while no view is in use."""
        if len(self._buffer) > 2 * self._largest:
            self._buffer = bytearray()
        self._largest = 0


class SlotFile:
    """One slot number of one generation. Several files may have its name over time.

    keep: keep the descriptor open between readings.
    """

    def __init__(self, directory: Directory, number: int, scratch: Scratch, *, keep: bool) -> None:
        self._directory = directory
        self._name = slot_name(number)
        self._fd: int | None = None
        self._inode = 0
        self._row: Cells = np.zeros(0)  # the last good row of this file
        self._retired: Cells = np.zeros(0)  # counted by the files that this one replaced
        self._zeroed: NDArray[np.intp] = np.zeros(0, np.intp)  # cells that fell to 0; the last row replaces them
        self._serial = b""
        self._head = b""
        self._header = layout.SlotHeader(layout.MIN_JOURNAL, layout.NO_IDENTITY)
        self._scratch = scratch
        self._keep = keep

    @property
    def serial(self) -> bytes:
        """The serial of the last good row's file, b"" while there is none. A copy of the file has the same."""
        return self._serial

    def close(self) -> None:
        """Close the descriptor."""
        if self._fd is not None:
            close(self._fd)
            self._fd = None

    def read(self, index: SeriesIndex, columns: Columns, inode: int) -> SlotReading:
        """Read the slot. inode: of the file with its name.

        Raises:
            OSError, RegistryError: when the file cannot be read; use `last` instead.
        """
        fd = self._current(inode)
        try:
            return self._read(fd, index, columns)
        finally:
            if not self._keep:
                self.close()

    def _read(self, fd: int, index: SeriesIndex, columns: Columns) -> SlotReading:
        live = is_ready(fd)
        data, header = self._copy(fd, columns.count)
        if header.identity != index.identity:
            return self.last()
        row: Cells = np.frombuffer(data, np.float64, offset=header.cells_offset)
        self._settle_replacement(row, header.serial, columns)
        bad = self._without_restarted(columns.impossible(row, self._row), row, columns)
        problem = None
        if len(bad):
            problem = "has impossible values; the last good ones are used instead"
            row[bad] = 0.0
            known = bad[bad < len(self._row)]
            row[known] = self._row[known]
        self._keep_row(row)
        owner, running = journal.owner_and_running(data, header) if live else (None, ())
        entries = read_journal(data, header, layout.last_lease(data) if live else None)
        state = DAMAGED if problem else LIVE if live else FREE
        return SlotReading(self._total(), owner, running, entries, state, problem)

    def _without_restarted(self, bad: NDArray[np.intp], row: Cells, columns: Columns) -> NDArray[np.intp]:
        """Return the impossible cells without those that count again after they fell to 0.

        The former count of a restarted cell is added to the retired row. A cell that is as high as before, or higher,
        was restored instead.
        """
        if not len(bad) and not len(self._zeroed):
            return bad
        known = bad[bad < len(self._row)]
        fallen = known[row[known] == 0.0]
        sums = columns.sums_of(fallen)
        sums = np.union1d(sums, self._zeroed[~np.isin(self._zeroed, bad)])  # sums that were not restored
        sums = sums[(sums < len(row)) & (sums < len(self._row))]
        lower = sums[row[sums] < self._row[sums]]
        again = np.union1d(known, lower)
        again = again[np.isin(again, self._zeroed)]
        anew = again[columns.could_begin_with(again, row[again])]
        if len(anew):
            had = np.zeros(len(row))
            had[anew] = self._row[anew]
            self._retired = _sum(self._retired, had)
            self._row = self._row.copy()
            self._row[anew] = 0.0
        self._zeroed = np.union1d(fallen, lower[row[lower] == 0.0])
        return np.setdiff1d(np.union1d(bad, self._zeroed), anew)

    def _keep_row(self, row: Cells) -> None:
        """Copy the row from the buffer, into the same array if it fits.

        Each scrape has another thread, and each thread allocates elsewhere: new arrays would leave the old ones' memory
        unused.
        """
        if len(row) == len(self._row):
            self._row[:] = row
        else:
            self._row = row.copy()

    def last(self, problem: str | None = None) -> SlotReading:
        """Return the last good reading, for a slot that is missing or cannot be read."""
        total = self._total()
        return SlotReading(total if len(total) else None, state=DAMAGED if problem else None, problem=problem)

    def _total(self) -> Cells:
        if not len(self._retired):
            return self._row
        return _sum(self._retired, self._row)

    def _current(self, inode: int) -> int:
        if self._fd is None or self._inode != inode:
            fd = self._directory.open(self._name, os.O_RDONLY)
            self.close()
            self._fd, self._inode = fd, os.fstat(fd).st_ino
        return self._fd

    def _settle_replacement(self, row: Cells, serial: bytes, columns: Columns) -> None:
        """Check for another file of this name: a copy continues the old file's counts, a new one begins at 0."""
        if serial != self._serial:
            self._retired = columns.added_up(self._total())
            self._row = np.zeros(0)
            self._zeroed = np.zeros(0, np.intp)
            self._serial = serial
        elif len(row) < len(self._row):
            raise Damaged("is shorter than it was")

    def _copy(self, fd: int, cells: int) -> tuple[bytes, layout.SlotHeader]:
        """Read the header and at most this number of cells, regardless of the file's length."""
        size = os.fstat(fd).st_size
        for _ in range(_ATTEMPTS):
            offset = self._header.cells_offset  # at first that of most slots, then the file's
            wanted = min(size, offset + cells * layout.CELL)
            data = self._scratch.view(wanted)
            if os.preadv(fd, [data], 0) != wanted:
                raise Damaged("was cut while it was read")
            head = bytes(data[: layout.SLOT_HEADER_SIZE])
            if head != self._head:
                self._header, self._head = layout.SlotHeader.unpack(head), head
            if self._header.cells_offset == offset:
                break
        else:
            raise Damaged("was formatted again while it was read")
        if not layout.is_slot_size(size, offset):
            raise Damaged(f"has {size} bytes, which no slot has")
        return data, self._header  # type: ignore[return-value]  # a buffer, read like bytes


def without_copies(readings: Sequence[SlotReading], serials: Sequence[bytes]) -> list[Cells | None]:
    """Return the readings' rows. Copies of one slot are counted once, with the highest value of each cell.

    One of them may have recorded after the copy was made. If several did, the lower increments are not counted.
    """
    rows = [reading.row for reading in readings]
    first: dict[bytes, int] = {}
    for n, (row, serial) in enumerate(zip(rows, serials, strict=True)):
        if not serial or row is None:
            continue
        original = first.setdefault(serial, n)
        before = rows[original]
        if original != n and before is not None:
            rows[original], rows[n] = _highest(before, row), None
    return rows


def _highest(one: Cells, other: Cells) -> Cells:
    longer, shorter = (one, other) if len(one) >= len(other) else (other, one)
    highest = longer.copy()
    np.maximum(highest[: len(shorter)], shorter, out=highest[: len(shorter)])
    return highest


def _sum(first: Cells, second: Cells) -> Cells:
    longer, shorter = (first, second) if len(first) >= len(second) else (second, first)
    total = longer.copy()
    total[: len(shorter)] += shorter
    return total


@dataclass(frozen=True, slots=True)
class Sample:
    """One series.

    value: of a counter or gauge; buckets: counts of a histogram, not cumulative, +Inf last; sum: of its observations.
    """

    values: tuple[str, ...]
    value: float = 0.0
    buckets: tuple[float, ...] = ()
    sum: float = 0.0


@dataclass(frozen=True, slots=True)
class RunningExecution:
    """A running execution.

    values: of its jobs_active series; job_id: cut to 48 bytes, empty if it has none; start: epoch seconds, NaN if
    unknown; owner: the process whose journal has it.
    """

    values: tuple[str, ...]
    job_id: str
    start: float
    owner: layout.ProcessIdentity


@dataclass(frozen=True, slots=True)
class RunningJobs:
    """The executions of one jobs_active series.

    count: the running ones; oldest: their earliest start, in epoch seconds; unresolved: how many were killed and have
    no end.
    """

    values: tuple[str, ...]
    count: int
    oldest: float | None
    unresolved: int = 0
