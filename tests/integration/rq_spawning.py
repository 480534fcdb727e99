"""SpawnWorker classes with their own settings, and a program that makes its settings in code."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import rq
from redis import Redis

import jobmetrics
import jobmetrics.rq
from tests.integration import execution_ledger


class OwnJob(rq.job.Job):
    """A user's job class."""


class OwnDeathPenalty(rq.timeouts.UnixSignalDeathPenalty):
    """A user's death penalty class."""


def handler(job: Any, *_: Any) -> bool:
    """An exception handler that writes the classes of its work-horse."""
    execution_ledger.write(f"handled:{type(job).__name__}")
    return False


if hasattr(jobmetrics.rq, "SpawnWorker"):

    @jobmetrics.rq.instrument
    class OwnSpawning(rq.worker.SpawnWorker):
        """A user's class that overrides perform_job."""

        def perform_job(self, *args: Any, **kwargs: Any) -> bool:
            done = super().perform_job(*args, **kwargs)
            execution_ledger.write(f"performed:{self.death_penalty_class.__name__}:{self.default_result_ttl}")
            return done

    class Plain(rq.worker.SpawnWorker):
        """A class instrumented only by the worker's program."""


def main(directory: str, port: int) -> None:
    """Run a worker with settings and a connection made in code."""
    jobmetrics.configure(dir=directory, ignore=["*.count"], propagate_errors=True)
    connection = Redis(host="127.0.0.1", port=port)
    worker_class = jobmetrics.rq.instrument(Plain)
    worker_class(["jobs"], connection=connection).work(burst=True)


if __name__ == "__main__":
    assert "JOBMETRICS_DIR" not in os.environ
    # A spawned work-horse must find the classes under a name other than __main__.
    from tests.integration import rq_spawning  # noqa: PLW0406 - on purpose, as said above

    rq_spawning.main(str(Path(sys.argv[1])), int(sys.argv[2]))
