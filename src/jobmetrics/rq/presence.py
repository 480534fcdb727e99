"""That a worker is alive: live gauges of its own process, which end with it."""

from __future__ import annotations

from jobmetrics import families as f
from jobmetrics import recorder
from jobmetrics.guard import guarded
from jobmetrics.instruments import BoundGauge
from jobmetrics.registry.writer import Writer
from jobmetrics.rq.jobs import SYSTEM

_gauges: tuple[Writer, BoundGauge, BoundGauge] | None = None


@guarded("rq worker")
def tell(alive: bool) -> None:
    """Say that this process is a worker, for one job at a time, or is none any more."""
    global _gauges
    writer = recorder.default().writer
    if _gauges is None or _gauges[0] is not writer:
        labels = (SYSTEM,)
        _gauges = writer, BoundGauge(writer, f.JOBS_WORKERS, labels), BoundGauge(writer, f.JOBS_WORKER_CAPACITY, labels)
        writer.describe(SYSTEM, "worker")
    for gauge in _gauges[1:]:
        gauge.set(1.0 if alive else 0.0)
