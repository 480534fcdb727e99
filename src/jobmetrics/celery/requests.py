"""The requests that run in this process, and the errors that end them."""

from __future__ import annotations

from contextvars import Token
from typing import Any

from jobmetrics.context import Execution

# By the identity of the request, which Celery keeps on its stack from prerun to postrun: a task id may run
# twice at once after a redelivery.
here: dict[int, tuple[Execution, Token[Execution | None]]] = {}


def runs_here(request: Any) -> bool:
    """Whether this very request is between its prerun and its postrun in this process."""
    return id(request) in here


def unwrapped(error: Any) -> BaseException | str | None:
    """The exception a task raised, or its class name: what cannot be pickled comes wrapped."""
    if type(error).__name__ == "ExceptionWithTraceback" and isinstance(error.exc, BaseException):
        error = error.exc
    if type(error).__name__ == "UnpickleableExceptionWrapper" and isinstance(error.exc_cls_name, str):
        return error.exc_cls_name
    return error if isinstance(error, BaseException) else None
