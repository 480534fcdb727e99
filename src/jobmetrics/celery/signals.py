"""Celery's signals as events.

The process that runs a task speaks of its end. The worker's main process speaks only for tasks whose own
process died; the recorder asks the journals before it believes it.
"""

from __future__ import annotations

from contextvars import Token
from typing import Any

from celery import signals as celery_signals
from celery import states
from celery.exceptions import SoftTimeLimitExceeded, WorkerLostError

from jobmetrics import guard, recorder
from jobmetrics.celery.messages import queue_name, ready_at
from jobmetrics.context import Execution, running
from jobmetrics.events import FAILURE, IGNORED, REJECTED, RETRY, SUCCESS, Ended, Job, Lost, Started
from jobmetrics.guard import guarded

SYSTEM = "celery"
_UID = "jobmetrics.signals"
_STATUSES = {
    states.SUCCESS: SUCCESS,
    states.FAILURE: FAILURE,
    states.RETRY: RETRY,
    states.IGNORED: IGNORED,
    states.REJECTED: REJECTED,
}

# By the identity of the request, which Celery keeps on its stack from prerun to postrun: a task id may run
# twice at once after a redelivery.
_executions: dict[int, tuple[Execution, Token[Execution | None]]] = {}
_errors: dict[int, BaseException] = {}


def _job(task: Any, request: Any) -> Job:
    delivery = request.delivery_info or {}
    return Job(SYSTEM, task.name, queue_name(task.app, delivery.get("exchange"), delivery.get("routing_key")))


@guarded("celery prerun")
def _prerun(task: Any = None, task_id: str = "", **_: Any) -> None:
    request = task.request
    if request.is_eager:
        return
    execution = recorder.default().started(Started(_job(task, request), task_id, ready_at(request)))
    if execution is not None:
        _executions[id(request)] = execution, running.set(execution)


@guarded("celery postrun")
def _postrun(task: Any = None, state: str | None = None, retval: Any = None, **_: Any) -> None:
    key = id(task.request)
    error = _errors.pop(key, retval)
    execution, token = _executions.pop(key, (None, None))
    if execution is None or token is None:
        return
    _leave_context(token)
    status = _STATUSES.get(state)
    if status is None:  # the task's own process does not know: its main process will
        recorder.default().abandoned(execution)
        return
    recorder.default().ended(execution, Ended(status, _unwrapped(error) if status == FAILURE else None))


def _leave_context(token: Token[Execution | None]) -> None:
    try:
        running.reset(token)
    except ValueError:  # a pool that ends a task in another context than it began in
        running.set(None)


@guarded("celery failure")
def _failure(sender: Any = None, task_id: str = "", exception: Any = None, **_: Any) -> None:
    request = sender.request
    if id(request) in _executions:
        _errors[id(request)] = exception
        return
    if request.is_eager:
        return
    recorder.default().lost(
        Lost(
            _job(sender, request),
            task_id,
            FAILURE,
            _unwrapped(exception),
            process_died=isinstance(exception, WorkerLostError),
        )
    )


def _unwrapped(error: Any) -> BaseException | str | None:
    """The exception a task raised, or its class name: what cannot be pickled comes wrapped."""
    wrapped = getattr(error, "exc_cls_name", None)  # UnpickleableExceptionWrapper
    if isinstance(wrapped, str):
        return wrapped
    inner = getattr(error, "exc", None)  # ExceptionWithTraceback
    if type(error).__name__ == "ExceptionWithTraceback" and isinstance(inner, BaseException):
        return inner
    return error if isinstance(error, BaseException) else None


@guarded("celery worker start")
def _worker_init(**_: Any) -> None:
    writer = recorder.default().writer
    writer.describe(SYSTEM, "main")
    writer.prepare()


@guarded("celery worker start")
def _before_fork(**_: Any) -> None:
    recorder.default().writer.refresh()  # once here, and not in each child


@guarded("celery worker start")
def _child_init(**_: Any) -> None:
    recorder.default().writer.describe(SYSTEM, "child")


_HANDLERS = (
    (celery_signals.task_prerun, _prerun),
    (celery_signals.task_postrun, _postrun),
    (celery_signals.task_failure, _failure),
    (celery_signals.worker_init, _worker_init),
    (celery_signals.worker_before_create_process, _before_fork),
    (celery_signals.worker_process_init, _child_init),
)


def connect() -> None:
    """Begin to listen; doing it again changes nothing."""
    guard.let_through(SoftTimeLimitExceeded)
    for signal, handler in _HANDLERS:
        signal.connect(handler, weak=False, dispatch_uid=_UID)


def disconnect() -> None:
    """Stop it."""
    for signal, _ in _HANDLERS:
        signal.disconnect(dispatch_uid=_UID)
