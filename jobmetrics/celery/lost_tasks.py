"""What a worker's main process knows: tasks whose own process died or was killed, and tasks that never started."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from celery.exceptions import Reject, WorkerLostError

from jobmetrics import recorder, runtime
from jobmetrics.celery.messages import SYSTEM, UNKNOWN_TASK, job_of, queue_of
from jobmetrics.celery.requests import find_failing_request, runs_here, unwrapped
from jobmetrics.events import FAILURE, RETRY, REVOKED, Ended, Job, Lost, Withdrawn
from jobmetrics.guard import guarded
from jobmetrics.job_context import Execution
from jobmetrics.registry import Entry, execution_hash

MAX_PENDING = 10_000
REPORTED = "jobmetrics_reported"  # of a request: its main process will report the execution before it


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
    """The main process took a task from the broker; if it came again, a report of its last execution may be pending."""
    if request.id in runtime.state(LostTasks).pending:
        request.request_dict[REPORTED] = True


@guarded("celery failure")
def failure(sender: Any = None, task_id: str = "", exception: Any = None, **_: Any) -> None:
    """A task failed: in its own process postrun records it; else its process died or was killed."""
    request = sender.request
    # A rejected task counted as rejected when it ended; from 5.7 on the main process sends its failure too.
    if runs_here(request) or request.is_eager or isinstance(exception, Reject):
        return
    report(
        Lost(
            job_of(sender, request if request.delivery_info else find_failing_request(task_id) or request),
            task_id,
            FAILURE,
            unwrapped(exception),
            process_died=isinstance(exception, WorkerLostError),
        )
    )


def on_failure_of(original: Callable[..., Any]) -> Callable[..., Any]:
    """A request's `on_failure` that counts the pool process with which a request's result was lost.

    From Celery 5.7 on no signal is sent when the task had stored its success before its process died.
    """

    @functools.wraps(original)
    def on_failure(self: Any, exc_info: Any, *args: Any, **kwargs: Any) -> Any:
        _process_lost(self, exc_info)  # first: this may requeue the message, and the next run begin
        return original(self, exc_info, *args, **kwargs)

    return on_failure


@guarded("celery failure")
def _process_lost(request: Any, exc_info: Any) -> None:
    if isinstance(unwrapped(exc_info.exception), WorkerLostError):
        recorder.default().process_lost(job_of(request.task, request), request.id)


def announced_late(original: Callable[..., Any]) -> Callable[..., Any]:
    """A request's `cancel` or `terminate`, during which `settle` leaves the killed greenlet's end open.

    Celery kills the greenlet, then stores the result, and then sends the signal that gives the reason. The result
    store may take seconds to answer.
    """

    @functools.wraps(original)
    def kill(self: Any, *args: Any, **kwargs: Any) -> Any:
        task_id, announcing = self.id, runtime.state(LostTasks).announcing
        announcing.append(task_id)
        try:
            return original(self, *args, **kwargs)
        finally:
            announcing.remove(task_id)

    return kill


@guarded("celery retry")
def retry(sender: Any = None, request: Any = None, reason: Any = None, **_: Any) -> None:
    """A retry that the main process asked for: the connection was lost, or the pool process was."""
    if not runs_here(request) and not request.is_eager:
        died = isinstance(getattr(reason, "exc", None), WorkerLostError)
        report(Lost(job_of(sender, request), request.id, RETRY, process_died=died))


@guarded("celery revoked")
def revoked(sender: Any = None, request: Any = None, terminated: bool = False, expired: bool = False, **_: Any) -> None:
    """A task was revoked, or had expired, before it started; or it was terminated while it ran."""
    job = job_of(sender, request)
    if terminated:
        report(Lost(job, request.id, REVOKED))
    else:
        recorder.default().withdrawn(Withdrawn(job, "expired" if expired else "revoked"))


@guarded("celery unknown")
def unknown(sender: Any = None, message: Any = None, **_: Any) -> None:
    """A task that this worker does not know; its name is not ours to trust."""
    _withdraw(sender, message, "unknown")


@guarded("celery rejected")
def rejected(sender: Any = None, message: Any = None, **_: Any) -> None:
    """A message that is no task's."""
    _withdraw(sender, message, "rejected")


def _withdraw(consumer: Any, message: Any, reason: str) -> None:
    queue = queue_of(getattr(consumer, "app", None), getattr(message, "delivery_info", None))
    recorder.default().withdrawn(Withdrawn(Job(SYSTEM, UNKNOWN_TASK, queue), reason))


def redelivered(task: Any, task_id: str, request: Any) -> None:
    """A message came again: count its first execution if that died with its process, as no signal reports it.

    That is so for acks_late with reject_on_worker_lost, and for a worker that died as a whole. Only executions on this
    directory's host are known here: a first execution that was lost on another host is not counted.
    """
    if not getattr(request, REPORTED, False) and any(entry.lost for entry in _open_entries(task_id)):
        report(Lost(job_of(task, request), task_id, FAILURE, WorkerLostError.__name__, process_died=True))


def killed(task_id: str, execution: Execution) -> None:
    """A greenlet of this process was killed: Celery sends the reason, just before or just after."""
    lost = runtime.state(LostTasks)
    event = lost.pending.get(task_id)
    if event is None:
        lost.killed[task_id] = execution
    else:
        recorder.default().ended(execution, Ended(event.status))


def report(event: Lost) -> None:
    """Count an end that this process reports for another one, now or as soon as that one is gone."""
    lost = runtime.state(LostTasks)
    execution = lost.killed.pop(event.execution_id, None)
    if execution is not None:
        recorder.default().ended(execution, Ended(event.status))
        return
    if event.execution_id in lost.pending:
        return
    if _still_runs(event.execution_id):
        if len(lost.pending) < MAX_PENDING:
            lost.pending[event.execution_id] = event
        return
    _count(event)


@guarded("celery report")
def settle(*, final: bool = False) -> None:
    """Count what was reported too early. Call it now and then, and when the worker has ended its pool.

    final: the worker has ended its pool, so also count what Celery has not announced yet.
    """
    lost = runtime.state(LostTasks)
    for task_id in list(lost.killed):
        if final or task_id not in lost.announcing:
            recorder.default().ended(lost.killed.pop(task_id), Ended(REVOKED))  # not by Celery
    for task_id, event in lost.pending.copy().items():
        if not _still_runs(task_id):
            del lost.pending[task_id]
            _count(event)


def _count(event: Lost) -> None:
    if event.status == REVOKED and not _entries(event.execution_id):
        recorder.default().withdrawn(Withdrawn(event.job, "revoked"))  # killed before it had started
    else:
        recorder.default().lost(event)


def _entries(task_id: str) -> list[Entry]:
    return recorder.default().writer.find_execution(execution_hash(SYSTEM, task_id))


def _open_entries(task_id: str) -> list[Entry]:
    entries = _entries(task_id)
    ended = {entry.start for entry in entries if not entry.running and not entry.lost}
    return [entry for entry in entries if (entry.running or entry.lost) and entry.start not in ended]


def _still_runs(task_id: str) -> bool:
    entries = _open_entries(task_id)
    return bool(entries) and not any(entry.lost for entry in entries)
