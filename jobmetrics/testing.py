"""Helpers to test instrumented code: a temporary registry, a clock, and the recorded values.

    from jobmetrics.testing import read_sample

    def test_rows_are_counted(jobmetrics_registry):
        load_rows(3)
        assert read_sample("rows_total", {"table": "orders"}) == 3.0

The package includes the fixture `jobmetrics_registry`. Errors of jobmetrics are raised in its tests instead of counted.
No extra is needed, because this module reads registries with the standard library.
"""

from __future__ import annotations

import itertools
import math
import os
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial, reduce

from jobmetrics import recorder, settings
from jobmetrics.errors import DirectoryMissing, JobmetricsError, RegistryError
from jobmetrics.events import Ended, Job, Lost, Published, Started, Withdrawn
from jobmetrics.families import (
    COUNTER,
    ERASED,
    HIGH_WATER,
    HISTOGRAM,
    JOBS_ACTIVE_OLDEST,
    JOURNAL,
    LIVE_SUM,
    MAX,
    MIN,
    SUM,
    Family,
)
from jobmetrics.instruments import follow
from jobmetrics.job_context import Execution
from jobmetrics.recorder import Recorder
from jobmetrics.registry import (
    INDEX_NAME,
    Directory,
    Placement,
    SeriesIndex,
    SlotHeader,
    Writer,
    current,
    extreme,
    is_ready,
    owner_and_running,
    parse_index,
    slot_name,
)

__all__ = [
    "CountingClock",
    "JobRecord",
    "RecordedJobs",
    "read_sample",
    "record_jobs",
    "temporary_registry",
]


class CountingClock:
    """A clock that a test controls, so that durations are exact.

    readings: how often it was called.

    Args:
        now: The first reading, in seconds.
        step: Seconds that pass at each reading.

    Example:
        >>> from jobmetrics.testing import CountingClock
        >>> clock = CountingClock()
        >>> clock.advance(1.5)
        >>> clock()
        1.5
    """

    def __init__(self, now: float = 0.0, step: float = 0.0) -> None:
        self.now = now
        self.step = step
        self.readings = 0

    def __call__(self) -> float:
        now = self.now
        self.now += self.step
        self.readings += 1
        return now

    def advance(self, seconds: float) -> None:
        """Advance the clock by this many seconds."""
        self.now += seconds


@dataclass
class JobRecord:
    """One execution in a `record_jobs` block. Durations are in seconds.

    status, duration: None while it runs. cpu_seconds: the CPU time that the job system reported, if any. stages: names
    and durations, in the order in which they ended.
    """

    job: Job
    status: str | None = None
    error: BaseException | str | None = None
    duration: float | None = None
    cpu_seconds: float | None = None
    target: float | None = None
    items: float = 0.0
    stages: list[tuple[str, float]] = field(default_factory=list)


class RecordedJobs(Recorder):
    """The jobs of a `record_jobs` block, kept in memory.

    executions: in the order in which they started. events: published, withdrawn and lost jobs, in the order of the
    events.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        off = settings.load({}, enabled=False)
        super().__init__(Writer(off), off, clock=clock)
        self.executions: list[JobRecord] = []
        self.events: list[Published | Withdrawn | Lost] = []
        self._of: dict[Execution, JobRecord] = {}

    def started(self, event: Started) -> Execution | None:
        execution = super().started(event)
        if execution is not None:
            self.executions.append(self._record_of(execution))
        return execution

    def ended(self, execution: Execution, event: Ended) -> None:
        if execution.ended:
            return
        execution.ended = True
        record = self._record_of(execution)
        record.status, record.error, record.cpu_seconds = event.status, event.error, event.cpu_seconds
        seconds = self.clock() - execution.clock_start
        record.duration = seconds if event.run_seconds is None else event.run_seconds

    def lost(self, event: Lost) -> bool:
        self.events.append(event)
        return True

    def withdrawn(self, event: Withdrawn) -> None:
        self.events.append(event)

    def published(self, event: Published) -> None:
        self.events.append(event)

    def set_target(self, execution: Execution, seconds: float) -> None:
        super().set_target(execution, seconds)
        self._record_of(execution).target = seconds

    def stage(self, execution: Execution, name: str, seconds: float) -> None:
        self._record_of(execution).stages.append((name, seconds))

    def add_items(self, execution: Execution, count: float) -> None:
        self._record_of(execution).items += count

    def _record_of(self, execution: Execution) -> JobRecord:
        return self._of.setdefault(execution, JobRecord(execution.job))


@contextmanager
def record_jobs(clock: Callable[[], float] = time.perf_counter) -> Iterator[RecordedJobs]:
    """Record the jobs of this block in memory instead of a directory.

    Args:
        clock: Returns seconds, for durations.

    Yields:
        The recorded jobs.

    Example:
        >>> from jobmetrics import timed_job
        >>> from jobmetrics.testing import record_jobs
        >>> with record_jobs() as recorded:
        ...     timed_job(print)("sent")
        sent
        >>> [execution.status for execution in recorded.executions]
        ['success']
    """
    before = settings.peek()
    made = RecordedJobs(clock)
    settings.configure(enabled=False, propagate_errors=True)
    recorder.use(made)
    try:
        yield made
    finally:
        recorder.use(None)
        settings.use(before)


@contextmanager
def temporary_registry(clock: Callable[[], float] | None = None, **keywords: object) -> Iterator[str]:
    """Record into a temporary registry directory in this block. Not thread-safe.

    Args:
        clock: Returns seconds, for the durations of jobs and stages.
        keywords: Settings by name.

    Yields:
        The path of the directory.

    Example:
        >>> from jobmetrics import increment
        >>> from jobmetrics.testing import read_sample, temporary_registry
        >>> with temporary_registry():
        ...     increment("shop_orders", region="eu")
        ...     read_sample("shop_orders_total", {"region": "eu"})
        1.0
    """
    before = settings.peek()
    with tempfile.TemporaryDirectory(prefix="jobmetrics-") as parent:
        made = settings.configure(dir=os.path.join(parent, "registry"), propagate_errors=True, **keywords)  # noqa: PTH118 - settings take strings
        writer = current.writer()
        follow(writer)
        if clock is not None:
            recorder.use(Recorder(writer, made, clock=clock))
        try:
            yield made.dir
        finally:
            recorder.use(None)
            settings.use(before)
            if before is not None:
                follow(current.writer())
            if writer.slot is not None and writer.slot.is_held():
                writer.slot.release()


def read_sample(name: str, labels: Mapping[str, str] | None = None, *, directory: str | None = None) -> float | None:
    """Read the value of one sample as the exporter would show it.

    Args:
        name: The name with its suffix: rows_total, rows_seconds_count, rows_seconds_sum or, with the label le,
            rows_seconds_bucket.
        labels: All labels of the sample.
        directory: The registry directory; that of the active settings if None.

    Returns:
        The value, or None without such a sample.

    Raises:
        JobmetricsError: The directory cannot be read.

    Example:
        >>> from jobmetrics import observe
        >>> from jobmetrics.testing import read_sample, temporary_registry
        >>> with temporary_registry():
        ...     observe("shop_basket_items", 3)
        ...     read_sample("shop_basket_items_sum")
        3.0
    """
    found = _Reading.of(directory or settings.active().dir)
    return None if found is None else found.sample(name, dict(labels or {}))


@dataclass
class _Row:
    """One slot. live: whether a live process owns it. running: first cell and start of each running execution."""

    cells: array[float]
    live: bool = False
    running: list[tuple[int, float]] = field(default_factory=list)


@dataclass
class _Reading:
    """A reader like the exporter's, with plain loops instead of numpy and without the handling of damaged files.

    A test compares the two readers.
    """

    index: SeriesIndex
    rows: list[_Row]

    @classmethod
    def of(cls, path: str) -> _Reading | None:
        """Read a directory; None before anything is recorded there."""
        directory = Directory(path)
        try:
            directory.check()
            data = _content(directory, INDEX_NAME)
            slots = [(directory, slot_name(number)) for number in directory.slots()]
        except (DirectoryMissing, FileNotFoundError):
            return None
        except OSError as error:
            raise JobmetricsError(f"{path} cannot be read: {error.strerror}") from None
        index = parse_index(data)
        return cls(index, [row for slot in slots if (row := _row(*slot, index.identity)) is not None])

    def sample(self, name: str, labels: dict[str, str]) -> float | None:
        for number in self.index.newest.values():
            family = self.index.families[number]
            if family.mode == ERASED or not name.startswith(family.name):
                continue
            bound = labels.get("le") if name == f"{family.name}_bucket" else None
            rest = {label: value for label, value in labels.items() if bound is None or label != "le"}
            if rest.keys() != set(family.labels):
                continue
            values = tuple(rest[label] for label in family.labels)
            place = self.index.series.get((number, values))
            value = None if place is None else self._value(family, values, place, name, bound)
            if value is not None:
                return value
        return None

    def _value(
        self, family: Family, values: tuple[str, ...], place: Placement, name: str, bound: str | None
    ) -> float | None:
        if family.mode == JOURNAL:
            starts = [start for row in self.rows for first, start in row.running if first == place.first]
            if name == JOBS_ACTIVE_OLDEST.name:
                return min((start for start in starts if not math.isnan(start)), default=None)
            return float(len(starts)) if name == family.name else None
        hidden, erased = self._erased(family, values)
        if family.type in (COUNTER, HISTOGRAM):
            cells = [self._sum(place.first + n) for n in range(place.width)]
            if erased is not None:
                cells = [cell - self._sum(erased + n) for n, cell in enumerate(cells)]
            if hidden and not any(cells):
                return None
            return (
                _of_histogram(family, cells, name, bound)
                if family.type == HISTOGRAM
                else _named(family, name, cells[0])
            )
        value = self._gauge(family.mode, place.first)
        return None if value is None or (hidden and not value) else _named(family, name, value)

    def _sum(self, cell: int) -> float:
        return math.fsum(row.cells[cell] for row in self.rows if cell < len(row.cells))

    def _erased(self, family: Family, values: tuple[str, ...]) -> tuple[bool, int | None]:
        """Whether a series was removed and not created again, and the first cell of its erased values."""
        place = self.index.find_erased(family, values)
        if place is None:
            return False, None
        stamps = place.first + place.width - 2
        removed, shown = (
            max((row.cells[cell] for row in self.rows if cell < len(row.cells)), default=0.0)
            for cell in (stamps, stamps + 1)
        )
        return removed > shown, place.first

    def _gauge(self, mode: str, first: int) -> float | None:
        if mode == SUM:
            return self._sum(first)
        if mode == LIVE_SUM:
            return math.fsum(row.cells[first] for row in self.rows if row.live and first < len(row.cells))
        pairs = [(row.cells[first], row.cells[first + 1]) for row in self.rows if first + 1 < len(row.cells)]
        if mode in (MAX, MIN):
            return reduce(partial(extreme, mode), itertools.chain.from_iterable(pairs), 0.0) + 0.0
        # The first cell is the time of the update, or whether there was one.
        found = [pair for pair in pairs if pair[0]]
        return max(found, key=lambda pair: pair[mode == HIGH_WATER])[1] if found else None


def _content(directory: Directory, name: str) -> bytes:
    with os.fdopen(directory.open(name, os.O_RDONLY), "rb") as file:
        return file.read()


def _row(directory: Directory, name: str, identity: bytes) -> _Row | None:
    """Read one slot; None if it has another generation, is damaged or does not exist any more."""
    try:
        with os.fdopen(directory.open(name, os.O_RDONLY), "rb") as file:
            live = is_ready(file.fileno())
            data = file.read()
        header = SlotHeader.unpack(data)
    except (OSError, RegistryError):
        return None
    if header.identity != identity:
        return None
    row = _Row(array("d", data[header.cells_offset :]))
    if live:
        owner, running = owner_and_running(data, header)
        row.live = owner is not None
        row.running = [(entry.series, entry.start) for entry in running]
    return row


def _named(family: Family, name: str, value: float) -> float | None:
    return value if name == family.name else None


def _of_histogram(family: Family, cells: list[float], name: str, bound: str | None) -> float | None:
    *buckets, total = cells
    if name == f"{family.name}_count":
        return math.fsum(buckets)
    if name == f"{family.name}_sum":
        return total
    bounds = (*family.buckets, math.inf)
    if bound is None or float(bound) not in bounds:
        return None
    return math.fsum(count for limit, count in zip(bounds, buckets, strict=True) if limit <= float(bound))
