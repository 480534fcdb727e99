"""RQ's worker methods as events.

The work-horse speaks of its job's end. The worker speaks only where its work-horse was silent; the recorder
asks the journals before it believes it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import rq
from rq.exceptions import ShutDownImminentException
from rq.job import Job as RQJob
from rq.timeouts import BaseTimeoutException

from jobmetrics import guard, recorder
from jobmetrics.context import running
from jobmetrics.events import SUCCESS, Job, Started
from jobmetrics.guard import guarded
from jobmetrics.registry.writer import Writer
from jobmetrics.rq import abandoned, presence, spawned
from jobmetrics.rq.ending import Killed, Performing, report_abandoned, report_lost
from jobmetrics.rq.forked import Forked, SharedPage, before_fork
from jobmetrics.rq.jobs import SYSTEM, described, execution_id, named_in, ready_at
from jobmetrics.rq.publish import instrument_queue

WorkerClass = TypeVar("WorkerClass", bound=type)
Method = Callable[..., Any]


@guarded("rq start")
def _start(worker: Any, job: RQJob, queue: Any) -> Performing | None:
    record = recorder.default()
    record.writer.describe(SYSTEM, "work-horse" if worker.is_horse else "worker")
    execution = record.started(Started(described(job, queue), execution_id(worker, job), ready_at(job)))
    return None if execution is None else Performing(execution)


@guarded("rq worker")
def _before_job(worker: Any) -> None:
    _prepared(worker, recorder.default())


def _prepared(worker: Any, record: recorder.Recorder) -> SharedPage:
    """What a worker needs before its first job with this recorder; the page that it shares with its work-horses."""
    known: tuple[Writer, SharedPage] | None = getattr(worker, "_jobmetrics_page", None)
    if known is None or known[0] is not record.writer:
        worker._jobmetrics_page = known = record.writer, SharedPage()
        worker._jobmetrics = None  # or each work-horse's attributes would grow by one, and move
        record.writer.describe(SYSTEM, "worker")
        for queue in worker.queues:
            instrument_queue(queue)
    return known[1]


@guarded("rq start")
def _before_fork(worker: Any, job: RQJob, queue: Any) -> Forked | None:
    record = recorder.default()
    page, name = _prepared(worker, record), named_in(job.data)
    if name is None:
        return None  # naming it would run what the job brings along: its work-horse may, and records for itself
    return before_fork(page, record, Started(Job(SYSTEM, name, queue.name), execution_id(worker, job), ready_at(job)))


@guarded("rq end")
def _after_exit(worker: Any, job: RQJob, queue: Any) -> None:
    forked, worker._jobmetrics_forked = worker._jobmetrics_forked, None
    if forked is not None and not forked.record_told() and not worker.horse_pid:
        forked.record_gone(job, queue)  # otherwise this worker is ending, and its work-horse was killed


@guarded("rq lost")
def _killed(worker: Any, job: RQJob, usage: Any) -> Killed:
    killed = Killed(usage)
    if killed.peak_bytes is not None:
        worker.log.warning(
            "Worker %s: work-horse killed for job %s had used up to %.0f MiB of memory and %.2f s of processor time",
            worker.name, job.id, killed.peak_bytes / 2**20, killed.cpu_seconds,
        )  # fmt: skip
    return killed


def _register_birth(original: Method) -> Method:
    @functools.wraps(original)
    def register_birth(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        presence.tell(alive=True)
        return result

    return register_birth


def _register_death(original: Method) -> Method:
    @functools.wraps(original)
    def register_death(self: Any, *args: Any, **kwargs: Any) -> Any:
        presence.tell(alive=False)
        return original(self, *args, **kwargs)

    return register_death


def _execute_job(original: Method) -> Method:
    @functools.wraps(original)
    def execute_job(self: Any, *args: Any, **kwargs: Any) -> Any:
        _before_job(self)
        return original(self, *args, **kwargs)

    return execute_job


def _fork_work_horse(original: Method) -> Method:
    @functools.wraps(original)
    def fork_work_horse(self: Any, job: RQJob, queue: Any, *args: Any, **kwargs: Any) -> Any:
        self._jobmetrics_forked = _before_fork(self, job, queue)
        return original(self, job, queue, *args, **kwargs)

    return fork_work_horse


def _monitor_work_horse(original: Method) -> Method:
    @functools.wraps(original)
    def monitor_work_horse(self: Any, job: RQJob, queue: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(self, job, queue, *args, **kwargs)
        finally:
            _after_exit(self, job, queue)

    return monitor_work_horse


def _perform_job(original: Method) -> Method:
    @functools.wraps(original)
    def perform_job(self: Any, job: RQJob, queue: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(self, "_jobmetrics", None) is not None:  # a subclass and its base are both instrumented
            return original(self, job, queue, *args, **kwargs)
        self._jobmetrics = performing = getattr(self, "_jobmetrics_forked", None) or _start(self, job, queue)
        if performing is None:
            return original(self, job, queue, *args, **kwargs)
        performing.begin()
        token = running.set(performing.execution)
        try:
            succeeded = original(self, job, queue, *args, **kwargs)
            try:
                if succeeded and not performing.asked_retry:  # as most do, in few steps: each costs a copied page
                    performing.end(SUCCESS, None)
                else:
                    performing.end(*performing.how(job, bool(succeeded)))
            except Exception as error:  # noqa: BLE001 - nothing of ours raises into the worker
                guard.note("rq end", error)
            return succeeded
        finally:
            running.reset(token)
            self._jobmetrics = None

    return perform_job


def _handle_exception(original: Method) -> Method:
    @functools.wraps(original)
    def handle_exception(self: Any, job: RQJob, *exc_info: Any) -> Any:
        performing = getattr(self, "_jobmetrics", None)
        if performing is not None and len(exc_info) > 1:
            performing.error = exc_info[1]
        return original(self, job, *exc_info)

    return handle_exception


def _handle_job_retry(original: Method) -> Method:
    @functools.wraps(original)
    def handle_job_retry(self: Any, *args: Any, **kwargs: Any) -> Any:
        performing = getattr(self, "_jobmetrics", None)
        if performing is not None:
            performing.asked_retry = True
        return original(self, *args, **kwargs)

    return handle_job_retry


def _handle_work_horse_killed(original: Method) -> Method:
    @functools.wraps(original)
    def handle_work_horse_killed(self: Any, job: RQJob, *args: Any, **kwargs: Any) -> Any:
        usage = kwargs.get("rusage", args[2] if len(args) > 2 else None)
        if getattr(self, "_jobmetrics_killed", None) is None:
            self._jobmetrics_killed = _killed(self, job, usage) or Killed(None)
        return original(self, job, *args, **kwargs)

    return handle_work_horse_killed


def _handle_job_failure(original: Method) -> Method:
    @functools.wraps(original)
    def handle_job_failure(self: Any, job: RQJob, queue: Any, *args: Any, **kwargs: Any) -> Any:
        quiet = self.is_horse or getattr(self, "_jobmetrics", None) is not None
        if quiet or getattr(self, "_jobmetrics_failing", False):  # the last: a subclass and its base again
            return original(self, job, queue, *args, **kwargs)
        name = execution_id(self, job)  # RQ forgets the execution in here
        killed, self._jobmetrics_killed = getattr(self, "_jobmetrics_killed", None), None
        self._jobmetrics_failing = True
        try:
            return original(self, job, queue, *args, **kwargs)
        finally:  # also when RQ raises (2.0 does after some retries): the work-horse is gone all the same
            self._jobmetrics_failing = False
            if getattr(self, "_jobmetrics_cleaning", False):  # it got stuck between queue and start
                report_abandoned(job, queue, name, again=False)
            elif getattr(self, "_jobmetrics_forked", None) is not None:
                self._jobmetrics_forked.record_lost(job, queue, killed)
            else:
                report_lost(job, queue, name, killed)

    return handle_job_failure


def _clean_registries(original: Method) -> Method:
    @functools.wraps(original)
    def clean_registries(self: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(self, "_jobmetrics_cleaning", False):
            return original(self, *args, **kwargs)
        self._jobmetrics_cleaning = True
        try:
            with abandoned.counted():
                return original(self, *args, **kwargs)
        finally:
            self._jobmetrics_cleaning = False

    return clean_registries


_HOOKS: dict[str, Callable[[Method], Method]] = {
    "register_birth": _register_birth,
    "register_death": _register_death,
    "execute_job": _execute_job,
    "perform_job": _perform_job,
    "handle_exception": _handle_exception,
    "handle_job_retry": _handle_job_retry,  # from RQ 2.1 on
    "handle_work_horse_killed": _handle_work_horse_killed,
    "handle_job_failure": _handle_job_failure,
    "clean_registries": _clean_registries,
}
_ORIGINALS = "_jobmetrics_originals"


def instrument(worker_class: WorkerClass) -> WorkerClass:
    """Record what this worker class does, in place; usable as a decorator. Calling it again changes nothing.

    A class that starts its work-horses in a way of its own, other than rq.Worker and rq.SpawnWorker do, must see to
    it that they are instrumented too.
    """
    guard.let_through(BaseTimeoutException, ShutDownImminentException)
    if any(_ORIGINALS in cls.__dict__ for cls in worker_class.__mro__):
        return worker_class
    hooks = dict(_HOOKS)
    start = getattr(worker_class, "fork_work_horse", None)
    if spawned.uses_stock_work_horse(worker_class):
        hooks["fork_work_horse"] = spawned.fork_work_horse
    elif start is rq.Worker.fork_work_horse:  # of any other way nobody knows that what it starts shares our memory
        hooks["fork_work_horse"], hooks["monitor_work_horse"] = _fork_work_horse, _monitor_work_horse
        del hooks["execute_job"]  # the same is done at the fork
    originals: dict[str, Any] = {}
    for name, hook in hooks.items():
        if hasattr(worker_class, name):
            originals[name] = worker_class.__dict__.get(name)
            setattr(worker_class, name, hook(getattr(worker_class, name)))
    setattr(worker_class, _ORIGINALS, originals)
    return worker_class


def uninstrument(worker_class: WorkerClass) -> WorkerClass:
    """Stop recording what this very class does."""
    for name, original in worker_class.__dict__.get(_ORIGINALS, {}).items():
        if original is None:
            delattr(worker_class, name)
        else:
            setattr(worker_class, name, original)
    if _ORIGINALS in worker_class.__dict__:
        delattr(worker_class, _ORIGINALS)
    return worker_class
