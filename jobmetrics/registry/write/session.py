"""One process's hold on a registry directory: an index and a slot, kept through forks and new generations."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from threading import get_ident

from jobmetrics import guard
from jobmetrics.errors import JobmetricsError
from jobmetrics.registry.cells import NO_CELLS, PresentCell, Row
from jobmetrics.registry.directory import Directory
from jobmetrics.registry.index import LOCK_WAIT, Contended, IndexFile, Moved, SeriesIndex
from jobmetrics.registry.slots import NO_SPACE, Holder, Slot, SlotPlan, fork_moment, process_start
from jobmetrics.registry.write import fork_hooks
from jobmetrics.registry.write.fork_hooks import FORK_WAIT, Beginning
from jobmetrics.registry.write.lease import acquire
from jobmetrics.registry.write.process import GROWTH, INDEX, LEASE, LOAD, ProcessState, SharedHints
from jobmetrics.settings import Settings

logger = logging.getLogger("jobmetrics")

CHECK_INTERVAL = 1.0  # seconds between two looks at the index's identity

_PLACES = {LOAD: "lease", LEASE: "lease", INDEX: "index", GROWTH: "index"}  # what errors are counted under

SUPPORTED = sys.platform != "win32"


class Holding:
    """Nothing is opened until a slot is asked for.

    _row: what this process's series record into; _index, its slot and _row are of one generation.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.enabled = settings.enabled and SUPPORTED
        if settings.enabled and not SUPPORTED:
            logger.warning("jobmetrics: nothing is recorded on this platform; jobs run as ever")
        self.directory = Directory(settings.dir, settings.dir_group)
        self._file = IndexFile(self.directory, settings.max_series)
        self.process = self._next = ProcessState(clock)
        self._index: SeriesIndex | None = None
        self._plan: SlotPlan | None = None
        self._row = Row()
        self.check_at = 0.0
        self._shared = SharedHints()
        fork_hooks.follow(self)

    @property
    def slot(self) -> Slot | None:
        """The slot this process holds now."""
        return self.process.slot

    @property
    def lock(self) -> threading.RLock:
        """What builds without the GIL record under; another one after a fork."""
        return self.process.lock

    # ---------------------------------------------------------------- index, slot, generations

    def _ready(self) -> bool:
        """Have an index and a slot, unless getting them failed a moment ago."""
        if self._index is not None and self.process.slot is not None:
            return True
        return self._has_index() and self._has_slot()

    def _has_index(self) -> bool:
        if self._index is not None:
            return True
        if not self.process.pauses.is_over(LOAD):
            return False
        try:
            self._index = self._file.load(self._lock_wait())
            self.check_at = self.clock() + CHECK_INTERVAL
        except (OSError, ValueError, JobmetricsError) as error:
            self._failed(LOAD, error)
            return False
        self._succeeded(LOAD)
        return True

    def _has_slot(self) -> bool:
        if self.process.slot is not None:
            return True
        if self._index is None or not self.process.pauses.is_over(LEASE):
            return False
        try:
            self._lease(self._index)
        except (OSError, ValueError, JobmetricsError) as error:
            self._failed(LEASE, error)
            return False
        self._succeeded(LEASE)
        return True

    def _lock_wait(self) -> float:
        """Seconds to wait for the index lock. Who met it held once does not wait again before it was free."""
        if self.process.patient_until:
            return max(0.0, self.process.patient_until - time.monotonic())
        return 0.0 if self.process.contended else LOCK_WAIT

    def _plan_for(self, index: SeriesIndex) -> SlotPlan:
        plan = self._plan
        if plan is None or plan.identity != index.identity:
            plan = self._plan = SlotPlan(self.directory, index.identity, self.process.holder.capacity)
        return plan

    def _lease(self, index: SeriesIndex) -> None:
        slot = acquire(
            self._plan_for(index),
            self.process.holder,
            cells=max(index.next_cell, 1),
            present_cells=lambda: self._present_cells(index),
            hint=self._shared.leased_last,
            started=self.process.started or process_start(),
        )
        self._shared.leased(slot.number, by_child=self.process.started != 0)
        self.process.slot = slot
        self._row.cells = slot.cells

    def _present_cells(self, index: SeriesIndex) -> list[PresentCell]:
        try:
            self._file.refresh(index)
        except (Moved, OSError, ValueError, JobmetricsError):
            pass  # whatever is wrong with the index, the next look at it will tell
        self._shared.appended(index.fed_to)  # this process may now bind what its parent has not heard of
        return index.present_cells

    def _failed(self, cause: str, error: Exception) -> None:
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

    def _move(self) -> None:
        """Follow the directory to its new index. The old slot stays held: a thread may be about to write there."""
        if self.process.slot is not None and self._index is not None:
            self.process.old_slots.append(self.process.slot)
            self.process.moved_from.append((self._index, self.process.slot))
        self.process.slot = self._index = None
        self.process.left_behind.clear()
        self._shared.new_index()
        self._leave_row()
        logger.info("jobmetrics: %s has a new index, recording goes on there", self.directory.path)

    def _leave_row(self) -> None:
        """Have another row from now on. A series takes its present value along when it finds its cells there."""
        self._row.before, self._row.cells = self._row.cells, NO_CELLS
        self.process.old_rows.append(self._row)
        self._row = Row()

    def prepare(self, system: str, role: str) -> None:
        """For parents, before they fork a child that records: what is read here, no child needs to read.

        The index is read or made, no slot is leased before the fork. system, role: as the child will `describe` itself.
        """
        if self.process.child_holder is None:
            self.process.child_holder = _holder(system, role, 1)
        now, index = self.clock(), self._index
        if index is not None and now < self.check_at and self._shared.index_length <= index.fed_to:
            return  # nothing that children of this process have appended since
        self.process.in_slow_path(self._read_index, now)

    def _read_index(self, now: float) -> None:
        try:
            if self._index is not None:
                self._file.refresh(self._index)
            elif self.enabled:
                self._has_index()
            self.check_at = now + CHECK_INTERVAL
        except Moved:
            self._move()
        except (OSError, ValueError, JobmetricsError) as error:
            guard.note("index", error)

    def describe(self, system: str, role: str, capacity: int = 1) -> None:
        """Say what this process is, for its slot's owner record. capacity: jobs it can run at once."""
        holder = _holder(system, role, capacity)
        if holder != self.process.holder:
            self.process.in_slow_path(self._be, holder)

    def _be(self, holder: Holder) -> None:
        if holder.capacity != self.process.holder.capacity:
            self._plan = None
        self.process.holder = holder
        if self.process.slot is None:
            return
        if self.process.slot.is_roomy(holder.capacity):
            self.process.slot.describe(holder, self.process.started or process_start(), os.getpid())
        else:  # its journal is too short: lease another, and keep this one for what runs
            self.process.old_slots.append(self.process.slot)
            self.process.give_up_slot()
            self._leave_row()

    # ---------------------------------------------------------------- forks

    def before_fork(self) -> Beginning | None:
        """In the thread that forks: the child's slot is leased if one may think that it will record."""
        process = self.process
        if process.inside == get_ident() or not process.lock.acquire(timeout=FORK_WAIT):
            return None
        process.inside = get_ident()  # until the fork is over: what a signal handler records meanwhile waits
        try:
            return self._beginning(fork_moment())
        except BaseException:
            process.inside = None
            process.lock.release()
            raise

    def _beginning(self, started: int) -> Beginning:
        process = self.process
        if self._next is process:
            self._next = ProcessState(self.clock)
        self._offer(started)
        self._next.follow(process, started)
        slot, emptied = self._next.slot, process.rows_of_its_own() or None
        if slot is None:
            return self, self._next, self._row, NO_CELLS, None, emptied
        return self, self._next, self._row, slot.cells, slot.pid_word, emptied

    def _offer(self, started: int) -> None:
        process, index = self.process, self._index
        if index is None or not (process.child_holder or self._shared.children_record):
            return
        try:
            process.handover.offer(
                self._plan_for(index),
                process.child_holder or process.holder,
                cells=max(index.next_cell, 1),
                present_cells=lambda: self._present_cells(index),
                unchanged=index.present_cells if self._shared.index_length <= index.fed_to else None,
                hint=self._shared.leased_last,
                started=started,
            )
        except (OSError, ValueError, JobmetricsError) as error:
            guard.note("lease", error)

    def after_fork_in_parent(self) -> None:
        """The lease that was taken for the child is the child's alone; what was postponed meanwhile is done."""
        process = self.process
        try:
            if process.handover.slot is not None:
                process.handover.close()
        except OSError as error:
            guard.note("lease", error)
        finally:  # also when that raises
            process.inside = None
            process.lock.release()
        if process.postponed:
            process.redo_postponed()

    def begin_anew(self) -> None:
        """In a child: what a thread of the parent left half done is read anew."""
        parent = self.process
        for row in (self._row, parent.memory.row, *parent.old_rows):  # a thread may have been emptying its memory
            row.empty()
        self.process = ProcessState(self.clock)
        self.process.holder, self.process.started = parent.holder, fork_moment()
        self._row = Row()
        self._index = None


def _holder(system: str, role: str, capacity: int) -> Holder:
    return Holder(system.encode("ascii", "replace"), role.encode("ascii", "replace"), capacity)
