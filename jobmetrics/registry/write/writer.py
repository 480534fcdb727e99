"""One process's side of the registry directory: it finds series their cells in its session's slot, and keeps the
journal. Everything here is the slow path; recording itself is in the instruments.

A bound series holds `where`, a row and an offset in it, replaced together. Recording adds into
`row.cells[offset]`; an IndexError there (no slot yet, a fork, a slot too small, a new generation) is what
brings it here, once.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf, isnan
from threading import get_ident

from jobmetrics.errors import JobmetricsError
from jobmetrics.families import DROPPED_UPDATES, GAUGE, HISTOGRAM, JOBS_ACTIVE, MAX, MIN, MOST_RECENT, OVERFLOW, SUM
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

CHECK_INTERVAL = 1.0  # seconds between two looks at the index's identity
REPORT_WAIT = 1.0  # seconds: only processes that speak for a dead one wait, and each is done in milliseconds
MAX_POSTPONED = 10_000
_LONG_AGO = 5e-324  # when a most recent gauge that no process has set yet was set to 0
MAX_DROPPING = 100  # metric names under which dropped updates are counted
RETRY_INTERVAL = 1.0  # seconds between two tries for all series that wait in memory together
SETTLE_INTERVAL = 0.05  # seconds between two tries there
PROCESS_ENDED = "process ended"  # why an update was lost that waited until then
SETTLE_SECONDS = 2.0  # that a process waits for the index lock where it ends


class Writer:
    """Records for this process into one registry directory. Nothing is opened until something is recorded.

    Its methods raise nothing but what `guard` lets through.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.check_at = 0.0
        self.session = DirectorySession(settings, clock)
        self.max_series = settings.max_series
        self.buckets = settings.buckets
        self.shows_zeros = (
            False  # whether it is the writer of what the code defines, which is shown before its first update
        )
        self.show_dropped: Callable[[], None] | None = None  # makes metrics of what was dropped
        self._dropping: set[str] = set()
        self._present: weakref.WeakSet[BoundSeries] = weakref.WeakSet()  # gauges of present values

    @property
    def directory(self) -> Directory:
        """Where this process records."""
        return self.session.directory

    @property
    def slot(self) -> Slot | None:
        """The slot this process holds now."""
        return self.session.process.slot

    @property
    def lock(self) -> threading.RLock:
        """What builds without the GIL record under; another one after a fork."""
        return self.session.process.lock

    # ---------------------------------------------------------------- recording's slow path

    def bind(self, series: BoundSeries, redo: Callable[[float], object], value: float = 0.0) -> bool:
        """Find a series its cells after an IndexError; True when recording should be tried again.

        When a signal handler or a finaliser records while this very thread is in here, `redo(value)` is called later.
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
                return False
            except (OSError, ValueError, JobmetricsError) as error:
                session.failed(INDEX, error)
                break
        return self._bind_to_memory(series)

    def _bind_to_slot(self, series: BoundSeries) -> bool:
        session, (row, first) = self.session, series.where
        if row is session.row and first + series.family.width <= len(row.cells):
            return True  # a fork: the offset is still true, the slot was leased just now
        place = session.place(series.family, series.values)
        if place is None or not session.ensure_room(place.first + place.width):
            return self._bind_to_memory(series)
        self._settle(series, place)
        return True

    def _settle(self, series: BoundSeries, place: Placement) -> None:
        """Point a series at its cells; what it had in memory follows it there."""
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
        series.dropped = place.dropped
        if session.index is not None and session.index.has_erased and not place.dropped:
            self._show_again(series)

    # ---------------------------------------------------------------- zeros, and what is taken away

    def show_zeros(self) -> None:
        """Place what the code defined and asked for, once this process records: 0 is shown before the first update."""
        process = self.session.process
        if self.shows_zeros and zeros.any_wait() and process.slot and process.inside != get_ident():
            process.in_slow_path(self._show_zeros)

    def _show_zeros(self) -> None:
        for series in zeros.take():
            if series.writer is self and self._bind(series) and series.family.mode == MOST_RECENT:
                row, i = series.where
                set_at(row.cells, i, 0.0, _LONG_AGO, inf)  # and never over a value

    def erase(self, series: BoundSeries, *, hide: bool) -> None:
        """Take away what this process's slot has of a series: all of a counter or histogram, the present value of a
        gauge.

        hide: show the series no more, until it is asked for again or anything is recorded in it.
        """
        process = self.session.process
        if self.session.enabled and process.inside != get_ident() and (process.slot is not None or not hide):
            process.in_slow_path(self._erase, series, hide)

    def _erase(self, series: BoundSeries, hide: bool) -> None:
        if series.dropped or not self._bind(series):
            return
        (row, first), family = series.where, series.family
        cells, width = row.cells, family.width
        if row is not self.session.row:  # in memory: all of it is this process's
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
        cells = self.session.row.cells  # placing the mark may have made the slot grow
        counted = mark + family.erased.width - 2
        if family.type != GAUGE:
            cells[mark:counted] = cells[first : first + width]
        if hide:
            cells[counted] = time.time()
            cells[counted + 1] = 0.0

    def _mark_of(self, series: BoundSeries) -> int | None:
        """The first cell of what was erased of a series; None when it cannot be placed."""
        mark = BoundSeries(self, series.family.erased, series.values)
        if not self._bind(mark) or mark.where[0] is not self.session.row or mark.dropped:
            return None
        return mark.where[1]

    def _show_again(self, series: BoundSeries) -> None:
        index, cells = self.session.index, self.session.row.cells
        place = None if index is None else index.find(series.family.erased, series.values)
        if place is None or place.first + place.width > len(cells):
            return  # it was never removed, or by a process whose slot is longer: the next update shows it
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
        """Count an update that was not recorded. The first names are kept, the rest are counted together."""
        if metric not in self._dropping:
            if len(self._dropping) >= MAX_DROPPING:
                metric = OVERFLOW
            else:
                self._dropping.add(metric)
        self._settle_at_exit()
        dropped, key = self.session.process.dropped_updates, (reason, metric)
        dropped[key] = dropped.get(key, 0) + 1

    def take_dropped_updates(self) -> dict[tuple[str, str], int]:
        """Updates that were not recorded, by reason and metric, since the last call."""
        process = self.session.process
        taken, process.dropped_updates = process.dropped_updates, {}
        if process.slot is not None:  # or they would end with this process too
            for reason, count in self.session.hints.take_lost().items():
                taken[reason, OVERFLOW] = taken.get((reason, OVERFLOW), 0) + count
        return taken

    def take_dropped_series(self) -> int:
        """Series asked for beyond the cap since the last call."""
        process = self.session.process
        taken, process.dropped_series = process.dropped_series, 0
        return taken

    def left(self, row: Row, i: int) -> float:
        """What the slot's earlier owners left in a cell, as this process found it at first, less what it has itself
        in slots that it gave up; 0.0 in process memory, where nobody was before. Raises IndexError where there is no
        such cell."""
        process, found = self.session.process, row.cells[i]
        slot = process.slot
        if slot is None or row is not self.session.row:
            return 0.0
        known = slot.left.get(i)
        if known is None:
            if isnan(found):
                found = row.cells[i] = 0.0  # an earlier owner's unknown value says nothing of this one's
            known = slot.left.setdefault(i, found - process.left_behind.get(i, 0.0))
        return known

    # ---------------------------------------------------------------- generations, jobs that come and go

    def _ensure_slot(self) -> bool:
        if not self.session.ensure_slot():
            return False
        if self.session.process.moved_from:
            self._carry_over()
        return True

    def _carry_over(self) -> None:
        """What is true of this process now is true in the new generation: its present values and what it runs."""
        session, process = self.session, self.session.process
        moved_from, process.moved_from = process.moved_from, []
        for series in list(self._present):
            self._bind(series)
        if self.shows_zeros:
            zeros.again()
        for index, left in moved_from:
            values = {place.first: values for (_, values), place in index.series.items()}
            for entry, _, _, first in left.journal.running():
                series, slot = BoundSeries(self, JOBS_ACTIVE, values.get(first, ())), process.slot
                if first in values and self._bind(series) and slot is not None and series.where[0] is session.row:
                    left.journal.continue_in(slot.journal, entry, series.where[1])

    def prepare(self) -> None:
        """For parents whose children record: read the index once, and not in each child. No slot is leased."""
        self.session.load_index()

    def describe(self, system: str, role: str, capacity: int = 1) -> None:
        """Say what this process is, for its slot's owner record. capacity: jobs it can run at once."""
        self.session.describe(system, role, capacity)

    def tick(self) -> None:
        """To be called at each job's start: confirms the lease, follows a new index, empties memory."""
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
        """As `tick`, at most once a second: for processes that run no jobs."""
        if self.clock() >= self.check_at:
            self.tick()
            if self.show_dropped is not None:
                self.show_dropped()

    def _follow_index(self, now: float) -> None:
        self.check_at = now + CHECK_INTERVAL
        self.session.follow_index()
        self._empty_memory()
        if self.shows_zeros and zeros.any_wait() and self.session.process.slot:
            self._show_zeros()

    def flush(self) -> None:
        """Place one of the series that wait in memory. Call it at each job's end.

        After a failure it does nothing for a second; after a success the next job's end goes on. The start of a job
        places all at once, at most once a second, and looks for a slot: both take longer than a job's end should.
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
            process.waiting.remove(series)  # binding may have made others wait, behind it
            process.retry_at = self.clock()
            if not process.waiting:
                process.memory.clear()

    def settle(self, seconds: float = SETTLE_SECONDS) -> None:
        """To be called where the process ends: what waits in memory is recorded now or never.

        seconds: how long to wait for the index lock; nothing else is delayed at the end. After a wait without success,
        further calls do nothing: what was left is counted as lost.
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
            time.sleep(min(SETTLE_INTERVAL, left))  # another process had the file that this one made
        if process.waiting:
            self._count_lost("disk full" if process.disk_full else PROCESS_ENDED)
        else:
            process.patient_until = 0.0  # the process may go on yet

    def _count_lost(self, reason: str) -> None:
        """Count the updates left in memory: in this process's slot if it can, else in memory shared with its parent."""
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
        """Find the series in memory their cells. Those that find none stay there."""
        process = self.session.process
        process.retry_at = self.clock() + RETRY_INTERVAL
        waiting = process.waiting
        if not waiting or not self._ensure_slot():
            return
        tried = waiting[:]
        wanted = [(series.family, series.values) for series in tried]
        if process.patient_until:
            # Processes that do not get the lock in time can count their loss in it, whichever process appended it.
            wanted.append((DROPPED_UPDATES, (PROCESS_ENDED, OVERFLOW)))
        self.session.place_all(wanted)
        for series in tried:
            if self._is_due(series):
                self._bind(series)  # more may come to wait: live gauges for which a new generation has no room
        process.waiting = [series for series in tried if series.where[0] is process.memory.row] + waiting[len(tried) :]
        if not process.waiting:
            process.memory.clear()

    def _is_due(self, series: BoundSeries) -> bool:
        """Whether a series that waits may find its cells: it is known, or the index may be appended to."""
        index = self.session.index
        if index is None or self.session.process.pauses.is_over(INDEX):
            return True
        return index.find(series.family, series.values) is not None

    # ---------------------------------------------------------------- journal

    def begin(self, series: BoundSeries, execution: int, at: float) -> tuple[journals.Journal, int] | None:
        """Note in the journal that an execution of this jobs_active series starts at epoch second `at`.

        Returns the journal and the entry in it, for its end; None when it could not be noted (no slot, or
        more running than the journal holds).
        """
        session, (row, first) = self.session, series.where
        if row is not session.row or not row.cells:
            if not self.bind(series, _nothing):
                return None
            row, first = series.where
        slot = session.process.slot
        if slot is None or row is not session.row:
            return None
        entry = slot.journal.begin(execution, at, first)
        if entry is None:
            self.drop("journal full", series.family.name)
            return None
        return slot.journal, entry

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """One process at a time: who reports an end for another one looks and marks in one step.

        Waited for a few moments only, and then done without: a stopped process holds up nobody.
        """
        fd = -1
        try:
            fd = files.open_noted(self.directory.path, os.O_RDONLY | SAFE_FLAGS)
            lock_directory_within(fd, REPORT_WAIT)
        except OSError:
            pass  # no directory yet, or no such locks
        try:
            yield
        finally:
            if fd >= 0:
                files.close(fd)  # which ends the lock

    def find_execution(self, execution: int) -> list[journals.Entry]:
        """What all journals of the directory say of an execution, the latest start first."""
        try:
            return journals.find(self.directory, execution)
        except OSError:
            return []


def _updates(series: BoundSeries) -> int:
    """Updates that a series in memory has at least: a histogram's are known, any other's count as one."""
    (row, first), family = series.where, series.family
    cells = row.cells[first : first + family.width]
    if family.mode == MOST_RECENT:
        return int(cells[0] > _LONG_AGO)
    return int(sum(cells[:-1])) if family.type == HISTOGRAM else int(any(cells))


def _nothing(_: float) -> None:
    return None
