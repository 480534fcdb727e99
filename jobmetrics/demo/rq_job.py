"""RQ's job, keeping the ledger: `rq worker --job-class jobmetrics.demo.rq_job.LedgerJob`."""

from __future__ import annotations

from typing import Any

from rq.job import Job

from jobmetrics.demo import ledger
from jobmetrics.demo.config import load

SYSTEM = "rq"


class LedgerJob(Job):
    """A job that writes a line of the ledger about each of its executions."""

    def perform(self) -> Any:
        with ledger.execution(load().ledger, SYSTEM, str(self.func_name), self.id, self._classify):
            return super().perform()

    def _classify(self, error: BaseException) -> tuple[str, str]:
        # RQ retries whatever was raised as long as the job's own count lasts (Job.should_retry).
        outcome = ledger.RETRY if self.retries_left else ledger.FAILURE
        return outcome, type(error).__name__
