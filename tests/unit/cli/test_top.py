"""How the live view looks."""

from __future__ import annotations

from io import StringIO

import pytest
from prometheus_client.metrics_core import Metric
from rich.console import Console

from jobmetrics.cli.top import duration, render
from jobmetrics.exporter.overview import summarize


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "-"), (0.0, "0ms"), (0.0999, "100ms"), (0.9994, "999ms"), (0.9996, "1.0s"), (61.0, "61.0s"),
        (120.0, "2.0m"), (7200.0, "2.0h"), (864_000.0, "10d"),
    ],
)  # fmt: skip
def test_durations_take_five_characters(seconds: float | None, shown: str) -> None:
    assert duration(seconds) == shown


PAY = {"system": "celery", "job_type": "shop.pay", "queue_name": "mail"}
MAIL = {"system": "celery", "broker": "main", "queue_name": "mail"}


def screen(width: int, height: int, *lines: tuple[str, dict[str, str], float]) -> list[str]:
    metrics = []
    for name, labels, value in lines:
        metric = Metric(name, "", "unknown")
        metric.add_sample(name, labels, value)
        metrics.append(metric)
    now = summarize(metrics, 2.0)
    console = Console(width=width, height=height, file=StringIO(), record=True)
    console.print(render(now, summarize([], 0.0), "/dev/shm/here", height))
    return [line.rstrip() for line in console.export_text().splitlines()]


@pytest.mark.parametrize("width", [80, 140])
@pytest.mark.parametrize("height", [24, 50])
def test_a_host_with_many_troubles_fits_the_terminal(width: int, height: int) -> None:
    name = "shop.orders.tasks.exports.of_a_very_long_name." * 3
    many = [
        line
        for number in range(60)
        for line in (
            ("jobs_total", {**PAY, "job_type": f"{name}{number}", "status": "failure"}, 5.0),
            ("jobs_queue_depth", {**MAIL, "queue_name": f"{name}{number}"}, 1.0),
            ("jobs_schedule_next_due_timestamp_seconds", {"system": "celery", "schedule_entry": f"{number}"}, 1.0),
        )
    ]
    shown = screen(width, height, ("jobs_workers", {"system": "celery"}, 0.0), *many)
    assert max(map(len, shown)) <= width
    assert len(shown) <= height
    assert shown[1].startswith("JobWorkersGone: no celery worker is alive on this host, and 60 jobs wait")
    for more in ("problems: jobmetrics check lists them", "job types", "queues"):
        assert any(line.startswith("and ") and line.endswith(f" more {more}") for line in shown), more


def test_dashes_are_explained() -> None:
    buckets = [("jobs_duration_seconds_bucket", {**PAY, "le": le}, 5.0) for le in ("1.0", "+Inf")]
    shown = screen(
        140, 50, ("jobs_total", {**PAY, "status": "success"}, 5.0), *buckets, ("jobs_queue_depth", MAIL, 1.0)
    )
    assert "no problem found" in shown
    assert "wait: unknown for 1 job types; their producers are not instrumented" in shown
    assert "oldest: unknown for 1 queues; their broker or producers do not state when jobs were queued" in shown
