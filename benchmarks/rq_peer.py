"""The metrics that a user of prometheus_client's multiprocess mode would write in a job.

The module is separate because importing it creates files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import Counter, Gauge, Histogram

ENDED = Counter("bench_jobs", "Ended.", ["job", "status"])
TOOK = Histogram("bench_job_seconds", "Duration.", ["job"])
RUNNING = Gauge("bench_running", "Running.", ["job"], multiprocess_mode="livesum")


@contextmanager
def observed() -> Iterator[None]:
    """Record the block as a job."""
    with RUNNING.labels("empty").track_inprogress(), TOOK.labels("empty").time():
        yield
    ENDED.labels("empty", "success").inc()
