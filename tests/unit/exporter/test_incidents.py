"""What is wrong with jobs, queues, workers and schedules, from readings of the metrics."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from prometheus_client.metrics_core import Metric

from jobmetrics.cli.logs import printable
from jobmetrics.exporter import incidents
from jobmetrics.exporter.overview import Overview, summarize
from jobmetrics.findings import NOTE, PROBLEM, STARTING, Finding

ROOT = Path(__file__).parents[3]
NOW = 1_700_000_000.0  # the present, in epoch seconds

PAY = {"system": "celery", "job_type": "shop.pay", "queue_name": "mail"}
MAIL = {"system": "celery", "broker": "main", "queue_name": "mail"}
CELERY = {"system": "celery"}
NIGHTLY = {"system": "celery", "schedule_entry": "nightly"}
HOURLY = {"system": "celery", "schedule_entry": "hourly"}
CRON = {"system": "rq", "broker": "main"}

Line = tuple[str, Mapping[str, str], float]


def reading(*lines: Line, at: float = 0.0) -> Overview:
    metrics = []
    for name, labels, value in lines:
        metric = Metric(name, "", "unknown")
        metric.add_sample(name, dict(labels), value)
        metrics.append(metric)
    return summarize(metrics, at)


def ended(status: str, count: float) -> Line:
    return ("jobs_total", {**PAY, "status": status}, count)


def took(count: float, bound: str = "5.0") -> list[Line]:
    return [("jobs_duration_seconds_bucket", {**PAY, "le": le}, count) for le in (bound, "+Inf")]


def found(now: Overview, before: Overview | None = None, **more: Mapping[str, float]) -> list[Finding]:
    return list(incidents.find(now, before, clock=NOW, **more))


WORKER: list[Line] = [("jobs_workers", CELERY, 1.0), ("jobs_worker_capacity", CELERY, 2.0)]
IDLE: list[Line] = [*WORKER, ended("success", 100.0), *took(100.0)]

ONE_READING: list[tuple[str, list[Line], str, str, str]] = [
    ("no worker", [("jobs_workers", CELERY, 0.0)], PROBLEM, "JobWorkersGone", "no celery worker is alive on this host"),
    (
        "no worker, and jobs wait",
        [("jobs_workers", CELERY, 0.0), ("jobs_queue_depth", MAIL, 424.0)],
        PROBLEM, "JobWorkersGone", "no celery worker is alive on this host, and 424 jobs wait",
    ),
    (
        "a queue without consumers",
        [("jobs_queue_depth", MAIL, 1.0), ("jobs_queue_consumers", MAIL, 0.0)],
        PROBLEM, "JobQueueUnattended", "1 job waits in mail (celery, broker main), and no worker consumes it",
    ),
    (
        "a queue of which nothing ran here, for a short time",
        [*WORKER, ("jobs_queue_depth", MAIL, 2.0), ("jobs_queue_oldest_timestamp_seconds", MAIL, NOW - 599)],
        NOTE, "JobQueueUnattended",
        ("2 jobs wait in mail (celery, broker main), the next one for 10 minutes, and no job of it has run on this "
         "host since recording began"),
    ),
    (
        "a queue of which nothing ran here, for a long time",
        [*WORKER, ("jobs_queue_depth", MAIL, 2.0), ("jobs_queue_oldest_timestamp_seconds", MAIL, NOW - 7300)],
        PROBLEM, "JobQueueUnattended",
        ("2 jobs wait in mail (celery, broker main), the next one for 2 hours, and no job of it has run on this "
         "host since recording began"),
    ),
    (
        "old jobs",
        [*IDLE, ("jobs_queue_depth", MAIL, 2.0), ("jobs_queue_oldest_timestamp_seconds", MAIL, NOW - 601)],
        PROBLEM, "JobQueueOld", "2 jobs wait in mail (celery, broker main), the next one for 10 minutes",
    ),
    (
        "all slots busy",
        [*IDLE, ("jobs_active", PAY, 2.0), ("jobs_queue_depth", MAIL, 3.0)],
        NOTE, "JobWorkersSaturated", "2 of 2 slots of the celery workers on this host run a job, and 3 jobs wait",
    ),
    (
        "sent to a queue that nothing reads",
        [*WORKER, ("jobs_published_total", {**PAY, "queue_name": "reprots"}, 7.0)],
        NOTE, "JobsPublishedToNowhere",
        "reprots (celery) was sent 7 jobs since recording began, and none has run on this host",
    ),
    (
        "stuck",
        [*IDLE, ("jobs_active", PAY, 1.0), ("jobs_active_oldest_timestamp_seconds", PAY, NOW - 660)],
        PROBLEM, "JobStuck",
        ("an execution of shop.pay (celery) has been running for 11 minutes; 99 % of those that ended took at most 5 "
         "seconds"),
    ),
    (
        "stuck, of an unknown job type",
        [*WORKER, ("jobs_active", PAY, 1.0), ("jobs_active_oldest_timestamp_seconds", PAY, NOW - 3660)],
        PROBLEM, "JobStuck", "an execution of shop.pay (celery) has been running for 61 minutes",
    ),
    (
        "never succeeded",
        [*WORKER, ended("failure", 1.0), ended("retry", 2.0)],
        PROBLEM, "JobNoSuccess", "shop.pay (celery) was tried 3 times and has never succeeded since recording began",
    ),
    (
        "tried once",
        [*WORKER, ended("failure", 1.0)],
        NOTE, "JobNoSuccess", "shop.pay (celery) was tried 1 time and has never succeeded since recording began",
    ),
    (
        "failed often",
        [
            *WORKER, ended("failure", 3.0), ended("success", 17.0),
            ("jobs_last_success_timestamp_seconds", PAY, NOW - 90),
        ],
        NOTE, "JobFailureRatioHigh",
        "15% of 20 executions of shop.pay (celery) failed since recording began; the last success was 90 seconds ago",
    ),
    (
        "retried often",
        [*WORKER, ended("retry", 20.0), ended("success", 10.0)],
        NOTE, "JobRetryStorm", "67% of 30 executions of shop.pay (celery) asked for a retry since recording began",
    ),
    (
        "unresolved",
        [*IDLE, ("jobs_executions_unresolved", PAY, 2.0)],
        NOTE, "JobWorkersRestarting",
        "no end is recorded of 2 executions of shop.pay (celery) within the last day: the process was killed",
    ),
    (
        "workers lost",
        [*IDLE, ("jobs_workers_lost_total", CELERY, 2.0)],
        NOTE, "JobWorkersRestarting", "2 celery workers ended without a shutdown since recording began",
    ),
    (
        "worker processes lost",
        [*IDLE, ("jobs_worker_processes_lost_total", CELERY, 2.0)],
        NOTE, "JobWorkerProcessesLost", "2 celery worker processes died in a job since recording began",
    ),
    (
        "stale registrations",
        [("jobs_registered_workers_stale", CRON, 1.0)],
        NOTE, "JobWorkersGone", "1 rq worker registered at broker main without a fresh heartbeat",
    ),
    (
        "orphaned jobs",
        [("jobs_queue_orphaned", MAIL, 1.0)],
        NOTE, "JobWorkersGone", "the worker of 1 started job of mail (celery, broker main) no longer exists",
    ),
    (
        "a scheduler that sends nothing",
        [
            ("jobs_schedule_next_due_timestamp_seconds", NIGHTLY, NOW - 360),
            ("jobs_schedule_last_sent_timestamp_seconds", NIGHTLY, NOW - 86_760),
            ("jobs_schedule_next_due_timestamp_seconds", HOURLY, NOW + 60),
        ],
        PROBLEM, "JobSchedulerDown",
        "the celery scheduler should have sent nightly 6 minutes ago, and has sent nothing since",
    ),
    (
        "an entry that is skipped",
        [
            ("jobs_schedule_next_due_timestamp_seconds", NIGHTLY, NOW - 360),
            ("jobs_schedule_last_sent_timestamp_seconds", HOURLY, NOW - 60),
            ("jobs_schedule_next_due_timestamp_seconds", HOURLY, NOW + 60),
        ],
        PROBLEM, "JobScheduleEntryLate", "the schedule entry nightly (celery) is 6 minutes late",
    ),
    (
        "scheduled jobs that are not queued",
        [("jobs_queue_overdue_oldest_timestamp_seconds", MAIL, NOW - 360)],
        PROBLEM, "RqSchedulerLate",
        "a scheduled job of mail (celery, broker main) has been due for 6 minutes and is not queued",
    ),
    (
        "cron late",
        [("jobs_cron_next_timestamp_seconds", CRON, NOW - 360)],
        PROBLEM, "RqCronLate", "the cron scheduler of rq (broker main) is late by 6 minutes",
    ),
    (
        "cron silent",
        [("jobs_cron_oldest_heartbeat_timestamp_seconds", CRON, NOW - 360)],
        PROBLEM, "RqCronLate", "the cron scheduler of rq (broker main) has had no heartbeat for 6 minutes",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "state", "section", "text"), [case[1:] for case in ONE_READING], ids=[case[0] for case in ONE_READING]
)
def test_a_trouble_is_found_from_one_reading(lines: list[Line], state: str, section: str, text: str) -> None:
    (finding,) = found(reading(*lines))
    assert (finding.state, finding.runbook, finding.text) == (state, section, text)
    assert finding.remedy
    assert finding.value is not None


QUIET: list[tuple[str, list[Line]]] = [
    ("nothing recorded", []),
    ("idle", IDLE),
    ("an empty queue without consumers", [("jobs_queue_depth", MAIL, 0.0), ("jobs_queue_consumers", MAIL, 0.0)]),
    ("a queue that is read elsewhere", [("jobs_queue_depth", MAIL, 5.0)]),
    ("a long job that is usual", [
        *WORKER, *took(30.0, "900.0"), ("jobs_active", PAY, 1.0),
        ("jobs_active_oldest_timestamp_seconds", PAY, NOW - 1800),
    ]),
    ("a start in the future", [*IDLE, ("jobs_active_oldest_timestamp_seconds", PAY, NOW + 900)]),
    ("a few failures", [*WORKER, ended("failure", 2.0), ended("success", 2.0)]),
    ("an entry that was removed a day ago", [
        ("jobs_schedule_next_due_timestamp_seconds", NIGHTLY, NOW - 90_000),
        ("jobs_schedule_last_sent_timestamp_seconds", HOURLY, NOW - 60),
    ]),
    ("job types beyond the limit of series", [
        *WORKER, ("jobs_total", {**PAY, "job_type": "__other__", "status": "failure"}, 9.0),
    ]),
    ("another program's metrics", [("jobs_total", {}, 1.0), ("jobs_duration_seconds_bucket", {"le": "x"}, 1.0)]),
]  # fmt: skip


@pytest.mark.parametrize("lines", [case[1] for case in QUIET], ids=[case[0] for case in QUIET])
def test_what_is_well_or_unknown_is_no_finding(lines: list[Line]) -> None:
    assert found(reading(*lines)) == []


BEFORE: list[Line] = [*WORKER, ended("failure", 500.0), ended("success", 500.0), ended("retry", 9000.0)]


@pytest.mark.parametrize(
    ("lines", "section", "text"),
    [
        (
            [ended("failure", 503.0), ended("success", 517.0), ended("retry", 9000.0)],
            "JobFailureRatioHigh", "15% of 20 executions of shop.pay (celery) failed within 60 seconds",
        ),
        (
            [ended("failure", 500.0), ended("success", 501.0), ended("retry", 9003.0)],
            "JobRetryStorm", "75% of 4 executions of shop.pay (celery) asked for a retry within 60 seconds",
        ),
        (
            [
                ended("failure", 500.0), ended("success", 510.0), ended("retry", 9001.0),
                ("jobs_attempts_total", {**PAY, "attempt": "21+"}, 1.0),
            ],
            "JobRetriesEndless", "shop.pay (celery) ran 1 time within 60 seconds for jobs with more than 20 attempts",
        ),
        ([*BEFORE[2:], ("jobs_worker_starts_total", CELERY, 3.0)], "JobWorkersRestarting",
         "3 celery workers started within 60 seconds"),
        ([*BEFORE[2:], ("jobs_workers_lost_total", CELERY, 1.0), ("jobs_worker_starts_total", CELERY, 3.0)],
         "JobWorkersRestarting", "1 celery worker ended without a shutdown within 60 seconds"),
        ([*BEFORE[2:], ("jobs_worker_processes_lost_total", CELERY, 1.0)], "JobWorkerProcessesLost",
         "1 celery worker process died in a job within 60 seconds"),
    ],
)  # fmt: skip
def test_counts_between_two_readings_are_problems(lines: list[Line], section: str, text: str) -> None:
    problems = [each for each in found(reading(*WORKER, *lines, at=60.0), reading(*BEFORE)) if each.state == PROBLEM]
    assert [(each.runbook, each.text) for each in problems] == [(section, text)]


def test_failures_before_the_earlier_reading_are_over_once_a_job_succeeds() -> None:
    later = [ended("failure", 500.0), ended("success", 501.0), ended("retry", 9000.0)]
    assert found(reading(*WORKER, *later, at=60.0), reading(*BEFORE)) == []


def test_a_directory_that_was_pruned_between_the_readings_counts_from_0() -> None:
    (finding,) = found(reading(*WORKER, ended("failure", 3.0), ended("success", 3.0), at=60.0), reading(*BEFORE))
    assert finding.text == "50% of 6 executions of shop.pay (celery) failed within 60 seconds"


def test_all_slots_held_by_stuck_executions_are_a_problem_of_the_workers() -> None:
    oldest = ("jobs_active_oldest_timestamp_seconds", PAY, NOW - 660)
    first, second = found(reading(*IDLE, ("jobs_active", PAY, 2.0), oldest))
    assert first.text.startswith(
        "2 of 2 slots of the celery workers on this host are held by job types with an execution"
    )
    assert [first.runbook, second.runbook] == ["JobWorkersStuck", "JobStuck"]


def test_a_worker_that_was_just_started_is_starting() -> None:
    (finding,) = found(reading(("jobs_workers", CELERY, 0.0)), starting={"celery": 3.0})
    assert finding.state == STARTING
    assert finding.text == "a celery process started 3 seconds ago and does not record yet"


HOSTILE = [
    "\x1b[31mred",
    "a\"quo'te",
    "<script>alert(1)</script>",
    "x" * 10_000,
    "\u202egnp",
    "two\nlines",
    "",
    "%s{0}",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_give_one_short_line(name: str) -> None:
    mine = {"celery": name, "shop.pay": name, "mail": name, "main": name, "nightly": name, "rq": name}
    lines = [line for case in ONE_READING for line in case[1]]
    hostile = [(metric, {label: mine.get(value, value) for label, value in labels.items()}, value)
               for metric, labels, value in lines]  # fmt: skip
    for finding in found(reading(*hostile)):
        shown = printable(str(finding))
        assert shown.isprintable()
        assert name[:80] == name or name not in shown
        assert len(finding.text) < 500, finding


def test_a_live_view_judges_by_the_last_15_minutes() -> None:
    past, ages, oldest = incidents.Past(), [], 0.0
    for second in range(0, 2400, 20):
        past.add(reading(at=float(second)))
        oldest = past.before.at if past.before else -1.0
        ages.append(second - oldest)
    assert oldest >= 0.0
    assert max(ages) < 960.0
    assert ages[-1] >= 900.0


def test_each_finding_names_a_section_of_the_runbook() -> None:
    headings = set(re.findall(r"^### (\w+)$", (ROOT / "docs" / "runbook.md").read_text(), re.MULTILINE))
    source = Path(incidents.__file__).read_text()
    named = set(re.findall(r'"((?:Job|Rq|Jobmetrics)[A-Z]\w+)"', source))
    assert len(named) > 12
    assert named <= headings


@pytest.mark.parametrize(
    ("alert", "thresholds"),
    [
        ("JobQueueOld", [f"> {incidents.QUEUE_OLD:.0f}"]),
        (
            "JobStuck",
            [f"> {incidents.STUCK:.0f}", f"> {incidents.STUCK_UNKNOWN:.0f}", f"{incidents.STUCK_FACTOR:.0f} *"],
        ),
        ("JobFailureRatioHigh", [f"> {incidents.FAILURE_RATIO:.2f}", f">= {incidents.FAILURES}"]),
        (
            "JobRetryStorm",
            [
                f"> {incidents.RETRY_RATIO}",
                f">= {incidents.RETRIES}",
                f"increase{incidents.RETRY_SECONDS / 60:.0f}m",
            ],
        ),
        ("JobRetriesEndless", [f'attempt="{incidents.MOST_TRIED}"']),
        ("JobSchedulerDown", [f"> {incidents.SCHEDULE_LATE:.0f}"]),
        ("JobScheduleEntryLate", [f"> {incidents.SCHEDULE_LATE:.0f}", f"< {incidents.SCHEDULE_REMOVED:.0f}"]),
        ("RqSchedulerLate", [f"> {incidents.SCHEDULE_LATE:.0f}"]),
        ("RqCronLate", [f"> {incidents.CRON_LATE:.0f}"]),
    ],
)
def test_the_thresholds_are_those_of_the_alerts(alert: str, thresholds: list[str]) -> None:
    rules = yaml.safe_load((ROOT / "rules" / "jobmetrics.alerts.yml").read_text())
    (expr,) = [rule["expr"] for group in rules["groups"] for rule in group["rules"] if rule["alert"] == alert]
    for threshold in thresholds:
        assert threshold in expr
