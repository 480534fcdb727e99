"""The state of a session in one process. A forked child begins with a new one."""

from __future__ import annotations

import mmap
import threading
from collections import deque
from collections.abc import Callable
from threading import get_ident
from typing import TypeVar

from jobmetrics.log_throttle import LOG_INTERVAL
from jobmetrics.registry.cells import BoundSeries, Memory, Row
from jobmetrics.registry.index import SeriesIndex
from jobmetrics.registry.layout import ProcessIdentity
from jobmetrics.registry.slots import Slot

Result = TypeVar("Result")


class ProcessState:
    """A session's slot and its series that wait for cells, in one process.

    lock: of the slow path; inside: ident of the thread in the slow path; slot: the held one; identity: incomplete until
    a slot is leased; started: as `ProcessIdentity.start`, 0 until then; waiting: series bound to memory; contended:
    another process had the index lock, so the next try does not wait for it; disk_full: the last failure was a full
    disk.
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
        self.patient_until = 0.0  # time.monotonic(): at the process's end, waits for locks last until then
        self.has_exit_hook = False
        self.postponed: deque[tuple[Callable[[float], object], float]] = deque()
        self.left_behind: dict[
            int, float
        ] = {}  # by cell: this process's share of sum gauges in slots that it has given up
        self.old_slots: list[Slot] = []  # of earlier generations, held until the process ends
        self.old_rows: list[Row] = []
        self.moved_from: list[tuple[SeriesIndex, Slot]] = []  # earlier generations with running executions
        self.dropped_updates: dict[tuple[str, str], int] = {}  # by reason and metric
        self.dropped_series = 0
        self.killed_workers: dict[str, int] = {}  # by job system, not counted yet

    def redo_postponed(self) -> None:
        """Record the updates that a signal handler or a finaliser made while its thread was in the slow path."""
        while self.postponed:
            try:
                redo, value = self.postponed.popleft()
            except IndexError:  # another thread took it
                return
            redo(value)

    def give_up_slot(self) -> None:
        """Give up the slot for another one of its generation. This process's share of sum gauges stays in it."""
        if self.slot is not None:
            for cell, left in self.slot.left.copy().items():
                self.left_behind[cell] = self.slot.cells[cell] - left
            self.slot = None

    def in_slow_path(self, step: Callable[..., Result], *arguments: object) -> Result:
        """Call `step` with the lock held and this thread as `inside`.

        A signal handler may raise a time limit at any call here, a context manager written in Python included, but not
        between `with` a lock and its body, nor on entering `finally`.
        """
        with self.lock:
            before, self.inside = self.inside, get_ident()
            try:
                return step(*arguments)
            finally:
                self.inside = before


_LEASED_LAST, _INDEX_LENGTH = range(2)
_LOST = {"disk full": 2, "process ended": 3}  # by reason
_LIMIT_LOGGED = 4


class ForkHints:
    """Hints in memory that forked processes share. An outdated hint costs only time.

    leased_last: number of the slot leased last, which the next child tries first; index_length: bytes of the index
    after the last append. The updates that are lost at a child's end are counted here too, and the last log line about
    the limit of series is noted: each forked process would write one.
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

    def is_limit_log_due(self, now: float) -> bool:
        """Whether no process has logged the limit of series for LOG_INTERVAL. now: monotonic seconds."""
        logged = self._words[_LIMIT_LOGGED]
        if logged and now + 1.0 - logged < LOG_INTERVAL:
            return False
        self._words[_LIMIT_LOGGED] = int(now) + 1  # 0 is never
        return True

    def lost(self, reason: str, updates: int) -> None:
        """Count the updates left in this process's memory at its end.

        Of two processes that end at the same time, one may not be counted.
        """
        self._words[_LOST[reason]] += updates

    def take_lost(self) -> dict[str, int]:
        """Return and reset the lost updates by reason. Each update is returned to one of the processes."""
        taken = {}
        for reason, word in _LOST.items():
            if self._words[word]:
                taken[reason], self._words[word] = self._words[word], 0
        return taken


# Causes of failures. Each has a separate pause.
LOAD = "load"  # opening or making the index
LEASE = "lease"  # leasing a slot
INDEX = "index"  # appending to the index
GROWTH = "growth"  # enlarging a slot

FIRST_PAUSE = 1.0  # seconds without a try after a failure; for LOAD each further failure doubles them
LONGEST_PAUSE = 30.0  # seconds


class Pauses:
    """The pauses of one process, by cause; no child inherits them. clock: monotonic seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._known: dict[str, tuple[float, float]] = {}  # length in seconds, and end

    def is_over(self, cause: str) -> bool:
        """Whether a try is allowed."""
        known = self._known.get(cause)
        return known is None or self._clock() >= known[1]

    def failed(self, cause: str) -> None:
        """Begin a pause after a failed try."""
        seconds = FIRST_PAUSE
        if cause == LOAD and cause in self._known:
            seconds = min(LONGEST_PAUSE, self._known[cause][0] * 2)
        self._known[cause] = seconds, self._clock() + seconds

    def succeeded(self, cause: str) -> bool:
        """End the pause after a successful try. Returns whether the try before it failed."""
        return self._known.pop(cause, None) is not None

    def end(self) -> None:
        """End all pauses."""
        self._known.clear()
