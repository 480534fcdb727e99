"""A forked work-horse and its worker, which records for both.

The worker records the start before it forks, and the end once the work-horse is gone: each Python object that a
forked process touches costs it a copied page, and a slot of its own costs many. The work-horse reports what only it
knows through memory that both share. It records for itself what the job's own code records, and its end where its
worker has died.
"""

from __future__ import annotations

import mmap
from math import isnan, nan
from os import getpid, getppid, times
from time import perf_counter, process_time
from typing import Any

from rq.job import Job as RQJob

from jobmetrics import recorder
from jobmetrics.events import CPU_OF_CALLER, FAILURE, RETRY, REVOKED, STATUSES, Ended, Job, Started
from jobmetrics.guard import guarded
from jobmetrics.job_context import Execution
from jobmetrics.registry import LOCK_WAIT, execution_hash
from jobmetrics.rq.outcomes import KilledHorse, Performing, abandoned_name, outcome_in_redis, report_lost
from jobmetrics.rq.system import SYSTEM

_SILENT, _REPORTED = 0.0, 1.0
# Words of the message: whether there is one, status, run time, processor time, target (NaN: none), in seconds, and the
# length of the error type, whose text follows.
_STATE, _STATUS, _SECONDS, _CPU, _TARGET, _LENGTH = range(6)
_TEXT = 48
_LONGEST_TEXT = mmap.PAGESIZE - _TEXT


class SharedPage:
    """Memory that a worker shares with the work-horses it forks; no file. words: float64; text: the bytes behind."""

    __slots__ = ("text", "words")

    def __init__(self) -> None:
        page = memoryview(mmap.mmap(-1, mmap.PAGESIZE))
        self.words = page.cast("d")
        self.text = page[_TEXT:]


class Forked(Performing):
    """A worker's view of the work-horse that it is about to fork, and the work-horse's of itself."""

    __slots__ = ("_cpu", "_horse", "_page", "_record", "_start", "_worker")

    def __init__(self, page: SharedPage, execution: Execution, record: recorder.Recorder) -> None:
        super().__init__(execution)
        self._page = page
        self._record = record
        self._worker = getpid()
        self._horse = 0
        page.words[_STATE] = _SILENT

    # ---------------------------------------------------------------- in the work-horse

    def begin(self) -> None:
        """The job starts now; the worker has recorded its start before the fork."""
        self._horse = getpid()
        self._cpu = process_time()
        self._start = perf_counter()

    def end(self, event: Ended) -> None:
        """Report the end to the worker, or record it if the worker is dead."""
        if getpid() != self._horse:
            return  # a process that the job forked, on its way out
        words, execution = self._page.words, self.execution
        words[_SECONDS] = perf_counter() - self._start
        spent = times()  # of the work-horse's own children, all of them the job's
        words[_CPU] = process_time() - self._cpu + spent[2] + spent[3]
        words[_TARGET] = nan if execution.target is None else execution.target
        words[_STATUS] = STATUSES.index(event.status)
        if event.status == FAILURE:
            text = self._record.error_type(event.error).encode("utf-8", "replace")[:_LONGEST_TEXT]
            words[_LENGTH] = len(text)
            self._page.text[: len(text)] = text
        if getppid() == self._worker:
            words[_STATE] = _REPORTED  # last: a kill leaves no half message
        else:
            self._record_alone()
        self._record.writer.flush()
        self._record.writer.settle(LOCK_WAIT)  # it leaves by os._exit

    def _record_alone(self) -> None:
        """The worker is dead: count the end here, unless another worker found the job abandoned and counted it."""
        record, name = self._record, str(self.execution.execution_id)
        if record.writer.find_execution(execution_hash(SYSTEM, abandoned_name(name))):
            return
        again = record.started(Started(self.execution.job, name, cpu=CPU_OF_CALLER))
        if again is not None:
            record.taken_over(again, self.execution.started_at)
            self._record_message(again)

    # ---------------------------------------------------------------- in the worker

    def record_reported(self) -> bool:
        """Record the end that the work-horse reported; False if it reported none."""
        if self.execution.ended:
            return True
        if self._page.words[_STATE] != _REPORTED:
            return False
        self._record_message(self.execution)
        return True

    def _record_message(self, execution: Execution) -> None:
        words = self._page.words
        target, status, error = words[_TARGET], STATUSES[int(words[_STATUS])], None
        execution.target = None if isnan(target) else target
        if status == FAILURE:
            error = recorder.ErrorType(bytes(self._page.text[: int(words[_LENGTH])]), "utf-8", "replace")
        self._record.ended(execution, Ended(status, error, words[_CPU], words[_SECONDS]))

    @guarded("rq lost")
    def record_lost(self, job: RQJob, queue: Any, killed: KilledHorse | None, status: str | None = None) -> bool:
        """Record the job as lost unless its work-horse reported an end; takes and returns what `report_lost` does."""
        if self.record_reported():
            return False
        counted = report_lost(job, queue, str(self.execution.execution_id), killed, status)
        self._record.counted_as_lost(self.execution)
        return bool(counted)

    def record_exit(self, job: RQJob, queue: Any, stopped: bool) -> None:
        """Record the job's end after the work-horse exits, whether or not it reported one.

        RQ treats exit code 0 as success and trusts FINISHED or FAILED in Redis. stopped: by an operator, whose callback
        raised before RQ could handle it.
        """
        if self.record_reported():
            return
        if stopped:
            self.record_lost(job, queue, None, REVOKED)
            return
        status = outcome_in_redis(job)
        if status is not None:
            self._record.ended(self.execution, Ended(status))
        else:  # RQ will call it abandoned later; its end is seen here
            again = bool(job.retries_left and job.retries_left > 0)
            self.record_lost(job, queue, KilledHorse(None), RETRY if again else FAILURE)


def before_fork(
    page: SharedPage, record: recorder.Recorder, job: Job, execution_id: str, ready_at: float | None
) -> Forked | None:
    """Record the start of the job whose work-horse is forked next; None when its job type is ignored.

    page: of the worker; earlier work-horses have ended and write to it no more. ready_at: as in `Started`.
    """
    execution = record.started(Started(job, execution_id, ready_at, cpu=CPU_OF_CALLER))
    return None if execution is None else Forked(page, execution, record)
