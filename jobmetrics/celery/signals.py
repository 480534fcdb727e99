"""Which handler listens to which of Celery's signals.

The process that runs a task speaks of its end (executions). The worker's main process speaks only for tasks
whose own process died, was killed or never started them (reports).
"""

from __future__ import annotations

from celery import signals
from celery.exceptions import SoftTimeLimitExceeded
from celery.worker.request import Request

from jobmetrics import guard
from jobmetrics.celery import lost_tasks, tasks, worker

_UID = "jobmetrics.signals"

_HANDLERS = (
    (signals.task_prerun, tasks.prerun),
    (signals.task_postrun, tasks.postrun),
    (signals.task_received, lost_tasks.received),
    (signals.task_failure, lost_tasks.failure),
    (signals.task_retry, lost_tasks.retry),
    (signals.task_revoked, lost_tasks.revoked),
    (signals.task_unknown, lost_tasks.unknown),
    (signals.task_rejected, lost_tasks.rejected),
    (signals.worker_init, worker.worker_init),
    (signals.worker_process_init, worker.process_init),
    (signals.worker_process_shutdown, worker.process_ends),
    (signals.worker_shutdown, worker.ended),
)

# Methods of Celery's Request around which something is noted.
_WRAPPERS = {
    "on_failure": lost_tasks.on_failure_of,
    "cancel": lost_tasks.announced_late,
    "terminate": lost_tasks.announced_late,
}


def connect() -> None:
    """Begin to listen; doing it again changes nothing."""
    guard.let_through(SoftTimeLimitExceeded)
    for name, wrap in _WRAPPERS.items():
        method = getattr(Request, name)
        if not hasattr(method, "__wrapped__"):
            setattr(Request, name, wrap(method))
    for signal, handler in _HANDLERS:
        signal.connect(handler, weak=False, dispatch_uid=_UID)


def disconnect() -> None:
    """Stop it."""
    for signal, _ in _HANDLERS:
        signal.disconnect(dispatch_uid=_UID)
    for name in _WRAPPERS:
        method = getattr(Request, name)
        setattr(Request, name, getattr(method, "__wrapped__", method))


def is_connected() -> bool:
    """Whether the handlers listen in this process."""
    return any(receiver is tasks.prerun for _, receiver in signals.task_prerun.receivers)
