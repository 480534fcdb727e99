"""RQ's methods of the process that performs the job, as events: of the work-horse, or of a worker that has none.

It speaks of its job's end.
"""

from __future__ import annotations

import functools
from typing import Any

from rq.job import Job as RQJob

from jobmetrics import guard, recorder
from jobmetrics.context import running
from jobmetrics.events import SUCCESS, Started
from jobmetrics.guard import guarded
from jobmetrics.rq.ending import Method, Performing
from jobmetrics.rq.jobs import described, execution_id, passed_execution, ready_at
from jobmetrics.rq.system import SYSTEM


@guarded("rq start")
def _start(worker: Any, job: RQJob, queue: Any, passed: Any) -> Performing | None:
    record = recorder.default()
    record.writer.describe(SYSTEM, "work-horse" if worker.is_horse else "worker")
    execution = record.started(Started(described(job, queue), execution_id(worker, job, passed), ready_at(job)))
    return None if execution is None else Performing(execution)


def perform_job_of(original: Method) -> Method:
    """A job starts here, and ends."""

    @functools.wraps(original)
    def perform_job(self: Any, job: RQJob, queue: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(self, "_jobmetrics", None) is not None:  # a subclass and its base are both instrumented
            return original(self, job, queue, *args, **kwargs)
        performing: Performing | None = getattr(self, "_jobmetrics_forked", None)
        if performing is None:
            performing = _start(self, job, queue, passed_execution(args, kwargs))
        self._jobmetrics = performing
        if performing is None:
            return original(self, job, queue, *args, **kwargs)
        performing.begin()
        token = running.set(performing.execution)
        try:
            succeeded = original(self, job, queue, *args, **kwargs)
            try:
                if succeeded and not performing.asked_retry:  # as most do, in few steps: each costs a copied page
                    performing.end(SUCCESS, None)
                else:
                    performing.end(*performing.how(job, bool(succeeded)))
            except Exception as error:  # noqa: BLE001 - nothing of ours raises into the worker
                guard.note("rq end", error)
            return succeeded
        finally:
            running.reset(token)
            self._jobmetrics = None

    return perform_job


def handle_exception_of(original: Method) -> Method:
    """The exception that it failed of."""

    @functools.wraps(original)
    def handle_exception(self: Any, job: RQJob, *exc_info: Any) -> Any:
        performing = getattr(self, "_jobmetrics", None)
        if performing is not None and len(exc_info) > 1:
            performing.error = exc_info[1]
        return original(self, job, *exc_info)

    return handle_exception


def handle_job_retry_of(original: Method) -> Method:
    """It asked to be run again, by what it returned."""

    @functools.wraps(original)
    def handle_job_retry(self: Any, *args: Any, **kwargs: Any) -> Any:
        performing = getattr(self, "_jobmetrics", None)
        if performing is not None:
            performing.asked_retry = True
        return original(self, *args, **kwargs)

    return handle_job_retry
