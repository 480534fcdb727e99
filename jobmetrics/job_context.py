"""The job that runs now, as a context variable.

It follows where Python carries a context along: into asyncio tasks, `asyncio.to_thread` and forked children, and
into threads that are given a copy (`contextvars.copy_context().run`). Once the job has ended it is nobody's, also
in what outlives it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

from jobmetrics import guard

if TYPE_CHECKING:
    from jobmetrics.events import Job
    from jobmetrics.registry.journal import Journal


# Annotations are no texts here: NamedTuple would compile each of them at import.


class Execution:
    """One execution that this process runs.

    series: the recorder's `JobSeries` of its job, found when it started. started_at: epoch seconds; clock_start: the
    recorder's own clock. cpu: its processor seconds so far, less those that cpu_clock showed at its start, if there
    is one; None where nobody can tell. target: seconds within which it should succeed.
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
        series: Any,
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
        job: Job = self.series.job
        return job


class CurrentJob(NamedTuple):
    """What a job may know about itself. started_at: epoch seconds; target: seconds, None when none is declared."""

    system: str
    job_type: str
    queue_name: str
    id: str
    started_at: float
    target: float | None


running: ContextVar[Execution | None] = ContextVar("jobmetrics_running", default=None)


def current_execution() -> Execution | None:
    """The execution this code runs in; None outside a job."""
    execution = running.get()
    return None if execution is None or execution.ended else execution


def current_job() -> CurrentJob | None:
    """The job this code runs in, for logs and the like; None outside a job and in jobs that are not recorded.

    id: the job system's own; for a function under `timed_job`, 16 hexadecimal digits that tell its calls apart.
    """
    execution = current_execution()
    if execution is None:
        return None
    job, known = execution.job, execution.execution_id
    name = known if isinstance(known, str) else f"{known:016x}"
    return CurrentJob(job.system, job.job_type, job.queue_name, name, execution.started_at, execution.target)


_by_job_type: dict[str, float] = {}
_unnamed: list[tuple[object, float]] = []


def declare(task: object, seconds: float) -> None:
    """Note the target duration, in seconds, of whatever task this turns out to be."""
    _unnamed.append((task, seconds))


def of(job_type: str) -> float | None:
    """The declared target duration of a job type, in seconds; None when none is declared."""
    for entry in list(_unnamed):
        task, seconds = entry
        try:
            _by_job_type[str(task.name)] = seconds  # type: ignore[attr-defined]  # a task of the job system
            _unnamed.remove(entry)
        except Exception as error:  # the task's app is not ready, or whatever a lazy object raises
            if guard.passes(error):
                raise
    return _by_job_type.get(job_type)
