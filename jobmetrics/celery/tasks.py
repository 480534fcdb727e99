"""What this process itself runs, from task_prerun to task_postrun: success, failure, retry, ignored, rejected."""

from __future__ import annotations

import sys
from typing import Any

from celery import states

from jobmetrics import job_context, recorder, runtime
from jobmetrics.celery import lost_tasks
from jobmetrics.celery.messages import is_redelivered, job_of, ready_at
from jobmetrics.celery.requests import RunningTasks, unwrapped
from jobmetrics.events import FAILURE, IGNORED, REJECTED, RETRY, SUCCESS, Ended, Started
from jobmetrics.guard import guarded
from jobmetrics.job_context import Execution

_STATUSES = {
    states.SUCCESS: SUCCESS,
    states.FAILURE: FAILURE,
    states.RETRY: RETRY,
    states.IGNORED: IGNORED,
    states.REJECTED: REJECTED,
}
GREEN = ("eventlet", "gevent", "greenlet")
TIMED_OUT = "TimeLimitExceeded"  # the name Celery gives to a hard limit in all its pools


@guarded("celery prerun")
def prerun(task: Any = None, task_id: str = "", kwargs: Any = None, **_: Any) -> None:
    """An execution starts here."""
    request = task.request
    if request.is_eager:
        return
    redelivered = is_redelivered(request)
    if redelivered:
        lost_tasks.redelivered(task, task_id, request)
    event = Started(job_of(task, request), task_id, None if redelivered else ready_at(request))
    execution = recorder.default().started(event)
    if execution is not None:
        runtime.state(RunningTasks).executions[task_id, id(kwargs)] = execution, request
        job_context.running.set(execution)  # never reset: an execution that has ended is not current


@guarded("celery postrun")
def postrun(task_id: str = "", state: str | None = None, retval: Any = None, kwargs: Any = None, **_: Any) -> None:
    """An execution ended here, or left this process."""
    execution, _request = runtime.state(RunningTasks).executions.pop((task_id, id(kwargs)), (None, None))
    if execution is None:
        return
    status = _STATUSES.get(state)
    if status is None:
        _left(execution, task_id)
    else:
        error = unwrapped(retval) if status == FAILURE else None
        execution.recorder.ended(execution, Ended(status, error))


def _left(execution: Execution, task_id: str) -> None:
    """An execution left this process without a state: the exception that passes through here shows why."""
    error = sys.exc_info()[1]  # Celery sends this signal while the exception passes through it
    if "GreenletExit" in _green_names(error):
        lost_tasks.killed(task_id, execution)
        return
    ended = _uncaught(error)
    if ended is None:
        execution.recorder.abandoned(execution)
    else:
        execution.recorder.ended(execution, ended)


def _green_names(error: BaseException | None) -> set[str]:
    """The names of an exception's classes that are of a library of greenlets."""
    return {cls.__name__ for cls in type(error).__mro__ if cls.__module__.partition(".")[0] in GREEN}


def _uncaught(error: BaseException | None) -> Ended | None:
    """The end of an execution whose exception no handler of Celery's caught.

    None for a pool process that is terminated: only its parent knows why.
    """
    if isinstance(error, SystemExit) and _is_from_signal(error.code):
        return None
    return Ended(FAILURE, TIMED_OUT if "Timeout" in _green_names(error) else error)


def _is_from_signal(code: object) -> bool:
    """Whether an exit code is what billiard's handler of termination signals exits with: signal - 256."""
    return type(code) is int and -256 < code < -190
