"""The APIs inside a job in RQ jobs, on real workers and a real Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis
from rq import Queue

from tests.integration import execution_ledger, inside_rq
from tests.integration.processes import rq_worker
from tests.support.readings import assert_durations_add_up, counts, values

JOBS = "tests.integration.inside_rq"
CLASSES = ["jobmetrics.rq.Worker", "jobmetrics.rq.SimpleWorker"]

# Runs a worker of this class, with settings of jobmetrics, until the queue is empty.
Burst = Callable[..., None]


@pytest.fixture
def queue(redis_url: str) -> Iterator[Queue]:
    connection = Redis.from_url(redis_url)
    yield Queue("jobs", connection=connection)
    connection.close()


@pytest.fixture
def burst(redis_url: str, registry_dir: Path, tmp_path: Path) -> Burst:
    def run(worker_class: str = CLASSES[0], **environment: str) -> None:
        given = {
            "LEDGER": str(tmp_path / "ledger"),
            "JOBMETRICS_DIR": str(registry_dir),
            "JOBMETRICS_PROPAGATE_ERRORS": "1",
            **environment,
        }
        log = tmp_path / "worker.log"
        with rq_worker(redis_url, given, log, "--burst", "jobs", worker_class=worker_class) as started:
            started.wait(120)

    return run


def by_job(found: dict[tuple[str, ...], float]) -> dict[str, float]:
    """One value per job function; every system label is RQ's."""
    assert {(labels[0], labels[2]) for labels in found} <= {("rq", "jobs")}
    return {labels[1].removeprefix(f"{JOBS}."): number for labels, number in found.items()}


@pytest.mark.parametrize("worker_class", CLASSES)
def test_timed_job_sets_the_target_of_the_running_job_and_counts_it_once(
    registry_dir: Path, queue: Queue, burst: Burst, worker_class: str
) -> None:
    functions = [inside_rq.plain, inside_rq.below, inside_rq.above, inside_rq.coroutine, inside_rq.Reports.static]
    for function in [*functions, *functions, inside_rq.undecorated]:
        queue.enqueue(function)
    burst(worker_class)
    names = ["plain", "below", "above", "coroutine", "Reports.static"]
    assert by_job(values(registry_dir, "jobs_total")) == {**dict.fromkeys(names, 2.0), "undecorated": 1.0}
    assert by_job(values(registry_dir, "jobs_target_duration_seconds")) == dict.fromkeys(names, 30.0)
    assert by_job(values(registry_dir, "jobs_within_target_total")) == dict.fromkeys(names, 2.0)
    assert by_job(values(registry_dir, "jobs_items_processed_total")) == {"coroutine": 4.0}
    assert_durations_add_up(registry_dir)


def test_jobs_decorator_keeps_its_methods_on_both_sides() -> None:
    for function in (inside_rq.below, inside_rq.above):
        assert callable(function.delay)


@pytest.mark.parametrize("worker_class", CLASSES)
def test_stages_items_and_the_job_itself(
    registry_dir: Path, tmp_path: Path, queue: Queue, burst: Burst, worker_class: str
) -> None:
    for _ in range(3):
        queue.enqueue(inside_rq.parts)
    burst(worker_class, JOBMETRICS_PROPAGATE_ERRORS="0")
    labels = ("rq", f"{JOBS}.parts", "jobs")
    assert by_job(values(registry_dir, "jobs_total")) == {"parts": 3.0}
    assert execution_ledger.read(tmp_path / "ledger") == ["|".join((*labels, "True"))] * 3
    assert values(registry_dir, "jobs_items_processed_total") == {labels: 9.0}
    assert counts(registry_dir, "jobs_stage_duration_seconds") == {(*labels, "download"): 3}
    assert values(registry_dir, "inside_rows_total") == {("orders",): 9.0}
    assert values(registry_dir, "inside_orders_total") == {("a",): 3.0}


@pytest.mark.parametrize("worker_class", CLASSES)
def test_processor_time_covers_only_the_job(registry_dir: Path, queue: Queue, burst: Burst, worker_class: str) -> None:
    queue.enqueue(inside_rq.burn, 0.2)
    queue.enqueue(inside_rq.plain)
    burst(worker_class)
    used = by_job(values(registry_dir, "jobs_cpu_seconds_total"))
    assert 0.2 <= used["burn"] < 0.3
    assert used["plain"] < 0.1
