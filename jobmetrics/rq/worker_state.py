"""The state that jobmetrics stores in one attribute of an RQ worker."""

from __future__ import annotations

from typing import Any

from jobmetrics.integration import Recorder
from jobmetrics.rq import SYSTEM
from jobmetrics.rq.fork_horse import ForkedJob, SharedPage
from jobmetrics.rq.outcomes import KilledHorse, RunningJob
from jobmetrics.rq.producer import instrument_queue

_ATTRIBUTE = "_jobmetrics"


class WorkerState:
    """The state of a worker, or of its work-horse, between hooks.

    page: shared with forked work-horses, from the first one on.
    running: the job that this process runs now.
    forked: the job in the forked work-horse, which the worker records.
    exited: the result of wait_for_horse, and the id of the job that an operator had stopped by then.
    is_counted: the death of that work-horse is counted.
    killed: the dead work-horse that RQ is handling.
    is_failing: handle_job_failure is running.
    """

    __slots__ = ("_prepared", "exited", "forked", "is_counted", "is_failing", "killed", "page", "running")

    def __init__(self) -> None:
        self._prepared: tuple[Recorder, str] | None = None
        self.page: SharedPage | None = None
        self.running: RunningJob | None = None
        self.forked: ForkedJob | None = None
        self.exited: tuple[Any, Any] | None = None
        self.is_counted = False
        self.killed: KilledHorse | None = None
        self.is_failing = False

    def prepare(self, worker: Any, record: Recorder) -> None:
        """Describe a worker, or a work-horse that records for itself, before its first job with this recorder."""
        role = "work-horse" if worker.is_horse else "worker"
        if self._prepared == (record, role):
            return
        self._prepared = record, role
        record.writer.describe(SYSTEM, role)
        for queue in worker.queues:
            instrument_queue(queue)


def state_of(worker: Any) -> WorkerState:
    """Return the state of this worker."""
    attributes = vars(worker)  # a user's class may have its own __getattr__ and __setattr__
    known: WorkerState | None = attributes.get(_ATTRIBUTE)
    if known is None:
        known = attributes[_ATTRIBUTE] = WorkerState()
    return known
