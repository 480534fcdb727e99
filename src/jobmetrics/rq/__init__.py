"""RQ: `rq worker --worker-class jobmetrics.rq.Worker`, or `instrument(MyWorkerClass)` for a class of one's own.

Producers count what they send after `instrument_queue(queue)`, or `instrument_queue(rq.Queue)` for all queues.
"""

from __future__ import annotations

import rq

from jobmetrics.rq.publish import instrument_queue, uninstrument_queue
from jobmetrics.rq.spawned import STOCK
from jobmetrics.rq.worker import instrument, uninstrument

__all__ = ["SimpleWorker", "Worker", "instrument", "instrument_queue", "uninstrument", "uninstrument_queue"]


@instrument
class Worker(rq.Worker):
    """rq.Worker, recorded: one forked work-horse a job."""


@instrument
class SimpleWorker(rq.SimpleWorker):
    """rq.SimpleWorker, recorded: jobs run in the worker itself."""


if STOCK is not None:
    __all__ += ["SpawnWorker"]

    @instrument
    class SpawnWorker(STOCK):
        """rq.SpawnWorker, recorded: one spawned work-horse a job. RQ has it from 2.2 on."""
