"""What this process itself runs, from task_prerun to task_postrun: success, failure, retry, ignored, rejected."""

from __future__ import annotations

import sys
from contextvars import Token
from typing import Any

from celery import states

from jobmetrics import recorder
from jobmetrics.celery import reports, requests
from jobmetrics.celery.messages import is_redelivered, job_of, ready_at
from jobmetrics.context import Execution, running
from jobmetrics.events import FAILURE, IGNORED, REJECTED, RETRY, REVOKED, SUCCESS, Ended, Started
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
    execution = recorder.default().started(Started(job_of(task, request), task_id, ready_at(request)))
    if execution is not None:
        requests.here[id(request)] = execution, running.set(execution)


@guarded("celery postrun")
def postrun(task: Any = None, state: str | None = None, retval: Any = None, **_: Any) -> None:
    """An execution ended here, or left this process."""
    execution, token = requests.here.pop(id(task.request), (None, None))
    if execution is None or token is None:
        return
    _leave_context(token)
    status = _STATUSES.get(state)
    if status is not None:
        recorder.default().ended(execution, Ended(status, requests.unwrapped(retval) if status == FAILURE else None))
        return
    ended = _torn_out(sys.exc_info()[1])  # Celery sends this signal while the exception passes through it
    if ended is None:
        recorder.default().abandoned(execution)
    else:
        recorder.default().ended(execution, ended)


def _torn_out(error: BaseException | None) -> Ended | None:
    """How an execution ended that no exception handler of Celery's caught.

    None for a pool process that was told to end: only its parent knows why.
    """
    if isinstance(error, SystemExit) and _is_from_signal(error.code):
        return None
    names = {cls.__name__ for cls in type(error).__mro__ if cls.__module__.partition(".")[0] in GREEN}
    if "GreenletExit" in names:
        return Ended(REVOKED)
    if "Timeout" in names:
        return Ended(FAILURE, TIMED_OUT)
    return Ended(FAILURE, error)


def _is_from_signal(code: object) -> bool:
    """Whether an exit code is what billiard's handler of termination signals exits with: signal - 256."""
    return type(code) is int and -256 < code < -190


def _leave_context(token: Token[Execution | None]) -> None:
    try:
        running.reset(token)
    except ValueError:  # a pool that ends a task in another context than it began in
        running.set(None)
