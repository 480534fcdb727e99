"""A bare `@timed_job` around an empty function, against prometheus_client recording a call by hand.

The peer is code that its users write, in multiprocess mode: a gauge of running calls, a counter by status and a
histogram of durations, each with a label for the job type. `@timed_job` also records the journal, processor time,
failures by class and the last success.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from benchmarks.measuring import Row, compare, interleaved
from benchmarks.operations import directories

ROUNDS = 41
CALLS = 4_000
BUDGET = 1.00  # at most the peer's time, although the peer records less


def _per_call(function: Callable[[], None]) -> Callable[[], float]:
    """Measure microseconds per call."""

    def measure() -> float:
        repeat = range(CALLS)
        start = time.perf_counter_ns()
        for _ in repeat:
            function()
        return (time.perf_counter_ns() - start) / CALLS / 1000

    return measure


def rows() -> list[Row]:
    """Measure the row."""
    with directories():
        import prometheus_client as peer

        from jobmetrics import timed_job

        gauge = peer.Gauge("timed_in_progress", "d", ["job_type"], multiprocess_mode="livesum")
        counter = peer.Counter("timed_jobs", "d", ["job_type", "status"])
        histogram = peer.Histogram("timed_seconds", "d", ["job_type"])

        @timed_job
        def ours() -> None:
            pass

        def by_hand() -> None:
            in_progress = gauge.labels("empty")
            in_progress.inc()
            start = time.perf_counter()
            try:
                pass
            except BaseException:
                counter.labels("empty", "failure").inc()
                raise
            else:
                counter.labels("empty", "success").inc()
            finally:
                histogram.labels("empty").observe(time.perf_counter() - start)
                in_progress.dec()

        ours()
        by_hand()
        figures = interleaved(_per_call(ours), _per_call(by_hand), ROUNDS)
        return [compare("bare @timed_job, empty function", "us", BUDGET, figures)]
