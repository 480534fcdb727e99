"""What this process itself runs, from task_prerun to task_postrun: success, failure, retry, ignored, rejected."""

from __future__ import annotations

import sys
from typing import Any

from celery import states

from jobmetrics import recorder
from jobmetrics.celery import reports, requests
from jobmetrics.celery.messages import is_redelivered, labels_of, ready_at
from jobmetrics.context import Execution, running
from jobmetrics.events import FAILURE, IGNORED, REJECTED, RETRY, SUCCESS, Ended
from jobmetrics.guard import note

_STATUSES = {
    states.SUCCESS: SUCCESS,
    states.FAILURE: FAILURE,
    states.RETRY: RETRY,
    states.IGNORED: IGNORED,
    states.REJECTED: REJECTED,
}
GREEN = ("eventlet", "gevent", "greenlet")
TIMED_OUT = "TimeLimitExceeded"  # the name Celery gives to a hard limit in all its pools


# Both are guarded by hand, which passes their arguments on once less: each job pays for it.


def prerun(task: Any = None, task_id: str = "", kwargs: Any = None, **_: Any) -> None:
    """An execution starts here."""
    try:
        request = task.request
        if request.is_eager:
            return
        if is_redelivered(request):
            reports.redelivered(task, task_id, request)
            ready = None
        else:
            ready = ready_at(request)
        record = recorder.default()
        series = record.series_of(labels_of(task, request))
        if not series.ignored:
            execution = record.start(series, task_id, ready)
            requests.here[task_id, id(kwargs)] = execution, request
            running.set(execution)  # not taken away at its end: once it has ended it is nobody's
    except Exception as error:  # noqa: BLE001 - noted; the job runs unrecorded
        note("celery prerun", error)


def postrun(task_id: str = "", state: str | None = None, retval: Any = None, kwargs: Any = None, **_: Any) -> None:
    """An execution ended here, or left this process."""
    try:
        execution, _request = requests.here.pop((task_id, id(kwargs)), (None, None))
        if execution is None:
            return
        status = _STATUSES.get(state)
        if status is None:
            _left(execution, task_id)
        else:
            error = requests.unwrapped(retval) if status == FAILURE else None
            execution.series.recorder.end(execution, status, error)
    except Exception as error:  # noqa: BLE001 - noted; the job's result is not affected
        note("celery postrun", error)


def _left(execution: Execution, task_id: str) -> None:
    """An execution left this process without a state: only what passes through here tells why."""
    error = sys.exc_info()[1]  # Celery sends this signal while the exception passes through it
    if "GreenletExit" in _green_names(error):
        reports.killed(task_id, execution)
        return
    ended = _torn_out(error)
    if ended is None:
        execution.series.recorder.abandoned(execution)
    else:
        execution.series.recorder.ended(execution, ended)


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
