"""RQ's truth table on a real Redis: each row in each worker class, counted once, as the ledger shows."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from rq import Callback, Queue
from rq.command import send_stop_job_command
from rq.job import JobStatus, Retry

from jobmetrics import conformance
from tests.integration import execution_ledger
from tests.integration import rq_jobs as jobs
from tests.integration.rq_workers import (
    CLASSES,
    FORKING,
    IMPATIENT,
    JOBS,
    KILLED_AFTERWARDS,
    KILLED_BEFORE,
    KILLED_BEFORE_IT_RECORDS,
    LINGERING,
    OWN,
    RQ_VERSION,
    SIMPLE,
    STOPPED,
    WITH_HORSES,
    WRITING_THEIR_STATE,
    Workers,
)
from tests.support.readings import active, assert_durations_add_up, until, values

KILLED = "WorkHorseKilled"


def _usual_first(classes: list[str]) -> list[object]:
    """Parameters: the class with forked work-horses for make test, the others for make test-all."""
    usual, *others = classes
    return [usual, *(pytest.param(each, marks=pytest.mark.full) for each in others)]


HERE = "tests.integration.rq_workers"


@pytest.fixture
def workers(redis_url: str, registry_dir: Path, tmp_path: Path) -> Iterator[Workers]:
    made = Workers(redis_url, registry_dir, tmp_path)
    yield made
    made.connection.close()


@dataclass(frozen=True)
class Row:
    """One row: what is sent, how each execution counts, and in which classes."""

    name: str
    send: Callable[[Queue, Path], object]
    ended: Mapping[tuple[str, str], int]
    errors: Mapping[tuple[str, str], int] = field(default_factory=dict)
    lost: int = 0
    unwritten: int = 0
    classes: tuple[str, ...] = CLASSES
    since: tuple[int, int] = (1, 16)
    scheduler: bool = False


ROWS = [
    Row("success", lambda q, _: q.enqueue(jobs.succeed), {("succeed", "success"): 1}),
    Row("exception", lambda q, _: q.enqueue(jobs.fail), {("fail", "failure"): 1}, {("fail", "Gone"): 1}),
    Row(
        "SystemExit",
        lambda q, _: q.enqueue(jobs.exit_early),
        {("exit_early", "failure"): 1},
        {("exit_early", "SystemExit"): 1},
    ),
    Row(
        "import error",
        lambda q, _: q.enqueue("tests.integration.rq_nowhere.job"),
        {("job", "failure"): 1},
        {("job", "ValueError"): 1},
        unwritten=1,
    ),
    Row(
        "exception with retries left",
        lambda q, _: q.enqueue(jobs.fail, retry=Retry(max=2)),
        {("fail", "retry"): 2, ("fail", "failure"): 1},
        {("fail", "Gone"): 1},
    ),
    Row(
        "exception, then success",
        lambda q, path: q.enqueue(jobs.fail_once, str(path / "marker"), retry=Retry(max=2)),
        {("fail_once", "retry"): 1, ("fail_once", "success"): 1},
    ),
    Row(
        "exception with an interval",
        lambda q, path: q.enqueue(jobs.fail_once, str(path / "marker"), retry=Retry(max=2, interval=1)),
        {("fail_once", "retry"): 1, ("fail_once", "success"): 1},
        scheduler=True,
    ),
    Row(
        "returns Retry",
        lambda q, path: q.enqueue(jobs.ask_once, str(path / "marker")),
        {("ask_once", "retry"): 1, ("ask_once", "success"): 1},
        since=(2, 1),
    ),
    Row(
        "returns Retry with an interval",
        lambda q, path: q.enqueue(jobs.ask_once, str(path / "marker"), 1),
        {("ask_once", "retry"): 1, ("ask_once", "success"): 1},
        since=(2, 1),
        scheduler=True,
    ),
    Row(
        "returns Retry until used up",
        lambda q, _: q.enqueue(jobs.ask_again, 2),
        {("ask_again", "retry"): 2, ("ask_again", "failure"): 1},
        {("ask_again", "MaxRetriesExceeded"): 1},
        since=(2, 1),
    ),
    Row(
        "timeout",
        lambda q, _: q.enqueue(jobs.overrun, job_timeout=3),
        {("overrun", "failure"): 1},
        {("overrun", "JobTimeoutException"): 1},
    ),
    Row(
        "SIGKILL",
        lambda q, _: q.enqueue(jobs.kill_itself),
        {("kill_itself", "failure"): 1},
        {("kill_itself", KILLED): 1},
        lost=1,
        classes=WITH_HORSES,
    ),
    Row(
        "SIGKILL with retries left",
        lambda q, _: q.enqueue(jobs.kill_itself, retry=Retry(max=1)),
        {("kill_itself", "retry"): 1, ("kill_itself", "failure"): 1},
        {("kill_itself", KILLED): 1},
        lost=2,
        classes=WITH_HORSES,
    ),
    Row(
        "os._exit",
        lambda q, _: q.enqueue(jobs.leave, 3),
        {("leave", "failure"): 1},
        {("leave", KILLED): 1},
        lost=1,
        classes=WITH_HORSES,
    ),
    Row(
        "memory limit",
        lambda q, _: q.enqueue(jobs.eat_memory),
        {("eat_memory", "failure"): 1},
        {("eat_memory", "MemoryError"): 1},
    ),
    Row(
        "out of memory",
        lambda q, _: q.enqueue(jobs.fill_memory, 128),
        {("fill_memory", "failure"): 1},
        {("fill_memory", KILLED): 1},
        lost=1,
        classes=WITH_HORSES,
    ),
    Row(
        "success callback raises",
        lambda q, _: q.enqueue(jobs.succeed, on_success=Callback(jobs.callback_raises)),
        {("succeed", "failure"): 1},
        {("succeed", "Gone"): 1},
    ),
    Row(
        "failure callback raises",
        lambda q, _: q.enqueue(jobs.exit_early, on_failure=Callback(jobs.callback_raises)),
        {("exit_early", "failure"): 1},
        {("exit_early", "Gone"): 1},
    ),
    Row(
        "unpicklable result",
        lambda q, _: q.enqueue(jobs.give_unpicklable),
        {("give_unpicklable", "success"): 1},
    ),
    Row("result_ttl=0", lambda q, _: q.enqueue(jobs.succeed, result_ttl=0), {("succeed", "success"): 1}),
    Row(
        "dependents",
        lambda q, _: q.enqueue(jobs.count, depends_on=q.enqueue(jobs.succeed)),
        {("succeed", "success"): 1, ("count", "success"): 1},
    ),
    Row(
        "scheduled",
        lambda q, _: q.enqueue_in(timedelta(seconds=1), jobs.succeed),
        {("succeed", "success"): 1},
        scheduler=True,
    ),
    Row(
        "method",
        lambda q, _: q.enqueue(jobs.Things().do),
        {("do", "success"): 1},
    ),
]


def _cases() -> Iterator[object]:
    for row in ROWS:
        if row.since <= RQ_VERSION:
            for worker_class in row.classes:
                yield pytest.param(row, worker_class, id=f"{row.name}-{worker_class.rpartition('.')[2]}")


@pytest.mark.parametrize(("row", "worker_class"), list(_cases()))
def test_row(row: Row, worker_class: str, workers: Workers) -> None:
    row.send(workers.queue, workers.tmp_path)
    if row.scheduler:
        with workers.running(worker_class, "--with-scheduler"):
            workers.await_ends(sum(row.ended.values()))
    else:
        workers.burst(worker_class)
    workers.check(row.ended, row.errors, unwritten=row.unwritten)
    assert workers.lost() == row.lost
    assert workers.unknown() == 0


def _burst(*job: Any, **options: Any) -> Callable[[Workers, str], None]:
    def act(workers: Workers, worker_class: str) -> None:
        workers.queue.enqueue(*job, **options)
        workers.burst(worker_class)

    return act


def _fail_once(workers: Workers, worker_class: str) -> None:
    _burst(jobs.fail_once, str(workers.tmp_path / "marker"), retry=Retry(max=1))(workers, worker_class)


def _stop(workers: Workers, worker_class: str) -> None:
    job = workers.queue.enqueue(jobs.succeed, 60)
    with workers.running(worker_class):
        workers.await_written()
        send_stop_job_command(workers.connection, job.id)
        workers.await_ends(1)


# By the names of jobmetrics.conformance: the action, the error, and the classes that have it.
SHARED: dict[str, tuple[Callable[[Workers, str], None], str, tuple[str, ...]]] = {
    "success": (_burst(jobs.succeed), "", CLASSES),
    "failure": (_burst(jobs.fail), "Gone", CLASSES),
    "retry": (_fail_once, "", CLASSES),
    "revoked": (_stop, "", WITH_HORSES),
    "killed": (_burst(jobs.kill_itself), KILLED, WITH_HORSES),
    "killed after its end": (_burst(jobs.succeed), "", tuple(KILLED_AFTERWARDS)),
}


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        pytest.param(case, each, id=f"{case}-{each.rpartition('.')[2]}", marks=[pytest.mark.full] if number else [])
        for case in conformance.cases(*SHARED)
        for number, each in enumerate(SHARED[case.name][2])
    ],
)
def test_the_truth_table_of_all_job_systems(case: conformance.Case, kind: str, workers: Workers) -> None:
    act, error, _ = SHARED[case.name]
    where = str(workers.directory)
    conformance.check(case, lambda: act(workers, kind), system="rq", directory=where, error=error)


@pytest.mark.parametrize("worker_class", CLASSES)
def test_a_running_job_is_active(worker_class: str, workers: Workers) -> None:
    marker = workers.tmp_path / "go on"
    with workers.running(worker_class):
        conformance.check_running(
            lambda: workers.queue.enqueue(jobs.succeed_when_released, str(marker)),
            marker.touch,
            system="rq",
            directory=str(workers.directory),
        )


def _send(rows: list[Row], workers: Workers) -> None:
    for row in rows:
        folder = workers.tmp_path / row.name  # rows have markers of the same name
        folder.mkdir()
        row.send(workers.queue, folder)


def _check_all(rows: list[Row], workers: Workers) -> None:
    ended: Counter[tuple[str, str]] = Counter()
    errors: Counter[tuple[str, str]] = Counter()
    for row in rows:
        ended.update(row.ended)
        errors.update(row.errors)
    workers.check(ended, errors, unwritten=sum(row.unwritten for row in rows))
    assert workers.lost() == sum(row.lost for row in rows)
    assert workers.unknown() == 0


@pytest.mark.parametrize("worker_class", OWN)
def test_all_rows_in_a_user_class(worker_class: str, workers: Workers) -> None:
    # RQ 2.0's worker exits after a killed work-horse if the job has retries left: `test_row` has that case.
    quits = "SIGKILL with retries left" if RQ_VERSION == (2, 0) else None
    rows = [row for row in ROWS if row.since <= RQ_VERSION and row.name != quits]
    _send(rows, workers)
    with workers.running(worker_class, "--with-scheduler"):
        workers.await_ends(sum(sum(row.ended.values()) for row in rows))
    _check_all(rows, workers)


@pytest.mark.parametrize("worker_class", CLASSES)
def test_all_rows_in_a_worker_pool(worker_class: str, workers: Workers) -> None:
    rows = [row for row in ROWS if row.since <= RQ_VERSION and worker_class in row.classes and not row.scheduler]
    _send(rows, workers)
    with workers.pool(2, worker_class) as pool:
        pool.wait(120)
    _check_all(rows, workers)


def test_warm_shutdown_of_a_worker_pool_lets_its_jobs_end(workers: Workers) -> None:
    for _ in range(2):
        workers.queue.enqueue(jobs.succeed, 2.0)
    with workers.pool(2, burst=False) as pool:
        workers.await_written(2)
        pool.send_signal(signal.SIGTERM)
        pool.wait(60)
    workers.check({("succeed", "success"): 2})


@pytest.mark.skipif(RQ_VERSION < (2, 3), reason="RQ repeats jobs from 2.3 on")
@pytest.mark.parametrize("worker_class", CLASSES)
def test_repeated_job_is_a_success_each_time(worker_class: str, workers: Workers) -> None:
    from rq import Repeat

    workers.queue.enqueue(jobs.succeed, repeat=Repeat(times=2))
    workers.burst(worker_class)
    workers.check({("succeed", "success"): 3})


@pytest.mark.skipif(RQ_VERSION < (2, 7), reason="RQ has this cron from 2.7 on")
@pytest.mark.parametrize("worker_class", CLASSES)
def test_a_cron_job_counts_like_any_other(worker_class: str, workers: Workers) -> None:
    from rq.cron import CronScheduler

    cron = CronScheduler(connection=workers.connection)
    cron.register(jobs.succeed, queue_name=workers.queue.name, interval=60)
    cron.enqueue_jobs()
    workers.burst(worker_class)
    workers.check({("succeed", "success"): 1})


def test_job_that_is_not_asynchronous_runs_outside_workers(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEDGER", str(workers.written))
    Queue("jobs", connection=workers.connection, is_async=False).enqueue(jobs.succeed)
    workers.burst()
    assert workers.ended() == {}


@pytest.mark.parametrize("worker_class", IMPATIENT)
def test_swallowed_timeout_is_a_failure_once_the_worker_has_killed_it(worker_class: str, workers: Workers) -> None:
    workers.queue.enqueue(jobs.swallow_timeout, job_timeout=5)
    workers.burst(worker_class, "--job-monitoring-interval", "3")
    workers.check({("swallow_timeout", "failure"): 1}, {("swallow_timeout", KILLED): 1})
    assert workers.lost() == 1


@pytest.mark.parametrize("kind", _usual_first(KILLED_AFTERWARDS))
@pytest.mark.parametrize(("row", "status"), [("succeed", "success"), ("fail", "failure"), ("fail_once", "retry")])
def test_a_work_horse_killed_after_its_end_was_recorded_counts_once_and_is_lost(
    row: str, status: str, kind: str, workers: Workers
) -> None:
    if row == "fail_once":
        workers.queue.enqueue(jobs.fail_once, str(workers.tmp_path / "marker"), retry=Retry(max=1, interval=3600))
    else:
        workers.queue.enqueue(getattr(jobs, row))
    workers.burst(kind)
    workers.check({(row, status): 1}, {(row, "Gone"): 1} if status == "failure" else {})
    assert workers.lost() == 1


@pytest.mark.parametrize("kind", _usual_first(KILLED_BEFORE))
def test_work_horse_killed_before_its_job_starts_is_lost_once(kind: str, workers: Workers) -> None:
    workers.queue.enqueue(jobs.succeed)
    workers.burst(kind)
    assert workers.ended() == {("succeed", "failure"): 1}
    assert workers.lost() == 1


@pytest.mark.parametrize("kind", _usual_first(STOPPED))
def test_work_horse_that_is_stopped_after_its_end_is_not_lost(kind: str, workers: Workers) -> None:
    workers.queue.enqueue(jobs.succeed)
    workers.burst(kind)
    workers.check({("succeed", "success"): 1})
    assert workers.lost() == 0


@pytest.mark.parametrize("kind", _usual_first(LINGERING))
def test_work_horse_that_a_cold_shutdown_kills_after_its_end_is_not_lost(kind: str, workers: Workers) -> None:
    workers.queue.enqueue(jobs.succeed)
    _shut_down_cold(workers, kind, after_end=True)
    workers.check({("succeed", "success"): 1})
    assert workers.lost() == 0


@pytest.mark.parametrize("worker_class", [*WITH_HORSES, *OWN])
def test_killed_from_outside(worker_class: str, workers: Workers) -> None:
    workers.queue.enqueue(jobs.succeed, 60)
    with workers.running(worker_class) as worker:
        workers.await_written()
        assert active(workers.directory) == {("rq", f"{JOBS}.succeed", "jobs"): 1}
        os.kill(workers.horse(worker.pid), signal.SIGKILL)
        workers.await_ends(1)
        workers.check({("succeed", "failure"): 1}, {("succeed", KILLED): 1})
        workers.queue.enqueue(jobs.count)  # the worker still runs
        workers.await_ends(2)
    workers.check({("succeed", "failure"): 1, ("count", "success"): 1}, {("succeed", KILLED): 1})


@pytest.mark.parametrize("worker_class", WRITING_THEIR_STATE)
def test_worker_is_idle_once_a_killed_work_horse_is_gone(worker_class: str, workers: Workers) -> None:
    """Otherwise a late command to stop the job would make it kill its own process group."""
    workers.queue.enqueue(jobs.kill_itself)
    workers.burst(worker_class)
    assert execution_ledger.read(workers.written) == ["kill_itself", "idle"]
    assert workers.ended() == {("kill_itself", "failure"): 1}


@pytest.mark.parametrize("worker_class", [*WITH_HORSES, *OWN])
def test_stop_command_is_revoked(worker_class: str, workers: Workers) -> None:
    job = workers.queue.enqueue(jobs.succeed, 60, retry=Retry(max=3))
    with workers.running(worker_class):
        workers.await_written()
        send_stop_job_command(workers.connection, job.id)
        workers.await_ends(1)
    assert job.get_status() == JobStatus.STOPPED
    workers.check({("succeed", "revoked"): 1})
    assert workers.lost() == 0


@pytest.mark.parametrize("worker_class", [*WITH_HORSES, *OWN])
def test_a_stopped_job_with_a_callback_that_raises_is_revoked(worker_class: str, workers: Workers) -> None:
    """The exception ends RQ's worker before it has recorded the job's end."""
    job = workers.queue.enqueue(jobs.succeed, 60, on_stopped=Callback(jobs.callback_raises))
    with workers.running(worker_class):
        workers.await_written()
        send_stop_job_command(workers.connection, job.id)
        workers.await_ends(1)
    workers.check({("succeed", "revoked"): 1})
    assert workers.lost() == 0


@pytest.mark.parametrize("worker_class", CLASSES)
def test_warm_shutdown_lets_the_job_end(worker_class: str, workers: Workers) -> None:
    workers.queue.enqueue(jobs.succeed, 1.0)
    with workers.running(worker_class) as worker:
        workers.await_written()
        worker.send_signal(signal.SIGTERM)
        worker.wait(60)
    workers.check({("succeed", "success"): 1})


def test_a_warm_shutdown_on_heroku_fails_the_job(workers: Workers) -> None:
    workers.queue.enqueue(jobs.succeed, 60)
    with workers.running(f"{HERE}.Heroku") as worker:
        workers.await_written()
        worker.send_signal(signal.SIGTERM)
        worker.wait(60)
    workers.check({("succeed", "failure"): 1}, {("succeed", "ShutDownImminentException"): 1})


def _shut_down_cold(workers: Workers, worker_class: str, *, after_end: bool = False) -> None:
    with workers.running(worker_class) as worker:
        workers.await_written()
        if after_end:
            until((workers.tmp_path / "after the end").exists, "the job's end")
        worker.send_signal(signal.SIGTERM)
        until(lambda: b"shut down requested" in workers.log.read_bytes(), "the first signal to be seen")

        def gone() -> bool:
            # RQ ignores a second signal within a second. A later one would interrupt the worker's last records.
            if worker.poll() is None and b"old shut down" not in workers.log.read_bytes():
                worker.send_signal(signal.SIGTERM)
            return worker.poll() is not None

        until(gone, "the worker's end")


@pytest.mark.parametrize("worker_class", WITH_HORSES)
@pytest.mark.parametrize("retries", [0, 1])
def test_a_cold_shutdown_is_counted_at_clean_up(worker_class: str, retries: int, workers: Workers) -> None:
    retry = Retry(max=retries) if retries else None
    workers.queue.enqueue(jobs.succeed, 60, retry=retry)
    _shut_down_cold(workers, worker_class)
    assert workers.ended() == {}
    assert active(workers.directory) == {}
    workers.forget_workers()
    if retries:
        with workers.running(worker_class) as worker:
            workers.await_written(2)
            os.kill(workers.horse(worker.pid), signal.SIGKILL)
            workers.await_ends(2)
        workers.check({("succeed", "retry"): 1, ("succeed", "failure"): 1}, {("succeed", KILLED): 1})
    else:
        workers.burst(worker_class)
        workers.check({("succeed", "failure"): 1}, {("succeed", "AbandonedJobError"): 1})
    assert workers.unknown() == 1


def test_cold_shutdown_of_a_simple_worker_ends_its_job(workers: Workers) -> None:
    workers.queue.enqueue(jobs.succeed, 60)
    _shut_down_cold(workers, SIMPLE)
    workers.check({("succeed", "failure"): 1}, {("succeed", "SystemExit"): 1})


@pytest.mark.parametrize("worker_class", CLASSES)
def test_job_of_a_killed_worker_is_counted_by_the_worker_that_finds_it(worker_class: str, workers: Workers) -> None:
    workers.queue.enqueue(jobs.succeed, 60)
    with workers.running(worker_class) as worker:
        workers.await_written()
        horse = None if worker_class == SIMPLE else workers.horse(worker.pid)
        worker.kill()
        worker.wait()
        if horse is not None:
            os.kill(horse, signal.SIGKILL)
    until(lambda: active(workers.directory) == {}, "the death to be seen")
    assert workers.ended() == {}
    workers.forget_workers()
    workers.burst(FORKING)
    workers.check({("succeed", "failure"): 1}, {("succeed", "AbandonedJobError"): 1})
    assert workers.unknown() == 1


def test_a_running_job_marked_abandoned_is_counted_by_its_own_worker(workers: Workers) -> None:
    workers.queue.enqueue(jobs.succeed_when_released, str(workers.tmp_path / "go on"))
    with workers.running():
        workers.await_written()
        workers.forget_workers()
        workers.burst()  # another worker, which cleans up
        assert workers.ended() == {}
        (workers.tmp_path / "go on").touch()
        workers.await_ends(1)
    workers.check(workers.ended())
    assert workers.total() == 1


@pytest.mark.parametrize("retries", [0, 1])
def test_a_job_that_exits_with_code_0_counts_where_the_worker_sees_it(retries: int, workers: Workers) -> None:
    workers.queue.enqueue(jobs.leave, 0, retry=Retry(max=retries) if retries else None)
    workers.burst()
    ended = {("leave", "retry" if retries else "failure"): 1}
    errors = {} if retries else {("leave", KILLED): 1}
    workers.check(ended, errors)
    assert workers.lost() == 1
    workers.forget_workers()
    if not retries:  # RQ lists it as running until now
        workers.burst()
        workers.check(ended, errors)
        assert workers.unknown() == 0


@pytest.mark.parametrize("kind", _usual_first(KILLED_BEFORE_IT_RECORDS))
@pytest.mark.parametrize("status", ["success", "failure", "result_ttl=0"])
def test_a_work_horse_killed_after_redis_was_updated_counts_as_in_redis(
    status: str, kind: str, workers: Workers
) -> None:
    ttl = 0 if status == "result_ttl=0" else None
    workers.queue.enqueue(jobs.fail if status == "failure" else jobs.succeed, result_ttl=ttl)
    workers.burst(kind)
    if status == "failure":
        workers.check({("fail", "failure"): 1}, {("fail", "unknown"): 1})
    else:
        workers.check({("succeed", "success"): 1})
    assert workers.lost() == 1


@pytest.mark.parametrize("found", [False, True], ids=["not cleaned up", "marked abandoned before its end"])
def test_work_horse_that_outlives_its_worker_counts_once(found: bool, workers: Workers) -> None:
    workers.queue.enqueue(jobs.succeed_when_released, str(workers.tmp_path / "go on"))
    with workers.running() as worker:
        workers.await_written()
        horse = psutil.Process(workers.horse(worker.pid))
        worker.kill()
        worker.wait()
    if found:
        workers.forget_workers()
        workers.burst()
        workers.check({("succeed_when_released", "failure"): 1}, {("succeed_when_released", "AbandonedJobError"): 1})
    (workers.tmp_path / "go on").touch()
    until(lambda: not horse.is_running() or horse.status() == psutil.STATUS_ZOMBIE, "the work-horse's end")
    if not found:
        workers.forget_workers()
        workers.burst()
        assert workers.ended() == {("succeed_when_released", "success"): 1}
    assert workers.total() == 1
    assert active(workers.directory) == {}
    assert_durations_add_up(workers.directory)


def test_a_process_forked_by_a_job_does_not_record_the_job(workers: Workers) -> None:
    workers.queue.enqueue(jobs.fork_and_fall_through)
    workers.burst()
    workers.check({("fork_and_fall_through", "success"): 1})


@pytest.mark.parametrize("worker_class", CLASSES)
def test_run_time_wait_and_processor_time_are_measured(worker_class: str, workers: Workers) -> None:
    workers.queue.enqueue(jobs.burn, 0.4)
    workers.burst(worker_class)
    workers.check({("burn", "success"): 1})
    cpu = values(workers.directory, "jobs_cpu_seconds_total")
    assert 0.35 <= cpu[("rq", f"{JOBS}.burn", "jobs")] < 30


def test_killed_work_horse_leaves_its_peak_memory_in_the_log(workers: Workers) -> None:
    workers.queue.enqueue(jobs.fill_memory, 200)
    workers.burst()
    (line,) = [line for line in workers.log.read_text().splitlines() if "MiB of memory" in line]
    assert 200 <= float(line.split("up to ")[1].split(" MiB")[0]) < 2000
    assert values(workers.directory, "jobs_cpu_seconds_total")[("rq", f"{JOBS}.fill_memory", "jobs")] > 0
