"""The requests of tasks that run or fail in this process."""

from __future__ import annotations

import sys
from types import FrameType
from typing import TYPE_CHECKING, Any

from jobmetrics.integration import Execution, process_state

if TYPE_CHECKING:
    from celery.worker.request import Request


class RunningTasks:
    """The executions between prerun and postrun in this process, each with its request.

    Their keys are the task id and the identity of the keyword arguments, because one task id may run twice at once
    after a redelivery. Celery passes the same keyword arguments to prerun and postrun and holds them in between.
    """

    def __init__(self) -> None:
        self.executions: dict[tuple[str, int], tuple[Execution, Any]] = {}


def runs_here(request: Any) -> bool:
    """Return whether this request is between its prerun and its postrun in this process."""
    return any(known is request for _, known in list(process_state(RunningTasks).executions.values()))


def find_failing_request(task_id: str) -> Request | None:
    """Find the Request being failed on the call stack. Celery <= 5.6 does not pass it, nor does 5.7 for time limits.

    Remembering every request would cost each task what this search costs only a lost one.
    """
    from celery.worker.request import Request  # workers have imported it; producers need not

    frame: FrameType | None = sys._getframe()
    while frame is not None:
        found = frame.f_locals.get("self")
        if isinstance(found, Request) and found.id == task_id:
            return found
        frame = frame.f_back
    return None


def unwrapped(error: Any) -> BaseException | str | None:
    """Return the exception that a task raised, or its class name. billiard and Celery wrap some exceptions."""
    if type(error).__name__ == "ExceptionWithTraceback" and isinstance(error.exc, BaseException):
        error = error.exc
    if type(error).__name__ == "UnpickleableExceptionWrapper" and isinstance(error.exc_cls_name, str):
        return error.exc_cls_name
    return error if isinstance(error, BaseException) else None
