"""Spawned work-horses: how the worker's connection, its settings and those of jobmetrics reach them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import jobmetrics.rq
from tests.integration import execution_ledger
from tests.integration import rq_jobs as jobs
from tests.integration.processes import process
from tests.integration.rq_workers import JOBS, QUEUE, RQ_VERSION, SPAWNING, Workers
from tests.support.readings import values

HERE = "tests.integration.rq_spawning"

pytestmark = pytest.mark.skipif(not hasattr(jobmetrics.rq, "SpawnWorker"), reason="RQ has SpawnWorker from 2.2 on")


@pytest.fixture
def workers(redis_url: str, registry_dir: Path, tmp_path: Path) -> Iterator[Workers]:
    made = Workers(redis_url, registry_dir, tmp_path)
    yield made
    made.connection.close()


def run(workers: Workers, *command: str, **environment: str) -> str:
    """Run a program until it exits; return its log."""
    log = workers.tmp_path / "worker.log"
    with process([sys.executable, "-m", *command], log, **{**workers.environment, **environment}) as started:
        assert started.wait(60) == 0, log.read_text(errors="replace")
    return log.read_text(errors="replace")


def test_a_connection_that_was_not_made_from_a_url(workers: Workers) -> None:
    port = urlsplit(workers.url).port
    (workers.tmp_path / "rq_settings.py").write_text(f"REDIS_HOST = '127.0.0.1'\nREDIS_PORT = {port}\n")
    workers.queue.enqueue(jobs.succeed)
    workers.queue.enqueue(jobs.fail)
    workers.queue.enqueue(jobs.kill_itself)
    path = os.pathsep.join([str(workers.tmp_path), os.environ.get("PYTHONPATH", "")])
    command = ["rq.cli", "worker", "--config", "rq_settings", "--worker-class", SPAWNING, "--burst", QUEUE]
    log = run(workers, *command, PYTHONPATH=path)
    assert workers.queue.finished_job_registry.count == 1, log
    workers.check(
        {("succeed", "success"): 1, ("fail", "failure"): 1, ("kill_itself", "failure"): 1},
        {("fail", "Gone"): 1, ("kill_itself", "WorkHorseKilled"): 1},
    )


@pytest.mark.skipif(RQ_VERSION < (3, 0), reason="the work-horse is of its worker's class from RQ 3.0 on")
def test_a_work_horse_has_the_configuration_of_its_worker(workers: Workers) -> None:
    code = (
        "from redis import Redis\n"
        "from tests.integration.rq_spawning import *\n"
        f"worker = OwnSpawning(['{QUEUE}'], connection=Redis.from_url('{workers.url}'), job_class=OwnJob,\n"
        "                     exception_handlers=[handler], disable_default_exception_handler=True,\n"
        "                     default_result_ttl=77)\n"
        "worker.death_penalty_class = OwnDeathPenalty\n"
        "worker.work(burst=True)\n"
    )
    log = workers.tmp_path / "worker.log"
    good = workers.queue.enqueue(jobs.succeed)
    workers.queue.enqueue(jobs.fail)
    with process([sys.executable, "-c", code], log, **workers.environment) as started:
        assert started.wait(60) == 0, log.read_text()
    written = execution_ledger.read(workers.written)
    assert written.count("performed:OwnDeathPenalty:77") == 2, written
    assert written.count("handled:OwnJob") == 1, written
    assert workers.connection.ttl(good.key) <= 77
    assert workers.ended() == {("succeed", "success"): 1, ("fail", "failure"): 1}
    assert workers.failures() == {("fail", "Gone"): 1}


def test_settings_made_in_code_reach_the_work_horse(workers: Workers) -> None:
    del workers.environment["JOBMETRICS_DIR"], workers.environment["JOBMETRICS_PROPAGATE_ERRORS"]
    workers.queue.enqueue(jobs.succeed)
    workers.queue.enqueue(jobs.count)
    workers.queue.enqueue(jobs.kill_itself)
    run(workers, HERE, str(workers.directory), str(urlsplit(workers.url).port))
    assert values(workers.directory, "jobs_total") == {
        ("rq", f"{JOBS}.succeed", QUEUE, "success"): 1,
        ("rq", f"{JOBS}.kill_itself", QUEUE, "failure"): 1,
    }
    assert workers.lost() == 1
