"""The running job, in a context variable.

Python copies the context into asyncio tasks, `asyncio.to_thread` and forked children. Other threads need an explicit
copy (`contextvars.copy_context().run`). A job that has ended is not current any more, even in tasks that outlive it.
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


class ExecutionRecorder(Protocol):
    """The methods of the recorder that a running execution uses. The recorder itself is in a higher layer."""

    @property
    def clock(self) -> Callable[[], float]:
        """A monotonic clock, in seconds."""

    @property
    def thread_cpu(self) -> Callable[[], float]:
        """The clock of the calling thread's CPU time, in seconds."""

    def ended(self, execution: Execution, event: Ended) -> None:
        """Record the end of an execution of this process."""

    def abandoned(self, execution: Execution) -> None:
        """Leave the end of an execution to be recorded by another process."""

    def set_target(self, execution: Execution, seconds: float) -> None:
        """Declare the duration, in seconds, within which an execution should succeed."""

    def stage(self, execution: Execution, name: str, seconds: float) -> None:
        """Record the duration, in seconds, of a named part of an execution."""

    def add_items(self, execution: Execution, count: float) -> None:
        """Add to the items that an execution has processed."""


class ExecutionSeries(Protocol):
    """The recorder of an execution, and the series of its job's labels."""

    @property
    def recorder(self) -> ExecutionRecorder:
        """The recorder."""

    @property
    def job(self) -> Job:
        """The job."""

    @property
    def labels(self) -> tuple[str, str, str]:
        """The job's label values, truncated to the maximum length."""

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
    """An execution in this process.

    started_at: epoch seconds. clock_start: the reading of the recorder's clock at the start. cpu: its CPU seconds so
    far, minus the reading of cpu_clock at the start if there is a cpu_clock; None if unknown. target: seconds within
    which it should succeed.
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
        self.forks = forks  # a copy in a forked child has an older number
        self.ended = False
        self.target: float | None = None
        self.cpu: float | None = 0.0
        self.cpu_clock: Callable[[], float] | None = None

    @property
    def job(self) -> Job:
        """The job."""
        return self.series.job

    @property
    def recorder(self) -> ExecutionRecorder:
        """The recorder."""
        return self.series.recorder

    def cpu_seconds(self) -> float | None:
        """Return its CPU time so far, in seconds; None if unknown."""
        if self.cpu is None or self.cpu_clock is None:
            return self.cpu
        return self.cpu + self.cpu_clock()


class CurrentJob(NamedTuple):
    """A running job, from `current_job`.

    system, job_type, queue_name: the values of its labels. id: the job system's id. started_at: epoch seconds. target:
    seconds within which it should succeed; None if none is declared.

    Example:
        >>> from jobmetrics import CurrentJob
        >>> job = CurrentJob("spool", "shop.resize", "images", "8d9a2c", started_at=1760000000.0, target=2.0)
        >>> f"{job.job_type} {job.id} from {job.queue_name}"
        'shop.resize 8d9a2c from images'
    """

    system: str
    job_type: str
    queue_name: str
    id: str
    started_at: float
    target: float | None


# Not in the runtime: Python copies context variables itself, and the name must be unique in the process.
running: ContextVar[Execution | None] = ContextVar("jobmetrics_running", default=None)


def current_execution() -> Execution | None:
    """Return the execution that runs this code; None outside a job."""
    execution = running.get()
    return None if execution is None or execution.ended else execution


def current_job() -> CurrentJob | None:
    """Return the job that runs this code, for example for logs.

    Returns:
        The job, or None outside a job and in jobs that are not recorded. Its id is the job system's. A function under
        `timed_job` has an id of 16 hexadecimal digits, different for each call.

    Example:
        >>> from jobmetrics import current_job, timed_job
        >>> @timed_job(name="nightly.report")
        ... def report():
        ...     return current_job().job_type
        >>> report()
        'nightly.report'
        >>> current_job() is None
        True
    """
    execution = current_execution()
    if execution is None:
        return None
    job, known = execution.job, execution.execution_id
    name = known if isinstance(known, str) else f"{known:016x}"
    return CurrentJob(job.system, job.job_type, job.queue_name, name, execution.started_at, execution.target)


class DeclaredTargets:
    """Target durations in seconds: by job type, and of tasks without a known name yet."""

    def __init__(self) -> None:
        self.by_job_type: dict[str, float] = {}
        self.unnamed: list[tuple[object, float]] = []


def declare(task: object, seconds: float) -> None:
    """Declare the target duration of a task, in seconds. The name of a lazy task is read later."""
    runtime.state(DeclaredTargets).unnamed.append((task, seconds))


def of(job_type: str) -> float | None:
    """Return the declared target duration of a job type, in seconds; None if none is declared."""
    targets = runtime.state(DeclaredTargets)
    for entry in list(targets.unnamed):
        task, seconds = entry
        try:
            targets.by_job_type[str(task.name)] = seconds  # type: ignore[attr-defined]  # a task of the job system
            targets.unnamed.remove(entry)
        except Exception as error:  # the app is not ready, or the lazy object raises something else
            if guard.passes(error):
                raise
    return targets.by_job_type.get(job_type)
