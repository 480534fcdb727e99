"""Celery's prefork pool with spawned children, which inherit nothing: each end of a task counts once."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.integration.celery_rows import CELERY, OF_CHILDREN, PREFORK, Row, check, some
from tests.integration.celery_workers import Worker, running
from tests.support.readings import until, values
from tests.support.servers import RedisServer

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(CELERY < (5, 7), reason="Celery 5.7 brought worker_pool_start_method"),
]


@pytest.fixture(scope="module")
def worker(_shared_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    _shared_redis.flush()
    base: Path = tmp_path_factory.mktemp("spawn")
    url = _shared_redis.url
    conf = json.dumps({"worker_pool_start_method": "spawn"})
    with running(url, url, base, "--pool=prefork", "--concurrency=2", CONF=conf) as started:
        yield started
    assert "Signal handler" not in started.log


@pytest.mark.parametrize("row", some(PREFORK, OF_CHILDREN), ids=lambda row: row.name)
def test_row(worker: Worker, row: Row) -> None:
    check(worker, row)


def test_children_are_separate_interpreters(worker: Worker) -> None:
    def interpreters() -> int:
        found = 0
        for child in psutil.Process(worker.process.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):  # a row before this one ended it
                found += "billiard.spawn" in " ".join(child.cmdline())
        return found

    until(lambda: interpreters() == 2, "the pool to replace what the rows before ended")


def test_the_worker_describes_itself(worker: Worker) -> None:
    assert values(worker.directory, "jobs_workers") == {("celery",): 1}
    assert values(worker.directory, "jobs_worker_capacity") == {("celery",): 2}
    assert len(list(worker.directory.glob("slot-*"))) <= 6  # two children, two that are exiting, and two more


def test_jobs_with_an_eta_are_reserved(worker: Worker) -> None:
    for _ in range(2):
        worker.send("succeed", countdown=600)
    until(lambda: values(worker.directory, "jobs_reserved") == {("celery", "jobs"): 2}, "two reserved jobs")
