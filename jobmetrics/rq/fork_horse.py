"""A forked work-horse and its worker, which records for both.

The worker records the start before it forks, and the end once the work-horse is gone: each Python object that a
forked process touches costs it a copied page, and a slot of its own costs many. What only the work-horse knows it
tells through memory that both share. It records for itself what the job's own code records, and its end where its
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
from jobmetrics.events import FAILURE, RETRY, REVOKED, STATUSES, Ended, Started
from jobmetrics.guard import guarded
from jobmetrics.job_context import Execution
from jobmetrics.registry.index import LOCK_WAIT
from jobmetrics.registry.layout import execution_hash
from jobmetrics.rq.outcomes import Killed, Performing, abandoned_name, ended_in_redis, report_lost
from jobmetrics.rq.system import SYSTEM

_SILENT, _TOLD = 0.0, 1.0
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
        """The job starts now; the worker has recorded so a moment ago."""
        self._horse = getpid()
        self._cpu = process_time()
        self._start = perf_counter()

    def end(self, status: str, error: BaseException | str | None) -> None:
        """Tell how the job ended, or record it if nobody is there to be told."""
        if getpid() != self._horse:
            return  # a process that the job forked, on its way out
        words, execution = self._page.words, self.execution
        words[_SECONDS] = perf_counter() - self._start
        spent = times()  # of the work-horse's own children, all of them the job's
        words[_CPU] = process_time() - self._cpu + spent[2] + spent[3]
        words[_TARGET] = nan if execution.target is None else execution.target
        words[_STATUS] = STATUSES.index(status)
        if status == FAILURE:
            text = self._record.error_type(error).encode("utf-8", "replace")[:_LONGEST_TEXT]
            words[_LENGTH] = len(text)
            self._page.text[: len(text)] = text
        if getppid() == self._worker:
            words[_STATE] = _TOLD  # last: a kill leaves no half message
        else:
            self._record_alone()
        self._record.writer.flush()
        self._record.writer.settle(LOCK_WAIT)  # it leaves by os._exit

    def _record_alone(self) -> None:
        """The worker is dead: count the end here, unless somebody has found the job abandoned and counted it."""
        record, name = self._record, str(self.execution.execution_id)
        if not record.writer.find_execution(execution_hash(SYSTEM, abandoned_name(name))):
            again = record.started(Started(self.execution.job, name))
            if again is not None:
                known = record.writer.begin(
                    again.series.active, execution_hash(SYSTEM, name), self.execution.started_at
                )
                if known is not None:  # the start that the dead worker's journal knows has this end
                    known[0].end(known[1], again.started_at)
                self._record_message(again)

    # ---------------------------------------------------------------- in the worker

    def record_told(self) -> bool:
        """Record the end that the work-horse told of; False if it told none."""
        if self.execution.ended:
            return True
        if self._page.words[_STATE] != _TOLD:
            return False
        self._record_message(self.execution)
        return True

    def _record_message(self, execution: Execution) -> None:
        words = self._page.words
        execution.clock_start = self._record.clock() - words[_SECONDS]
        target, status, error = words[_TARGET], STATUSES[int(words[_STATUS])], None
        execution.target = None if isnan(target) else target
        if status == FAILURE:
            error = recorder.ErrorType(bytes(self._page.text[: int(words[_LENGTH])]), "utf-8", "replace")
        self._record.end(execution, status, error, words[_CPU])

    @guarded("rq lost")
    def record_lost(self, job: RQJob, queue: Any, killed: Killed | None, status: str | None = None) -> bool:
        """Record that the work-horse is gone, unless it reported its end; returns and takes what `report_lost` does."""
        if self.record_told():
            return False
        counted = report_lost(job, queue, str(self.execution.execution_id), killed, status)
        self.execution.ended = True
        if self.execution.entry is not None:
            journal, entry = self.execution.entry
            journal.end(entry, self.execution.started_at)
        return bool(counted)

    def record_gone(self, job: RQJob, queue: Any, stopped: bool) -> None:
        """Record the end of a work-horse that left without a word, and of which RQ has none for us either.

        RQ holds it for well when the exit code is 0, and for told of in Redis when the job is finished or failed.
        stopped: by an operator, whose callback raised before RQ could say so.
        """
        if self.record_told():
            return
        if stopped:
            self.record_lost(job, queue, None, REVOKED)
            return
        ended = ended_in_redis(job)
        if ended is not None:
            self._record.ended(self.execution, Ended(ended))
        else:  # RQ will call it abandoned some day; it is here that its end is seen
            again = bool(job.retries_left and job.retries_left > 0)
            self.record_lost(job, queue, Killed(None), RETRY if again else FAILURE)


def before_fork(page: SharedPage, record: recorder.Recorder, started: Started) -> Forked | None:
    """Record the start of the job whose work-horse is forked next; None when its job type is ignored.

    page: of the worker; no work-horse before that one writes into it any more.
    """
    series, name = record.series_of(started.job), started.execution_id
    if series.ignored:
        return None
    execution = record.begin(series, name, execution_hash(SYSTEM, name), started.ready_at)
    return Forked(page, execution, record)
