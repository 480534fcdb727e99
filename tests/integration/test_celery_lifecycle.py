"""How a Celery worker starts, scales, recycles its children and ends, and its gauges and counters then."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.integration.celery_rows import CELERY, GEVENT, IN_PROCESS, POOLS, SOLO, THREADS
from tests.integration.celery_workers import TASKS, Worker, running
from tests.support.readings import active, assert_durations_add_up, counts, samples, until, values
from tests.support.repetitions import sizes

WAIT = ("celery", f"{TASKS}.wait", "jobs")
WAITS = "jobs_queue_wait_seconds"
RUNNING = ("celery", f"{TASKS}.succeed", "jobs")


@pytest.fixture
def start(redis_url: str, tmp_path: Path) -> Any:
    def make(*options: str, **environment: str) -> Any:
        return running(redis_url, redis_url, tmp_path, *options, **environment)

    return make


def _end(worker: Worker, how: signal.Signals) -> None:
    worker.process.send_signal(how)
    worker.process.wait(60)


def _gone(worker: Worker) -> None:
    """A worker that has ended leaves no live gauge and no active job."""
    for name in ("jobs_workers", "jobs_worker_capacity", "jobs_reserved"):
        assert values(worker.directory, name) == {}
    assert active(worker.directory) == {}
    worker.assert_consistent()


def test_warm_shutdown_waits_for_the_job_and_leaves_no_worker(start: Any) -> None:
    with start("--concurrency=2") as worker:
        worker.send("succeed", 1.0)
        until(lambda: active(worker.directory) == {RUNNING: 1}, "the job to run")
        _end(worker, signal.SIGTERM)
        assert worker.counted("jobs_total") == {("succeed", "success"): 1}
        _gone(worker)


def test_cold_shutdown_counts_the_killed_job_once(start: Any) -> None:
    with start("--concurrency=2") as worker:
        worker.send("wait")
        until(lambda: active(worker.directory) == {WAIT: 1}, "the job to run")
        # Celery kills only jobs that its main process knows to run, and would wait ten minutes for this one.
        until(lambda: any(worker.app.control.inspect(limit=1).active().values()), "the main process to know")
        _end(worker, signal.SIGQUIT)
        # Celery 5.5 and later cancel the job, so that it is redelivered; older ones let it fail with its process.
        status = "retry" if CELERY >= (5, 5) else "failure"
        assert worker.counted("jobs_total") == {("wait", status): 1}, worker.log
        _gone(worker)


@pytest.mark.full
@pytest.mark.skipif(CELERY < (5, 5), reason="Celery 5.5 brought the soft shutdown")
def test_soft_shutdown_lets_the_job_end(start: Any) -> None:
    with start("--concurrency=2", SOFT_SHUTDOWN="4") as worker:
        worker.send("succeed", 1.0)
        until(lambda: active(worker.directory) == {RUNNING: 1}, "the job to run")
        _end(worker, signal.SIGQUIT)
        assert worker.counted("jobs_total") == {("succeed", "success"): 1}
        _gone(worker)


@pytest.mark.parametrize("pool", POOLS)
def test_a_killed_workers_gauges_are_gone_at_the_next_reading(start: Any, pool: str) -> None:
    with start(f"--pool={pool}", "--concurrency=2") as worker:
        worker.send("wait")
        until(lambda: active(worker.directory) == {WAIT: 1}, "the job to run")
        _end(worker, signal.SIGKILL)
        until(lambda: active(worker.directory) == {}, "its children to end")
        assert values(worker.directory, "jobs_workers") == {}
        # The job was acknowledged, so it is not redelivered: no process reports its end.
        assert worker.counted("jobs_total") == {}
        assert_durations_add_up(worker.directory)


@pytest.mark.full
def test_capacity_follows_autoscale(start: Any) -> None:
    def capacity() -> float:
        return sum(values(worker.directory, "jobs_worker_capacity").values())

    with start("--autoscale=3,1") as worker:
        assert capacity() == 1
        for _ in range(8):
            worker.send("succeed", 1.0)
        until(lambda: capacity() == 3, "a full pool")
        until(lambda: sum(worker.counted("jobs_total").values()) == 8, "all jobs")
        worker.assert_consistent()


def test_a_job_out_of_memory_counts_though_the_worker_ends(start: Any) -> None:
    with start("--concurrency=1") as worker:
        worker.send("out_of_memory")
        worker.process.wait(60)
        assert worker.counted("jobs_total") == {("out_of_memory", "failure"): 1}
        assert worker.counted("jobs_failures_total") == {("out_of_memory", "MemoryError"): 1}
        _gone(worker)


@pytest.mark.full
def test_a_job_that_ends_a_solo_worker_counts(start: Any) -> None:
    with start("--pool=solo") as worker:
        worker.send("system_exit")
        worker.process.wait(60)
        assert worker.counted("jobs_total") == {("system_exit", "failure"): 1}
        assert worker.counted("jobs_failures_total") == {("system_exit", "SystemExit"): 1}
        _gone(worker)


@pytest.mark.parametrize("pool", IN_PROCESS)
def test_a_job_out_of_memory_counts_in_the_workers_own_process(start: Any, pool: str) -> None:
    with start(f"--pool={pool}", "--concurrency=1") as worker:
        worker.send("out_of_memory")
        until(lambda: worker.counted("jobs_total") == {("out_of_memory", "failure"): 1}, "its end")
        assert worker.counted("jobs_failures_total") == {("out_of_memory", "MemoryError"): 1}
        worker.assert_consistent()


@pytest.mark.full
@pytest.mark.parametrize("pool", [SOLO, GEVENT])
def test_an_interrupt_in_a_job_counts_though_the_worker_ends(start: Any, pool: str) -> None:
    with start(f"--pool={pool}", "--concurrency=1") as worker:
        worker.send("interrupt")
        until(lambda: worker.counted("jobs_total") == {("interrupt", "failure"): 1}, "its end")
        assert worker.counted("jobs_failures_total") == {("interrupt", "KeyboardInterrupt"): 1}
        worker.assert_consistent()


@pytest.mark.full
def test_a_thread_that_cannot_be_terminated_ends_by_itself(start: Any) -> None:
    with start(f"--pool={THREADS}", "--concurrency=1") as worker:
        sent = worker.send("hold_acknowledged")
        until(lambda: worker.started()["hold_acknowledged"] == 1, "the job to run")
        worker.app.control.revoke(sent.id, terminate=True, reply=True, timeout=10, limit=1)
        worker.release()
        until(lambda: worker.counted("jobs_total") == {("hold_acknowledged", "success"): 1}, "its end")
        worker.assert_consistent()
        assert worker.counted("jobs_withdrawn_total") == {}


@pytest.mark.full
def test_a_job_of_a_solo_worker_ends_before_it_can_be_terminated(start: Any) -> None:
    with start(f"--pool={SOLO}") as worker:
        sent = worker.send("hold_acknowledged")
        until(lambda: worker.started()["hold_acknowledged"] == 1, "the job to run")
        worker.app.control.revoke(sent.id, terminate=True)
        worker.release()
        until(lambda: bool(worker.app.control.ping(timeout=1, limit=1)), "the worker to hear of what came before this")
        until(lambda: worker.counted("jobs_total") == {("hold_acknowledged", "success"): 1}, "its end")
        worker.assert_consistent()
        assert worker.counted("jobs_withdrawn_total") == {}


@pytest.mark.first
@pytest.mark.timeout(3600)  # one process per job: minutes on a busy machine
@sizes("tasks", 100, 10_000)
def test_recycled_children_leave_bounded_slots_and_exact_totals(start: Any, tasks: int) -> None:
    with start("--concurrency=4", "--max-tasks-per-child=1") as worker:
        with worker.app.connection_for_write() as connection:
            for _ in range(tasks):
                worker.send("tick", connection=connection)
        until(lambda: sum(worker.counted("jobs_total").values()) >= tasks, "all jobs", seconds=900 + tasks / 4)
        assert worker.counted("jobs_total") == {("tick", "success"): tasks}
        worker.assert_consistent()
        slots = len(list(worker.directory.glob("slot-*")))
        # Four children and up to four that are exiting, their main process, and this producer.
        assert slots <= 10
        assert values(worker.directory, "jobs_published_total") == {("celery", f"{TASKS}.tick", "jobs"): tasks}


def test_wait_runs_from_publish_or_eta_to_the_start(start: Any) -> None:
    with start("--concurrency=1") as worker:
        worker.send("succeed", 1.0)
        worker.send("succeed")  # waits for the only child
        worker.send("swallow", countdown=2)  # its wait begins at its ETA
        worker.send("retry_once", 1)
        until(lambda: sum(worker.counted("jobs_total").values()) == 5, "all ends")
        waits = {labels[1].rpartition(".")[2]: found for labels, found in samples(worker.directory, WAITS).items()}
        assert sum(waits["succeed"].buckets) == 2
        assert waits["succeed"].sum >= 0.9
        assert sum(waits["swallow"].buckets) == 1
        assert waits["swallow"].sum < 1.9
        assert sum(waits["retry_once"].buckets) == 2  # each attempt by its own timestamp


def test_the_wait_of_a_redelivery_or_a_foreign_message_is_not_observed(start: Any, redis_url: str) -> None:
    from celery import Celery

    from jobmetrics.celery import instrument, uninstrument

    with start("--concurrency=1") as worker:
        worker.send("reject_once")
        until(lambda: sum(worker.counted("jobs_total").values()) == 2, "both runs")
        uninstrument()
        with Celery("stranger", broker=redis_url) as stranger:
            stranger.send_task(f"{TASKS}.succeed", queue="jobs")
        instrument()
        until(lambda: sum(worker.counted("jobs_total").values()) == 3, "the stranger's job")
        found = {labels[1].rpartition(".")[2]: n for labels, n in counts(worker.directory, WAITS).items()}
        assert found == {"reject_once": 1}
        assert worker.counted("jobs_published_total") == {("reject_once",): 1}
