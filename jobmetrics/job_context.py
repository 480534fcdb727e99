"""The job that runs now, as a context variable.

It follows where Python carries a context along: into asyncio tasks, `asyncio.to_thread` and forked children, and
into threads that are given a copy (`contextvars.copy_context().run`). A job that has ended is not current, also in
what outlives it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple, Protocol

from jobmetrics import guard, runtime

if TYPE_CHECKING:
    from jobmetrics.events import Ended, Job
    from jobmetrics.instruments import BoundCounter, BoundGauge, BoundHistogram
    from jobmetrics.registry import BoundSeries, Journal


# No `from __future__ import annotations`: NamedTuple would compile each string at import.


class ExecutionRecorder(Protocol):
    """What a running execution asks of its recorder, which is a layer above."""

    @property
    def clock(self) -> Callable[[], float]:
        """Seconds that never go back."""

    @property
    def thread_cpu(self) -> Callable[[], float]:
        """Processor seconds of the calling thread."""

    def ended(self, execution: Execution, event: Ended) -> None:
        """Record the end of an execution of this process."""

    def abandoned(self, execution: Execution) -> None:
        """Leave the end of an execution to be recorded by another process."""

    def set_target(self, execution: Execution, seconds: float) -> None:
        """Declare the duration within which an execution should succeed."""

    def stage(self, execution: Execution, name: str, seconds: float) -> None:
        """Record the duration of a named part of an execution."""

    def add_items(self, execution: Execution, count: float) -> None:
        """Add to the items that an execution has done."""


class ExecutionSeries(Protocol):
    """Where an execution is recorded: its recorder, and the series of its job's labels."""

    @property
    def recorder(self) -> ExecutionRecorder:
        """What records it."""

    @property
    def job(self) -> Job:
        """Its job."""

    @property
    def labels(self) -> tuple[str, str, str]:
        """Its job's label values, shortened where they are too long."""

    @property
    def active(self) -> BoundSeries:
        """jobs_active."""

    @property
    def duration(self) -> BoundHistogram:
        """jobs_duration_seconds."""

    @property
    def cpu(self) -> BoundCounter:
        """jobs_cpu_seconds_total."""

    @property
    def success(self) -> BoundCounter:
        """jobs_total with the status success."""

    @property
    def last_success(self) -> BoundGauge:
        """jobs_last_success_timestamp_seconds."""


class Execution:
    """One execution that this process runs.

    series: found when it started. started_at: epoch seconds; clock_start: the recorder's own clock. cpu: its processor
    seconds so far, less those that cpu_clock showed at its start, if there is one; None where they cannot be known.
    target: seconds within which it should succeed.
    """

    __slots__ = (
        "clock_start",
        "cpu",
        "cpu_clock",
        "ended",
        "entry",
        "execution_id",
        "forks",
        "series",
        "started_at",
        "target",
    )

    def __init__(
        self,
        series: ExecutionSeries,
        execution_id: str | int,
        started_at: float,
        clock_start: float,
        entry: tuple[Journal, int] | None,
        forks: int,
    ) -> None:
        self.series = series
        self.execution_id = execution_id
        self.started_at = started_at
        self.clock_start = clock_start
        self.entry = entry
        self.forks = forks  # a forked child's copy is not its own
        self.ended = False
        self.target: float | None = None
        self.cpu: float | None = 0.0
        self.cpu_clock: Callable[[], float] | None = None

    @property
    def job(self) -> Job:
        """Whose execution it is."""
        return self.series.job

    @property
    def recorder(self) -> ExecutionRecorder:
        """What records it."""
        return self.series.recorder

    def cpu_seconds(self) -> float | None:
        """Processor seconds that it has taken so far; None where they cannot be known."""
        if self.cpu is None or self.cpu_clock is None:
            return self.cpu
        return self.cpu + self.cpu_clock()


class CurrentJob(NamedTuple):
    """What a job may know about itself. started_at: epoch seconds; target: seconds, None when none is declared."""

    system: str
    job_type: str
    queue_name: str
    id: str
    started_at: float
    target: float | None


# Not in the runtime: Python itself carries a context variable along, and each has one name in a process.
running: ContextVar[Execution | None] = ContextVar("jobmetrics_running", default=None)


def current_execution() -> Execution | None:
    """The execution this code runs in; None outside a job."""
    execution = running.get()
    return None if execution is None or execution.ended else execution


def current_job() -> CurrentJob | None:
    """The job this code runs in, for logs and the like; None outside a job and in jobs that are not recorded.

    id: the job system's own; for a function under `timed_job`, 16 hexadecimal digits, different for each call.
    """
    execution = current_execution()
    if execution is None:
        return None
    job, known = execution.job, execution.execution_id
    name = known if isinstance(known, str) else f"{known:016x}"
    return CurrentJob(job.system, job.job_type, job.queue_name, name, execution.started_at, execution.target)


class DeclaredTargets:
    """Target durations in seconds: by job type, and of tasks whose names are not known yet."""

    def __init__(self) -> None:
        self.by_job_type: dict[str, float] = {}
        self.unnamed: list[tuple[object, float]] = []


def declare(task: object, seconds: float) -> None:
    """Note the target duration, in seconds, of whatever task this turns out to be."""
    runtime.state(DeclaredTargets).unnamed.append((task, seconds))


def of(job_type: str) -> float | None:
    """The declared target duration of a job type, in seconds; None when none is declared."""
    targets = runtime.state(DeclaredTargets)
    for entry in list(targets.unnamed):
        task, seconds = entry
        try:
            targets.by_job_type[str(task.name)] = seconds  # type: ignore[attr-defined]  # a task of the job system
            targets.unnamed.remove(entry)
        except Exception as error:  # the task's app is not ready, or whatever a lazy object raises
            if guard.passes(error):
                raise
    return targets.by_job_type.get(job_type)
