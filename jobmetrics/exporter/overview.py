"""Metrics as rows for people: what each job type does, and how full the queues are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from prometheus_client.metrics_core import Metric

Key = tuple[str, str, str]


@dataclass
class Totals:
    """What one reading says of one job type. Buckets: cumulated counts by upper bound in seconds."""

    ended: float = 0.0
    failed: float = 0.0
    active: float = 0.0
    durations: dict[float, float] = field(default_factory=dict)
    waits: dict[float, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Sight:
    """One reading of metrics, taken at `at` (monotonic seconds).

    jobs: by system, job type, queue. depths, and oldest in epoch seconds: by system, broker, queue. workers,
    capacity: by system. down: what cannot be read.
    """

    at: float
    jobs: dict[Key, Totals] = field(default_factory=dict)
    depths: dict[Key, float] = field(default_factory=dict)
    oldest: dict[Key, float] = field(default_factory=dict)
    workers: dict[str, float] = field(default_factory=dict)
    capacity: dict[str, float] = field(default_factory=dict)
    down: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Row:
    """A job type now. rate: executions a second; failed: share of them; the rest in seconds; None: unknown."""

    key: Key
    rate: float
    failed: float | None
    active: float
    wait: tuple[float | None, float | None]
    duration: tuple[float | None, float | None]


def sight(metrics: Iterable[Metric], at: float, prefix: str = "") -> Sight:
    """Sum up metrics for people.

    Args:
        metrics: from the registry directory or from an exporter's text.
        at: when they were read, monotonic seconds.
        prefix: the namespace with its underscore.
    """
    found = Sight(at)
    for metric in metrics:
        for sample in metric.samples:
            name = sample.name.removeprefix(prefix)
            _take_job(found, name, sample.labels, sample.value)
            _take_rest(found, name, sample.labels, sample.value)
    return found


def _take_job(sight: Sight, name: str, labels: Mapping[str, str], value: float) -> None:
    key = (labels.get("system", ""), labels.get("job_type", ""), labels.get("queue_name", ""))
    if name == "jobs_total":
        totals = sight.jobs.setdefault(key, Totals())
        totals.ended += value
        totals.failed += value if labels.get("status") == "failure" else 0.0
    elif name == "jobs_active":
        sight.jobs.setdefault(key, Totals()).active += value
    elif name == "jobs_duration_seconds_bucket":
        _add(sight.jobs.setdefault(key, Totals()).durations, labels, value)
    elif name == "jobs_queue_wait_seconds_bucket":
        _add(sight.jobs.setdefault(key, Totals()).waits, labels, value)


def _take_rest(sight: Sight, name: str, labels: Mapping[str, str], value: float) -> None:
    system = labels.get("system", "")
    place = (system, labels.get("broker", ""), labels.get("queue_name", ""))
    if name == "jobs_queue_depth":
        sight.depths[place] = value
    elif name == "jobs_queue_oldest_timestamp_seconds":
        sight.oldest[place] = value
    elif name == "jobs_workers":
        sight.workers[system] = sight.workers.get(system, 0.0) + value
    elif name == "jobs_worker_capacity":
        sight.capacity[system] = sight.capacity.get(system, 0.0) + value
    elif name == "jobmetrics_collector_up" and not value:
        sight.down.append(f"{labels.get('collector')} broker {labels.get('broker')}")
    elif name == "jobmetrics_directory_up" and not value:
        sight.down.append("the registry directory")


def _add(buckets: dict[float, float], labels: Mapping[str, str], value: float) -> None:
    try:
        bound = float(labels["le"])
    except (KeyError, ValueError):
        return  # another program's metric of that name
    buckets[bound] = buckets.get(bound, 0.0) + value


def rows(now: Sight, before: Sight | None) -> list[Row]:
    """What happened between two readings, the busiest job type first; since ever where there is none before."""
    found = []
    for key, totals in now.jobs.items():
        last = before.jobs.get(key, Totals()) if before else Totals()
        if last.ended > totals.ended:  # another directory, or it began anew
            last = Totals()
        ended, failed = totals.ended - last.ended, totals.failed - last.failed
        seconds = now.at - before.at if before else math.inf
        found.append(
            Row(
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
    """The median and the 95th percentile of what came between, else of all there ever was."""
    counts: Mapping[float, float] = {bound: count - before.get(bound, 0.0) for bound, count in now.items()}
    if not counts.get(math.inf):
        counts = now
    return quantile(counts, 0.5), quantile(counts, 0.95)


def quantile(cumulated: Mapping[float, float], share: float) -> float | None:
    """Estimate a quantile of a histogram as Prometheus' histogram_quantile does.

    Args:
        cumulated: cumulated counts by upper bound, +Inf included.
        share: 0 to 1.

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
