"""What this process itself runs, from task_prerun to task_postrun: success, failure, retry, ignored, rejected."""

from __future__ import annotations

import sys
from typing import Any

from celery import states

from jobmetrics import recorder
from jobmetrics.celery import reports, requests
from jobmetrics.celery.messages import is_redelivered, job_of, ready_at
from jobmetrics.context import running
from jobmetrics.events import FAILURE, IGNORED, REJECTED, RETRY, SUCCESS, Ended, Started
from jobmetrics.guard import guarded

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
def prerun(task: Any = None, task_id: str = "", **_: Any) -> None:
    """An execution starts here."""
    request = task.request
    if request.is_eager:
        return
    if is_redelivered(request):
        reports.redelivered(task, task_id, request)
        ready = None
    else:
        ready = ready_at(request)
    execution = recorder.default().started(Started(job_of(task, request), task_id, ready))
    if execution is not None:
        requests.here[id(request)] = execution, running.set(execution)


@guarded("celery postrun")
def postrun(task: Any = None, task_id: str = "", state: str | None = None, retval: Any = None, **_: Any) -> None:
    """An execution ended here, or left this process."""
    execution, token = requests.here.pop(id(task.request), (None, None))
    if execution is None or token is None:
        return
    try:
        running.reset(token)
    except ValueError:  # a pool that ends a task in another context than it began in
        running.set(None)
    status = _STATUSES.get(state)
    if status is not None:
        recorder.default().end(execution, status, requests.unwrapped(retval) if status == FAILURE else None)
        return
    error = sys.exc_info()[1]  # Celery sends this signal while the exception passes through it
    if "GreenletExit" in _green_names(error):
        reports.killed(task_id, execution)
        return
    ended = _torn_out(error)
    if ended is None:
        recorder.default().abandoned(execution)
    else:
        recorder.default().ended(execution, ended)


def _green_names(error: BaseException | None) -> set[str]:
    """The names of an exception's classes that are of a library of greenlets."""
    return {cls.__name__ for cls in type(error).__mro__ if cls.__module__.partition(".")[0] in GREEN}


def _torn_out(error: BaseException | None) -> Ended | None:
    """How an execution ended that no exception handler of Celery's caught.

    None for a pool process that was told to end: only its parent knows why.
    """
    if isinstance(error, SystemExit) and _is_from_signal(error.code):
        return None
    return Ended(FAILURE, TIMED_OUT if "Timeout" in _green_names(error) else error)


def _is_from_signal(code: object) -> bool:
    """Whether an exit code is what billiard's handler of termination signals exits with: signal - 256."""
    return type(code) is int and -256 < code < -190
