"""What jobmetrics keeps of one RQ worker, in one attribute of it."""

from __future__ import annotations

from typing import Any

from jobmetrics import recorder
from jobmetrics.registry import Writer
from jobmetrics.rq.fork_horse import Forked, SharedPage
from jobmetrics.rq.outcomes import KilledHorse, Performing
from jobmetrics.rq.producer import instrument_queue
from jobmetrics.rq.system import SYSTEM

_ATTRIBUTE = "_jobmetrics"


class WorkerState:
    """The state of a worker, or of its work-horse, from hook to hook.

    page: shared with the work-horses that it forks, from the first one on; performing: the job that this process
    performs now; forked: the work-horse that records together with this worker; exited: what wait_for_horse returned,
    and the id of the job that an operator had stopped by then; is_counted: whether that work-horse's death is counted;
    killed: a death that RQ handles now; is_failing: within handle_job_failure.
    """

    __slots__ = ("_prepared", "exited", "forked", "is_counted", "is_failing", "killed", "page", "performing")

    def __init__(self) -> None:
        self._prepared: tuple[Writer, str] | None = None
        self.page: SharedPage | None = None
        self.performing: Performing | None = None
        self.forked: Forked | None = None
        self.exited: tuple[Any, Any] | None = None
        self.is_counted = False
        self.killed: KilledHorse | None = None
        self.is_failing = False

    def prepare(self, worker: Any, record: recorder.Recorder) -> None:
        """Do what a worker, or a work-horse that records for itself, needs before its first job with this recorder."""
        role = "work-horse" if worker.is_horse else "worker"
        if self._prepared == (record.writer, role):
            return
        self._prepared = record.writer, role
        record.writer.describe(SYSTEM, role)
        for queue in worker.queues:
            instrument_queue(queue)


def state_of(worker: Any) -> WorkerState:
    """The state of this worker."""
    known: WorkerState | None = getattr(worker, _ATTRIBUTE, None)
    if known is None:
        known = WorkerState()
        setattr(worker, _ATTRIBUTE, known)
    return known
