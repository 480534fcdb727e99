"""Starts and losses of real workers, and the numbers of attempts."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from rq import Retry

from tests.integration import rq_jobs
from tests.integration.celery_workers import running
from tests.integration.rq_workers import Workers
from tests.support.readings import until, values

STARTS, LOST, ATTEMPTS = "jobs_worker_starts_total", "jobs_workers_lost_total", "jobs_attempts_total"


def counted(path: Path) -> tuple[float, float]:
    """Workers that started, and workers that were lost."""
    return sum(values(path, STARTS).values()), sum(values(path, LOST).values())


def attempts(path: Path) -> dict[tuple[str, str], float]:
    return {(key[1].rpartition(".")[2], key[3]): count for key, count in values(path, ATTEMPTS).items()}


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_killed_celery_worker_is_lost_and_one_that_shuts_down_is_not(
    redis_url: str, tmp_path: Path, pool: str
) -> None:
    directory = tmp_path / "registry"

    def run(how: signal.Signals) -> None:
        starts, _ = counted(directory)
        with running(redis_url, redis_url, tmp_path, f"--pool={pool}", "--concurrency=2") as worker:
            until(lambda: counted(directory)[0] == starts + 1, "the worker to start")
            worker.process.send_signal(how)
            worker.process.wait(60)
            until(lambda: values(directory, "jobs_workers") == {}, "its slot to be free")

    (tmp_path / "registry").mkdir(mode=0o700)
    run(signal.SIGTERM)
    assert counted(directory) == (1, 0)
    run(signal.SIGQUIT)
    assert counted(directory) == (2, 0), "a cold shutdown is a shutdown"
    run(signal.SIGKILL)
    run(signal.SIGTERM)
    assert counted(directory) == (4, 1)


def test_attempts_of_celery_tasks_count_in_ranges(redis_url: str, tmp_path: Path) -> None:
    with running(redis_url, redis_url, tmp_path, "--concurrency=1") as worker:
        for _ in range(3):
            worker.send("retry", True)  # succeeds at the third attempt
        until(lambda: sum(worker.counted("jobs_total").values()) == 9, "all executions")
        assert attempts(worker.directory) == {("retry", "2-5"): 6}


@pytest.fixture
def workers(redis_url: str, registry_dir: Path, tmp_path: Path) -> Iterator[Workers]:
    made = Workers(redis_url, registry_dir, tmp_path)
    yield made
    made.connection.close()


@pytest.mark.parametrize("worker_class", ["jobmetrics.rq.Worker", "jobmetrics.rq.SimpleWorker"])
def test_a_killed_rq_worker_is_lost_and_one_that_shuts_down_is_not(workers: Workers, worker_class: str) -> None:
    workers.queue.enqueue(rq_jobs.succeed)
    workers.burst(worker_class)
    assert counted(workers.directory) == (1, 0)
    with workers.running(worker_class) as started:
        until(lambda: counted(workers.directory)[0] == 2, "the worker")
        started.kill()
        started.wait(60)
    workers.burst(worker_class)
    assert counted(workers.directory) == (3, 1)


def test_attempts_of_rq_jobs_that_return_a_retry_count_in_ranges(workers: Workers) -> None:
    workers.queue.enqueue(rq_jobs.ask_again, 7)
    workers.queue.enqueue(rq_jobs.fail, retry=Retry(max=2))
    workers.burst()
    assert attempts(workers.directory) == {("ask_again", "2-5"): 4, ("ask_again", "6-20"): 3}
