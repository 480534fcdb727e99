"""Tasks that this process runs, from task_prerun to task_postrun."""

from __future__ import annotations

import sys
from typing import Any

from celery import states

from jobmetrics.celery import lost_tasks
from jobmetrics.celery.messages import is_redelivered, job_of, ready_at
from jobmetrics.celery.requests import RunningTasks, unwrapped
from jobmetrics.integration import (
    FAILURE,
    IGNORED,
    REJECTED,
    RETRY,
    SUCCESS,
    Ended,
    Execution,
    Started,
    current_recorder,
    guarded,
    process_state,
    running,
)

_STATUSES = {
    states.SUCCESS: SUCCESS,
    states.FAILURE: FAILURE,
    states.RETRY: RETRY,
    states.IGNORED: IGNORED,
    states.REJECTED: REJECTED,
}
GREEN = ("eventlet", "gevent", "greenlet")
TIMED_OUT = "TimeLimitExceeded"  # error_type of hard time limits, as in Celery's other pools


@guarded("celery prerun")
def prerun(task: Any = None, task_id: str = "", kwargs: Any = None, **_: Any) -> None:
    """Record the start of an execution."""
    request = task.request
    if request.is_eager:
        return
    redelivered = is_redelivered(request)
    if redelivered:
        lost_tasks.redelivered(task, task_id, request)
    attempt = (request.retries or 0) + 1
    event = Started(job_of(task, request), task_id, None if redelivered else ready_at(request), attempt=attempt)
    execution = current_recorder().started(event)
    if execution is not None:
        process_state(RunningTasks).executions[task_id, id(kwargs)] = execution, request
        running.set(execution)  # never reset: `current_execution` ignores one that has ended


@guarded("celery postrun")
def postrun(task_id: str = "", state: str | None = None, retval: Any = None, kwargs: Any = None, **_: Any) -> None:
    """Record the end of an execution, or that it left this process without one."""
    execution, _request = process_state(RunningTasks).executions.pop((task_id, id(kwargs)), (None, None))
    if execution is None:
        return
    status = _STATUSES.get(state)
    if status is None:
        _ended_without_state(execution, task_id)
    else:
        error = unwrapped(retval) if status == FAILURE else None
        execution.recorder.ended(execution, Ended(status, error))


def _ended_without_state(execution: Execution, task_id: str) -> None:
    """Record an execution that has no state. The exception that is being handled shows why."""
    error = sys.exc_info()[1]  # Celery sends this signal in a `finally`
    if "GreenletExit" in _greenlet_classes(error):
        lost_tasks.greenlet_killed(task_id, execution)
        return
    ended = _uncaught(error)
    if ended is None:
        execution.recorder.abandoned(execution)
    else:
        execution.recorder.ended(execution, ended)


def _greenlet_classes(error: BaseException | None) -> set[str]:
    """Return the names of the exception's classes that a greenlet library defines."""
    return {cls.__name__ for cls in type(error).__mro__ if cls.__module__.partition(".")[0] in GREEN}


def _uncaught(error: BaseException | None) -> Ended | None:
    """Return the end of an execution after an exception that Celery does not handle.

    Returns:
        None if the pool process is being terminated: only the main process knows why.
    """
    if isinstance(error, SystemExit) and _is_from_signal(error.code):
        return None
    return Ended(FAILURE, TIMED_OUT if "Timeout" in _greenlet_classes(error) else error)


def _is_from_signal(code: object) -> bool:
    """Return whether billiard's handler of termination signals exited with this code: signal - 256."""
    return type(code) is int and -256 < code < -190
