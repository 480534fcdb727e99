"""What a writer has in one process. A forked child begins with a state of its own, which its parent has made for it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from threading import get_ident
from typing import TypeVar

from jobmetrics.registry.handover import HandOver
from jobmetrics.registry.index import SeriesIndex
from jobmetrics.registry.memory import Memory, Row
from jobmetrics.registry.owner import Holder
from jobmetrics.registry.pausing import Pauses
from jobmetrics.registry.series import BoundSeries
from jobmetrics.registry.slot import Slot

Result = TypeVar("Result")


class ProcessState:
    """A writer's hold on the directory in one process, and what waits to be written.

    lock: of the slow path; inside: the thread that is in there; slot: the one held now; started: when this process was
    forked, in clock ticks since boot, 0 if it was not; waiting: series that are bound to memory; contended: another
    process had the index lock, and no job waits for it twice; disk_full: what failed last failed for want of space.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.lock = threading.RLock()
        self.inside: int | None = None
        self.slot: Slot | None = None
        self.holder = Holder()
        self.child_holder: Holder | None = None  # what a forked child will say it is, where that is known
        self.started = 0
        self.memory = Memory()
        self.waiting: list[BoundSeries] = []
        self.pauses = Pauses(clock)
        self.retry_at = 0.0  # when `waiting` is tried again
        self.contended = False
        self.disk_full = False
        self.patient_until = 0.0  # on time.monotonic: where the process ends, it waits for locks until then
        self.has_exit_hook = False
        self.postponed: deque[tuple[Callable[[float], object], float]] = deque()
        self.left_behind: dict[int, float] = {}  # by cell: this process's share of sum gauges in slots it has given up
        self.old_slots: list[Slot] = []  # of earlier generations, held until the process ends
        self.old_rows: list[Row] = []
        self.moved_from: list[tuple[SeriesIndex, Slot]] = []  # generations whose running executions go on
        self.dropped_updates: dict[tuple[str, str], int] = {}  # by reason and metric
        self.dropped_series = 0
        self.handover = HandOver()
        self._parent: ProcessState | None = None

    def follow(self, parent: ProcessState, started: int) -> None:
        """In the parent, before a fork: be what the child begins with. started: as `fork_moment` gives it."""
        self.slot, self.started = parent.handover.slot, started
        if self.slot is None:
            self.holder, self.child_holder = parent.holder, parent.child_holder
        else:
            self.holder, self.child_holder = parent.child_holder or parent.holder, None
        self._parent = parent  # or the child would free it, and copy all its pages

    def redo_postponed(self) -> None:
        """What a signal handler or a finaliser recorded meanwhile, in the thread that was in the slow path."""
        while self.postponed:
            try:
                redo, value = self.postponed.popleft()
            except IndexError:  # another thread took it
                return
            redo(value)

    def give_up_slot(self) -> None:
        """It holds another one of the same generation from now on; what its sum gauges have in this one stays there."""
        if self.slot is not None:
            for cell, left in self.slot.left.copy().items():
                self.left_behind[cell] = self.slot.cells[cell] - left
            self.slot = None

    def rows_of_its_own(self) -> list[Row]:
        """Rows besides the slot's whose values are this process's alone."""
        return [*self.old_rows, self.memory.row] if self.old_rows or self.waiting else []

    def in_slow_path(self, step: Callable[..., Result], *arguments: object) -> Result:
        """Call it with the lock held and the thread marked as inside.

        A time limit that a signal handler raises may strike at each call here, also of a context manager of our own,
        but not between a lock's own `with` and its body, nor on the way into `finally`.
        """
        with self.lock:
            before, self.inside = self.inside, get_ident()
            try:
                return step(*arguments)
            finally:
                self.inside = before
