"""RQ: `rq worker --worker-class jobmetrics.rq.Worker`, or `instrument(MyWorkerClass)` for a class of one's own.

Producers count what they send after `instrument_queue(queue)`, or `instrument_queue(rq.Queue)` for all queues.
This module imports no RQ before one of its names is used: the commands load the package for its options.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobmetrics.rq.producer import instrument_queue, uninstrument_queue
    from jobmetrics.rq.worker import SimpleWorker, SpawnWorker, Worker, instrument, uninstrument

__all__ = [
    "SimpleWorker",
    "SpawnWorker",
    "Worker",
    "instrument",
    "instrument_queue",
    "uninstrument",
    "uninstrument_queue",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from jobmetrics.rq import producer, worker

    found = globals()[name] = getattr(producer if name.endswith("_queue") else worker, name)
    return found
