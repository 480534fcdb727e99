"""A process's session with a registry directory: its index and slot, through forks and new generations."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import get_ident

from jobmetrics import guard
from jobmetrics.errors import JobmetricsError
from jobmetrics.families import JOBS_WORKERS, Family
from jobmetrics.registry.cells import NO_CELLS, PresentCell, Row
from jobmetrics.registry.directory import Directory
from jobmetrics.registry.index import LOCK_WAIT, Contended, IndexFile, Moved, Placement, SeriesIndex
from jobmetrics.registry.layout import ProcessIdentity
from jobmetrics.registry.slots import NO_SPACE, Slot, SlotPlan, estimated_start, process_start
from jobmetrics.registry.write import fork_hooks
from jobmetrics.registry.write.fork_hooks import FORK_WAIT
from jobmetrics.registry.write.lease import acquire, has_values, settle
from jobmetrics.registry.write.process import GROWTH, INDEX, LEASE, LOAD, ForkHints, ProcessState
from jobmetrics.settings import Settings

logger = logging.getLogger("jobmetrics")

_PLACES = {LOAD: "lease", LEASE: "lease", INDEX: "index", GROWTH: "index"}  # the label under which errors are counted

MAX_SETTLED = 1_000  # free slots to look at when a worker starts: some 25 milliseconds

SUPPORTED = sys.platform != "win32"


class DirectorySession:
    """An index and a slot. No file is opened before a slot is needed.

    row: the cells that this process's series record into. `index`, `row` and the slot are of one generation.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.enabled = settings.enabled and SUPPORTED
        if settings.enabled and not SUPPORTED:
            logger.warning("jobmetrics: recording is not supported on this platform; jobs are not affected")
        self.directory = Directory(settings.dir, settings.dir_group)
        self.file = IndexFile(self.directory, settings.max_series)
        self.process = self._next_child = ProcessState(clock)  # a forked child begins with a new one
        self._parent: ProcessState | None = None
        self.index: SeriesIndex | None = None
        self.row = Row()
        self.hints = ForkHints()
        self._plan: SlotPlan | None = None
        fork_hooks.hooks.join(self)

    # ---------------------------------------------------------------- index and slot

    def ensure_slot(self) -> bool:
        """Load an index and lease a slot, if needed. Returns False after a failure and during its pause."""
        if self.index is not None and self.process.slot is not None:
            return True
        return self._ensure_index() and self._ensure_lease()

    def _ensure_index(self) -> bool:
        if self.index is not None:
            return True
        if not self.process.pauses.is_over(LOAD):
            return False
        try:
            self.index = self.file.load(self._lock_wait())
        except (OSError, ValueError, JobmetricsError) as error:
            self.failed(LOAD, error)
            return False
        self._succeeded(LOAD)
        return True

    def _ensure_lease(self) -> bool:
        if self.process.slot is not None:
            return True
        if self.index is None or not self.process.pauses.is_over(LEASE):
            return False
        try:
            self._lease(self.index)
        except (OSError, ValueError, JobmetricsError) as error:
            self.failed(LEASE, error)
            return False
        self._succeeded(LEASE)
        return True

    def _lease(self, index: SeriesIndex) -> None:
        process, plan = self.process, self._plan
        if plan is None or plan.identity != index.identity:
            plan = self._plan = SlotPlan(self.directory, index.identity, process.identity.capacity)
        process.started = process.started or process_start()
        known = process.identity
        process.identity = ProcessIdentity(
            os.getpid(), process.started, plan.namespace, known.system, known.role, known.capacity
        )
        slot = acquire(
            plan,
            process.identity,
            cells=max(index.next_cell, 1),
            present_cells=lambda slot: self._present_cells(index, slot),
            hint=self.hints.leased_last,
        )
        self.hints.leased(slot.number)
        process.slot = slot
        self.row.cells = slot.cells
        if slot.left_live:
            self._note_killed(index, slot.left_live)

    def settle_free_slots(self) -> Iterator[None]:
        """Settle the slots that killed workers left and no process has leased since, one at each step."""
        process, index, plan = self.process, self.index, self._plan
        if index is None or plan is None or process.slot is None:
            return
        held, cells = process.slot.number, [place.first for _, place in index.series_of(JOBS_WORKERS)]
        for number in self.directory.slots()[:MAX_SETTLED]:
            if number != held and has_values(plan, number, cells):
                self._note_killed(index, settle(plan, number, lambda slot: self._present_cells(index, slot)))
                yield

    def _note_killed(self, index: SeriesIndex, left_live: Mapping[int, float]) -> None:
        """Note the worker that was killed and left these live gauges."""
        killed = self.process.killed_workers
        for values, place in index.series_of(JOBS_WORKERS):
            if place.first in left_live:
                killed[values[0]] = killed.get(values[0], 0) + 1

    def _present_cells(self, index: SeriesIndex, slot: Slot) -> list[PresentCell]:
        if not slot.is_unused_from(index.next_cell):  # its last owner recorded series that this process does not know
            self._refresh(index)
            self.hints.appended(index.fed_to)  # the parent reads it before its next fork
        return index.present_cells

    def _refresh(self, index: SeriesIndex) -> None:
        try:
            self.file.refresh(index)
        except (Moved, OSError, ValueError, JobmetricsError):
            pass  # the next check of the index finds the error again

    def _lock_wait(self) -> float:
        """Return the seconds to wait for the index lock: 0 after a wait without success, until an append succeeds."""
        if self.process.patient_until:
            return max(0.0, self.process.patient_until - time.monotonic())
        return 0.0 if self.process.contended else LOCK_WAIT

    def failed(self, cause: str, error: Exception) -> None:
        """Begin a pause of the cause, and count the error."""
        process = self.process
        process.pauses.failed(cause)
        process.disk_full = isinstance(error, OSError) and error.errno in NO_SPACE
        if isinstance(error, Contended):
            process.contended = True
        else:
            guard.note(_PLACES[cause], error)

    def _succeeded(self, cause: str) -> None:
        if self.process.pauses.succeeded(cause) and cause in (LOAD, LEASE):
            logger.info("jobmetrics: recording into %s again", self.directory.path)

    # ---------------------------------------------------------------- places for series

    def place(self, family: Family, values: tuple[str, ...]) -> Placement | None:
        """Return the cells of a series, appended to the index if it is new; None while appending is paused.

        Raises:
            Contended, Moved, Refused, OSError: as `IndexFile.place` does.
        """
        index = self.index
        assert index is not None, "ensure_slot() returned True"
        place = index.find(family, values)
        if place is None and self.process.pauses.is_over(INDEX):
            place = self.file.place(index, family, values, self._lock_wait())
            self._appended(index)
        return place

    def place_all(self, wanted: Sequence[tuple[Family, tuple[str, ...]]]) -> bool:
        """Append the series to the index, taking its lock once. Returns False after a failure and during its pause."""
        index = self.index
        if index is None or not self.process.pauses.is_over(INDEX):
            return False
        try:
            self.file.place_all(index, wanted, self._lock_wait())
        except Moved:
            return True  # binding the first of them then moves to the new index
        except (OSError, ValueError, JobmetricsError) as error:
            self.failed(INDEX, error)
            return False
        self._appended(index)
        return True

    def _appended(self, index: SeriesIndex) -> None:
        self.process.contended = False
        self._succeeded(INDEX)
        self.hints.appended(index.fed_to)

    def ensure_room(self, cells: int) -> bool:
        """Grow the slot to this number of cells, if needed. Returns False after a failure and during its pause."""
        slot, index = self.process.slot, self.index
        assert slot is not None, "ensure_slot() returned True"
        assert index is not None, "ensure_slot() returned True"
        if cells <= len(slot.cells):
            return True
        if not self.process.pauses.is_over(GROWTH):
            return False
        try:
            self.row.cells = slot.grow(max(cells, index.next_cell))
        except (OSError, ValueError, JobmetricsError) as error:
            self.failed(GROWTH, error)
            return False
        self._succeeded(GROWTH)
        return True

    # ---------------------------------------------------------------- generations and lost leases

    def follow_index(self) -> None:
        """Move to the directory's new index, if it has one."""
        if self.index is not None and not self.file.is_current(self.index):
            self.move()

    def move(self) -> None:
        """Leave the index and the slot. The old slot stays held: a thread may be about to write there."""
        process = self.process
        if process.slot is not None and self.index is not None:
            process.old_slots.append(process.slot)
            process.moved_from.append((self.index, process.slot))
        process.slot = self.index = None
        process.left_behind.clear()
        self.hints.new_index()
        self._leave_row()
        logger.info("jobmetrics: %s has a new index, recording goes on there", self.directory.path)

    def forget(self, slot: Slot) -> None:
        """Give up a slot after its lock's descriptor was closed, which ended the lease."""
        if self.process.slot is slot:
            if self.index is not None:  # its next owner would count a killed worker
                slot.clear(place.first for _, place in self.index.series_of(JOBS_WORKERS))
            self.process.give_up_slot()
            self.row.cells = NO_CELLS

    def _leave_row(self) -> None:
        """Begin a new row. A series moves its present value when it is bound to cells there."""
        self.row.before, self.row.cells = self.row.cells, NO_CELLS
        self.process.old_rows.append(self.row)
        self.row = Row()

    def load_index(self) -> None:
        """Read the index, or make it, so that forked children need not. No slot is leased."""
        if self.enabled:
            self.process.in_slow_path(self._ensure_index)

    def describe(self, system: str, role: str, capacity: int = 1) -> None:
        """Set system, role and capacity (jobs at once) of this process, for its slot's owner record."""
        known = self.process.identity
        if (system, role, capacity) != (known.system, known.role, known.capacity):
            self.process.in_slow_path(self._set_identity, system, role, capacity)

    def _set_identity(self, system: str, role: str, capacity: int) -> None:
        process, slot = self.process, self.process.slot
        if capacity != process.identity.capacity:
            self._plan = None
        process.identity = process.identity._replace(system=system, role=role, capacity=capacity)
        if slot is None:
            return
        if slot.is_roomy(capacity):
            slot.describe(process.identity)
        else:  # its journal is too short: lease another slot, and keep this one for its running jobs
            process.old_slots.append(slot)
            process.give_up_slot()
            self._leave_row()

    # ---------------------------------------------------------------- forks

    def before_fork(self) -> bool:
        """Enter the slow path. Read the records that other processes appended, so that no child needs to."""
        process = self.process
        if process.inside == get_ident() or not process.lock.acquire(timeout=FORK_WAIT):
            return False
        process.inside = get_ident()  # until the fork is over: updates of a signal handler are postponed
        try:
            if self.index is not None and self.hints.index_length > self.index.fed_to:
                self._refresh(self.index)
            if self._next_child is process:
                self._next_child = ProcessState(self._clock)
            self._next_child.identity, self._next_child.started = process.identity, estimated_start()
        except BaseException:
            process.inside = None
            process.lock.release()
            raise
        return True

    def after_fork_in_parent(self) -> None:
        """Leave the slow path, and record the postponed updates."""
        process = self.process
        process.inside = None
        process.lock.release()
        if process.postponed:
            process.redo_postponed()

    def after_fork_in_child(self) -> None:
        """Begin without a slot, with the index as the parent has read it."""
        parent = self._parent = self.process  # freeing it would copy all its pages
        self.process = self._next_child
        self.row.cells = NO_CELLS
        if parent.waiting or parent.old_rows:
            self._empty_rows(parent)

    def reset_in_child(self) -> None:
        """Begin without a slot and an index: a thread of the parent may have been changing them."""
        parent = self.process
        self._empty_rows(parent)
        self.process = self._next_child = ProcessState(self._clock)
        self.process.identity, self.process.started = parent.identity, estimated_start()
        self.row = Row()
        self.index = None

    def _empty_rows(self, parent: ProcessState) -> None:
        """Drop the cells of the parent's rows."""
        for row in (self.row, parent.memory.row, *parent.old_rows):
            row.empty()
