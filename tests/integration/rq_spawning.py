"""SpawnWorker classes with settings of their own, and a program that makes its settings in code."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import rq
from redis import Redis

import jobmetrics
import jobmetrics.rq
from tests.integration import ledger


class OwnJob(rq.job.Job):
    """A user's job class."""


class OwnDeathPenalty(rq.timeouts.UnixSignalDeathPenalty):
    """A user's way of ending a job that takes too long."""


def handler(job: Any, *_: Any) -> bool:
    """An exception handler: it writes down what its work-horse was made of."""
    ledger.write(f"handled:{type(job).__name__}")
    return False


if hasattr(jobmetrics.rq, "SpawnWorker"):

    @jobmetrics.rq.instrument
    class OwnSpawning(rq.worker.SpawnWorker):
        """A user's class with a perform_job of its own."""

        def perform_job(self, *args: Any, **kwargs: Any) -> bool:
            done = super().perform_job(*args, **kwargs)
            ledger.write(f"performed:{self.death_penalty_class.__name__}:{self.default_result_ttl}")
            return done

    class Plain(rq.worker.SpawnWorker):
        """Instrumented by the worker's program alone."""


def main(directory: str, port: int) -> None:
    """A worker with settings and a connection made in code."""
    jobmetrics.configure(dir=directory, ignore=["*.count"], propagate_errors=True)
    connection = Redis(host="127.0.0.1", port=port)
    worker_class = jobmetrics.rq.instrument(Plain)
    worker_class(["jobs"], connection=connection).work(burst=True)


if __name__ == "__main__":
    assert "JOBMETRICS_DIR" not in os.environ
    # A spawned work-horse must find the classes: not by the name __main__.
    from tests.integration import rq_spawning  # noqa: PLW0406 - on purpose, as said above

    rq_spawning.main(str(Path(sys.argv[1])), int(sys.argv[2]))
