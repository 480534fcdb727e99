"""What a session has in one process. A forked child begins with a state of its own."""

from __future__ import annotations

import mmap
import threading
from collections import deque
from collections.abc import Callable
from threading import get_ident
from typing import TypeVar

from jobmetrics.registry.cells import BoundSeries, Memory, Row
from jobmetrics.registry.index import SeriesIndex
from jobmetrics.registry.layout import ProcessIdentity
from jobmetrics.registry.slots import Slot

Result = TypeVar("Result")


class ProcessState:
    """A session's slot and what waits to be written, in one process.

    identity: as far as it is known before a slot is leased; started: as in `ProcessIdentity`, 0 until then; lock: of
    the slow path; inside: the thread that is in there; slot: the one held now; waiting: series that are bound to
    memory; contended: another process had the index lock, and no job waits for it twice; disk_full: what failed last
    failed for want of space.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.lock = threading.RLock()
        self.inside: int | None = None
        self.slot: Slot | None = None
        self.identity = ProcessIdentity()
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


_LEASED_LAST, _INDEX_LENGTH = range(2)
_LOST = {"disk full": 2, "process ended": 3}  # by reason


class ForkHints:
    """leased_last: the slot leased last, where the next child looks first; index_length: of the index, in bytes, as the
    process left it that appended last. A hint may be out of date, which costs nothing but time.

    Besides, the updates are counted here that end with a child.
    """

    __slots__ = ("_words",)

    def __init__(self) -> None:
        self._words = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")

    @property
    def leased_last(self) -> int:
        return self._words[_LEASED_LAST]

    @property
    def index_length(self) -> int:
        return self._words[_INDEX_LENGTH]

    def leased(self, slot: int) -> None:
        self._words[_LEASED_LAST] = slot

    def appended(self, index_length: int) -> None:
        self._words[_INDEX_LENGTH] = max(self._words[_INDEX_LENGTH], index_length)

    def new_index(self) -> None:
        self._words[_INDEX_LENGTH] = 0

    def lost(self, reason: str, updates: int) -> None:
        """Count the updates left in this process's memory at its end.

        Two processes that end in the same instant may count as one.
        """
        self._words[_LOST[reason]] += updates

    def take_lost(self) -> dict[str, int]:
        """Updates that ended with their processes, by reason, since any of the processes took them."""
        taken = {}
        for reason, word in _LOST.items():
            if self._words[word]:
                taken[reason], self._words[word] = self._words[word], 0
        return taken


# What can fail, each with a pause of its own.
LOAD = "load"  # opening or making the index
LEASE = "lease"  # having a slot
INDEX = "index"  # appending to the index
GROWTH = "growth"  # having a larger slot

FIRST_PAUSE = 1.0  # seconds without a try after a failure; for LOAD doubled with each up to
LONGEST_PAUSE = 30.0


class Pauses:
    """The pauses of one process, by cause; no child inherits them. clock: seconds that never go back."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._known: dict[str, tuple[float, float]] = {}  # seconds, and when they are over

    def is_over(self, cause: str) -> bool:
        """Whether one may try."""
        known = self._known.get(cause)
        return known is None or self._clock() >= known[1]

    def failed(self, cause: str) -> None:
        """The try came to nothing."""
        seconds = FIRST_PAUSE
        if cause == LOAD and cause in self._known:
            seconds = min(LONGEST_PAUSE, self._known[cause][0] * 2)
        self._known[cause] = seconds, self._clock() + seconds

    def succeeded(self, cause: str) -> bool:
        """The try came to something. Returns whether the one before had failed."""
        return self._known.pop(cause, None) is not None

    def end(self) -> None:
        """Whatever failed may be tried at once."""
        self._known.clear()
