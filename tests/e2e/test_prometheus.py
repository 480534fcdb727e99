"""Every dashboard query and every rule, on a real Prometheus with the shipped configuration and real workers."""

from __future__ import annotations

import importlib
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from tests.e2e.loaded_setup import Setup, end, running
from tests.support.promql import parts
from tests.support.readings import until
from tests.support.rule_files import Rule, alerts, rules

LIMIT = 120.0  # seconds; limit for a hung test

# Expressions that find nothing here, and why. Every other one has to find something.
NEEDS_TIME = {
    "job_type:jobs_success_age_seconds:max1w": "a week of history; promtool's tests have one",
    "job_type:jobs_duration_seconds:p95_rate30m": "60 executions of a job type; promtool tests it",
    "job_type:jobs_duration_seconds:mean_rate30m": "60 executions of a job type; promtool tests it",
    "job_type:jobs_duration_seconds:p95_median1w": "half an hour of history; promtool tests it",
    "job_type:jobs_duration_seconds:mean_median1w": "half an hour of history; promtool tests it",
    "job_type:jobs_duration_seconds:p99_high1w": "compares times five minutes apart; promtool tests it",
    "job_type:jobs_total:ended1w": "half an hour of history; promtool tests it",
    "job_type:jobs_total:failure_ratio1w": "half an hour of history; promtool tests it",
    "system:jobs_active:stuck_ratio": "executions of 10 minutes; promtool tests it",
    "system:jobs_workers:unknown": "an exporter that had workers and is down; promtool tests it",
}
NEEDS_CAUSE = {
    'jobs_attempts_total{attempt="21+"}': "a job that is tried 21 times; promtool tests it",
}
EMPTY_PANELS = {
    "Executions of unknown duration": "a worker has to die with its job, and minutes to pass until another one notices",
}

# Alerts with a real cause here: the whole expression finds it. Of the others, each side of each comparison has to
# find something: their cause is absent, or would take longer than a test.
TROUBLES = {
    "JobFailureRatioHigh",
    "JobNoSuccess",
    "JobRetryStorm",
    "JobsDiscarded",
    "JobTargetBurningFast",
    "JobTargetBurningSlowly",
    "JobQueueUnattended",
    "JobWorkerProcessesLost",
    "RqSchedulerLate",
    "JobmetricsExporterDown",
    "JobmetricsCollectorDown",
    "JobmetricsDirectoryDown",
    "JobmetricsUpdatesDropped",
    "JobmetricsInternalErrors",
    "JobmetricsSlotsDamaged",
    "JobmetricsSeriesNearLimit",
    "JobmetricsSeriesDropped",
}
AFTER_A_KILL = {"JobWorkersGone", "JobWorkersGoneFromHost", "JobmetricsRecordingOff"}


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    with running(tmp_path_factory.mktemp("loaded")) as started:
        yield started


@pytest.fixture(scope="module")
def dashboards() -> Any:
    if sys.version_info < (3, 11):
        pytest.skip("grafana-foundation-sdk needs Python 3.11")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its models warn of newer ones
        return importlib.import_module("dashboards")


def still_empty(expressions: Iterable[str], finds: Callable[[str], bool]) -> list[str]:
    """The expressions that found nothing until the deadline; each has to find something once."""
    missing = list(dict.fromkeys(expressions))
    deadline = time.monotonic() + LIMIT
    while missing and time.monotonic() < deadline:
        missing = [expression for expression in missing if not finds(expression)]
        time.sleep(0.2)
    return missing


def sides(rule: Rule) -> list[str]:
    return [part for part in parts(rule.expression) if not any(name in part for name in {**NEEDS_TIME, **NEEDS_CAUSE})]


def test_prometheus_evaluates_every_rule(setup: Setup) -> None:
    def seen() -> dict[str, str]:
        return {rule["name"]: rule["health"] + rule.get("lastError", "") for rule in setup.prometheus.rules()}

    until(lambda: "unknown" not in seen().values(), f"every rule to be evaluated: {seen()}", LIMIT)
    assert seen() == {rule.name: "ok" for rule in rules()}


def test_every_recording_rule_records(setup: Setup) -> None:
    recorded = {rule.name for rule in rules() if not rule.is_alert}
    assert recorded > NEEDS_TIME.keys()
    assert still_empty(recorded - NEEDS_TIME.keys(), setup.prometheus.finds) == []


def test_the_active_causes_are_found(setup: Setup) -> None:
    expressions = {rule.expression: rule.name for rule in alerts() if rule.name in TROUBLES}
    assert len(expressions) == len(TROUBLES)
    missing = still_empty(expressions, setup.prometheus.finds)
    assert [expressions[expression] for expression in missing] == []


def test_the_text_of_an_active_alert_is_complete(setup: Setup) -> None:
    def active() -> dict[str, list[str]]:
        """The texts of alerts that are pending or firing, by name."""
        found = {}
        for rule in setup.prometheus.rules():
            texts = [text for alert in rule.get("alerts", []) for text in alert["annotations"].values()]
            if texts:
                found[rule["name"]] = texts
        return found

    until(lambda: active().keys() >= TROUBLES, "all of them to be pending or to fire", LIMIT)
    for name, texts in active().items():
        for text in texts:
            assert "<" not in text, f"{name}: {text}"  # a template's error, or no value


def test_each_side_of_every_alert_finds_something(setup: Setup) -> None:
    wanted = {side: rule.name for rule in alerts() if rule.name not in TROUBLES for side in sides(rule)}
    missing = still_empty(wanted, setup.prometheus.finds)
    assert {side: wanted[side] for side in missing} == {}


def test_every_panel_shows_something(setup: Setup, dashboards: Any) -> None:
    panels = {
        query.expression: query
        for query in dashboards.queries(rate_interval="10s", time_range="1m")
        if query.panel not in {*EMPTY_PANELS, *dashboards.MAY_BE_EMPTY}
    }
    assert len(panels) > 50
    assert EMPTY_PANELS.keys() <= {query.panel for query in dashboards.queries()}

    def shows(expression: str) -> bool:
        if panels[expression].instant:
            return setup.prometheus.finds(expression)
        return setup.prometheus.found_lately(expression, 60)

    missing = still_empty(panels, shows)
    assert {f"{panels[each].dashboard}: {panels[each].panel}": each for each in missing} == {}


def test_every_variable_has_values(setup: Setup, dashboards: Any) -> None:
    asked = dashboards.label_values()
    assert asked
    for variable in asked:
        values = setup.prometheus.label_values(variable.label, variable.selector)
        assert values, variable


def test_two_exporters_of_one_broker_do_not_make_two_queues(setup: Setup) -> None:
    readers = 'count by (system, queue_name) (jobs_queue_depth{queue_name="unattended"}) == 2'
    assert still_empty([readers], setup.prometheus.finds) == []
    once = 'count by (system, queue_name) (queue:jobs_queue_depth:max{queue_name="unattended"}) == 1'
    assert still_empty([once], setup.prometheus.finds) == []


def test_a_killed_worker_is_reported(setup: Setup) -> None:
    """The last test: afterwards there is no RQ worker."""
    gone = {rule.expression: rule.name for rule in alerts() if rule.name in AFTER_A_KILL}
    assert len(gone) == len(AFTER_A_KILL)
    until(lambda: not any(map(setup.prometheus.finds, gone)), "nothing to be missed", LIMIT)  # a scrape may fail
    end(setup.rq_worker, signal.SIGKILL)
    missing = still_empty(gone, setup.prometheus.finds)
    assert [gone[expression] for expression in missing] == []
