"""Single operations, bound and labelled, against prometheus_client's multiprocess mode."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measuring import Row, compare, interleaved
from jobmetrics.instruments.bound import UPDATES, locked

ROUNDS = 31
OPERATIONS = 20_000


@contextmanager
def directories() -> Iterator[tuple[str, str]]:
    """A registry directory and a multiprocess directory on the same file system, both active."""
    base = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=base) as ours, tempfile.TemporaryDirectory(dir=base) as peer:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = peer  # prometheus_client reads it at import
        from jobmetrics import settings

        settings.configure(dir=f"{ours}/registry", propagate_errors=True)
        yield ours, peer


def _per_operation(operation: Callable[[], object]) -> Callable[[], float]:
    """Measure nanoseconds per operation, without the cost of the loop."""

    def measure() -> float:
        repeat = range(OPERATIONS)
        start = time.perf_counter_ns()
        for _ in repeat:
            pass
        empty = time.perf_counter_ns()
        for _ in repeat:
            operation()
        return (time.perf_counter_ns() - empty - (empty - start)) / OPERATIONS

    return measure


def rows() -> list[Row]:
    """Measure the rows."""
    with directories():
        import prometheus_client as peer

        import jobmetrics as ours

        def sides(module: object) -> dict[str, Callable[[], object]]:
            counter = module.Counter("bench_jobs", "d", ["a", "b"])  # type: ignore[attr-defined]
            gauge = module.Gauge("bench_level", "d", ["a"], multiprocess_mode="livesum")  # type: ignore[attr-defined]
            histogram = module.Histogram("bench_seconds", "d", ["a", "b"])  # type: ignore[attr-defined]
            bound_counter, bound_gauge = counter.labels("x", "y"), gauge.labels("x")
            bound_histogram = histogram.labels("x", "y")

            def labelled() -> None:
                counter.labels("x", "y").inc()
                histogram.labels("x", "y").observe(0.3)

            return {
                "counter inc (bound)": bound_counter.inc,
                "gauge inc (bound)": bound_gauge.inc,
                "histogram observe (bound)": lambda: bound_histogram.observe(0.3),
                "labelled counter inc + histogram observe": labelled,
            }

        budgets = (0.25, 0.25, 0.20, 0.20)
        ours_by_name, peer_by_name = sides(ours), sides(peer)
        rows = [
            _row(name, budget, ours_by_name[name], peer_by_name[name])
            for name, budget in zip(ours_by_name, budgets, strict=True)
        ]
        counter, gauge = (ours.Counter("bench_jobs", "d", ["a", "b"]), ours.Gauge("bench_level", "d", ["a"]))
        with _locked():
            for name, series in (("counter", counter.labels("x", "y")), ("gauge", gauge.labels("x"))):
                peers = peer_by_name[f"{name} inc (bound)"]
                rows.append(_row(f"{name} inc (bound), with the lock of builds without GIL", 0.60, series.inc, peers))
        return rows


def _row(name: str, budget: float, ours: Callable[[], object], peer: Callable[[], object]) -> Row:
    return compare(name, "ns", budget, interleaved(_per_operation(ours), _per_operation(peer), ROUNDS))


@contextmanager
def _locked() -> Iterator[None]:
    """Make updates take the lock, as in a build without the GIL."""
    originals = [(owner, name, getattr(owner, name)) for owner, name in UPDATES]
    for owner, name, update in originals:
        setattr(owner, name, locked(update))
    try:
        yield
    finally:
        for owner, name, update in originals:
            setattr(owner, name, update)
