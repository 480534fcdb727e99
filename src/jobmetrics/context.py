"""The job that runs now, as a context variable: it follows threads and asyncio tasks where Python does."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

from jobmetrics.events import Job

if TYPE_CHECKING:
    from jobmetrics.registry.journal import Journal


class Execution:
    """One execution that this process runs. started_at: epoch seconds; clock_start: the recorder's own clock."""

    __slots__ = ("clock_start", "ended", "entry", "execution_id", "forks", "job", "started_at")

    def __init__(
        self,
        job: Job,
        execution_id: str,
        started_at: float,
        clock_start: float,
        entry: tuple[Journal, int] | None,
        forks: int,
    ) -> None:
        self.job = job
        self.execution_id = execution_id
        self.started_at = started_at
        self.clock_start = clock_start
        self.entry = entry
        self.forks = forks  # a forked child's copy is not its own
        self.ended = False


running: ContextVar[Execution | None] = ContextVar("jobmetrics_running", default=None)


def current_execution() -> Execution | None:
    """The execution this code runs in; None outside a job."""
    return running.get()
