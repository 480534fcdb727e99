from __future__ import annotations

import re

import pytest

from jobmetrics import families
from jobmetrics.events import PYTHON, STATUSES, WITHDRAWN_REASONS
from jobmetrics.families import (
    BUILT_IN,
    ERASED,
    HIGH_WATER,
    JOURNAL,
    LIVE_SUM,
    MAX,
    MIN,
    MOST_RECENT,
    OVERFLOW,
    SUM,
    Family,
)
from jobmetrics.registry.layout import MAX_WIDTH
from jobmetrics.settings import DEFAULT_BUCKETS
from tests.unit.rows import each_row

JOB = ("system", "job_type", "queue_name")
QUEUE = ("system", "broker", "queue_name")

# The contract for dashboards and alerts: name, type, labels, merge mode.
RECORDED = {
    ("jobs_total", "counter", (*JOB, "status"), "sum"),
    ("jobs_withdrawn_total", "counter", (*JOB, "reason"), "sum"),
    ("jobs_duration_seconds", "histogram", JOB, "sum"),
    ("jobs_duration_unknown_total", "counter", JOB, "sum"),
    ("jobs_active", "gauge", JOB, "journal"),
    ("jobs_active_oldest_timestamp_seconds", "gauge", JOB, "journal"),
    ("jobs_executions_unresolved", "gauge", JOB, "journal"),
    ("jobs_failures_total", "counter", (*JOB, "error_type"), "sum"),
    ("jobs_retries_total", "counter", JOB, "sum"),
    ("jobs_queue_wait_seconds", "histogram", JOB, "sum"),
    ("jobs_published_total", "counter", JOB, "sum"),
    ("jobs_cpu_seconds_total", "counter", JOB, "sum"),
    ("jobs_within_target_total", "counter", JOB, "sum"),
    ("jobs_target_duration_seconds", "gauge", JOB, "mostrecent"),
    ("jobs_stage_duration_seconds", "histogram", (*JOB, "stage"), "sum"),
    ("jobs_items_processed_total", "counter", JOB, "sum"),
    ("jobs_last_success_timestamp_seconds", "gauge", JOB, "highwater"),
    ("jobs_workers", "gauge", ("system",), "livesum"),
    ("jobs_worker_capacity", "gauge", ("system",), "livesum"),
    ("jobs_reserved", "gauge", ("system", "queue_name"), "livesum"),
    ("jobs_worker_processes_lost_total", "counter", ("system",), "sum"),
    ("jobs_worker_starts_total", "counter", ("system",), "sum"),
    ("jobs_workers_lost_total", "counter", ("system",), "sum"),
    ("jobs_attempts_total", "counter", ("system", "job_type", "queue_name", "attempt"), "sum"),
    ("jobs_schedule_last_sent_timestamp_seconds", "gauge", ("system", "schedule_entry"), "highwater"),
    ("jobs_schedule_next_due_timestamp_seconds", "gauge", ("system", "schedule_entry"), "mostrecent"),
    ("jobs_schedule_lateness_seconds", "gauge", ("system", "schedule_entry"), "mostrecent"),
}
COLLECTED = {
    ("jobs_queue_depth", "gauge", QUEUE),
    ("jobs_queue_oldest_timestamp_seconds", "gauge", QUEUE),
    ("jobs_queue_jobs", "gauge", (*QUEUE, "state")),
    ("jobs_queue_orphaned", "gauge", QUEUE),
    ("jobs_queue_overdue", "gauge", QUEUE),
    ("jobs_queue_unacknowledged", "gauge", ("system", "broker")),
    ("jobs_queue_consumers", "gauge", QUEUE),
    ("jobs_queue_overdue_oldest_timestamp_seconds", "gauge", QUEUE),
    ("jobs_queue_schedulers", "gauge", QUEUE),
    ("jobs_registered_workers", "gauge", ("system", "broker", "state")),
    ("jobs_registered_workers_stale", "gauge", ("system", "broker")),
    ("jobs_registered_workers_oldest_heartbeat_timestamp_seconds", "gauge", ("system", "broker")),
    ("jobs_cron_schedulers", "gauge", ("system", "broker")),
    ("jobs_cron_oldest_heartbeat_timestamp_seconds", "gauge", ("system", "broker")),
    ("jobs_cron_next_timestamp_seconds", "gauge", ("system", "broker")),
    ("jobmetrics_collector_up", "gauge", ("collector", "broker")),
    ("jobmetrics_collector_duration_seconds", "gauge", ("collector", "broker")),
    ("jobmetrics_collector_last_success_timestamp_seconds", "gauge", ("collector", "broker")),
}
OWN = {
    ("jobmetrics_build_info", "gauge", ("version",)),
    ("jobmetrics_slots", "gauge", ("state",)),
    ("jobmetrics_series", "gauge", ()),
    ("jobmetrics_series_by_metric", "gauge", ("metric",)),
    ("jobmetrics_series_limit", "gauge", ()),
    ("jobmetrics_dropped_series_total", "counter", ()),
    ("jobmetrics_dropped_updates_total", "counter", ("reason", "metric")),
    ("jobmetrics_superseded_series", "gauge", ()),
    ("jobmetrics_invalid_families", "gauge", ()),
    ("jobmetrics_future_timestamps", "gauge", ()),
    ("jobmetrics_internal_errors_total", "counter", ("where",)),
    ("jobmetrics_scrape_duration_seconds", "gauge", ()),
    ("jobmetrics_directory_up", "gauge", ()),
    ("jobs_worker_resident_memory_bytes", "gauge", ("system",)),
}

each_family = each_row(BUILT_IN, lambda family: str(family.name))
histogram = Family("h", "histogram", "", buckets=(1.0, 2.0, 3.0))


def test_recorded_metrics_match_the_contract() -> None:
    found = {(f.name, f.type, f.labels, f.mode) for f in BUILT_IN if f.source == families.RECORDED}
    assert found == RECORDED


def test_collected_metrics_match_the_contract() -> None:
    assert {(f.name, f.type, f.labels) for f in BUILT_IN if f.source == families.COLLECTED} == COLLECTED


def test_metrics_about_jobmetrics_match_the_contract() -> None:
    assert {(f.name, f.type, f.labels) for f in BUILT_IN if f.source == families.OWN} == OWN


def test_no_name_is_used_twice() -> None:
    names = [family.name for family in BUILT_IN]
    assert sorted(set(names)) == sorted(names)


@each_family
def test_name_is_a_prometheus_name(family: Family) -> None:
    assert re.fullmatch(r"(jobs|jobmetrics)_[a-z][a-z_]*", family.name)


@each_family
def test_total_is_on_counters_only(family: Family) -> None:
    assert family.name.endswith("_total") == (family.type == "counter")


@each_family
def test_no_label_names_a_job_or_a_process(family: Family) -> None:
    assert not {"job_id", "id", "args", "pid", "worker", "hostname", "le"} & set(family.labels)


@each_family
def test_help_is_a_sentence(family: Family) -> None:
    assert re.fullmatch(r"[A-Z].*\.|.*; always 1\.", family.help)


@each_family
def test_unit_is_in_the_name(family: Family) -> None:
    units = {"seconds", "bytes"} & set(family.name.split("_"))
    assert {family.unit} == (units or {""})


@each_family
def test_mode_is_a_known_one(family: Family) -> None:
    assert family.mode in {SUM, LIVE_SUM, MAX, MIN, MOST_RECENT, HIGH_WATER, ERASED, JOURNAL}


@each_family
def test_closed_labels_are_labels_of_the_family(family: Family) -> None:
    assert {label for label, _ in family.closed} <= set(family.labels)


@each_family
def test_series_fits_what_the_layout_allows(family: Family) -> None:
    assert 1 <= family.width <= MAX_WIDTH


def test_every_histogram_has_the_default_buckets() -> None:
    assert {family.buckets for family in BUILT_IN if family.type == "histogram"} == {DEFAULT_BUCKETS}


def test_only_histograms_have_buckets() -> None:
    assert [family.name for family in BUILT_IN if family.type != "histogram" and family.buckets] == []


def test_a_histogram_has_a_cell_for_each_bucket_inf_and_the_sum() -> None:
    assert histogram.width == 5


@pytest.mark.parametrize(
    ("mode", "width"), [("sum", 1), ("livesum", 1), ("journal", 1), ("max", 2), ("min", 2), ("mostrecent", 2)]
)
def test_a_gauge_that_records_whether_it_was_set_has_two_cells(mode: str, width: int) -> None:
    assert Family("g", "gauge", "", mode=mode).width == width


@pytest.fixture
def registered() -> None:
    families.register_system("rq")


@pytest.mark.usefixtures("registered")
def test_status_and_registered_system_are_kept_beyond_the_cap() -> None:
    assert families.JOBS.overflow(("rq", "app.f", "high", "failure")) == ("rq", OVERFLOW, OVERFLOW, "failure")
    families.register_system("spool_2")
    assert families.JOBS_WORKERS.overflow(("spool_2",)) == ("spool_2",)
    assert families.JOBS_QUEUE_WAIT.overflow((PYTHON, "app.f", "q")) == (PYTHON, OVERFLOW, OVERFLOW)


@pytest.mark.parametrize("name", ["", "Spool", "2spool", "a-b", "a b", OVERFLOW, "x" * 33, "ä", "a\n"])
def test_a_reserved_system_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not allowed; it takes a-z"):
        families.register_system(name)


def test_withdrawal_reason_is_kept_beyond_the_cap() -> None:
    values = (PYTHON, "app.f", "high", "expired")
    assert families.JOBS_WITHDRAWN.overflow(values) == (PYTHON, OVERFLOW, OVERFLOW, "expired")


@pytest.mark.usefixtures("registered")
def test_an_unknown_value_of_a_closed_label_becomes_other() -> None:
    assert families.JOBS.overflow(("dramatiq", "app.f", "high", "lost")) == (OVERFLOW,) * 4


def test_a_label_system_of_a_user_metric_is_open() -> None:
    mine = Family("c", "counter", "", ("system",))
    assert mine.overflow((PYTHON,)) == (OVERFLOW,)
    assert not mine.is_overflow((PYTHON,))
    assert mine.system_at is None


@pytest.mark.usefixtures("registered")
def test_overflow_of_an_overflow_series_is_itself() -> None:
    values = families.JOBS.overflow(("rq", "app.f", "high", "failure"))
    assert families.JOBS.overflow(values) == values
    assert families.JOBS.is_overflow(values)


def test_an_overflow_series_of_a_system_registered_elsewhere_is_known_as_one() -> None:
    assert families.JOBS.is_overflow(("dramatiq", OVERFLOW, OVERFLOW, "failure"))
    assert not families.JOBS.is_overflow(("dramatiq", "app.f", OVERFLOW, "failure"))
    assert not families.JOBS.is_overflow(("dramatiq", OVERFLOW, OVERFLOW, "lost"))


def test_overflow_needs_a_value_for_each_label() -> None:
    with pytest.raises(ValueError, match="zip"):
        families.JOBS.overflow(("rq",))


def test_reserved_is_every_combination_of_closed_values_of_one_system() -> None:
    assert families.JOBS.reserved == len(STATUSES)
    assert families.JOBS_WITHDRAWN.reserved == len(WITHDRAWN_REASONS)
    assert families.JOBS_WORKERS.reserved == 1


def test_family_without_closed_labels_reserves_one() -> None:
    assert Family("c", "counter", "", ("user",)).reserved == 1


def test_the_overflow_value_is_not_a_status_or_reason() -> None:
    assert OVERFLOW not in {*STATUSES, PYTHON, *WITHDRAWN_REASONS}
