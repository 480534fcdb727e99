"""Celery's prefork pool on a real Redis: each way a task ends counts once, as its own ledger says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobmetrics import settings
from tests.integration import ledger
from tests.integration.processes import celery_worker
from tests.readings import active, assert_durations_add_up, counts, samples, until, values

TASKS = "tests.integration.celery_app"


class Worker:
    """A running worker, its ledger and its directory."""

    def __init__(self, app: Any, directory: Path, written: Path) -> None:
        self.app = app
        self.directory = directory
        self.written = written

    def send(self, task: str, *args: Any, **options: Any) -> None:
        self.app.send_task(f"{TASKS}.{task}", args=args, **options)

    def ended(self) -> dict[tuple[str, str], float]:
        """Ends by task and status, the labels that do not vary checked and left out."""
        found = values(self.directory, "jobs_total")
        assert {(system, queue) for system, _, queue, _ in found} <= {("celery", "jobs")}
        return {(name.rpartition(".")[2], status): count for (_, name, _, status), count in found.items()}

    def wait_for(self, ends: int) -> None:
        until(lambda: sum(self.ended().values()) >= ends, f"{ends} ends")


@pytest.fixture
def worker(redis_url: str, registry_dir: Path, tmp_path: Path) -> Iterator[Worker]:
    """A prefork worker with two children, turned on by its configuration alone, and an instrumented producer."""
    from celery import Celery

    from jobmetrics.celery import instrument, uninstrument

    written = tmp_path / "ledger"
    environment = {
        "BROKER": redis_url,
        "RESULTS": redis_url,
        "LEDGER": str(written),
        "JOBMETRICS_DIR": str(registry_dir),
        "JOBMETRICS_PROPAGATE_ERRORS": "1",
    }
    settings.configure(dir=registry_dir, propagate_errors=True)
    producer = Celery("producer", broker=redis_url, backend=redis_url)
    producer.conf.task_default_queue = "jobs"
    instrument(producer)
    try:
        with celery_worker(environment, tmp_path / "worker.log", "--pool=prefork", "--concurrency=2"):
            yield Worker(producer, registry_dir, written)
    finally:
        uninstrument(producer)
        producer.close()
        settings.use(None)


def test_success_failure_and_retry_count_as_the_ledger_says(worker: Worker) -> None:
    for _ in range(5):
        worker.send("succeed")
    for _ in range(3):
        worker.send("fail")
    worker.send("retry", True)
    worker.send("retry", False)
    worker.wait_for(14)

    assert worker.ended() == {
        ("succeed", "success"): 5,
        ("fail", "failure"): 3,
        ("retry", "retry"): 4,
        ("retry", "success"): 1,
        ("retry", "failure"): 1,
    }
    said = Counter(ledger.read(worker.written))
    by_status = Counter[str]()
    for (_, status), count in worker.ended().items():
        by_status[status] += int(count)
    assert by_status == Counter(success=said["success"], failure=said["failure"], retry=said["retry"])
    failures = values(worker.directory, "jobs_failures_total")
    assert {(name.rpartition(".")[2], error): n for (_, name, _, error), n in failures.items()} == {
        ("fail", "ValueError"): 3,
        ("retry", "KeyError"): 1,
    }
    assert sum(values(worker.directory, "jobs_retries_total").values()) == 4
    published = values(worker.directory, "jobs_published_total")  # a retry is another attempt, not another job
    assert {name.rpartition(".")[2]: count for (_, name, _), count in published.items()} == {
        "succeed": 5,
        "fail": 3,
        "retry": 2,
    }
    assert active(worker.directory) == {}
    assert_durations_add_up(worker.directory)


def test_wait_runs_from_publish_or_eta_to_the_start(worker: Worker) -> None:
    worker.send("succeed", 1.0)
    worker.send("succeed", 1.0)
    worker.send("succeed")  # waits for one of the two children
    worker.send("fail", countdown=1.5)  # its waiting begins when it may run
    worker.wait_for(4)
    waits = samples(worker.directory, "jobs_queue_wait_seconds")
    by_task = {name.rpartition(".")[2]: sample for (_, name, _), sample in waits.items()}
    assert sum(by_task["succeed"].buckets) == 3
    assert by_task["succeed"].sum > 0.8
    assert sum(by_task["fail"].buckets) == 1
    assert by_task["fail"].sum < 1.4
    published = values(worker.directory, "jobs_published_total")
    assert {name.rpartition(".")[2]: count for (_, name, _), count in published.items()} == {
        "succeed": 3,
        "fail": 1,
    }


def test_running_tasks_are_active_until_they_end(worker: Worker) -> None:
    worker.send("succeed", 1.0)
    labels = ("celery", f"{TASKS}.succeed", "jobs")
    until(lambda: active(worker.directory) == {labels: 1}, "an active task")
    worker.wait_for(1)
    assert active(worker.directory) == {}


def test_a_killed_child_counts_one_failure_and_nothing_active(worker: Worker) -> None:
    worker.send("kill_itself")
    until(lambda: "killed" in ledger.read(worker.written), "the task to start")
    worker.wait_for(1)
    assert worker.ended() == {("kill_itself", "failure"): 1}
    assert values(worker.directory, "jobs_failures_total") == {
        ("celery", f"{TASKS}.kill_itself", "jobs", "WorkerLostError"): 1
    }
    assert values(worker.directory, "jobs_worker_processes_lost_total") == {("celery",): 1}
    assert counts(worker.directory, "jobs_duration_seconds") == {("celery", f"{TASKS}.kill_itself", "jobs"): 1}
    assert active(worker.directory) == {}
    worker.send("succeed")  # the pool lives on
    worker.wait_for(2)
    assert_durations_add_up(worker.directory)


def test_a_child_killed_after_its_end_counts_one_success_and_no_failure(worker: Worker, tmp_path: Path) -> None:
    worker.send("killed_after_its_end")
    until(
        lambda: "WorkerLostError" in (tmp_path / "worker.log").read_text() or _recovered(tmp_path),
        "Celery to notice",
    )
    worker.send("succeed")
    worker.wait_for(2)
    assert worker.ended() == {("killed_after_its_end", "success"): 1, ("succeed", "success"): 1}
    assert values(worker.directory, "jobs_failures_total") == {}
    assert active(worker.directory) == {}
    assert_durations_add_up(worker.directory)


def _recovered(tmp_path: Path) -> bool:
    """Celery 5.7 finds the stored result and says so instead of failing the task."""
    return "succeeded before the worker was lost" in (tmp_path / "worker.log").read_text()
