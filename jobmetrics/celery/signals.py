"""Connects the handlers to Celery's signals.

The process that runs a task records its end (tasks). The worker's main process records a task only if the task's own
process died or was killed, or if the task never started (lost_tasks).
"""

from __future__ import annotations

from celery import signals
from celery.exceptions import SoftTimeLimitExceeded
from celery.worker.request import Request

from jobmetrics.celery import lost_tasks, tasks, worker
from jobmetrics.integration import let_through

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
    (signals.worker_process_shutdown, worker.process_shutdown),
    (signals.worker_shutdown, worker.worker_shutdown),
)

# Methods of Celery's Request that are wrapped, because no signal reports what happens in them.
_WRAPPERS = {
    "on_failure": lost_tasks.on_failure_of,
    "cancel": lost_tasks.cancel_or_terminate_of,
    "terminate": lost_tasks.cancel_or_terminate_of,
}


def connect() -> None:
    """Connect the handlers. A second call changes nothing."""
    let_through(SoftTimeLimitExceeded)
    for name, wrap in _WRAPPERS.items():
        method = getattr(Request, name)
        if not hasattr(method, "__wrapped__"):
            setattr(Request, name, wrap(method))
    for signal, handler in _HANDLERS:
        signal.connect(handler, weak=False, dispatch_uid=_UID)


def disconnect() -> None:
    """Disconnect the handlers."""
    for signal, _ in _HANDLERS:
        signal.disconnect(dispatch_uid=_UID)
    for name in _WRAPPERS:
        method = getattr(Request, name)
        setattr(Request, name, getattr(method, "__wrapped__", method))


def is_connected() -> bool:
    """Return whether the handlers are connected in this process."""
    return any(receiver is tasks.prerun for _, receiver in signals.task_prerun.receivers)
