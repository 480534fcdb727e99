"""RQ: `rq worker --worker-class jobmetrics.rq.Worker`, or `instrument(MyWorkerClass)` for your own worker class.

`instrument_queue(queue)` counts the jobs that a producer sends, `instrument_queue(rq.Queue)` those of all queues.
This module imports RQ when one of its names is first used: the commands load the package for its options.
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

SYSTEM = "rq"  # the label `system`


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from jobmetrics.rq import producer, worker

    found = globals()[name] = getattr(producer if name.endswith("_queue") else worker, name)
    return found
