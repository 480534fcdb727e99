"""A summary of the metrics for `jobmetrics top` and the findings: job types, queues, workers and schedules."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from prometheus_client.metrics_core import Metric

from jobmetrics import families as f

Key = tuple[str, str, str]
Pair = tuple[str, str]

_LONGEST_SYSTEM = 32  # characters
DIRECTORY = "the registry directory"  # among what cannot be read


@dataclass
class JobTypeCounts:
    """The counts of one job type in one reading.

    active: running jobs. oldest: start of the job that has been running longest; last_success: both in epoch seconds,
    None if unknown. attempts: executions by range of the attempt. unresolved: executions of killed processes without
    an end. durations, waits: cumulated bucket counts by upper bound in seconds.
    """

    ended: float = 0.0
    succeeded: float = 0.0
    failed: float = 0.0
    retried: float = 0.0
    withdrawn: float = 0.0
    published: float = 0.0
    active: float = 0.0
    unresolved: float = 0.0
    oldest: float | None = None
    last_success: float | None = None
    attempts: dict[str, float] = field(default_factory=dict)
    durations: dict[float, float] = field(default_factory=dict)
    waits: dict[float, float] = field(default_factory=dict)


@dataclass(frozen=True)
class QueueState:
    """What a broker reports of one queue. None where unknown. Timestamps are in epoch seconds.

    oldest: when the next job was queued. overdue: scheduled jobs past their time; overdue_oldest: when the most overdue
    one should have been queued. orphaned: started jobs of workers that no longer exist.
    """

    depth: float | None = None
    oldest: float | None = None
    consumers: float | None = None
    overdue: float | None = None
    overdue_oldest: float | None = None
    orphaned: float | None = None


@dataclass(frozen=True)
class Overview:
    """A summary of the metrics, read at `at` (monotonic seconds).

    jobs: by system, job type and queue. queues: by system, broker and queue. reserved: by system and queue.
    workers, capacity, workers_started, workers_lost, processes_lost: by system. stale, cron_next, cron_heartbeat: by
    system and broker. due, sent: timestamps of schedule entries, by system and entry. up: whether each collector reads
    its broker, by collector and broker. down: brokers, or the registry directory, that cannot be read.
    """

    at: float
    jobs: dict[Key, JobTypeCounts] = field(default_factory=dict)
    queues: dict[Key, QueueState] = field(default_factory=dict)
    reserved: dict[Pair, float] = field(default_factory=dict)
    workers: dict[str, float] = field(default_factory=dict)
    capacity: dict[str, float] = field(default_factory=dict)
    workers_started: dict[str, float] = field(default_factory=dict)
    workers_lost: dict[str, float] = field(default_factory=dict)
    processes_lost: dict[str, float] = field(default_factory=dict)
    stale: dict[Pair, float] = field(default_factory=dict)
    cron_next: dict[Pair, float] = field(default_factory=dict)
    cron_heartbeat: dict[Pair, float] = field(default_factory=dict)
    due: dict[Pair, float] = field(default_factory=dict)
    sent: dict[Pair, float] = field(default_factory=dict)
    up: dict[Pair, bool] = field(default_factory=dict)
    down: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class JobTypeRow:
    """What one job type did between two readings.

    rate: executions a second. failed, retried: share of them that failed or asked for a retry, 0 to 1. active: running
    jobs. oldest: start of the one that has been running longest, in epoch seconds. wait, duration: median and 95th
    percentile in seconds. None where unknown.
    """

    key: Key
    rate: float
    failed: float | None
    retried: float | None
    active: float
    oldest: float | None
    wait: tuple[float | None, float | None]
    duration: tuple[float | None, float | None]


def summarize(metrics: Iterable[Metric], at: float | None = None, prefix: str = "") -> Overview:
    """Summarize metrics.

    Args:
        metrics: Metrics of the registry directory or of an exporter.
        at: Monotonic time of the reading, in seconds. Now if None.
        prefix: The namespace and its underscore; empty without a namespace.
    """
    found = Overview(time.monotonic() if at is None else at)
    for metric in metrics:
        for sample in metric.samples:
            name = sample.name.removeprefix(prefix)
            if take := _TAKE.get(name):
                take(found, name, sample.labels, sample.value)
    return found


Labels = Mapping[str, str]


def _system(labels: Labels) -> str:
    """Return the label of the job system. No registered name is longer; another program's may be."""
    return labels.get("system", "")[:_LONGEST_SYSTEM]


def _key(labels: Labels, by: Sequence[str]) -> str | tuple[str, ...]:
    """Return the values of these labels; of a single label its value."""
    values = tuple(_system(labels) if label == "system" else labels.get(label, "") for label in by)
    return values if len(by) > 1 else values[0]


def _job(overview: Overview, labels: Labels) -> JobTypeCounts:
    key = (_system(labels), labels.get("job_type", ""), labels.get("queue_name", ""))
    return overview.jobs.setdefault(key, JobTypeCounts())


_BY_STATUS = {"success": "succeeded", "failure": "failed", "retry": "retried"}


def _take_ended(overview: Overview, _: str, labels: Labels, value: float) -> None:
    job = _job(overview, labels)
    job.ended += value
    if counted := _BY_STATUS.get(labels.get("status", "")):
        setattr(job, counted, getattr(job, counted) + value)


def _take_attempt(overview: Overview, _: str, labels: Labels, value: float) -> None:
    attempts = _job(overview, labels).attempts
    attempt = labels.get("attempt", "")
    attempts[attempt] = attempts.get(attempt, 0.0) + value


_JOB_SUMS = {
    f.JOBS_ACTIVE.name: "active",
    f.JOBS_WITHDRAWN.name: "withdrawn",
    f.JOBS_PUBLISHED.name: "published",
    f.JOBS_UNRESOLVED.name: "unresolved",
}


def _take_job_sum(overview: Overview, name: str, labels: Labels, value: float) -> None:
    job, counted = _job(overview, labels), _JOB_SUMS[name]
    setattr(job, counted, getattr(job, counted) + value)


def _take_oldest(overview: Overview, _: str, labels: Labels, value: float) -> None:
    job = _job(overview, labels)
    job.oldest = value if job.oldest is None else min(job.oldest, value)


def _take_success(overview: Overview, _: str, labels: Labels, value: float) -> None:
    job = _job(overview, labels)
    job.last_success = value if job.last_success is None else max(job.last_success, value)


def _take_duration(overview: Overview, _: str, labels: Labels, value: float) -> None:
    _add(_job(overview, labels).durations, labels, value)


def _take_wait(overview: Overview, _: str, labels: Labels, value: float) -> None:
    _add(_job(overview, labels).waits, labels, value)


_QUEUE_FIELDS = {
    f.JOBS_QUEUE_DEPTH.name: "depth",
    f.JOBS_QUEUE_OLDEST.name: "oldest",
    f.JOBS_QUEUE_CONSUMERS.name: "consumers",
    f.JOBS_QUEUE_OVERDUE.name: "overdue",
    f.JOBS_QUEUE_OVERDUE_OLDEST.name: "overdue_oldest",
    f.JOBS_QUEUE_ORPHANED.name: "orphaned",
}


def _take_queue(overview: Overview, name: str, labels: Labels, value: float) -> None:
    place = (_system(labels), labels.get("broker", ""), labels.get("queue_name", ""))
    known = overview.queues.get(place, QueueState())
    overview.queues[place] = replace(known, **{_QUEUE_FIELDS[name]: value})


_BY_LABELS = {
    f.JOBS_WORKERS.name: ("workers", ("system",)),
    f.JOBS_WORKER_CAPACITY.name: ("capacity", ("system",)),
    f.JOBS_WORKER_STARTS.name: ("workers_started", ("system",)),
    f.JOBS_WORKERS_LOST.name: ("workers_lost", ("system",)),
    f.JOBS_WORKER_PROCESSES_LOST.name: ("processes_lost", ("system",)),
    f.JOBS_RESERVED.name: ("reserved", ("system", "queue_name")),
    f.JOBS_REGISTERED_WORKERS_STALE.name: ("stale", ("system", "broker")),
}


def _take_sum(overview: Overview, name: str, labels: Labels, value: float) -> None:
    attribute, by = _BY_LABELS[name]
    key = _key(labels, by)
    sums = getattr(overview, attribute)
    sums[key] = sums.get(key, 0.0) + value


_TIMESTAMPS = {
    f.JOBS_CRON_NEXT.name: ("cron_next", ("system", "broker")),
    f.JOBS_CRON_HEARTBEAT.name: ("cron_heartbeat", ("system", "broker")),
    f.JOBS_SCHEDULE_NEXT_DUE.name: ("due", ("system", "schedule_entry")),
    f.JOBS_SCHEDULE_LAST_SENT.name: ("sent", ("system", "schedule_entry")),
}


def _take_timestamp(overview: Overview, name: str, labels: Labels, value: float) -> None:
    attribute, by = _TIMESTAMPS[name]
    times = getattr(overview, attribute)
    key = _key(labels, by)
    times[key] = max(times.get(key, value), value)


def _take_up(overview: Overview, name: str, labels: Labels, value: float) -> None:
    if name == f.COLLECTOR_UP.name:
        collector = (labels.get("collector", ""), labels.get("broker", ""))
        overview.up[collector] = bool(value)
        if not value:
            overview.down.append("{} broker {}".format(*collector))
    elif not value:
        overview.down.append(DIRECTORY)


_TAKE: dict[str, Callable[[Overview, str, Labels, float], None]] = {
    f.JOBS.name: _take_ended,
    f.JOBS_ATTEMPTS.name: _take_attempt,
    **dict.fromkeys(_JOB_SUMS, _take_job_sum),
    f.JOBS_ACTIVE_OLDEST.name: _take_oldest,
    f.JOBS_LAST_SUCCESS.name: _take_success,
    f"{f.JOBS_DURATION.name}_bucket": _take_duration,
    f"{f.JOBS_QUEUE_WAIT.name}_bucket": _take_wait,
    **dict.fromkeys(_QUEUE_FIELDS, _take_queue),
    **dict.fromkeys(_BY_LABELS, _take_sum),
    **dict.fromkeys(_TIMESTAMPS, _take_timestamp),
    **dict.fromkeys((f.COLLECTOR_UP.name, f.DIRECTORY_UP.name), _take_up),
}


def _add(buckets: dict[float, float], labels: Labels, value: float) -> None:
    try:
        bound = float(labels["le"])
    except (KeyError, ValueError):
        return  # another program's metric of that name
    buckets[bound] = buckets.get(bound, 0.0) + value


def rows(now: Overview, before: Overview | None) -> list[JobTypeRow]:
    """List what each job type did between two readings, the busiest first; without `before`, all that was recorded."""
    found = []
    for key, totals in now.jobs.items():
        if not (totals.ended or totals.active or totals.durations):  # sent from this host, and run elsewhere
            continue
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
                (totals.retried - last.retried) / ended if ended else None,
                totals.active,
                totals.oldest,
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
