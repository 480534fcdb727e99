"""What this process itself runs, from task_prerun to task_postrun: success, failure, retry, ignored, rejected."""

from __future__ import annotations

import sys
from types import FrameType
from typing import TYPE_CHECKING, Any

from celery import states

from jobmetrics import recorder
from jobmetrics.celery import lost_tasks
from jobmetrics.celery.messages import is_redelivered, labels_of, ready_at
from jobmetrics.events import FAILURE, IGNORED, REJECTED, RETRY, SUCCESS, Ended
from jobmetrics.guard import note
from jobmetrics.job_context import Execution, running

if TYPE_CHECKING:
    from celery.worker.request import Request


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
            lost_tasks.redelivered(task, task_id, request)
            ready = None
        else:
            ready = ready_at(request)
        record = recorder.default()
        series = record.series_of(labels_of(task, request))
        if not series.ignored:
            execution = record.start(series, task_id, ready)
            here[task_id, id(kwargs)] = execution, request
            running.set(execution)  # not taken away at its end: once it has ended it is nobody's
    except Exception as error:  # noqa: BLE001 - noted; the job runs unrecorded
        note("celery prerun", error)


def postrun(task_id: str = "", state: str | None = None, retval: Any = None, kwargs: Any = None, **_: Any) -> None:
    """An execution ended here, or left this process."""
    try:
        execution, _request = here.pop((task_id, id(kwargs)), (None, None))
        if execution is None:
            return
        status = _STATUSES.get(state)
        if status is None:
            _left(execution, task_id)
        else:
            error = unwrapped(retval) if status == FAILURE else None
            execution.series.recorder.end(execution, status, error)
    except Exception as error:  # noqa: BLE001 - noted; the job's result is not affected
        note("celery postrun", error)


def _left(execution: Execution, task_id: str) -> None:
    """An execution left this process without a state: only what passes through here tells why."""
    error = sys.exc_info()[1]  # Celery sends this signal while the exception passes through it
    if "GreenletExit" in _green_names(error):
        lost_tasks.killed(task_id, execution)
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


# By task id and the identity of the keyword arguments, which Celery hands to prerun and postrun and holds in between:
# a task id may run twice at once after a redelivery, and asking for the task's request costs more than the whole look.
here: dict[tuple[str, int], tuple[Execution, Any]] = {}


def runs_here(request: Any) -> bool:
    """Whether this very request is between its prerun and its postrun in this process."""
    return any(known is request for _, known in list(here.values()))


def told_of(task_id: str) -> Request | None:
    """The main process's request whose end Celery tells of now, from among the calls that led here.

    Up to 5.6, and for time limits in 5.7 too, it does not say which one that is, and keeps it nowhere else. Noting
    each request when it comes in would cost each task what this costs a lost one.
    """
    from celery.worker.request import Request  # loaded in every worker, and in no process that only sends

    frame: FrameType | None = sys._getframe()
    while frame is not None:
        found = frame.f_locals.get("self")
        if isinstance(found, Request) and found.id == task_id:
            return found
        frame = frame.f_back
    return None


def unwrapped(error: Any) -> BaseException | str | None:
    """The exception a task raised, or its class name: what cannot be pickled comes wrapped."""
    if type(error).__name__ == "ExceptionWithTraceback" and isinstance(error.exc, BaseException):
        error = error.exc
    if type(error).__name__ == "UnpickleableExceptionWrapper" and isinstance(error.exc_cls_name, str):
        return error.exc_cls_name
    return error if isinstance(error, BaseException) else None
