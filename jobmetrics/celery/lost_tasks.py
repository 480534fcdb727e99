"""Tasks that the worker's main process records: their own process died, or they never started."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from celery.exceptions import Reject, WorkerLostError

from jobmetrics.celery import SYSTEM
from jobmetrics.celery.messages import UNKNOWN_TASK, job_of, queue_of
from jobmetrics.celery.requests import find_failing_request, runs_here, unwrapped
from jobmetrics.integration import (
    FAILURE,
    RETRY,
    REVOKED,
    Ended,
    Execution,
    Job,
    Lost,
    Withdrawn,
    current_recorder,
    guarded,
    process_state,
)

MAX_PENDING = 10_000
REPORT_PENDING = "jobmetrics_reported"  # attribute of a request: the main process counts the previous execution


class LostTasks:
    """The ends of tasks that this process knows and has not counted yet.

    pending: by task id, ends that Celery announced before the process was gone. The task may still end by itself:
        the end is counted once the journal shows that it no longer runs.
    killed: by task id, executions of this process that ended with their greenlet. Celery has not sent the reason yet.
    announcing: ids of the tasks that Celery is cancelling or terminating now. One id may be in the list twice.
    """

    def __init__(self) -> None:
        self.pending: dict[str, Lost] = {}
        self.killed: dict[str, Execution] = {}
        self.announcing: list[str] = []


@guarded("celery received")
def received(request: Any = None, **_: Any) -> None:
    """Mark a task that the broker delivers again while the end of its previous execution is not counted yet."""
    if request.id in process_state(LostTasks).pending:
        request.request_dict[REPORT_PENDING] = True


@guarded("celery failure")
def failure(sender: Any = None, task_id: str = "", exception: Any = None, **_: Any) -> None:
    """Record a failure that the main process reports: the task's own process died or was killed.

    If the task fails in this process, `postrun` records it.
    """
    request = sender.request
    # `postrun` has counted a rejected task. From Celery 5.7 on the main process sends a failure for it, too.
    if runs_here(request) or request.is_eager or isinstance(exception, Reject):
        return
    report_lost(
        Lost(
            job_of(sender, request if request.delivery_info else find_failing_request(task_id) or request),
            task_id,
            FAILURE,
            unwrapped(exception),
            process_died=isinstance(exception, WorkerLostError),
        )
    )


def on_failure_of(original: Callable[..., Any]) -> Callable[..., Any]:
    """Count a pool process that died after its task had stored a success.

    From Celery 5.7 on no signal is sent for it.
    """

    @functools.wraps(original)
    def on_failure(self: Any, exc_info: Any, *args: Any, **kwargs: Any) -> Any:
        _process_lost(self, exc_info)  # first, because the original may requeue the message, and the next run may start
        return original(self, exc_info, *args, **kwargs)

    return on_failure


@guarded("celery failure")
def _process_lost(request: Any, exc_info: Any) -> None:
    if isinstance(unwrapped(exc_info.exception), WorkerLostError):
        current_recorder().process_lost(job_of(request.task, request), request.id)


def cancel_or_terminate_of(original: Callable[..., Any]) -> Callable[..., Any]:
    """Keep `count_pending` from counting a killed greenlet while Celery cancels or terminates its request.

    Celery kills the greenlet, then stores the result, and then sends the signal that gives the reason. The result
    store may take seconds to answer.
    """

    @functools.wraps(original)
    def kill(self: Any, *args: Any, **kwargs: Any) -> Any:
        task_id, announcing = self.id, process_state(LostTasks).announcing
        announcing.append(task_id)
        try:
            return original(self, *args, **kwargs)
        finally:
            announcing.remove(task_id)

    return kill


@guarded("celery retry")
def retry(sender: Any = None, request: Any = None, reason: Any = None, **_: Any) -> None:
    """Record a retry that the main process asked for, after it lost the connection or the pool process."""
    if not runs_here(request) and not request.is_eager:
        died = isinstance(getattr(reason, "exc", None), WorkerLostError)
        report_lost(Lost(job_of(sender, request), request.id, RETRY, process_died=died))


@guarded("celery revoked")
def revoked(sender: Any = None, request: Any = None, terminated: bool = False, expired: bool = False, **_: Any) -> None:
    """Record a task that was revoked or had expired before it started, or was terminated while it ran."""
    job = job_of(sender, request)
    if terminated:
        report_lost(Lost(job, request.id, REVOKED))
    else:
        current_recorder().withdrawn(Withdrawn(job, "expired" if expired else "revoked"))


@guarded("celery unknown")
def unknown(sender: Any = None, message: Any = None, **_: Any) -> None:
    """Record a message that names an unknown task. The name is untrusted and becomes no label."""
    _withdraw(sender, message, "unknown")


@guarded("celery rejected")
def rejected(sender: Any = None, message: Any = None, **_: Any) -> None:
    """Record a message that does not hold a task."""
    _withdraw(sender, message, "rejected")


def _withdraw(consumer: Any, message: Any, reason: str) -> None:
    queue = queue_of(getattr(consumer, "app", None), getattr(message, "delivery_info", None))
    current_recorder().withdrawn(Withdrawn(Job(SYSTEM, UNKNOWN_TASK, queue), reason))


def redelivered(task: Any, task_id: str, request: Any) -> None:
    """Count the first execution of a redelivered message if its process died.

    No signal reports that execution after acks_late with reject_on_worker_lost, or after the whole worker died.
    A first execution that was lost on another host is not counted: this directory does not know it.
    """
    if getattr(request, REPORT_PENDING, False):
        return
    _, unended = current_recorder().find_execution(SYSTEM, task_id)
    if any(entry.lost for entry in unended):
        report_lost(Lost(job_of(task, request), task_id, FAILURE, WorkerLostError.__name__, process_died=True))


def greenlet_killed(task_id: str, execution: Execution) -> None:
    """Record the end of a killed greenlet. Celery sends the reason before or after this call."""
    lost = process_state(LostTasks)
    event = lost.pending.get(task_id)
    if event is None:
        lost.killed[task_id] = execution
    else:
        current_recorder().ended(execution, Ended(event.status))


def report_lost(event: Lost) -> None:
    """Count the end of an execution of another process, now or once that process has ended it."""
    lost = process_state(LostTasks)
    execution = lost.killed.pop(event.execution_id, None)
    if execution is not None:
        current_recorder().ended(execution, Ended(event.status))
        return
    if event.execution_id in lost.pending:
        return
    if _still_runs(event.execution_id):
        if len(lost.pending) < MAX_PENDING:
            lost.pending[event.execution_id] = event
        return
    _count(event)


@guarded("celery report")
def count_pending(*, final: bool = False) -> None:
    """Count the ends that were reported before their process was gone. Call it regularly, and after the pool has ended.

    Args:
        final: the worker has ended its pool. Then also count executions for which Celery has sent no reason.
    """
    lost = process_state(LostTasks)
    for task_id in list(lost.killed):
        if final or task_id not in lost.announcing:
            current_recorder().ended(lost.killed.pop(task_id), Ended(REVOKED))  # Celery did not kill it
    for task_id, event in lost.pending.copy().items():
        if not _still_runs(task_id):
            del lost.pending[task_id]
            _count(event)


def _count(event: Lost) -> None:
    record = current_recorder()
    entries, _ = record.find_execution(SYSTEM, event.execution_id)
    if event.status == REVOKED and not entries:
        record.withdrawn(Withdrawn(event.job, "revoked"))  # killed before it had started
    else:
        record.lost(event)


def _still_runs(task_id: str) -> bool:
    _, unended = current_recorder().find_execution(SYSTEM, task_id)
    return bool(unended) and not any(entry.lost for entry in unended)
