"""RQ: `rq worker --worker-class jobmetrics.rq.Worker`, or `instrument(MyWorkerClass)` for a class of one's own."""

from __future__ import annotations

import rq

from jobmetrics.rq.worker import instrument, uninstrument

__all__ = ["SimpleWorker", "Worker", "instrument", "uninstrument"]


@instrument
class Worker(rq.Worker):
    """rq.Worker, recorded: one forked work-horse a job."""


@instrument
class SimpleWorker(rq.SimpleWorker):
    """rq.SimpleWorker, recorded: jobs run in the worker itself."""
