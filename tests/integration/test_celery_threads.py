"""Celery's threads pool on a real Redis: each end of a task counts once, as the ledger shows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobmetrics.conformance import Case
from tests.integration.celery_rows import THREADS, Row, check, check_running, check_shared, differing, shared
from tests.integration.celery_workers import Worker, running
from tests.support.readings import until, values
from tests.support.servers import RedisServer

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def worker(_shared_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    _shared_redis.flush()
    base: Path = tmp_path_factory.mktemp("threads")
    url = _shared_redis.url
    with running(url, url, base, "--pool=threads", "--concurrency=2") as started:
        yield started
    assert "Signal handler" not in started.log


@pytest.mark.parametrize("row", differing(THREADS), ids=lambda row: row.name)
def test_row(worker: Worker, row: Row) -> None:
    check(worker, row)


@pytest.mark.parametrize("case", shared(THREADS), ids=str)
def test_the_truth_table_of_all_job_systems(worker: Worker, case: Case) -> None:
    check_shared(worker, case)


def test_a_running_task_is_active(worker: Worker) -> None:
    check_running(worker)


def test_the_worker_describes_itself(worker: Worker) -> None:
    assert values(worker.directory, "jobs_workers") == {("celery",): 1}
    assert values(worker.directory, "jobs_worker_capacity") == {("celery",): 2}


def test_jobs_with_an_eta_are_reserved(worker: Worker) -> None:
    for _ in range(2):
        worker.send("succeed", countdown=600)
    until(lambda: values(worker.directory, "jobs_reserved") == {("celery", "jobs"): 2}, "two reserved jobs")
