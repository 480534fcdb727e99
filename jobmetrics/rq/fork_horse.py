"""Jobs in a forked work-horse: the worker records their start and their end.

It records the start before the fork, and the end after the work-horse exits. Each Python object that a forked process
touches costs a copied page, and a second slot costs many. The work-horse reports status and times through a shared
page. It records only what the job's code records, and its end if its worker has died.
"""

from __future__ import annotations

import mmap
from math import isnan, nan
from os import getpid, getppid, times
from time import perf_counter, process_time
from typing import Any

from rq.job import Job as RQJob

from jobmetrics.integration import (
    CPU_OF_CALLER,
    FAILURE,
    LOCK_WAIT,
    RETRY,
    REVOKED,
    STATUSES,
    Ended,
    ErrorType,
    Execution,
    Recorder,
    Started,
    guarded,
)
from jobmetrics.rq import SYSTEM
from jobmetrics.rq.outcomes import KilledHorse, RunningJob, abandoned_name, outcome_in_redis, report_lost

_PENDING, _REPORTED = 0.0, 1.0  # values of the state
# Words of the report: its state, the status, run time, processor time and target (NaN: none) in seconds, and the length
# of the error type. The error type's bytes follow.
_STATE, _STATUS, _SECONDS, _CPU, _TARGET, _LENGTH = range(6)
_TEXT = 48
_LONGEST_TEXT = mmap.PAGESIZE - _TEXT


class SharedPage:
    """Anonymous memory that a worker shares with its forked work-horses. words: float64; text: the bytes after them."""

    __slots__ = ("text", "words")

    def __init__(self) -> None:
        page = memoryview(mmap.mmap(-1, mmap.PAGESIZE))
        self.words = page.cast("d")
        self.text = page[_TEXT:]


class ForkedJob(RunningJob):
    """A job that runs in a forked work-horse. The worker and the work-horse each have a copy of this object."""

    __slots__ = ("_cpu", "_horse", "_page", "_record", "_start", "_worker")

    def __init__(self, page: SharedPage, execution: Execution, record: Recorder) -> None:
        super().__init__(execution)
        self._page = page
        self._record = record
        self._worker = getpid()
        self._horse = 0
        page.words[_STATE] = _PENDING

    # ---------------------------------------------------------------- in the work-horse

    def begin(self) -> None:
        """Start the clocks. The worker has recorded the start."""
        self._horse = getpid()
        self._cpu = process_time()
        self._start = perf_counter()

    def end(self, event: Ended) -> None:
        """Report the end to the worker, or record it here if the worker is dead."""
        if getpid() != self._horse:
            return  # a process that the job forked
        words, execution = self._page.words, self.execution
        words[_SECONDS] = perf_counter() - self._start
        spent = times()  # the job has started all children of the work-horse
        words[_CPU] = process_time() - self._cpu + spent[2] + spent[3]
        words[_TARGET] = nan if execution.target is None else execution.target
        words[_STATUS] = STATUSES.index(event.status)
        if event.status == FAILURE:
            text = self._record.error_type(event.error).encode("utf-8", "replace")[:_LONGEST_TEXT]
            words[_LENGTH] = len(text)
            self._page.text[: len(text)] = text
        if getppid() == self._worker:
            words[_STATE] = _REPORTED  # last, so that a killed work-horse leaves no partial report
        else:
            self._record_alone()
        self._record.writer.flush()
        self._record.writer.settle(LOCK_WAIT)  # the work-horse exits by os._exit

    def _record_alone(self) -> None:
        """Count the end here because the worker is dead, unless another worker has counted the job as abandoned."""
        record, name = self._record, str(self.execution.execution_id)
        counted, _ = record.find_execution(SYSTEM, abandoned_name(name))
        if counted:
            return
        again = record.started(Started(self.execution.job, name, cpu=CPU_OF_CALLER))
        if again is not None:
            record.taken_over(again, self.execution.started_at)
            self._record_report(again)

    # ---------------------------------------------------------------- in the worker

    def record_reported(self) -> bool:
        """Record the end that the work-horse reported; False if it reported none."""
        if self.execution.ended:
            return True
        if self._page.words[_STATE] != _REPORTED:
            return False
        self._record_report(self.execution)
        return True

    def _record_report(self, execution: Execution) -> None:
        words = self._page.words
        target, status, error = words[_TARGET], STATUSES[int(words[_STATUS])], None
        execution.target = None if isnan(target) else target
        if status == FAILURE:
            error = ErrorType(bytes(self._page.text[: int(words[_LENGTH])]), "utf-8", "replace")
        self._record.ended(execution, Ended(status, error, words[_CPU], words[_SECONDS]))

    @guarded("rq lost")
    def record_lost(self, job: RQJob, queue: Any, killed: KilledHorse | None, status: str | None = None) -> bool:
        """Record the job as lost unless its work-horse reported an end; arguments and result as in `report_lost`."""
        if self.record_reported():
            return False
        counted = report_lost(job, queue, str(self.execution.execution_id), killed, status)
        self._record.counted_as_lost(self.execution)
        return bool(counted)

    def record_exit(self, job: RQJob, queue: Any, stopped: bool) -> None:
        """Record the job's end after the work-horse exits, whether or not it reported one.

        RQ treats exit code 0 as success and trusts FINISHED or FAILED in Redis.

        Args:
            job: the job.
            queue: its queue.
            stopped: an operator stopped the job, and its callback raised before RQ handled the stop.
        """
        if self.record_reported():
            return
        if stopped:
            self.record_lost(job, queue, None, REVOKED)
            return
        status = outcome_in_redis(job)
        if status is not None:
            self._record.ended(self.execution, Ended(status))
        else:  # RQ will find the job abandoned later; count its end now
            will_retry = bool(job.retries_left and job.retries_left > 0)
            self.record_lost(job, queue, KilledHorse(None), RETRY if will_retry else FAILURE)


def before_fork(page: SharedPage, record: Recorder, event: Started) -> ForkedJob | None:
    """Record the start of the job that the worker is about to fork a work-horse for.

    Args:
        page: the worker's page. Earlier work-horses have ended and no longer write to it.
        record: the worker's recorder.
        event: the start, with the CPU time of the caller.

    Returns:
        None when the job type is ignored.
    """
    execution = record.started(event)
    return None if execution is None else ForkedJob(page, execution, record)
