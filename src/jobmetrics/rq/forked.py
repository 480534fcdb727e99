"""A forked work-horse and its worker, which records for both.

The worker records the start before it forks, and the end once the work-horse is gone: each Python object that a
forked process touches costs it a copied page, and a slot of its own costs many. What only the work-horse knows it
tells through memory that both share. It records for itself what the job's own code records, and its end where its
worker has died.
"""

from __future__ import annotations

import mmap
import os
import struct
from math import isnan, nan
from typing import Any, NamedTuple

from rq.exceptions import InvalidJobOperation
from rq.job import Job as RQJob
from rq.job import JobStatus

from jobmetrics import recorder
from jobmetrics.context import Execution
from jobmetrics.events import FAILURE, RETRY, STATUSES, SUCCESS, Ended, Started
from jobmetrics.registry.layout import execution_hash
from jobmetrics.rq.ending import Killed, Performing, abandoned_name, report_lost
from jobmetrics.rq.jobs import SYSTEM

_SILENT, _TOLD = 0, 1
_MESSAGE = struct.Struct("<BdddH")  # status, run time, processor time, target (NaN: none), length of the error type
_LONGEST_ERROR = mmap.PAGESIZE - 1 - _MESSAGE.size


class _Told(NamedTuple):
    """What a work-horse told of its job's end. seconds, cpu, target: in seconds; error_type: "" for none."""

    status: str
    seconds: float
    cpu: float
    target: float | None
    error_type: str


class Forked:
    """A worker's view of the work-horse that it is about to fork, and the work-horse's of itself."""

    def __init__(self, page: mmap.mmap, execution: Execution, record: recorder.Recorder) -> None:
        self._page = page
        self.execution = execution
        self._record = record
        self._worker = os.getpid()
        self._horse = 0
        page[0] = _SILENT

    # ---------------------------------------------------------------- in the work-horse

    def begin(self) -> Performing:
        """The job starts now; the worker has recorded so a moment ago."""
        self._horse = os.getpid()
        self.execution.clock_start = self._record.clock()
        return Performing(self.execution)

    def end(self, ended: Ended) -> None:
        """Tell how the job ended, or record it if nobody is there to be told."""
        if os.getpid() != self._horse:
            return  # a process that the job forked, on its way out
        record, execution = self._record, self.execution
        execution.ended = True
        told = _Told(
            ended.status,
            record.clock() - execution.clock_start,
            0.0 if execution.cpu is None or execution.cpu_clock is None else execution.cpu + execution.cpu_clock(),
            execution.target,
            record.error_type(ended.error) if ended.status == FAILURE else "",
        )
        if os.getppid() == self._worker:
            self._tell(told)
            record.writer.flush()
        elif not record.writer.find_execution(execution_hash(SYSTEM, abandoned_name(str(execution.execution_id)))):
            again = record.started(Started(execution.job, str(execution.execution_id)))
            if again is not None:
                _record(again, told)

    def _tell(self, told: _Told) -> None:
        error = told.error_type.encode("utf-8", "replace")[:_LONGEST_ERROR]
        target = nan if told.target is None else told.target
        status = STATUSES.index(told.status)
        _MESSAGE.pack_into(self._page, 1, status, told.seconds, told.cpu, target, len(error))
        start = 1 + _MESSAGE.size
        self._page[start : start + len(error)] = error
        self._page[0] = _TOLD  # last: a kill leaves no half message

    # ---------------------------------------------------------------- in the worker

    def _heard(self) -> _Told | None:
        if self._page[0] != _TOLD:
            return None
        status, seconds, cpu, target, length = _MESSAGE.unpack_from(self._page, 1)
        start = 1 + _MESSAGE.size
        error = self._page[start : start + length].decode("utf-8", "replace")
        return _Told(STATUSES[status], seconds, cpu, None if isnan(target) else target, error)

    def record_told(self) -> bool:
        """Record the end that the work-horse told of; False if it told none."""
        if self.execution.ended:
            return True
        told = self._heard()
        if told is None:
            return False
        _record(self.execution, told)
        return True

    def record_lost(self, job: RQJob, queue: Any, killed: Killed | None, status: str | None = None) -> None:
        """Record that the work-horse is gone, if it had not told of the end before. Arguments: as of `report_lost`."""
        if self.record_told():
            return
        report_lost(job, queue, str(self.execution.execution_id), killed, status)
        self.execution.ended = True
        if self.execution.entry is not None:
            journal, entry = self.execution.entry
            journal.end(entry, self.execution.started_at)

    def record_gone(self, job: RQJob, queue: Any) -> None:
        """Record the end of a work-horse that left without a word, and of which RQ has none for us either.

        RQ holds it for well when the exit code is 0, and for told of in Redis when the job is finished or failed.
        """
        if self.record_told():
            return
        status = _last_status(job)
        if status in (None, JobStatus.FINISHED, JobStatus.FAILED):
            ended = Ended(FAILURE if status == JobStatus.FAILED else SUCCESS)
            recorder.default().ended(self.execution, ended)
        else:  # RQ will call it abandoned some day; it is here that its end is seen
            again = bool(job.retries_left and job.retries_left > 0)
            self.record_lost(job, queue, Killed(None), RETRY if again else FAILURE)


def _last_status(job: RQJob) -> JobStatus | None:
    """The job's status in Redis; None when it is gone from there, as after a success whose result is not kept."""
    try:
        return job.get_status()
    except InvalidJobOperation:
        return None


def _record(execution: Execution, told: _Told) -> None:
    record = recorder.default()
    execution.clock_start = record.clock() - told.seconds
    execution.target = told.target
    error = type(told.error_type, (Exception,), {})() if told.error_type else None  # error_type() names its class
    record.ended(execution, Ended(told.status, error, told.cpu))


def shared_page() -> mmap.mmap:
    """Memory that a process shares with those that it forks; no file."""
    return mmap.mmap(-1, mmap.PAGESIZE)


def before_fork(page: mmap.mmap, started: Started) -> Forked | None:
    """Record the start of the job whose work-horse is forked next. page: shared with it, and with no other."""
    record = recorder.default()
    execution = record.started(started)
    return None if execution is None else Forked(page, execution, record)
