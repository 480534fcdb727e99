"""One process's side of the registry directory: it finds series their cells, leases a slot, follows forks,
growth and new generations. Everything here is the slow path; recording itself is in the instruments.

A bound series holds `where`, a row and an offset in it, replaced together. Recording adds into
`row.cells[offset]`; an IndexError there (no slot yet, a fork, a slot too small, a new generation) is what
brings it here, once.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident

from jobmetrics import guard
from jobmetrics.errors import JobmetricsError
from jobmetrics.families import JOBS_ACTIVE, LIVE_SUM
from jobmetrics.registry import descriptors, forks
from jobmetrics.registry import journal as journals
from jobmetrics.registry.directory import SAFE_FLAGS, Directory
from jobmetrics.registry.handover import HandOver
from jobmetrics.registry.index import LOCK_WAIT, Contended, IndexFile, Moved, Placement, Refused, SeriesIndex
from jobmetrics.registry.leasing import acquire
from jobmetrics.registry.locks import lock_directory_within
from jobmetrics.registry.memory import NO_CELLS, NOWHERE, Memory, Row
from jobmetrics.registry.merging import merge
from jobmetrics.registry.owner import Holder, fork_moment, process_start
from jobmetrics.registry.pausing import Pause
from jobmetrics.registry.series import BoundSeries
from jobmetrics.registry.shared import SharedHints
from jobmetrics.registry.slot import Slot, SlotPlan
from jobmetrics.settings import Settings

logger = logging.getLogger("jobmetrics")

REPORT_WAIT = 1.0  # seconds: only processes that speak for a dead one wait, and each is done in milliseconds
CHECK_INTERVAL = 1.0  # seconds between two looks at the index's identity
FORK_WAIT = 10.0  # seconds a fork waits for a thread in the slow path, which is bounded: a hang guard
MAX_POSTPONED = 10_000

SUPPORTED = sys.platform != "win32"


class Writer:
    """This process's hold on one registry directory. Nothing is opened until something is recorded.

    Its methods raise nothing but what `guard` lets through.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.enabled = settings.enabled and SUPPORTED
        if settings.enabled and not SUPPORTED:
            logger.warning("jobmetrics: nothing is recorded on this platform; jobs run as ever")
        self.max_series = settings.max_series
        self.buckets = settings.buckets
        self.directory = Directory(settings.dir, settings.dir_group)
        self._file = IndexFile(self.directory, settings.max_series)
        self._holder = Holder()
        self._child_holder: Holder | None = None  # what a forked child will say it is, where that is known
        self._lock = threading.RLock()
        self._inside: int | None = None  # the thread in the slow path
        self._postponed: deque[tuple[Callable[[float], object], float]] = deque()
        self._index: SeriesIndex | None = None
        self._plan: SlotPlan | None = None
        self._started = 0  # of a forked child; others ask the system
        self._slot: Slot | None = None
        self._old_slots: list[Slot] = []  # of earlier generations, held until the process ends
        self._row = Row()
        self._old_rows: list[Row] = []
        self._moved_from: list[tuple[SeriesIndex, Slot]] = []  # generations whose running executions go on
        self._live: weakref.WeakSet[BoundSeries] = weakref.WeakSet()  # live gauges, which follow their process
        self._memory = Memory()
        self._waiting: list[BoundSeries] = []  # bound to memory
        self._pause = Pause(clock)
        self._contended = False
        self._check_at = 0.0
        self._forking: int | None = None  # the thread that holds the lock for a fork of its own
        self._next_lock = (
            self._lock
        )  # a forked child's; made before the fork, since each object made after it costs more
        self._fork_at = 0
        self._handover = self._next_handover = HandOver()
        self._shared = SharedHints()
        self._dropped_updates: dict[str, int] = {}
        self._dropped_series = 0
        forks.follow(self)

    @property
    def slot(self) -> Slot | None:
        """The slot this process holds now."""
        return self._slot

    @property
    def lock(self) -> threading.RLock:
        """What builds without the GIL record under; another one after a fork."""
        return self._lock

    # ---------------------------------------------------------------- recording's slow path

    def bind(self, series: BoundSeries, redo: Callable[[float], object], value: float = 0.0) -> bool:
        """Find a series its cells after an IndexError; True when recording should be tried again.

        When a signal handler or a finaliser records while this very thread is in here, `redo(value)` is called later.
        """
        if self._inside == get_ident():
            if len(self._postponed) < MAX_POSTPONED:
                self._postponed.append((redo, value))
            else:
                self.drop("postponed")
            return False
        with _SlowPath(self):
            placed = self._bind(series)
        if self._postponed:
            self._redo_postponed()
        return placed

    def _bind(self, series: BoundSeries) -> bool:
        if not self.enabled:
            series.where = NOWHERE
            return True
        for _ in range(2):  # once more after a move to a new index
            if not self._ready():
                break
            try:
                return self._bind_to_slot(series)
            except Moved:
                self._move()
            except Contended:
                self._contended = True
                break
            except Refused:
                self.drop("no room for the metric")
                return False
            except (OSError, ValueError, JobmetricsError) as error:
                self._failed("index", error)
                break
        return self._bind_to_memory(series)

    def _bind_to_slot(self, series: BoundSeries) -> bool:
        index, slot = self._index, self._slot
        assert index is not None and slot is not None, "ready() said so"
        if series.where[0] is self._row and series.where[1] + series.family.width <= len(slot.cells):
            return True  # a fork: the offset is still true, the slot was leased just now
        place = index.find(series.family, series.values)
        if place is None or index.newest.get(series.family.name) != index.number(series.family):
            # Whoever met a held lock once does not wait for it again before it was free: no job waits twice.
            wait = 0.0 if self._contended else LOCK_WAIT
            place = self._file.place(index, series.family, series.values, wait)
            self._contended = False
            self._shared.appended(index.fed_to)
        if place.first + place.width > len(slot.cells):
            self._row.cells = slot.grow(max(place.first + place.width, index.next_cell))
        self._settle(series, place)
        return True

    def _settle(self, series: BoundSeries, place: Placement) -> None:
        """Point a series at its cells; what it had in memory follows it there."""
        (row, offset), cells = series.where, self._row.cells
        series.leased(cells, place.first)
        series.where = (self._row, place.first)
        if row is self._memory.row and len(row.cells):
            merge(series.family.mode, place.width, row.cells, offset, cells, place.first)
            for i in range(offset, offset + place.width):
                row.cells[i] = 0.0
        elif series.family.mode == LIVE_SUM and len(row.before) > offset:
            cells[place.first] += row.before[offset]
        if series.family.mode == LIVE_SUM:
            self._live.add(series)
        if place.dropped:
            self._dropped_series += 1
        series.dropped = place.dropped

    def _bind_to_memory(self, series: BoundSeries) -> bool:
        if series.where[0] is self._memory.row and len(self._memory.row.cells):
            return True
        place = self._memory.place(series.family.width)
        if place is None:
            self.drop("no room in memory")
            return False
        series.where = place
        self._waiting.append(series)
        return True

    def _redo_postponed(self) -> None:
        while self._postponed:
            try:
                redo, value = self._postponed.popleft()
            except IndexError:  # another thread took it
                return
            redo(value)

    def drop(self, reason: str) -> None:
        """Count an update that was not recorded."""
        self._dropped_updates[reason] = self._dropped_updates.get(reason, 0) + 1

    def take_dropped_updates(self) -> dict[str, int]:
        """Updates that were not recorded, by reason, since the last call."""
        taken, self._dropped_updates = self._dropped_updates, {}
        return taken

    def take_dropped_series(self) -> int:
        """Series asked for beyond the cap since the last call."""
        taken, self._dropped_series = self._dropped_series, 0
        return taken

    # ---------------------------------------------------------------- index, slot, generations

    def _ready(self) -> bool:
        """Have an index and a slot, unless getting them failed a moment ago."""
        if self._index is not None and self._slot is not None:
            return True
        if not self._pause.is_over():
            return False
        try:
            if self._index is None:
                self._index = self._file.load(0.0 if self._contended else LOCK_WAIT)
                self._check_at = self._clock() + CHECK_INTERVAL
            if self._slot is None:
                self._lease(self._index)
        except Contended:
            self._contended = True
            return False
        except (OSError, ValueError, JobmetricsError) as error:
            self._failed("lease", error)
            return False
        if self._pause.succeeded():
            logger.info("jobmetrics: recording into %s again", self.directory.path)
        if self._moved_from:
            self._carry_over()
        return True

    def _carry_over(self) -> None:
        """What is true of this process now is true in the new generation: its live gauges and what it runs."""
        moved_from, self._moved_from = self._moved_from, []
        for series in list(self._live):
            self._bind(series)
        for index, slot in moved_from:
            values = {place.first: values for (_, values), place in index.series.items()}
            for entry, _, _, first in slot.journal.running():
                series = BoundSeries(self, JOBS_ACTIVE, values.get(first, ()))
                if first in values and self._bind(series) and self._slot is not None and series.where[0] is self._row:
                    slot.journal.go_on_in(self._slot.journal, entry, series.where[1])

    def _plan_for(self, index: SeriesIndex) -> SlotPlan:
        plan = self._plan
        if plan is None or plan.identity != index.identity:
            plan = self._plan = SlotPlan(self.directory, index.identity, self._holder.capacity)
        return plan

    def _lease(self, index: SeriesIndex) -> None:
        slot = acquire(
            self._plan_for(index),
            self._holder,
            cells=max(index.next_cell, 1),
            live_cells=lambda: self._live_cells(index),
            hint=self._shared.leased_last,
            started=self._started or process_start(),
        )
        self._shared.leased(slot.number, by_child=self._started != 0)
        self._slot = slot
        self._row.cells = slot.cells

    def _live_cells(self, index: SeriesIndex) -> list[tuple[int, int]]:
        try:
            self._file.refresh(index)
        except (Moved, OSError, ValueError, JobmetricsError):
            pass  # whatever is wrong with the index, the next look at it will tell
        return index.live_cells

    def _failed(self, where: str, error: Exception) -> None:
        self._pause.failed()
        guard.note(where, error)

    def _move(self) -> None:
        """Follow the directory to its new index. The old slot stays held: a thread may be about to write there."""
        if self._slot is not None and self._index is not None:
            self._old_slots.append(self._slot)
            self._moved_from.append((self._index, self._slot))
        self._slot = self._index = None
        self._shared.new_index()
        self._row.before, self._row.cells = self._row.cells, NO_CELLS
        self._old_rows.append(self._row)
        self._row = Row()
        logger.info("jobmetrics: %s has a new index, recording goes on there", self.directory.path)

    def tick(self) -> None:
        """To be called at each job's start: confirms the lease, follows a new index, empties memory."""
        slot = self._slot
        if slot is not None and not slot.is_held():
            with _SlowPath(self):
                if self._slot is slot:
                    self._slot = None
                    self._row.cells = NO_CELLS
        now = self._clock()
        if now < self._check_at or not self.enabled or self._inside == get_ident():
            return
        with _SlowPath(self):
            self._check_at = now + CHECK_INTERVAL
            if self._index is not None and not self._file.is_current(self._index):
                self._move()
            self._empty_memory()
        self._redo_postponed()

    def flush(self) -> None:
        """To be called at each job's end: what waits in memory tries again, since a work-horse ends here."""
        if self._waiting and self._inside != get_ident():
            with _SlowPath(self):
                self._empty_memory()
            self._redo_postponed()

    def _empty_memory(self) -> None:
        waiting, self._waiting = self._waiting, []
        for series in waiting:
            self._bind(series)
        self._waiting = [series for series in waiting if series.where[0] is self._memory.row]
        if waiting and not self._waiting:
            self._memory.clear()

    def prepare(self, system: str, role: str) -> None:
        """For parents, before they fork a child that records: what is read here, no child needs to read.

        The index is read or made, no slot is leased before the fork. system, role: as the child will `describe` itself.
        """
        if self._child_holder is None:
            self._child_holder = _holder(system, role, 1)
        now, index = self._clock(), self._index
        if index is not None and now < self._check_at and self._shared.index_length <= index.fed_to:
            return  # nothing that children of this process have appended since
        with _SlowPath(self):
            try:
                if self._index is not None:
                    self._file.refresh(self._index)
                elif self.enabled and self._pause.is_over():
                    self._index = self._file.load()
                self._check_at = now + CHECK_INTERVAL
            except Moved:
                self._move()
            except (OSError, ValueError, JobmetricsError) as error:
                self._failed("index", error)

    def describe(self, system: str, role: str, capacity: int = 1) -> None:
        """Say what this process is, for its slot's owner record. capacity: jobs it can run at once."""
        holder = _holder(system, role, capacity)
        if holder == self._holder:
            return
        with _SlowPath(self):
            if holder.capacity != self._holder.capacity:
                self._plan = None
            self._holder = holder
            if self._slot is None:
                return
            if self._slot.is_roomy(holder.capacity):
                self._slot.describe(holder, self._started or process_start(), os.getpid())
            else:  # its journal is too short: lease another, and keep this one for what runs
                self._old_slots.append(self._slot)
                self._slot = None
                self._row.cells = NO_CELLS

    # ---------------------------------------------------------------- journal

    def begin(self, series: BoundSeries, execution: int, at: float) -> tuple[journals.Journal, int] | None:
        """Note in the journal that an execution of this jobs_active series starts at epoch second `at`.

        Returns the journal and the entry in it, for its end; None when it could not be noted (no slot, or
        more running than the journal holds).
        """
        row, first = series.where
        if (row is not self._row or not len(row.cells)) and not self.bind(series, _nothing):
            return None
        row, first = series.where
        slot = self._slot
        if slot is None or row is not self._row:
            return None
        entry = slot.journal.begin(execution, at, first)
        if entry is None:
            self.drop("journal full")
            return None
        return slot.journal, entry

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """One process at a time: who reports an end for another one looks and marks in one step.

        Waited for a few moments only, and then done without: a stopped process holds up nobody.
        """
        fd = -1
        try:
            fd = descriptors.opened(os.open(self.directory.path, os.O_RDONLY | SAFE_FLAGS))
            lock_directory_within(fd, REPORT_WAIT)
        except OSError:
            pass  # no directory yet, or no such locks
        try:
            yield
        finally:
            if fd >= 0:
                descriptors.close(fd)  # which ends the lock

    def find_execution(self, execution: int) -> list[journals.Entry]:
        """What all journals of the directory say of an execution, the latest start first."""
        try:
            return journals.find(self.directory, execution)
        except OSError:
            return []

    # ---------------------------------------------------------------- forks

    def before_fork(self) -> None:
        thread = get_ident()
        if self._inside != thread and self._lock.acquire(timeout=FORK_WAIT):
            self._forking = thread
            self._fork_at = fork_moment()
            if self._next_lock is self._lock:
                self._next_lock = threading.RLock()
            if self._next_handover is self._handover:
                self._next_handover = HandOver()
            self._offer()

    def _offer(self) -> None:
        """Lease a slot for the child, if one may think that it will record."""
        index = self._index
        if index is None or not (self._child_holder or self._shared.children_record) or not self._pause.is_over():
            return
        try:
            self._handover.offer(
                self._plan_for(index),
                self._child_holder or self._holder,
                cells=max(index.next_cell, 1),
                live_cells=lambda: self._live_cells(index),
                unchanged=index.live_cells if self._shared.index_length <= index.fed_to else None,
                hint=self._shared.leased_last,
                started=self._fork_at,
            )
        except (OSError, ValueError, JobmetricsError) as error:
            guard.note("lease", error)

    def after_fork_in_parent(self) -> None:
        if self._forking == get_ident():
            self._forking = None
            if self._handover.slot is not None:
                try:
                    self._handover.close()
                except OSError as error:
                    guard.note("lease", error)
            self._lock.release()

    def after_fork_in_child(self) -> int | None:
        """The parent's slot, its lease and what it holds in memory are the parent's; only the index is shared.

        What is empty stays untouched: each object that is written to costs the child a copied page.
        """
        row, old, given = self._row, self._slot, None
        if self._forking == get_ident():
            given = self._handover.slot
            if given is not None:
                given.accept()
                self._handover = self._next_handover
                if self._child_holder is not None:
                    self._holder, self._child_holder = self._child_holder, None
            self._lock, self._started = self._next_lock, self._fork_at
        else:  # a thread was in the slow path: what it left half done is read anew
            self._lock = self._next_lock = threading.RLock()
            self._started = fork_moment()
            self._index = self._child_holder = None
            self._handover = HandOver()
            self._row = Row()
        self._forking = self._inside = None
        if old is not None:
            old.forget()
        self._slot = given
        row.cells = NO_CELLS if given is None else given.cells
        if self._old_slots or self._old_rows:
            for slot in self._old_slots:
                slot.forget()
            for row in self._old_rows:
                row.before = NO_CELLS
            self._old_slots, self._old_rows, self._moved_from = [], [], []
        if self._waiting or self._postponed:
            self._memory.row.cells = NO_CELLS
            self._memory.clear()
            self._waiting, self._postponed = [], deque()
        if self._dropped_updates:
            self._dropped_updates = {}
        self._dropped_series = 0
        return None if given is None else given.lock_fd


def _nothing(_: float) -> None:
    return None


def _holder(system: str, role: str, capacity: int) -> Holder:
    return Holder(system.encode("ascii", "replace"), role.encode("ascii", "replace"), capacity)


class _SlowPath:
    """Holds a writer's lock and says which thread does: a class, since a generator costs a forked child more."""

    __slots__ = ("_before", "_lock", "_writer")

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._lock = writer.lock  # a fork in here gives the child's writer another

    def __enter__(self) -> None:
        self._lock.acquire()
        self._before, self._writer._inside = self._writer._inside, get_ident()

    def __exit__(self, *_: object) -> None:
        self._writer._inside = self._before
        self._lock.release()
