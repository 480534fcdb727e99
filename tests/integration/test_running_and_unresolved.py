"""Executions of real workers in the journals: those that run, and those that killed workers leave unresolved."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil
import pytest
from rq.command import send_stop_job_command

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
    # Otherwise kombu looks for such messages after 100 seconds, or 300 if the dead worker was just looking.
    soon = {"unacked_restore_interval": 1, "unacked_restore_throttle": 1, "unacked_mutex_expire": 1}
    visible = {"broker_transport_options": {"visibility_timeout": 2, **soon}}
    with start(redis_url, tmp_path, **visible) as worker:
        held(worker, "hold")
        kill(worker)
        assert unresolved(worker.directory) == 1
        worker.release()
    with start(redis_url, tmp_path, **visible) as worker:
        until(lambda: worker.counted("jobs_total")[("hold", "success")] >= 1, "a success to be counted")
        # On a busy machine the job may be delivered once more before it is acknowledged.
        assert worker.counted("jobs_total")[("hold", "failure")] == 1
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


def running_now(directory: Path, *options: str) -> list[dict[str, Any]]:
    """The output of `jobmetrics running`, as the workers' user."""
    command = [sys.executable, "-m", "jobmetrics", "running", "--dir", str(directory), "--json", *options]
    found: list[dict[str, Any]] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return found


def test_a_running_task_is_printed_with_its_id_and_its_pool_process(redis_url: str, tmp_path: Path) -> None:
    with start(redis_url, tmp_path) as worker:
        sent = worker.send("hold")
        until(lambda: worker.started()["hold"] == 1, "the job to start")
        (row,) = running_now(worker.directory, "--job-type", "*.hold")
        assert (row["system"], row["queue_name"], row["job_id"], row["horse"]) == ("celery", "jobs", sent.id, None)
        assert row["pid"] in {child.pid for child in psutil.Process(worker.process.pid).children()}
        assert running_now(worker.directory, "--longer-than", str(row["age_seconds"] + 3600)) == []
        worker.app.control.terminate(sent.id, signal="TERM")
        until(lambda: running_now(worker.directory) == [], "the task to end")
        until(lambda: worker.counted("jobs_total") == {("hold", "revoked"): 1}, "the end to be counted")
        assert unresolved(worker.directory) == 0


def test_a_running_rq_job_is_printed_with_its_id_its_worker_and_its_work_horse(
    workers: Workers, tmp_path: Path
) -> None:
    job = workers.queue.enqueue(rq_jobs.succeed_when_released, str(tmp_path / "never"))
    with workers.running() as worker:
        workers.await_written()
        (row,) = running_now(workers.directory)
        assert (row["system"], row["queue_name"], row["job_id"]) == ("rq", "jobs", job.id)
        assert (row["pid"], row["horse"]) == (worker.pid, workers.horse(worker.pid))
        assert os.getpgid(row["horse"]) == row["horse"]
        send_stop_job_command(workers.connection, row["job_id"])
        until(lambda: running_now(workers.directory) == [], "the job to end")
        until(lambda: workers.ended() == {("succeed_when_released", "revoked"): 1}, "the end to be counted")
        assert unresolved(workers.directory) == 0
