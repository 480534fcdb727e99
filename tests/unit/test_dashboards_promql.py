from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

if sys.version_info < (3, 11):
    pytest.skip("grafana-foundation-sdk needs Python 3.11", allow_module_level=True)

from dashboards import variables
from dashboards.panels import Column, Line, graph, heat, rows
from dashboards.promql import (
    ALERT_NAMES,
    Expr,
    QueryError,
    Scope,
    age,
    count_by,
    max_by,
    min_by,
    quantile,
    share,
    sum_by,
    top,
    until,
)
from jobmetrics import families as f

RULES = Path(__file__).parents[2] / "rules" / "jobmetrics.alerts.yml"

SCOPE = Scope((variables.SYSTEM, variables.HOST, variables.QUEUE))
NARROWED = 'system=~"${system}",instance=~"${host}"'
OF_QUEUE = 'system=~"${system}",queue_name=~"${queue}"'
OF_JOBS = f'{NARROWED},queue_name=~"${{queue}}"'


def test_a_rate_is_filtered_by_the_variables_of_its_labels() -> None:
    assert SCOPE.rate(f.JOBS).text == f"rate(jobs_total{{{OF_JOBS}}}[$__rate_interval])"
    lost = SCOPE.rate(f.JOBS_WORKER_PROCESSES_LOST)
    assert lost.text == f"rate(jobs_worker_processes_lost_total{{{NARROWED}}}[$__rate_interval])"
    assert lost.labels == {"job", "instance", "system"}


def test_labels_are_matched_with_one_value_or_several() -> None:
    assert 'status="failure"' in SCOPE.rate(f.JOBS, status="failure").text
    assert 'status=~"failure|retry"' in SCOPE.rate(f.JOBS, status=("failure", "retry")).text


def test_an_increase_counts_series_younger_than_the_window_in_full() -> None:
    series = f"jobs_retries_total{{{OF_JOBS}}}"
    before = f"last_over_time({series}[1h] offset 1h)"
    assert SCOPE.increase(f.JOBS_RETRIES, "1h").text == f"(increase({series}[1h]) and {before}) or {series}"


def test_the_parts_of_a_histogram_follow_from_its_type() -> None:
    buckets = SCOPE.rate_of_buckets(f.JOBS_DURATION)
    assert buckets.text.startswith("rate(jobs_duration_seconds_bucket{")
    assert "le" in buckets.labels
    assert "increase(jobs_duration_seconds_bucket{" in SCOPE.increase_of_buckets(f.JOBS_DURATION, "5m").text
    assert "jobs_duration_seconds_sum{" in SCOPE.rate_of_sum(f.JOBS_DURATION).text
    count = SCOPE.rate_of_count(f.JOBS_DURATION)
    assert "jobs_duration_seconds_count{" in count.text
    assert "le" not in count.labels
    found = quantile(0.95, buckets, "job_type")
    assert found.text == f"histogram_quantile(0.95, sum by (le, job_type) ({buckets.text}))"
    assert found.labels == {"job_type"}


def test_a_gauge_read_from_a_broker_counts_once_for_each_application_whatever_the_host() -> None:
    depth = SCOPE.gauge(f.JOBS_QUEUE_DEPTH)
    assert depth.text == f"max by (job, system, broker, queue_name) (jobs_queue_depth{{{OF_QUEUE}}})"
    assert depth.labels == {"job", "system", "broker", "queue_name"}
    trend = SCOPE.trend(f.JOBS_QUEUE_DEPTH, "5m").text
    assert trend == f"max by (job, system, broker, queue_name) (deriv(jobs_queue_depth{{{OF_QUEUE}}}[5m]))"
    workers = SCOPE.gauge(f.JOBS_WORKERS)
    assert workers.text == f"jobs_workers{{{NARROWED}}}"
    assert "instance" in SCOPE.gauge(f.COLLECTOR_UP).labels


def test_ages_come_from_timestamps() -> None:
    oldest = min_by(SCOPE.timestamp(f.JOBS_ACTIVE_OLDEST), "job_type")
    text = f"min by (job_type) (jobs_active_oldest_timestamp_seconds{{{OF_JOBS}}})"
    assert age(oldest).text == f"clamp_min(time() - {text}, 0)"
    assert until(oldest).text == f"clamp_min({text} - time(), 0)"
    assert not age(oldest).timestamp


def test_operands_get_necessary_brackets() -> None:
    one, other = sum_by(SCOPE.rate(f.JOBS)), sum_by(SCOPE.rate(f.JOBS_RETRIES))
    assert (one / (one + other)).text == f"{one.text} / ({one.text} + {other.text})"
    assert ((one + other) * 2).text == f"({one.text} + {other.text}) * 2"
    assert one.above(0).text == f"{one.text} > 0"
    assert one.equals(0).text == f"{one.text} == bool 0"
    assert one.only(0).text == f"{one.text} == 0"


def test_a_share_is_absent_without_a_whole_and_0_without_a_part() -> None:
    part, whole = Expr("part", frozenset()), Expr("whole", frozenset())
    assert share(part, whole).text == "(part or (whole * 0)) / (whole > 0)"


def test_exporters_are_recognised_by_their_metrics() -> None:
    scraped = SCOPE.scraped(f.BUILD_INFO, "1d")
    host = 'instance=~"${host}"'
    witness = f"last_over_time(jobmetrics_build_info{{{host}}}[1d])"
    assert scraped.text == f"up{{{host}}} and on (job, instance) {witness}"


def test_alerts_are_the_firing_ones_of_the_shipped_rules_with_their_start() -> None:
    since = Scope((variables.APPLICATION, variables.QUEUE)).alerts()
    ours = 'alertname=~"(Job|Rq).*",job=~"${application}"'
    assert since.text == (f'ALERTS_FOR_STATE{{{ours}}} and ignoring (alertstate) ALERTS{{alertstate="firing",{ours}}}')
    assert since.timestamp
    names = re.findall(r"- alert: (\w+)", RULES.read_text(encoding="utf-8"))
    assert len(names) > 10
    assert all(re.fullmatch(ALERT_NAMES, name) for name in names)


def test_top_and_count() -> None:
    by_type = sum_by(SCOPE.rate(f.JOBS), "job_type")
    assert top(3, by_type).text == f"topk(3, {by_type.text})"
    assert top(3, by_type).labels == {"job_type"}
    assert count_by(SCOPE.timestamp(f.JOBS_ACTIVE_OLDEST)).timestamp is False


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SCOPE.rate(f.JOBS_ACTIVE), "jobs_active is a gauge, and a counter is asked for"),
        (lambda: SCOPE.increase(f.JOBS_DURATION, "1h"), "is a histogram, and a counter"),
        (lambda: SCOPE.gauge(f.JOBS), "jobs_total is a counter, and a gauge"),
        (lambda: SCOPE.rate_of_buckets(f.JOBS), "jobs_total is a counter, and a histogram"),
        (lambda: SCOPE.timestamp(f.JOBS_ACTIVE), "jobs_active is not a timestamp"),
        (lambda: SCOPE.rate(f.JOBS, stage="x"), "jobs_total has no label 'stage'"),
        (lambda: SCOPE.rate(f.JOBS, status="failed"), "status is never 'failed'; it is one of success"),
        (lambda: SCOPE.gauge(f.SLOTS, state='live"'), "would have to be escaped"),
        (lambda: sum_by(SCOPE.rate(f.JOBS), "task"), "has no label 'task'; it has instance, job, "),
        (lambda: sum_by(sum_by(SCOPE.rate(f.JOBS), "system"), "status"), "has no label 'status'"),
        (lambda: sum_by(SCOPE.gauge(f.JOBS_QUEUE_DEPTH), "instance"), "has no label 'instance'"),
        (lambda: quantile(0.5, SCOPE.rate_of_count(f.JOBS_DURATION)), "has no label 'le'"),
        (lambda: sum_by(SCOPE.timestamp(f.JOBS_LAST_SUCCESS)), "timestamps cannot be added"),
        (lambda: SCOPE.timestamp(f.JOBS_LAST_SUCCESS) * 2, "timestamps are not amounts"),
        (lambda: age(SCOPE.gauge(f.JOBS_ACTIVE)), "which is not a timestamp"),
        (lambda: SCOPE.rate(f.JOBS) / SCOPE.rate(f.JOBS_RETRIES), "no series would match"),
        (lambda: SCOPE.rate(f.JOBS).where(SCOPE.rate(f.JOBS_RETRIES), "status"), "has no label 'status'"),
        (lambda: _graph(Line(sum_by(SCOPE.rate(f.JOBS)), "{{status}}")), "legend '{{status}}'"),
        (lambda: _graph(Line(max_by(SCOPE.timestamp(f.JOBS_LAST_SUCCESS)), "")), "is a timestamp; show its age"),
        (lambda: heat("t", "s", "d", SCOPE.rate_of_buckets(f.JOBS_DURATION)), "is not by le alone"),
        (lambda: _rows(sum_by(SCOPE.rate(f.JOBS), "system")), "is not by job_type"),
        (lambda: _choice(f.JOBS_WORKERS), "jobs_workers has no label 'queue_name' to choose from"),
        (lambda: _choice(f.JOBS_DURATION), "jobs_duration_seconds has no label"),
    ],
)  # fmt: skip
def test_mistakes_that_prometheus_accepts_are_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(QueryError) as raised:
        make()
    assert message in str(raised.value)


def _graph(line: Line) -> object:
    return graph("Title", "short", "Description.", [line])


def _rows(expr: Expr) -> object:
    return rows("Title", "Description.", {"job_type": "Job type"}, [Column("Column", "short", expr)])


def _choice(family: f.Family) -> object:
    return variables.Variable("queue", "queue_name", "Queue", "Description.", (family,))
