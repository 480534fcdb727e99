"""The built-in metrics as data: names, types, units, labels and merge modes."""

# No `from __future__ import annotations`: NamedTuple would compile each string.
import math
import re
from typing import NamedTuple

from jobmetrics.events import ATTEMPTS, PYTHON, STATUSES, WITHDRAWN_REASONS
from jobmetrics.runtime import state
from jobmetrics.settings import DEFAULT_BUCKETS

# Public besides these: the families of metrics about jobs, JOBS and JOBS_....
__all__ = ["COLLECTED", "COUNTER", "GAUGE", "HISTOGRAM", "OVERFLOW", "Family"]

COUNTER = "counter"
"""The type of a number that only goes up."""
GAUGE = "gauge"
"""The type of a number that goes up and down."""
HISTOGRAM = "histogram"
"""The type of values counted by size."""

# How the cells of all slots are merged into one value. LIVE_SUM counts only slots that a live process holds.
SUM = "sum"
LIVE_SUM = "livesum"
MAX = "max"
MIN = "min"
MOST_RECENT = "mostrecent"
HIGH_WATER = "highwater"  # the greatest value ever set, for built-in timestamps; MAX and MIN are of current values
ERASED = "erased"  # not shown: the removed or reset values of another family's series
ERASED_SUFFIX = ":erased"  # of such a family's name, after the other family's name
JOURNAL = "journal"  # counted from the journals of live slots, not from cells

RECORDED = "workers and producers"
COLLECTED = "the exporter, from brokers"
"""The source of a family that a collector reads."""
OWN = "jobmetrics itself"

OVERFLOW = "__other__"
"""An open label's value in the series that counts everything beyond the cap."""

REGISTERED: tuple[str, ...] = ()  # as the values of a closed label: those that job systems register
SPARE_SYSTEMS = 3  # number of job systems for which a new directory reserves overflow series

_FIXED_VALUES = {"system": REGISTERED, "status": STATUSES, "attempt": ATTEMPTS}
_SYSTEM_NAME = r"[a-z][a-z0-9_]{0,31}\Z"

JOB_LABELS = ("system", "job_type", "queue_name")


class RegisteredSystems:
    """The values of the label `system` that keep separate series beyond the cap in this process."""

    def __init__(self) -> None:
        self.names = {PYTHON}


def register_system(name: str) -> None:
    """Register a value of the label `system`, so that this process keeps its series separate beyond the cap.

    A new directory reserves the overflow series of three systems. Those of further systems are reserved with their
    first series. Registering a name again has no effect.

    Args:
        name: Lower-case letters, digits and underscores; at most 32 characters, the first a letter.

    Raises:
        ValueError: The name is not allowed.
    """
    names = state(RegisteredSystems).names
    if name not in names:
        check_system_name(name)
        names.add(name)


def check_system_name(name: str) -> None:
    """Raise ValueError if this is not a valid name of a job system."""
    if not re.match(_SYSTEM_NAME, name):
        raise ValueError(f"system={name!r} is not allowed; it takes a-z, 0-9 and _, at most 32, starting with a letter")


# The suffixes of a metric's sample names, as prometheus_client's registry reserves them.
SAMPLE_SUFFIXES = {COUNTER: ("_total", "_created"), GAUGE: (), HISTOGRAM: ("_bucket", "_sum", "_count", "_created")}


class Family(NamedTuple):
    """A metric: its name, type and labels, and how the values of processes are merged.

    buckets: upper bounds without +Inf, in the metric's unit; empty unless a histogram. closed: labels with few fixed
    values, each with these values, or with `REGISTERED` for the values that job systems register. They keep separate
    series when the family overflows, so that ratios stay exact.
    """

    name: str
    type: str
    help: str
    labels: tuple[str, ...] = ()
    mode: str = SUM
    buckets: tuple[float, ...] = ()
    source: str = RECORDED
    unit: str = ""
    closed: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def base(self) -> str:
        """The family's name in OpenMetrics, without _total."""
        return self.name.removesuffix("_total") if self.type == COUNTER else self.name

    @property
    def exposed_names(self) -> tuple[str, ...]:
        """All names that the family uses in the exposition."""
        return (self.base, *(self.base + suffix for suffix in SAMPLE_SUFFIXES.get(self.type, ())))

    @property
    def width(self) -> int:
        """The number of cells of a series.

        A histogram has one for each bucket, including +Inf, and one for the sum. MAX and MIN gauges have one for this
        process's value and one for earlier owners of the slot. MOST_RECENT and HIGH_WATER gauges have one for the time
        of the update, or whether there was one, and one for the value. An erased series has as many as the removed or
        reset series, and two in epoch seconds: when that series was removed, and when it was created again.
        """
        if self.mode == ERASED:
            return (len(self.buckets) + 2 if self.buckets else 1) + 2
        if self.type == HISTOGRAM:
            return len(self.buckets) + 2
        return 2 if self.mode in (MAX, MIN, MOST_RECENT, HIGH_WATER) else 1

    @property
    def erased(self) -> "Family":
        """The family that holds the removed or reset values of this family's series."""
        return Family(self.name + ERASED_SUFFIX, GAUGE, "", self.labels, ERASED, self.buckets)

    @property
    def reserved(self) -> int:
        """The number of overflow series: one for each combination of closed labels' values, for one job system."""
        return math.prod(len(values) for _, values in self.closed if values != REGISTERED)

    @property
    def system_at(self) -> int | None:
        """The position of the label with the values that job systems register; None without such a label."""
        label = next((label for label, values in self.closed if values == REGISTERED), None)
        return None if label is None else self.labels.index(label)

    def overflow(self, values: tuple[str, ...]) -> tuple[str, ...]:
        """Return the label values of the overflow series that counts these label values beyond the cap."""
        kept = dict(self.closed)
        systems = state(RegisteredSystems).names
        return tuple(
            value if label in kept and value in (kept[label] or systems) else OVERFLOW
            for label, value in zip(self.labels, values, strict=True)
        )

    def is_overflow(self, values: tuple[str, ...]) -> bool:
        """Whether this is an overflow series. Another process may have registered its system."""
        kept = dict(self.closed)
        return all(
            value == OVERFLOW or (label in kept and (kept[label] == REGISTERED or value in kept[label]))
            for label, value in zip(self.labels, values, strict=True)
        )


def _family(name: str, type_: str, help_: str, *labels: str, **more: object) -> Family:
    if type_ == HISTOGRAM:
        more.setdefault("buckets", DEFAULT_BUCKETS)
    more.setdefault("closed", tuple((label, _FIXED_VALUES[label]) for label in labels if label in _FIXED_VALUES))
    more.setdefault("unit", next((unit for unit in ("seconds", "bytes") if f"_{unit}" in name), ""))
    return Family(name, type_, help_, labels, **more)  # type: ignore[arg-type]  # the other fields


JOBS = _family("jobs_total", COUNTER, "Executions that started and ended, by how they ended.", *JOB_LABELS, "status")
JOBS_WITHDRAWN = _family(
    "jobs_withdrawn_total", COUNTER, "Jobs that never started, by the reason.", *JOB_LABELS, "reason",
    closed=(("system", REGISTERED), ("reason", WITHDRAWN_REASONS)),
)  # fmt: skip
JOBS_DURATION = _family("jobs_duration_seconds", HISTOGRAM, "Run time of executions, with any status.", *JOB_LABELS)
JOBS_DURATION_UNKNOWN = _family(
    "jobs_duration_unknown_total", COUNTER, "Executions with an unknown run time.", *JOB_LABELS
)
JOBS_ACTIVE = _family("jobs_active", GAUGE, "Executions running now.", *JOB_LABELS, mode=JOURNAL)
JOBS_ACTIVE_OLDEST = _family(
    "jobs_active_oldest_timestamp_seconds",
    GAUGE,
    "Start of the execution that has been running longest, since the epoch; absent when none runs.",
    *JOB_LABELS,
    mode=JOURNAL,
)
JOBS_UNRESOLVED = _family(
    "jobs_executions_unresolved",
    GAUGE,
    "Executions that started within the last day and were killed, without a recorded end or a later start.",
    *JOB_LABELS,
    mode=JOURNAL,
)
JOBS_FAILURES = _family(
    "jobs_failures_total", COUNTER, "Executions that failed, by exception class.", *JOB_LABELS, "error_type"
)
JOBS_RETRIES = _family("jobs_retries_total", COUNTER, "Requested retries.", *JOB_LABELS)
JOBS_ATTEMPTS = _family(
    "jobs_attempts_total",
    COUNTER,
    "Executions of jobs that were tried before, by the number of the attempt; first attempts are not counted here.",
    *JOB_LABELS,
    "attempt",
)
JOBS_QUEUE_WAIT = _family(
    "jobs_queue_wait_seconds",
    HISTOGRAM,
    "Time from when a job could have run to its start; not observed when unknown.",
    *JOB_LABELS,
)
JOBS_PUBLISHED = _family("jobs_published_total", COUNTER, "Jobs sent by an instrumented producer.", *JOB_LABELS)
JOBS_CPU = _family("jobs_cpu_seconds_total", COUNTER, "Processor time spent in jobs.", *JOB_LABELS)
JOBS_WITHIN_TARGET = _family(
    "jobs_within_target_total", COUNTER, "Successes within the job type's target duration.", *JOB_LABELS
)
JOBS_TARGET_DURATION = _family(
    "jobs_target_duration_seconds",
    GAUGE,
    "The job type's declared target duration.",
    *JOB_LABELS,
    mode=MOST_RECENT,
)
JOBS_STAGE_DURATION = _family(
    "jobs_stage_duration_seconds", HISTOGRAM, "Run time of a named part of a job.", *JOB_LABELS, "stage"
)
JOBS_ITEMS_PROCESSED = _family(
    "jobs_items_processed_total", COUNTER, "Items that jobs report as processed.", *JOB_LABELS
)
JOBS_LAST_SUCCESS = _family(
    "jobs_last_success_timestamp_seconds",
    GAUGE,
    "When a job last succeeded, since the epoch.",
    *JOB_LABELS,
    mode=HIGH_WATER,
)
JOBS_WORKERS = _family("jobs_workers", GAUGE, "Live workers on this host.", "system", mode=LIVE_SUM)
JOBS_WORKER_CAPACITY = _family(
    "jobs_worker_capacity", GAUGE, "Jobs that the live workers can run at once.", "system", mode=LIVE_SUM
)
JOBS_RESERVED = _family(
    "jobs_reserved",
    GAUGE,
    "Jobs that workers took from the broker and have not started.",
    "system",
    "queue_name",
    mode=LIVE_SUM,
)
JOBS_WORKER_PROCESSES_LOST = _family(
    "jobs_worker_processes_lost_total", COUNTER, "Worker processes that died in a job or right after it.", "system"
)
JOBS_WORKER_STARTS = _family(
    "jobs_worker_starts_total", COUNTER, "Workers that started; a pool process is not a worker.", "system"
)
JOBS_WORKERS_LOST = _family(
    "jobs_workers_lost_total",
    COUNTER,
    "Workers that ended without a shutdown, as after SIGKILL; counted when the next worker of this directory starts.",
    "system",
)
JOBS_SCHEDULE_LAST_SENT = _family(
    "jobs_schedule_last_sent_timestamp_seconds",
    GAUGE,
    "When a scheduler last sent the entry, since the epoch.",
    "system",
    "schedule_entry",
    mode=HIGH_WATER,
)
JOBS_SCHEDULE_NEXT_DUE = _family(
    "jobs_schedule_next_due_timestamp_seconds",
    GAUGE,
    "When the entry is next due, since the epoch; far in the past if no scheduler runs or it skips the entry.",
    "system",
    "schedule_entry",
    mode=MOST_RECENT,
)
JOBS_SCHEDULE_LATENESS = _family(
    "jobs_schedule_lateness_seconds",
    GAUGE,
    "Delay between the entry's due time and its last sending.",
    "system",
    "schedule_entry",
    mode=MOST_RECENT,
)

QUEUE_LABELS = ("system", "broker", "queue_name")
JOBS_QUEUE_DEPTH = _family("jobs_queue_depth", GAUGE, "Jobs waiting.", *QUEUE_LABELS, source=COLLECTED)
JOBS_QUEUE_OLDEST = _family(
    "jobs_queue_oldest_timestamp_seconds",
    GAUGE,
    "When the next job was queued, since the epoch; absent if the queue is empty or the time is unknown.",
    *QUEUE_LABELS,
    source=COLLECTED,
)
JOBS_QUEUE_JOBS = _family(
    "jobs_queue_jobs", GAUGE, "Jobs by state, where the job system keeps registries.", *QUEUE_LABELS, "state",
    source=COLLECTED,
)  # fmt: skip
JOBS_QUEUE_ORPHANED = _family(
    "jobs_queue_orphaned", GAUGE, "Started jobs of workers that no longer exist.", *QUEUE_LABELS, source=COLLECTED
)
JOBS_QUEUE_OVERDUE = _family(
    "jobs_queue_overdue", GAUGE, "Scheduled jobs past their time.", *QUEUE_LABELS, source=COLLECTED
)
JOBS_QUEUE_UNACKNOWLEDGED = _family(
    "jobs_queue_unacknowledged",
    GAUGE,
    "Jobs delivered to workers and not acknowledged.",
    "system",
    "broker",
    source=COLLECTED,
)
JOBS_QUEUE_CONSUMERS = _family(
    "jobs_queue_consumers", GAUGE, "Living workers that listen on the queue.", *QUEUE_LABELS, source=COLLECTED
)
JOBS_QUEUE_OVERDUE_OLDEST = _family(
    "jobs_queue_overdue_oldest_timestamp_seconds",
    GAUGE,
    "When the most overdue scheduled job should have been queued, since the epoch; absent when none is overdue.",
    *QUEUE_LABELS,
    source=COLLECTED,
)
JOBS_QUEUE_SCHEDULERS = _family(
    "jobs_queue_schedulers", GAUGE, "Schedulers that queue the queue's scheduled jobs.", *QUEUE_LABELS, source=COLLECTED
)
JOBS_REGISTERED_WORKERS = _family(
    "jobs_registered_workers", GAUGE, "Workers known to the broker, by state.", "system", "broker", "state",
    source=COLLECTED,
)  # fmt: skip
JOBS_REGISTERED_WORKERS_STALE = _family(
    "jobs_registered_workers_stale",
    GAUGE,
    "Workers known to the broker with an expired heartbeat.",
    "system",
    "broker",
    source=COLLECTED,
)
JOBS_REGISTERED_WORKERS_HEARTBEAT = _family(
    "jobs_registered_workers_oldest_heartbeat_timestamp_seconds",
    GAUGE,
    "Last heartbeat of the worker that has been silent longest, since the epoch; absent when there are no workers.",
    "system",
    "broker",
    source=COLLECTED,
)
JOBS_CRON_SCHEDULERS = _family(
    "jobs_cron_schedulers", GAUGE, "Cron schedulers with a fresh heartbeat.", "system", "broker", source=COLLECTED
)
JOBS_CRON_HEARTBEAT = _family(
    "jobs_cron_oldest_heartbeat_timestamp_seconds",
    GAUGE,
    "Last heartbeat of the cron scheduler silent longest, since the epoch; stale ones do not count beside a fresh one.",
    "system",
    "broker",
    source=COLLECTED,
)
JOBS_CRON_NEXT = _family(
    "jobs_cron_next_timestamp_seconds",
    GAUGE,
    "When cron schedulers send their next job, since the epoch; in the past if they are late.",
    "system",
    "broker",
    source=COLLECTED,
)
COLLECTOR_UP = _family(
    "jobmetrics_collector_up", GAUGE, "Whether the last reading of the broker succeeded.", "collector", "broker",
    source=COLLECTED,
)  # fmt: skip
COLLECTOR_DURATION = _family(
    "jobmetrics_collector_duration_seconds", GAUGE, "Duration of the last reading.", "collector", "broker",
    source=COLLECTED,
)  # fmt: skip
COLLECTOR_LAST_SUCCESS = _family(
    "jobmetrics_collector_last_success_timestamp_seconds", GAUGE, "When a reading last succeeded, since the epoch.",
    "collector", "broker", source=COLLECTED,
)  # fmt: skip

BUILD_INFO = _family("jobmetrics_build_info", GAUGE, "The exporter's version; always 1.", "version", source=OWN)
SLOTS = _family("jobmetrics_slots", GAUGE, "Slots of the registry directory, by state.", "state", source=OWN)
SERIES = _family("jobmetrics_series", GAUGE, "Series in the registry directory.", source=OWN)
SERIES_LIMIT = _family("jobmetrics_series_limit", GAUGE, "Series that the registry directory may hold.", source=OWN)
SERIES_BY_METRIC = _family(
    "jobmetrics_series_by_metric", GAUGE, "Series in the registry directory, of the ten metrics with most.", "metric",
    source=OWN,
)  # fmt: skip
SUPERSEDED_SERIES = _family(
    "jobmetrics_superseded_series",
    GAUGE,
    "Series of older declarations that are not shown.",
    source=OWN,
)
FUTURE_TIMESTAMPS = _family(
    "jobmetrics_future_timestamps",
    GAUGE,
    "Series left out because their timestamps are in the future: the clock was set back.",
    source=OWN,
)
INVALID_FAMILIES = _family(
    "jobmetrics_invalid_families", GAUGE, "Metrics that the exporter leaves out because they cannot be shown.",
    source=OWN,
)  # fmt: skip
SCRAPE_DURATION = _family(
    "jobmetrics_scrape_duration_seconds", GAUGE, "Duration of the exporter's last reading of the registry directory.",
    source=OWN,
)  # fmt: skip
DIRECTORY_UP = _family("jobmetrics_directory_up", GAUGE, "Whether the registry directory could be read.", source=OWN)
DROPPED_SERIES = _family(
    "jobmetrics_dropped_series_total", COUNTER, "Series requested beyond the limit, counted under __other__.",
    source=OWN,
)  # fmt: skip
DROPPED_UPDATES = _family(
    "jobmetrics_dropped_updates_total",
    COUNTER,
    "Updates that were not recorded, by reason and metric.",
    "reason",
    "metric",
    source=OWN,
)
INTERNAL_ERRORS = _family(
    "jobmetrics_internal_errors_total", COUNTER, "Errors of jobmetrics that were kept from jobs, by place.", "where",
    source=OWN,
)  # fmt: skip
WORKER_RESIDENT_MEMORY = _family(
    "jobs_worker_resident_memory_bytes",
    GAUGE,
    "Resident memory of the live worker processes.",
    "system",
    source=OWN,
)

BUILT_IN: tuple[Family, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Family))
