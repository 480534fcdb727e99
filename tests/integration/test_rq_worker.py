"""RQ's forking worker on a real Redis: each way a job ends counts once, as its own ledger says."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from redis import Redis
from rq import Queue, Retry

from tests.integration import ledger, rq_jobs
from tests.integration.processes import rq_worker
from tests.readings import active, assert_durations_add_up, counts, samples, snapshot, until, values

JOBS = "tests.integration.rq_jobs"


class Workers:
    """A queue, the environment of its workers, their ledger and their directory."""

    def __init__(self, url: str, directory: Path, tmp_path: Path) -> None:
        self.url = url
        self.connection = Redis.from_url(url)
        self.queue = Queue("jobs", connection=self.connection)
        self.directory = directory
        self.written = tmp_path / "ledger"
        self.log = tmp_path / "worker.log"
        self.environment = {
            "LEDGER": str(self.written),
            "JOBMETRICS_DIR": str(directory),
            "JOBMETRICS_PROPAGATE_ERRORS": "1",
        }

    def burst(self) -> None:
        """Run a worker until the queue is empty."""
        with rq_worker(self.url, self.environment, self.log, "--burst", "jobs") as started:
            started.wait(120)

    def ended(self) -> dict[tuple[str, str], float]:
        """Ends by job function and status, the labels that do not vary checked and left out."""
        found = values(self.directory, "jobs_total")
        assert {(system, queue) for system, _, queue, _ in found} <= {("rq", "jobs")}
        return {(name.rpartition(".")[2], status): count for (_, name, _, status), count in found.items()}


@pytest.fixture
def workers(redis_url: str, registry_dir: Path, tmp_path: Path) -> Iterator[Workers]:
    made = Workers(redis_url, registry_dir, tmp_path)
    yield made
    made.connection.close()


def test_success_failure_and_retry_count_as_the_ledger_says(workers: Workers, tmp_path: Path) -> None:
    for _ in range(4):
        workers.queue.enqueue(rq_jobs.succeed)
    workers.queue.enqueue(rq_jobs.fail)
    workers.queue.enqueue(rq_jobs.fail, retry=Retry(max=2))
    workers.queue.enqueue(rq_jobs.ask_again, str(tmp_path / "asked"))
    workers.burst()

    assert workers.ended() == {
        ("succeed", "success"): 4,
        ("fail", "failure"): 2,
        ("fail", "retry"): 2,
        ("ask_again", "retry"): 1,
        ("ask_again", "success"): 1,
    }
    said = Counter(ledger.read(workers.written))
    assert said == Counter(start=4, success=5, failure=4, retry=1)
    assert values(workers.directory, "jobs_failures_total") == {("rq", f"{JOBS}.fail", "jobs", "ValueError"): 2}
    assert sum(values(workers.directory, "jobs_retries_total").values()) == 3
    assert sum(counts(workers.directory, "jobs_queue_wait_seconds").values()) == 10
    assert active(workers.directory) == {}
    assert_durations_add_up(workers.directory)


def test_a_running_job_is_active_and_its_run_time_is_measured(workers: Workers) -> None:
    workers.queue.enqueue(rq_jobs.succeed, 1.0)
    labels = ("rq", f"{JOBS}.succeed", "jobs")
    with rq_worker(workers.url, workers.environment, workers.log, "jobs"):
        until(lambda: active(workers.directory) == {labels: 1}, "an active job")
        until(lambda: bool(workers.ended()), "its end")
    assert active(workers.directory) == {}
    assert 1.0 <= samples(workers.directory, "jobs_duration_seconds")[labels].sum < 30.0


@pytest.mark.parametrize("how", ["by itself", "from outside"])
def test_a_killed_work_horse_counts_one_failure_and_nothing_active(workers: Workers, how: str) -> None:
    with rq_worker(workers.url, workers.environment, workers.log, "jobs") as worker:
        if how == "by itself":
            workers.queue.enqueue(rq_jobs.kill_itself)
        else:
            workers.queue.enqueue(rq_jobs.succeed, 60.0)
            until(lambda: bool(active(workers.directory)), "an active job")
            (horse,) = _horses(worker.pid)
            os.kill(horse, signal.SIGKILL)
        until(lambda: bool(workers.ended()), "the failure to be counted")
        name = "kill_itself" if how == "by itself" else "succeed"
        assert workers.ended() == {(name, "failure"): 1}
        assert active(workers.directory) == {}
        assert values(workers.directory, "jobs_failures_total") == {
            ("rq", f"{JOBS}.{name}", "jobs", "WorkHorseKilled"): 1
        }
        assert values(workers.directory, "jobs_worker_processes_lost_total") == {("rq",): 1}
        assert_durations_add_up(workers.directory)
        workers.queue.enqueue(rq_jobs.count)  # the worker lives on
        until(lambda: workers.ended().get(("count", "success")) == 1, "the next job")


def test_a_killed_work_horse_with_retries_left_counts_one_retry(workers: Workers) -> None:
    workers.queue.enqueue(rq_jobs.kill_itself, retry=Retry(max=1))
    workers.burst()
    assert workers.ended() == {("kill_itself", "retry"): 1, ("kill_itself", "failure"): 1}
    assert values(workers.directory, "jobs_worker_processes_lost_total") == {("rq",): 2}
    assert active(workers.directory) == {}


def test_a_thousand_forked_jobs_leave_at_most_four_slots_and_count_exactly(workers: Workers) -> None:
    for _ in range(1000):
        workers.queue.enqueue(rq_jobs.count)
    workers.burst()
    assert workers.ended() == {("count", "success"): 1000}
    assert ledger.read(workers.written) == ["success"] * 1000
    reading = snapshot(workers.directory)
    assert reading.live + reading.free + reading.damaged <= 4
    assert len(list(workers.directory.glob("slot-*"))) <= 4
    assert active(workers.directory) == {}
    assert_durations_add_up(workers.directory)


def _horses(worker: int) -> list[int]:
    return [child.pid for child in psutil.Process(worker).children()]
