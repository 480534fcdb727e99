"""One process's side of the registry directory: it finds series their cells, leases a slot, follows forks,
growth and new generations. Everything here is the slow path; recording itself is in the instruments.

A bound series holds `where`, a row and an offset in it, replaced together. Recording adds into
`row.cells[offset]`; an IndexError there (no slot yet, a fork, a slot too small, a new generation) is what
brings it here, once.
"""

from __future__ import annotations

import logging
import mmap
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable

from jobmetrics import guard
from jobmetrics.errors import JobmetricsError
from jobmetrics.families import JOBS_ACTIVE, LIVE_SUM, Family
from jobmetrics.registry import descriptors
from jobmetrics.registry import journal as journals
from jobmetrics.registry.directory import Directory
from jobmetrics.registry.index import LOCK_WAIT, Contended, IndexFile, Moved, Placement, Refused, SeriesIndex
from jobmetrics.registry.leasing import acquire
from jobmetrics.registry.memory import NO_CELLS, NOWHERE, UNBOUND, Memory, Row
from jobmetrics.registry.merging import merge
from jobmetrics.registry.owner import Holder, fork_moment, process_start
from jobmetrics.registry.slot import Slot, SlotPlan
from jobmetrics.settings import Settings

logger = logging.getLogger("jobmetrics")

CHECK_INTERVAL = 1.0  # seconds between two looks at the index's identity
FIRST_PAUSE = 0.5  # seconds without a try after a failure; doubled with each up to
LONGEST_PAUSE = 30.0
FORK_WAIT = 10.0  # seconds a fork waits for a thread in the slow path, which is bounded: a hang guard
MAX_POSTPONED = 10_000

SUPPORTED = sys.platform != "win32"


class BoundSeries:
    """One series as this process records it: its family, label values, and where its cells are."""

    __slots__ = ("__weakref__", "dropped", "family", "values", "where", "writer")

    def __init__(self, writer: Writer, family: Family, values: tuple[str, ...]) -> None:
        self.writer = writer
        self.family = family
        self.values = values
        self.where: tuple[Row, int] = UNBOUND
        self.dropped = False  # beyond the cap: recorded under __other__

    def leased(self, cells: memoryview[float], first: int) -> None:
        """Called when the series gets cells in a slot, before anything of this process is in them."""


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
        self._retry_at = 0.0
        self._pause = 0.0
        self._contended = False
        self._check_at = 0.0
        self._forking: set[int] = set()  # threads that hold the lock for a fork of theirs
        self._hint = _shared_word()
        self._dropped_updates: dict[str, int] = {}
        self._dropped_series = 0
        _writers.add(self)

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
        if self._inside == threading.get_ident():
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
        if self._clock() < self._retry_at:
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
        if self._pause:
            logger.info("jobmetrics: recording into %s again", self.directory.path)
        self._pause = 0.0
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

    def _lease(self, index: SeriesIndex) -> None:
        plan = self._plan
        if plan is None or plan.identity != index.identity:
            plan = self._plan = SlotPlan(self.directory, index.identity, self._holder.capacity)
        slot = acquire(
            plan,
            self._holder,
            cells=max(index.next_cell, 1),
            live_cells=index.live_cells,
            hint=self._hint[0],
            started=self._started or process_start(),
        )
        self._hint[0] = slot.number
        self._slot = slot
        self._row.cells = slot.cells

    def _failed(self, where: str, error: Exception) -> None:
        """Stop trying for a while: a directory that cannot be used must not cost every job a system call."""
        self._pause = min(LONGEST_PAUSE, self._pause * 2 or FIRST_PAUSE)
        self._retry_at = self._clock() + self._pause
        guard.note(where, error)

    def _move(self) -> None:
        """Follow the directory to its new index. The old slot stays held: a thread may be about to write there."""
        if self._slot is not None and self._index is not None:
            self._old_slots.append(self._slot)
            self._moved_from.append((self._index, self._slot))
        self._slot = self._index = None
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
        if now < self._check_at or not self.enabled or self._inside == threading.get_ident():
            return
        with _SlowPath(self):
            self._check_at = now + CHECK_INTERVAL
            if self._index is not None and not self._file.is_current(self._index):
                self._move()
            self._empty_memory()
        self._redo_postponed()

    def flush(self) -> None:
        """To be called at each job's end: what waits in memory tries again, since a work-horse ends here."""
        if self._waiting and self._inside != threading.get_ident():
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

    def refresh(self) -> None:
        """Read what other processes appended to the index: for parents, so that children need not."""
        with _SlowPath(self):
            if self._index is None:
                return
            try:
                self._file.refresh(self._index)
            except Moved:
                self._move()
            except (OSError, ValueError, JobmetricsError) as error:
                guard.note("index", error)

    def prepare(self) -> None:
        """Read or make the index, without leasing a slot: for parents that fork recording children."""
        with _SlowPath(self):
            if self._index is None and self.enabled and self._clock() >= self._retry_at:
                try:
                    self._index = self._file.load()
                except (OSError, ValueError, JobmetricsError) as error:
                    self._failed("index", error)
                return
        self.refresh()

    def describe(self, system: str, role: str, capacity: int = 1) -> None:
        """Say what this process is, for its slot's owner record. capacity: jobs it can run at once."""
        with _SlowPath(self):
            holder = Holder(system.encode("ascii", "replace"), role.encode("ascii", "replace"), capacity)
            if holder == self._holder:
                return
            if holder.capacity != self._holder.capacity:
                self._plan = None
            self._holder = holder
            if self._slot is None:
                return
            if self._slot.is_roomy(holder.capacity):
                self._slot.describe(holder, self._started or process_start())
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

    def find_execution(self, execution: int) -> list[journals.Entry]:
        """What all journals of the directory say of an execution, the latest start first."""
        try:
            return journals.find(self.directory, execution)
        except OSError:
            return []

    # ---------------------------------------------------------------- forks

    def before_fork(self) -> None:
        thread = threading.get_ident()
        if self._inside != thread and self._lock.acquire(timeout=FORK_WAIT):
            self._forking.add(thread)

    def after_fork_in_parent(self) -> None:
        thread = threading.get_ident()
        if thread in self._forking:
            self._forking.discard(thread)
            self._lock.release()

    def after_fork_in_child(self) -> None:
        """The parent's slot, its lease and what it holds in memory are the parent's; only the index is shared."""
        clean = threading.get_ident() in self._forking
        self._forking, self._lock, self._inside = set(), threading.RLock(), None
        self._started = fork_moment()
        for slot in (self._slot, *self._old_slots):
            if slot is not None:
                slot.forget()
        self._slot = None
        self._old_slots = []
        self._row.cells = NO_CELLS
        for row in self._old_rows:
            row.before = NO_CELLS
        self._old_rows = []
        self._moved_from = []
        self._postponed = deque()
        self._memory.row.cells = NO_CELLS
        self._memory.clear()
        self._waiting = []
        self._dropped_updates = {}
        self._dropped_series = 0
        if not clean:  # a thread was in the slow path: what it left half done is read anew
            self._index = None
            self._row = Row()


def _nothing(_: float) -> None:
    return None


def _shared_word() -> memoryview[int]:
    """A number that forked children share: the slot leased last, where the next child looks first. No file."""
    return memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")


class _SlowPath:
    """Holds a writer's lock and says which thread does: a class, since a generator costs a forked child more."""

    __slots__ = ("_before", "_lock", "_writer")

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._lock = writer.lock  # a fork in here gives the child's writer another

    def __enter__(self) -> None:
        self._lock.acquire()
        self._before, self._writer._inside = self._writer._inside, threading.get_ident()

    def __exit__(self, *_: object) -> None:
        self._writer._inside = self._before
        self._lock.release()


_writers: weakref.WeakSet[Writer] = weakref.WeakSet()


def _before_fork() -> None:
    for writer in list(_writers):
        writer.before_fork()


def _after_fork_in_parent() -> None:
    for writer in list(_writers):
        writer.after_fork_in_parent()


def _after_fork_in_child() -> None:
    descriptors.close_inherited()
    for writer in list(_writers):
        writer.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
