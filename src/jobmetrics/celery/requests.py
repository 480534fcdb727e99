"""The requests that run in this process, and the errors that end them."""

from __future__ import annotations

import sys
from types import FrameType
from typing import TYPE_CHECKING, Any

from jobmetrics.context import Execution

if TYPE_CHECKING:
    from celery.worker.request import Request

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
