"""What a user would write with prometheus_client's multiprocess mode inside the job; a module of its own, since
importing it makes files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import Counter, Gauge, Histogram

ENDED = Counter("bench_jobs", "Ended.", ["job", "status"])
TOOK = Histogram("bench_job_seconds", "Duration.", ["job"])
RUNNING = Gauge("bench_running", "Running.", ["job"], multiprocess_mode="livesum")


@contextmanager
def observed() -> Iterator[None]:
    """Count the job in its block."""
    with RUNNING.labels("empty").track_inprogress(), TOOK.labels("empty").time():
        yield
    ENDED.labels("empty", "success").inc()
