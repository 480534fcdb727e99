"""A summary of the metrics for `jobmetrics top`: one row for each job type, and the queues."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from prometheus_client.metrics_core import Metric

Key = tuple[str, str, str]


@dataclass
class JobTypeCounts:
    """The counts of one job type in one reading.

    durations, waits: cumulated bucket counts by upper bound in seconds.
    """

    ended: float = 0.0
    failed: float = 0.0
    active: float = 0.0
    durations: dict[float, float] = field(default_factory=dict)
    waits: dict[float, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Overview:
    """A summary of the metrics, read at `at` (monotonic seconds).

    jobs: by system, job type and queue. depths, and oldest in epoch seconds: by system, broker and queue.
    workers, capacity: by system. down: brokers, or the registry directory, that cannot be read.
    """

    at: float
    jobs: dict[Key, JobTypeCounts] = field(default_factory=dict)
    depths: dict[Key, float] = field(default_factory=dict)
    oldest: dict[Key, float] = field(default_factory=dict)
    workers: dict[str, float] = field(default_factory=dict)
    capacity: dict[str, float] = field(default_factory=dict)
    down: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class JobTypeRow:
    """What one job type did between two readings.

    rate: executions a second. failed: share of them that failed, 0 to 1. active: running jobs. wait, duration: median
    and 95th percentile in seconds. None where unknown.
    """

    key: Key
    rate: float
    failed: float | None
    active: float
    wait: tuple[float | None, float | None]
    duration: tuple[float | None, float | None]


def summarize(metrics: Iterable[Metric], at: float, prefix: str = "") -> Overview:
    """Summarize metrics.

    Args:
        metrics: Metrics of the registry directory or of an exporter.
        at: Monotonic time of the reading, in seconds.
        prefix: The namespace and its underscore; empty without a namespace.
    """
    found = Overview(at)
    for metric in metrics:
        for sample in metric.samples:
            name = sample.name.removeprefix(prefix)
            _take_job(found, name, sample.labels, sample.value)
            _take_rest(found, name, sample.labels, sample.value)
    return found


def _take_job(overview: Overview, name: str, labels: Mapping[str, str], value: float) -> None:
    key = (labels.get("system", ""), labels.get("job_type", ""), labels.get("queue_name", ""))
    if name == "jobs_total":
        totals = overview.jobs.setdefault(key, JobTypeCounts())
        totals.ended += value
        totals.failed += value if labels.get("status") == "failure" else 0.0
    elif name == "jobs_active":
        overview.jobs.setdefault(key, JobTypeCounts()).active += value
    elif name == "jobs_duration_seconds_bucket":
        _add(overview.jobs.setdefault(key, JobTypeCounts()).durations, labels, value)
    elif name == "jobs_queue_wait_seconds_bucket":
        _add(overview.jobs.setdefault(key, JobTypeCounts()).waits, labels, value)


def _take_rest(overview: Overview, name: str, labels: Mapping[str, str], value: float) -> None:
    system = labels.get("system", "")
    place = (system, labels.get("broker", ""), labels.get("queue_name", ""))
    if name == "jobs_queue_depth":
        overview.depths[place] = value
    elif name == "jobs_queue_oldest_timestamp_seconds":
        overview.oldest[place] = value
    elif name == "jobs_workers":
        overview.workers[system] = overview.workers.get(system, 0.0) + value
    elif name == "jobs_worker_capacity":
        overview.capacity[system] = overview.capacity.get(system, 0.0) + value
    elif name == "jobmetrics_collector_up" and not value:
        overview.down.append(f"{labels.get('collector')} broker {labels.get('broker')}")
    elif name == "jobmetrics_directory_up" and not value:
        overview.down.append("the registry directory")


def _add(buckets: dict[float, float], labels: Mapping[str, str], value: float) -> None:
    try:
        bound = float(labels["le"])
    except (KeyError, ValueError):
        return  # another program's metric of that name
    buckets[bound] = buckets.get(bound, 0.0) + value


def rows(now: Overview, before: Overview | None) -> list[JobTypeRow]:
    """List what each job type did between two readings, the busiest first; without `before`, all that was recorded."""
    found = []
    for key, totals in now.jobs.items():
        last = before.jobs.get(key, JobTypeCounts()) if before else JobTypeCounts()
        if last.ended > totals.ended:  # another directory, or a pruned one
            last = JobTypeCounts()
        ended, failed = totals.ended - last.ended, totals.failed - last.failed
        seconds = now.at - before.at if before else math.inf
        found.append(
            JobTypeRow(
                key,
                ended / seconds if seconds > 0 else 0.0,
                failed / ended if ended else None,
                totals.active,
                _percentiles(totals.waits, last.waits),
                _percentiles(totals.durations, last.durations),
            )
        )
    return sorted(found, key=lambda row: (-row.rate, -row.active, row.key))


def _percentiles(now: Mapping[float, float], before: Mapping[float, float]) -> tuple[float | None, float | None]:
    """Return the median and the 95th percentile of the newer observations, or of all if there are no newer ones."""
    counts: Mapping[float, float] = {bound: count - before.get(bound, 0.0) for bound, count in now.items()}
    if not counts.get(math.inf):
        counts = now
    return quantile(counts, 0.5), quantile(counts, 0.95)


def quantile(cumulated: Mapping[float, float], share: float) -> float | None:
    """Estimate a quantile of a histogram as Prometheus' histogram_quantile does.

    Args:
        cumulated: Cumulated counts by upper bound, including +Inf.
        share: The quantile, 0 to 1.

    Returns:
        The value below which that share of the observations lies, interpolated within its bucket; the highest finite
        bound if it lies beyond. None without observations, without +Inf or without a finite bound.
    """
    bounds = sorted(cumulated)
    total = cumulated.get(math.inf, 0.0)
    if len(bounds) < 2 or not total:
        return None
    rank = share * total
    low, below = 0.0, 0.0
    for bound in bounds[:-1]:
        count = cumulated[bound]
        if count >= rank and count > below:
            return low + (bound - low) * (rank - below) / (count - below)
        low, below = bound, count
    return low
