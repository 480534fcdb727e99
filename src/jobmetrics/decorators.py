"""`timed_job`: records a function's whole lifecycle, or steps back where a job system already records it."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from jobmetrics import recorder
from jobmetrics.context import Execution, current_execution, running
from jobmetrics.events import FAILURE, SUCCESS, Ended, Job, Started
from jobmetrics.guard import guarded

P = ParamSpec("P")
R = TypeVar("R")

SYSTEM = "python"
NO_QUEUE = ""


@guarded("timed_job start")
def _start(job_type: str) -> Execution | None:
    return recorder.default().started(Started(Job(SYSTEM, job_type, NO_QUEUE), uuid.uuid4().hex))


@guarded("timed_job end")
def _end(execution: Execution, error: BaseException | None) -> None:
    status = SUCCESS if error is None else FAILURE
    recorder.default().ended(execution, Ended(status, error))


def timed_job(function: Callable[P, R]) -> Callable[P, R]:
    """Record each call of a function as a job of system "python", named by its module and qualified name.

    Inside a job that Celery, RQ or another `timed_job` already records, a call is not counted again.
    """
    job_type = f"{function.__module__}.{function.__qualname__}"

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        execution = _start(job_type) if current_execution() is None else None
        if execution is None:
            return function(*args, **kwargs)
        token = running.set(execution)
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            _end(execution, error)
            raise
        finally:
            running.reset(token)
        _end(execution, None)
        return result

    return call
