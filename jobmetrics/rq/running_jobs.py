"""Jobs that this process runs: hooks around a job in its worker or work-horse."""

from __future__ import annotations

import functools
from typing import Any

from rq.job import Job as RQJob

from jobmetrics.integration import CPU_OF_FAMILY, Started, current_recorder, guarded, running
from jobmetrics.rq.jobs import attempt_of, execution_id, job_of, passed_execution, ready_at
from jobmetrics.rq.outcomes import Method, RunningJob
from jobmetrics.rq.worker_state import WorkerState, state_of


@guarded("rq start")
def _start(
    worker: Any, state: WorkerState, job: RQJob, queue: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> RunningJob | None:
    record = current_recorder()
    state.prepare(worker, record)
    name = execution_id(worker, job, passed_execution(args, kwargs))
    event = Started(job_of(job, queue), name, ready_at(job), cpu=CPU_OF_FAMILY, attempt=attempt_of(job), job_id=job.id)
    execution = record.started(event)
    return None if execution is None else RunningJob(execution)


@guarded("rq end")
def _end(running_job: RunningJob, job: RQJob, succeeded: bool) -> None:
    running_job.end(running_job.outcome(job, succeeded))


def perform_job_of(original: Method) -> Method:
    """Record the start and the end of a job in the process that runs it."""

    @functools.wraps(original)
    def perform_job(self: Any, job: RQJob, queue: Any, *args: Any, **kwargs: Any) -> Any:
        state = state_of(self)
        if state.running is not None:  # a subclass and its base are both instrumented
            return original(self, job, queue, *args, **kwargs)
        running_job: RunningJob | None = state.forked
        if state.forked is not None:
            state.forked.begin()
        else:
            running_job = _start(self, state, job, queue, args, kwargs)
        if running_job is None:
            return original(self, job, queue, *args, **kwargs)
        state.running = running_job
        token = running.set(running_job.execution)
        try:
            succeeded = original(self, job, queue, *args, **kwargs)
            _end(running_job, job, bool(succeeded))
            return succeeded
        finally:
            running.reset(token)
            state.running = None

    return perform_job


def handle_exception_of(original: Method) -> Method:
    """Remember the exception for error_type."""

    @functools.wraps(original)
    def handle_exception(self: Any, job: RQJob, *exc_info: Any) -> Any:
        running_job = state_of(self).running
        if running_job is not None and len(exc_info) > 1:
            running_job.error = exc_info[1]
        return original(self, job, *exc_info)

    return handle_exception


def handle_job_retry_of(original: Method) -> Method:
    """Remember that the job returned Retry."""

    @functools.wraps(original)
    def handle_job_retry(self: Any, *args: Any, **kwargs: Any) -> Any:
        running_job = state_of(self).running
        if running_job is not None:
            running_job.asked_retry = True
        return original(self, *args, **kwargs)

    return handle_job_retry
