"""Many forked jobs use no more files and bytes than a few, and every job is counted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration import rq_jobs as jobs
from tests.integration.rq_workers import JOBS, QUEUE, Workers
from tests.support.readings import active, samples, snapshot, until, values
from tests.support.repetitions import sizes


@pytest.fixture
def workers(redis_url: str, registry_dir: Path, tmp_path: Path) -> Iterator[Workers]:
    made = Workers(redis_url, registry_dir, tmp_path)
    yield made
    made.connection.close()


def on_disk(directory: Path) -> dict[str, tuple[int, int]]:
    """Length of each file and its space on the disk, in bytes."""
    return {path.name: (path.stat().st_size, path.stat().st_blocks * 512) for path in directory.iterdir()}


@pytest.mark.first
@sizes("number", 500, 10_000)
def test_many_forked_jobs_use_the_same_space_as_a_hundred(number: int, workers: Workers) -> None:
    def run(more: int) -> None:
        for _ in range(more):
            workers.queue.enqueue(jobs.count)
        workers.burst("jobmetrics.rq.Worker", "--logging_level", "WARNING", seconds=1200)

    run(100)
    assert values(workers.directory, "jobs_total") == {("rq", f"{JOBS}.count", QUEUE, "success"): 100}
    left = on_disk(workers.directory)
    run(number - 100)
    workers.check({("count", "success"): number})
    assert on_disk(workers.directory) == left
    reading = snapshot(workers.directory)
    assert reading.live + reading.free + reading.damaged <= 2  # one for the worker, one for its work-horses


def test_a_running_job_is_active_and_its_run_time_is_measured(workers: Workers) -> None:
    workers.queue.enqueue(jobs.succeed, 1.0)
    labels = ("rq", f"{JOBS}.succeed", QUEUE)
    with workers.running():
        until(lambda: active(workers.directory) == {labels: 1}, "an active job")
        workers.await_ends(1)
    assert active(workers.directory) == {}
    assert 1.0 <= samples(workers.directory, "jobs_duration_seconds")[labels].sum < 30.0
