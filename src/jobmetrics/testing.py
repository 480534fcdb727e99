"""For people who test their own instrumented code: a registry of the test's own, clocks, and what was recorded.

    from jobmetrics.testing import read_sample, temporary_registry

    @pytest.fixture
    def registry():
        with temporary_registry() as directory:
            yield directory

    def test_rows_are_counted(registry):
        load_rows(3)
        assert read_sample("rows_total", {"table": "orders"}) == 3.0

Errors of jobmetrics surface in here, instead of being counted. Reading wants the extra `jobmetrics[exporter]`.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jobmetrics import recorder, settings
from jobmetrics.context import Execution
from jobmetrics.errors import DirectoryMissing, JobmetricsError
from jobmetrics.events import Job, Lost, Published, Withdrawn
from jobmetrics.families import HISTOGRAM, JOB_LABELS, JOBS_ACTIVE, JOBS_ACTIVE_OLDEST, Family
from jobmetrics.instruments import follow
from jobmetrics.recorder import JobSeries, Recorder
from jobmetrics.registry import current
from jobmetrics.registry.writer import Writer

if TYPE_CHECKING:
    from jobmetrics.registry.snapshot import Sample, Snapshot

__all__ = [
    "CountingClock",
    "Remembered",
    "RememberingRecorder",
    "read_sample",
    "remembering",
    "temporary_registry",
]


class CountingClock:
    """Seconds that pass only when the test says so, and `step` of them at each reading, so durations are exact.

    readings: how often it was asked.
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
        """Let so much time pass."""
        self.now += seconds


@dataclass
class Remembered:
    """One execution as a `RememberingRecorder` saw it. Times are seconds.

    status and duration: None while it runs; cpu_seconds: what the job system said, if it did; stages: names and
    durations in the order of their ends.
    """

    job: Job
    status: str | None = None
    error: BaseException | str | None = None
    duration: float | None = None
    cpu_seconds: float | None = None
    target: float | None = None
    items: float = 0.0
    stages: list[tuple[str, float]] = field(default_factory=list)


class RememberingRecorder(Recorder):
    """Remembers what jobs did and writes no file.

    executions: in the order of their starts; published, withdrawn and lost: the events as they came.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        off = settings.load({}, enabled=False)
        super().__init__(Writer(off), off, clock=clock)
        self.executions: list[Remembered] = []
        self.events: list[Published | Withdrawn | Lost] = []
        self._of: dict[Execution, Remembered] = {}

    def begin(
        self, job: JobSeries, execution_id: str | int, execution: int, ready_at: float | None = None
    ) -> Execution:
        begun = super().begin(job, execution_id, execution, ready_at)
        self.executions.append(self._remembered(begun))
        return begun

    def end(
        self,
        execution: Execution,
        status: str,
        error: BaseException | str | None = None,
        cpu_seconds: float | None = None,
    ) -> None:
        if execution.ended:
            return
        execution.ended = True
        known = self._remembered(execution)
        known.status, known.error, known.cpu_seconds = status, error, cpu_seconds
        known.duration = self.clock() - execution.clock_start

    def lost(self, event: Lost) -> bool:
        self.events.append(event)
        return True

    def withdrawn(self, event: Withdrawn) -> None:
        self.events.append(event)

    def published(self, event: Published) -> None:
        self.events.append(event)

    def set_target(self, execution: Execution, seconds: float) -> None:
        super().set_target(execution, seconds)
        self._remembered(execution).target = seconds

    def stage(self, execution: Execution, name: str, seconds: float) -> None:
        self._remembered(execution).stages.append((name, seconds))

    def items(self, execution: Execution, count: float) -> None:
        self._remembered(execution).items += count

    def _remembered(self, execution: Execution) -> Remembered:
        return self._of.setdefault(execution, Remembered(execution.job))


@contextmanager
def remembering(clock: Callable[[], float] = time.perf_counter) -> Iterator[RememberingRecorder]:
    """Jobs in this block are remembered instead of recorded; clock: seconds, for their durations."""
    before = settings.peek()
    made = RememberingRecorder(clock)
    settings.configure(enabled=False, propagate_errors=True)
    recorder.use(made)
    try:
        yield made
    finally:
        recorder.use(None)
        settings.use(before)


@contextmanager
def temporary_registry(clock: Callable[[], float] | None = None, **keywords: object) -> Iterator[str]:
    """A registry directory for this block alone; everything records into it. Gives its path.

    clock: seconds, for the durations of jobs and stages; keywords: settings. Not for two threads at once.
    """
    before = settings.peek()
    with tempfile.TemporaryDirectory(prefix="jobmetrics-") as parent:
        made = settings.configure(dir=os.path.join(parent, "registry"), propagate_errors=True, **keywords)  # noqa: PTH118 - settings take texts
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
    """One sample's value as the exporter would show it; None when there is no such sample.

    name: with its suffix, as in rows_total, rows_seconds_count, rows_seconds_sum or, with the label le,
    rows_seconds_bucket. labels: all of them. directory: the registry directory, else that of the settings in force.

    Raises:
        JobmetricsError: when the directory cannot be read, or the extra `exporter` is not installed.
    """
    wanted = dict(labels or {})
    found = _snapshot(directory or settings.in_force().dir)
    if found is None:
        return None
    if name in (JOBS_ACTIVE.name, JOBS_ACTIVE_OLDEST.name):
        return next(
            (
                float(entry.count) if name == JOBS_ACTIVE.name else entry.oldest
                for entry in found.active
                if dict(zip(JOB_LABELS, entry.values, strict=True)) == wanted
            ),
            None,
        )
    for family, samples in found.families:
        if not name.startswith(family.name):
            continue
        bound = wanted.get("le") if name == f"{family.name}_bucket" else None
        rest = {label: value for label, value in wanted.items() if bound is None or label != "le"}
        for sample in samples:
            if dict(zip(family.labels, sample.values, strict=True)) == rest:
                value = _value(family, sample, name, bound)
                if value is not None:
                    return value
    return None


def _snapshot(directory: str) -> Snapshot | None:
    try:
        from jobmetrics.registry.snapshot import SnapshotReader
    except ImportError as error:
        raise JobmetricsError(f"reading a registry needs jobmetrics[exporter]: {error}") from None
    reader = SnapshotReader(directory)
    try:
        return reader.read()
    except DirectoryMissing:
        return None
    finally:
        reader.close()


def _value(family: Family, sample: Sample, name: str, bound: str | None) -> float | None:
    if family.type != HISTOGRAM:
        return sample.value if name == family.name else None
    parts: dict[str, Any] = {f"{family.name}_count": sum(sample.buckets), f"{family.name}_sum": sample.sum}
    if bound is not None:
        bounds = (*family.buckets, math.inf)
        upto = [count for limit, count in zip(bounds, sample.buckets, strict=True) if limit <= float(bound)]
        parts[name] = sum(upto) if float(bound) in bounds else None
    return parts.get(name)
