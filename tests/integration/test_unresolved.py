"""Executions that real workers leave behind when they are killed: how long they are shown as unresolved."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import psutil
import pytest

from tests.integration import rq_jobs
from tests.integration.celery_workers import Worker, running
from tests.integration.rq_workers import Workers
from tests.support.readings import active, snapshot, until, values


@pytest.fixture
def workers(redis_url: str, registry_dir: Path, tmp_path: Path) -> Iterator[Workers]:
    made = Workers(redis_url, registry_dir, tmp_path)
    yield made
    made.connection.close()


def unresolved(directory: Path) -> int:
    return sum(entry.unresolved for entry in snapshot(directory).active)


def start(redis_url: str, base: Path, **conf: object) -> AbstractContextManager[Worker]:
    return running(redis_url, redis_url, base, "--concurrency=2", CONF=json.dumps(conf))


def held(worker: Worker, task: str) -> None:
    """Send a job that runs until it is released."""
    worker.send(task)
    until(lambda: worker.started()[task] == 1, "the job to start")
    until(lambda: sum(active(worker.directory).values()) == 1, "the job to be active")


def kill(worker: Worker) -> None:
    """Kill all processes of the worker with SIGKILL, as the end of its container would."""
    family = psutil.Process(worker.process.pid).children(recursive=True)
    for each in (psutil.Process(worker.process.pid), *family):
        each.kill()
    worker.process.wait(60)
    psutil.wait_procs(family, timeout=60)
    until(lambda: active(worker.directory) == {}, "its slots to be free")


def test_a_killed_pool_process_is_resolved_by_its_main_process(redis_url: str, tmp_path: Path) -> None:
    with start(redis_url, tmp_path) as worker:
        worker.send("kill_itself")
        until(lambda: sum(worker.counted("jobs_total").values()) == 1, "the end to be counted")
        until(lambda: unresolved(worker.directory) == 0, "no unresolved execution")


def test_a_job_that_was_acknowledged_early_stays_unresolved(redis_url: str, tmp_path: Path) -> None:
    with start(redis_url, tmp_path) as worker:
        held(worker, "hold_acknowledged")
        assert unresolved(worker.directory) == 0
        kill(worker)
        assert unresolved(worker.directory) == 1
    with start(redis_url, tmp_path) as worker:  # leases the dead processes' slots
        worker.send("succeed")
        until(lambda: sum(worker.counted("jobs_total").values()) == 1, "another job")
        assert unresolved(worker.directory) == 1


def test_a_redelivered_job_is_resolved(redis_url: str, tmp_path: Path) -> None:
    visible = {"broker_transport_options": {"visibility_timeout": 2}}
    with start(redis_url, tmp_path, **visible) as worker:
        held(worker, "hold")
        kill(worker)
        assert unresolved(worker.directory) == 1
        worker.release()
    with start(redis_url, tmp_path, **visible) as worker:
        until(lambda: sum(worker.counted("jobs_total").values()) == 2, "the loss and the success to be counted")
        assert worker.counted("jobs_total") == {("hold", "failure"): 1, ("hold", "success"): 1}
        assert unresolved(worker.directory) == 0


def test_an_abandoned_rq_job_is_resolved_when_a_worker_finds_it(workers: Workers, tmp_path: Path) -> None:
    job = workers.queue.enqueue(rq_jobs.succeed_when_released, str(tmp_path / "never"))
    with workers.running() as worker:
        workers.await_written()
        assert [each.job_id for each in snapshot(workers.directory).running] == [job.id]
        horses = psutil.Process(worker.pid).children(recursive=True)
        for each in (psutil.Process(worker.pid), *horses):
            each.kill()
        worker.wait(60)
        psutil.wait_procs(horses, timeout=60)
    until(lambda: unresolved(workers.directory) == 1, "the execution to be unresolved")
    workers.forget_workers()
    workers.burst()
    assert sum(values(workers.directory, "jobs_total").values()) == 1
    assert unresolved(workers.directory) == 0
