"""The slow path of recording: a writer binds series to cells in its session's slot, and keeps the journal.

The fast path is in the instruments. A bound series has `where`, a row and an offset, which are replaced together.
Recording adds to `row.cells[offset]`. It calls the writer after an IndexError there: no slot yet, a fork, a slot that
is too small, or a new generation.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from math import inf, isnan
from threading import get_ident

from jobmetrics import guard
from jobmetrics.errors import JobmetricsError
from jobmetrics.families import (
    DROPPED_UPDATES,
    GAUGE,
    HISTOGRAM,
    JOBS_ACTIVE,
    JOBS_WORKERS_LOST,
    MAX,
    MIN,
    MOST_RECENT,
    OVERFLOW,
    SUM,
)
from jobmetrics.registry import files
from jobmetrics.registry import journal as journals
from jobmetrics.registry.cells import NOWHERE, PRESENT, BoundSeries, Row, merge, move_present_value, set_at
from jobmetrics.registry.directory import SAFE_FLAGS, Directory
from jobmetrics.registry.files import lock_directory_within
from jobmetrics.registry.index import Moved, Placement, Refused
from jobmetrics.registry.slots import Slot
from jobmetrics.registry.write import fork_hooks, zeros
from jobmetrics.registry.write.process import INDEX
from jobmetrics.registry.write.session import DirectorySession
from jobmetrics.settings import Settings

logger = logging.getLogger("jobmetrics")

CHECK_INTERVAL = 1.0  # seconds between two checks of the index's identity
REPORT_WAIT = 1.0  # seconds; only processes that report another one's death wait, each for milliseconds
MAX_POSTPONED = 10_000
_LONG_AGO = 5e-324  # epoch seconds at which a most recent gauge is 0 that no process has set
MAX_DROPPING = 100  # metric names under which dropped updates are counted
RETRY_INTERVAL = 1.0  # seconds between two tries to place all series that wait in memory
SETTLE_INTERVAL = 0.05  # seconds between two such tries at the process's end
PROCESS_ENDED = "process ended"  # reason of updates lost in memory at the process's end
SETTLE_SECONDS = 2.0  # that a process waits for the index lock at its end


class Writer:
    """Records for this process into one registry directory. No file is opened before the first recording.

    Its methods raise only errors that `guard` propagates.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.check_at = 0.0
        self.session = DirectorySession(settings, clock)
        self.max_series = settings.max_series
        self.buckets = settings.buckets
        self.shows_zeros = False  # whether it places defined metrics before their first update
        self.show_dropped: Callable[[], None] | None = None  # records the dropped updates as metrics
        self._dropping: set[str] = set()
        self._present: weakref.WeakSet[BoundSeries] = weakref.WeakSet()  # gauges in a mode of PRESENT

    @property
    def directory(self) -> Directory:
        """The directory that this process records into."""
        return self.session.directory

    @property
    def slot(self) -> Slot | None:
        """The slot that this process holds, if any."""
        return self.session.process.slot

    @property
    def lock(self) -> threading.RLock:
        """The lock that builds without the GIL record under; a new one after a fork."""
        return self.session.process.lock

    # ---------------------------------------------------------------- recording's slow path

    def bind(self, series: BoundSeries, redo: Callable[[float], object], value: float = 0.0) -> bool:
        """Bind a series to cells after an IndexError. Returns True when the update should be tried again.

        An update by a signal handler or a finaliser while its own thread is in the slow path is postponed:
        `redo(value)` is called later.
        """
        process = self.session.process
        if process.inside == get_ident():
            if len(process.postponed) < MAX_POSTPONED:
                process.postponed.append((redo, value))
            else:
                self.drop("postponed", series.family.name)
            return False
        placed = process.in_slow_path(self._bind, series)
        self.show_zeros()
        if process.postponed:
            process.redo_postponed()
        return placed

    def _bind(self, series: BoundSeries) -> bool:
        session = self.session
        if not session.enabled:
            series.where = NOWHERE
            return True
        for _ in range(2):  # once more after a move to a new index
            if not self._ensure_slot():
                break
            try:
                return self._bind_to_slot(series)
            except Moved:
                session.move()
            except Refused:
                self.drop("no room for the metric", series.family.name)
                self._log_limit(series.family.name)
                return False
            except (OSError, ValueError, JobmetricsError) as error:
                session.failed(INDEX, error)
                break
        return self._bind_to_memory(series)

    def _bind_to_slot(self, series: BoundSeries) -> bool:
        session, (row, first) = self.session, series.where
        if row is session.row and first + series.family.width <= len(row.cells):
            return True  # after a fork: the offset is valid in the slot that was leased above
        place = session.place(series.family, series.values)
        if place is None or not session.ensure_room(place.first + place.width):
            return self._bind_to_memory(series)
        self._settle(series, place)
        return True

    def _settle(self, series: BoundSeries, place: Placement) -> None:
        """Point a series at its cells, and move its value there from memory or from the last slot."""
        session, process = self.session, self.session.process
        (row, offset), cells = series.where, session.row.cells
        series.leased(session.row, place.first)
        series.where = (session.row, place.first)
        if row is process.memory.row and len(row.cells):
            merge(series.family.mode, place.width, row.cells, offset, cells, place.first, time.time())
            for i in range(offset, offset + place.width):
                row.cells[i] = 0.0
        elif series.family.mode in PRESENT:
            move_present_value(series.family.mode, row.before, offset, cells, place.first)
        if series.family.mode in PRESENT:
            self._present.add(series)
        if place.dropped:
            process.dropped_series += 1
            self._log_limit(series.family.name)
        series.dropped = place.dropped
        if session.index is not None and session.index.has_erased and not place.dropped:
            self._show_again(series)

    def _log_limit(self, metric: str) -> None:
        """Log at most once a minute, for all forked processes together, that a metric has no room for a series."""
        index = self.session.index
        if index is None or not self.session.hints.is_limit_log_due(self.clock()):
            return
        largest, count = max(index.by_metric.items(), key=lambda each: each[1], default=(metric, 0))
        logger.warning(
            "jobmetrics: no room for more series of %s: new label values are counted under %s; %s has most series, "
            "%d of %d: find its label with too many values, or raise max_series",
            metric, OVERFLOW, largest, count, index.limit,
        )  # fmt: skip

    # ---------------------------------------------------------------- zeros and removal

    def show_zeros(self) -> None:
        """Place defined metrics and requested series once this process records, to show 0 before the first update."""
        process = self.session.process
        if process.slot and self.shows_zeros and zeros.any_waiting() and process.inside != get_ident():
            process.in_slow_path(self._show_zeros)

    def _show_zeros(self) -> None:
        for series in zeros.take():
            if series.writer is self and self._bind(series) and series.family.mode == MOST_RECENT:
                row, i = series.where
                set_at(row.cells, i, 0.0, _LONG_AGO, inf)  # does not replace a value

    def erase(self, series: BoundSeries, *, hide: bool) -> None:
        """Remove a series' value in this process's slot: all of a counter or histogram, the present value of a gauge.

        hide: do not show the series until it is requested or recorded again.
        """
        process = self.session.process
        if self.session.enabled and process.inside != get_ident() and (process.slot is not None or not hide):
            process.in_slow_path(self._erase, series, hide)

    def _erase(self, series: BoundSeries, hide: bool) -> None:
        if series.dropped or not self._bind(series):
            return
        (row, first), family = series.where, series.family
        cells, width = row.cells, family.width
        if row is not self.session.row:  # in memory, where all cells are this process's
            cells[first : first + width] = memoryview(bytes(width * 8)).cast("d")
            return
        if family.type == GAUGE:
            cells[first] = self.left(row, first) if family.mode == SUM else 0.0
            if family.mode in (MAX, MIN):
                cells[first + 1] = 0.0
        if family.type == GAUGE and not hide:
            return
        mark = self._mark_of(series)
        if mark is None:
            self.drop("not removed", family.name)
            return
        cells = self.session.row.cells  # placing the mark may have grown the slot
        counted = mark + family.erased.width - 2
        if family.type != GAUGE:
            cells[mark:counted] = cells[first : first + width]
        if hide:
            cells[counted] = time.time()
            cells[counted + 1] = 0.0

    def _mark_of(self, series: BoundSeries) -> int | None:
        """Return the first cell of the series that holds the removed values; None when it cannot be placed."""
        mark = BoundSeries(self, series.family.erased, series.values)
        if not self._bind(mark) or mark.where[0] is not self.session.row or mark.dropped:
            return None
        return mark.where[1]

    def _show_again(self, series: BoundSeries) -> None:
        index, cells = self.session.index, self.session.row.cells
        place = None if index is None else index.find(series.family.erased, series.values)
        if place is None or place.first + place.width > len(cells):
            return  # never removed, or by a process with a longer slot: the next update shows it
        stamps = place.first + place.width - 2
        cells[stamps + 1] = max(time.time(), cells[stamps])

    def _bind_to_memory(self, series: BoundSeries) -> bool:
        process = self.session.process
        if series.where[0] is process.memory.row and len(process.memory.row.cells):
            return True
        place = process.memory.place(series.family.width)
        if place is None:
            self.drop("disk full" if process.disk_full else "no room in memory", series.family.name)
            return False
        (row, offset), series.where = series.where, place
        if series.family.mode in PRESENT:
            move_present_value(series.family.mode, row.before, offset, place[0].cells, place[1])
        process.waiting.append(series)
        self._settle_at_exit()
        return True

    def _settle_at_exit(self) -> None:
        if not self.session.process.has_exit_hook:
            self.session.process.has_exit_hook = True
            fork_hooks.settle_at_exit(self)

    def drop(self, reason: str, metric: str) -> None:
        """Count an update that was not recorded: by metric for the first MAX_DROPPING metrics, the rest together."""
        if metric not in self._dropping:
            if len(self._dropping) >= MAX_DROPPING:
                metric = OVERFLOW
            else:
                self._dropping.add(metric)
        self._settle_at_exit()
        dropped, key = self.session.process.dropped_updates, (reason, metric)
        dropped[key] = dropped.get(key, 0) + 1

    def take_dropped_updates(self) -> dict[tuple[str, str], int]:
        """Return and reset the counts of updates that were not recorded, by reason and metric."""
        process = self.session.process
        taken, process.dropped_updates = process.dropped_updates, {}
        if process.slot is not None:  # without a slot they would be lost with this process
            for reason, count in self.session.hints.take_lost().items():
                taken[reason, OVERFLOW] = taken.get((reason, OVERFLOW), 0) + count
        return taken

    def take_dropped_series(self) -> int:
        """Return and reset the count of series beyond the cap."""
        process = self.session.process
        taken, process.dropped_series = process.dropped_series, 0
        return taken

    def left(self, row: Row, i: int) -> float:
        """Return the value that earlier owners left in a slot's cell, less this process's share in slots it gave up.

        It is read once, before this process records in the cell. In process memory it is 0.0.

        Raises:
            IndexError: when the row has no such cell.
        """
        process, found = self.session.process, row.cells[i]
        slot = process.slot
        if slot is None or row is not self.session.row:
            return 0.0
        known = slot.left.get(i)
        if known is None:
            if isnan(found):
                found = row.cells[i] = 0.0  # an earlier owner's unknown value does not make this one unknown
            known = slot.left.setdefault(i, found - process.left_behind.get(i, 0.0))
        return known

    # ---------------------------------------------------------------- generations and the life of a process

    def _ensure_slot(self) -> bool:
        if not self.session.ensure_slot():
            return False
        if self.session.process.moved_from:
            self._carry_over()
        if self.session.process.killed_workers:
            self._count_killed_workers()
        return self.session.ensure_slot()  # both may have left an index that was replaced

    def _count_killed_workers(self) -> None:
        """Count the killed workers of slots that this process leased or settled."""
        process = self.session.process
        killed, process.killed_workers = process.killed_workers, {}
        for system, count in killed.items():
            series = BoundSeries(self, JOBS_WORKERS_LOST, (system,))
            if self._bind(series):
                row, first = series.where
                row.cells[first] += count

    def settle_free_slots(self) -> None:
        """Count the killed workers of slots that no process has leased since. For the start of a worker."""
        if self.session.enabled:
            self.session.process.in_slow_path(self._settle_free_slots)

    def _settle_free_slots(self) -> None:
        try:
            for _ in self.session.settle_free_slots():
                self._ensure_slot()  # counts before the next slot is settled: this process may be killed too
        except (OSError, ValueError, JobmetricsError) as error:  # ValueError: a file was cut before it was mapped
            guard.note("lease", error)

    def _carry_over(self) -> None:
        """Carry this process's present values and running executions to the new generation."""
        session, process = self.session, self.session.process
        moved_from, process.moved_from = process.moved_from, []
        for series in list(self._present):
            self._bind(series)
        if self.shows_zeros:
            zeros.request_all()
        for index, left in moved_from:
            values = {place.first: values for (_, values), place in index.series.items()}
            for entry, _, _, first in left.journal.running():
                series, slot = BoundSeries(self, JOBS_ACTIVE, values.get(first, ())), process.slot
                if first in values and self._bind(series) and slot is not None and series.where[0] is session.row:
                    left.journal.continue_in(slot.journal, entry, series.where[1])

    def prepare(self) -> None:
        """Read the index, so that forked children need not. No slot is leased."""
        self.session.load_index()

    def describe(self, system: str, role: str, capacity: int = 1) -> None:
        """Set system, role and capacity (jobs at once) of this process, for its slot's owner record."""
        self.session.describe(system, role, capacity)

    def tick(self) -> None:
        """Confirm the lease, follow a new index and place series that wait in memory. Called at each job's start."""
        fork_hooks.hooks.catch_up()
        session, process = self.session, self.session.process
        slot = process.slot
        if slot is not None and not slot.is_held():
            process.in_slow_path(session.forget, slot)
        now = self.clock()
        if now < self.check_at or not session.enabled or process.inside == get_ident():
            return
        process.in_slow_path(self._follow_index, now)
        process.redo_postponed()

    def look(self) -> None:
        """Call `tick` at most once a second, for processes that run no jobs."""
        if self.clock() >= self.check_at:
            self.tick()
            if self.show_dropped is not None:
                self.show_dropped()

    def _follow_index(self, now: float) -> None:
        self.check_at = now + CHECK_INTERVAL
        self.session.follow_index()
        self._empty_memory()
        if self.shows_zeros and zeros.any_waiting() and self.session.process.slot:
            self._show_zeros()

    def flush(self) -> None:
        """Place one of the series that wait in memory. Called at each job's end.

        After a failure it does nothing for a second; after a success the next job's end continues. A job's start leases
        a slot and places all series, at most once a second: both would delay a job's end for too long.
        """
        process = self.session.process
        due = process.waiting and process.inside != get_ident() and self.clock() >= process.retry_at
        if due and process.slot is not None and self.session.index is not None:
            process.in_slow_path(self._place_first)
            process.redo_postponed()
        self.show_zeros()

    def _place_first(self) -> None:
        process = self.session.process
        process.retry_at = self.clock() + RETRY_INTERVAL
        if not process.waiting:
            return
        series = process.waiting[0]
        if self._bind(series) and series.where[0] is not process.memory.row:
            process.waiting.remove(series)  # binding may have appended others
            process.retry_at = self.clock()
            if not process.waiting:
                process.memory.clear()

    def settle(self, seconds: float = SETTLE_SECONDS) -> None:
        """Record what waits in memory, and count the rest as lost. Called at the process's end.

        After a wait without success, further calls do nothing.

        Args:
            seconds: How long to wait for the index lock.
        """
        process = self.session.process
        if process.dropped_updates and process.inside != get_ident() and self.show_dropped is not None:
            self.show_dropped()
        if not process.waiting or process.inside == get_ident() or process.patient_until:
            return
        process.patient_until = time.monotonic() + seconds
        while True:
            process.pauses.end()
            process.in_slow_path(self._empty_memory)
            process.redo_postponed()
            left = process.patient_until - time.monotonic()
            if not process.waiting or process.disk_full or left <= 0:
                break
            time.sleep(min(SETTLE_INTERVAL, left))  # another process had the index lock or the new file
        if process.waiting:
            self._count_lost("disk full" if process.disk_full else PROCESS_ENDED)
        else:
            process.patient_until = 0.0  # the process may continue

    def _count_lost(self, reason: str) -> None:
        """Count the updates left in memory: in this process's slot or in memory shared with its parent."""
        session = self.session
        lost = sum(_updates(series) for series in session.process.waiting)
        if not lost:
            return
        session.hints.lost(reason, lost)
        logger.warning("jobmetrics: %d updates were not recorded before the process ended: %s", lost, reason)
        is_known = session.index is not None and session.index.find(DROPPED_UPDATES, (reason, OVERFLOW)) is not None
        if self.show_dropped is not None and is_known:
            self.show_dropped()

    def _empty_memory(self) -> None:
        """Bind the series in memory to cells. Those without cells stay there."""
        process = self.session.process
        process.retry_at = self.clock() + RETRY_INTERVAL
        waiting = process.waiting
        if not waiting or not self._ensure_slot():
            return
        tried = waiting[:]
        wanted = [(series.family, series.values) for series in tried]
        if process.patient_until:
            # A process that does not get the lock in time counts its loss here, whichever process appended the series.
            wanted.append((DROPPED_UPDATES, (PROCESS_ENDED, OVERFLOW)))
        self.session.place_all(wanted)
        for series in tried:
            if self._is_due(series):
                self._bind(series)  # may add to `waiting`: live gauges without room in a new generation
        process.waiting = [series for series in tried if series.where[0] is process.memory.row] + waiting[len(tried) :]
        if not process.waiting:
            process.memory.clear()

    def _is_due(self, series: BoundSeries) -> bool:
        """Whether to try binding a waiting series: it is in the index, or appending is not paused."""
        index = self.session.index
        if index is None or self.session.process.pauses.is_over(INDEX):
            return True
        return index.find(series.family, series.values) is not None

    # ---------------------------------------------------------------- journal

    def begin(
        self, series: BoundSeries, execution: int, at: float, job_id: str = ""
    ) -> tuple[journals.Journal, int] | None:
        """Note in the journal that an execution of this jobs_active series starts at epoch second `at`.

        Returns:
            The journal and the entry, for the execution's end; None without a slot or with a full journal.
        """
        session, (row, first) = self.session, series.where
        if row is not session.row or not row.cells:
            if not self.bind(series, _nothing):
                return None
            row, first = series.where
        slot = session.process.slot
        if slot is None or row is not session.row:
            return None
        entry = slot.journal.begin(execution, at, first, job_id)
        if entry is None:
            self.drop("journal full", series.family.name)
            return None
        return slot.journal, entry

    @contextlib.contextmanager
    def reporting(self) -> Iterator[None]:
        """Hold the directory's lock: a process that reports another one's death checks and marks the end in one step.

        After REPORT_WAIT the block runs without the lock, so that a stopped process delays no other.
        """
        fd = -1
        try:
            fd = files.open_noted(self.directory.path, os.O_RDONLY | SAFE_FLAGS)
            lock_directory_within(fd, REPORT_WAIT)
        except OSError:
            pass  # no directory yet, or the file system has no locks
        try:
            yield
        finally:
            if fd >= 0:
                files.close(fd)  # which ends the lock

    def find_execution(self, execution: int) -> list[journals.Entry]:
        """Return the entries of an execution in all journals of the directory, the latest start first."""
        try:
            return journals.find(self.directory, execution)
        except OSError:
            return []

    def mark_counted(self, execution: int, start: float) -> None:
        """Mark an execution in the slot of its dead owner as counted. start: in epoch seconds, as in that slot."""
        with contextlib.suppress(OSError):
            journals.mark_counted(self.directory, execution, start)


def _updates(series: BoundSeries) -> int:
    """Return the least number of updates of a series in memory: a histogram's count, 1 for any other."""
    (row, first), family = series.where, series.family
    cells = row.cells[first : first + family.width]
    if family.mode == MOST_RECENT:
        return int(cells[0] > _LONG_AGO)
    return int(sum(cells[:-1])) if family.type == HISTOGRAM else int(any(cells))


def _nothing(_: float) -> None:
    return None
