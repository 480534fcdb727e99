"""Worker pools, RQ's other worker classes and user classes on a real Redis; and published jobs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from rq import Queue
from rq.job import Retry

from jobmetrics import settings
from jobmetrics.recorder import default
from jobmetrics.rq import instrument_queue, uninstrument_queue
from tests.integration import rq_jobs as jobs
from tests.integration import rq_orders as orders
from tests.integration.processes import process
from tests.integration.rq_workers import CLASSES, FORKING, JOBS, QUEUE, RQ_VERSION, Workers
from tests.support.readings import assert_durations_add_up, until, values

HERE = "tests.integration.rq_workers"


@pytest.fixture
def workers(redis_url: str, registry_dir: Path, tmp_path: Path) -> Iterator[Workers]:
    made = Workers(redis_url, registry_dir, tmp_path)
    yield made
    made.connection.close()


@pytest.fixture
def producing(registry_dir: Path) -> Iterator[None]:
    """Make this process record as a producer."""
    settings.configure(dir=registry_dir, propagate_errors=True)
    yield
    slot = default().writer.slot
    if slot is not None:
        slot.release()
    settings.use(None)


def published(workers: Workers) -> dict[str, float]:
    found = values(workers.directory, "jobs_published_total")
    assert {(system, queue) for system, _, queue in found} <= {("rq", QUEUE)}
    return {name.rpartition(".")[2]: count for (_, name, _), count in found.items()}


@pytest.mark.parametrize("worker_class", CLASSES)
def test_worker_pool_counts_each_job_once(worker_class: str, workers: Workers) -> None:
    for _ in range(12):
        workers.queue.enqueue(jobs.count)
    workers.queue.enqueue(jobs.fail)
    with workers.pool(2, worker_class) as pool:
        pool.wait(120)
    workers.check({("count", "success"): 12, ("fail", "failure"): 1}, {("fail", "Gone"): 1})


@pytest.mark.parametrize(
    "worker_class",
    [f"{HERE}.{name}" for name in ("Heroku", "Own", "HasEveryName", "RaisesForUnknownNames", "RefusesNewNames")],
)
def test_an_instrumented_user_class(worker_class: str, workers: Workers) -> None:
    workers.queue.enqueue(jobs.succeed)
    workers.queue.enqueue(jobs.fail, retry=Retry(max=1))
    workers.queue.enqueue(jobs.kill_itself)
    workers.burst(worker_class)
    workers.check(
        {
            ("succeed", "success"): 1,
            ("fail", "retry"): 1,
            ("fail", "failure"): 1,
            ("kill_itself", "failure"): 1,
        },
        {("fail", "Gone"): 1, ("kill_itself", "WorkHorseKilled"): 1},
    )
    assert workers.lost() == 1


def run_orders(workers: Workers, *arguments: str) -> dict[str, dict[str, float]]:
    """Run workers of classes instrumented in some order; return the counts of each class by row name."""
    command = [sys.executable, "-m", "tests.integration.rq_orders", workers.url, *arguments]
    log = workers.tmp_path / "orders.log"
    with process(command, log, **workers.environment) as started:
        assert started.wait(240) == 0, log.read_text(errors="replace")
    found: dict[str, dict[str, float]] = {}
    for (_, name, queue, status), number in values(workers.directory, "jobs_total").items():
        found.setdefault(queue, {})[f"{name.rpartition('.')[2]} {status}"] = number
    assert workers.lost() == len(found)
    assert_durations_add_up(workers.directory)
    return found


ONCE_EACH = {"fail failure": 1, "kill_itself failure": 1, "succeed success": 1}


@pytest.mark.parametrize(
    "kind",
    ["Worker", pytest.param("SpawnWorker", marks=[pytest.mark.full, pytest.mark.first, pytest.mark.timeout(300)])],
)
def test_base_and_subclass_instrumented_in_any_order_count_once(kind: str, workers: Workers) -> None:
    rows = [name for name in orders.ROWS if name.startswith(f"{kind}:")]
    if kind == "SpawnWorker" and RQ_VERSION < (3, 0):
        # Before RQ 3 its work-horse has a stock class, unless jobmetrics has replaced the method that starts it.
        alone = "SpawnWorker: subclass; overrides fork and super"
        rows.remove(alone) if alone in rows else None
    found = run_orders(workers, kind)
    assert {name: found.get(name) for name in rows} == dict.fromkeys(rows, ONCE_EACH)


@pytest.mark.parametrize(
    "order", ["base", *(pytest.param(each, marks=pytest.mark.full) for each in orders.STOCK if each != "base")]
)
def test_rqs_own_classes_instrumented_in_any_order_count_once(order: str, workers: Workers) -> None:
    if order != "base" and "SpawnWorker" not in orders.KINDS:
        pytest.skip("RQ has SpawnWorker from 2.2 on")
    kinds = orders.STOCK_COUNTED[order]
    found = run_orders(workers, "stock", order)
    assert found == {kind: ONCE_EACH for kind in kinds if kind in orders.KINDS}


@pytest.mark.parametrize("worker_class", CLASSES)
def test_workers_alive_are_counted_and_their_slots_bounded(worker_class: str, workers: Workers) -> None:
    with workers.running(worker_class) as one, workers.running(worker_class):
        until(lambda: values(workers.directory, "jobs_workers") == {("rq",): 2}, "two workers")
        assert values(workers.directory, "jobs_worker_capacity") == {("rq",): 2}
        one.kill()
        one.wait()
        until(lambda: values(workers.directory, "jobs_workers") == {("rq",): 1}, "one worker")
    assert values(workers.directory, "jobs_workers") == {}
    assert len(list(workers.directory.glob("slot-*"))) <= 2


@pytest.mark.usefixtures("producing")
def test_published_counts_jobs_sent_and_not_jobs_requeued(workers: Workers) -> None:
    queue = instrument_queue(Queue(QUEUE, connection=workers.connection))
    first = queue.enqueue(jobs.succeed)
    queue.enqueue(jobs.count, depends_on=first)
    queue.enqueue(jobs.fail, retry=Retry(max=2))
    queue.enqueue_in(timedelta(seconds=1), jobs.ask_once, str(workers.tmp_path / "marker"))
    queue.enqueue_many([Queue.prepare_data(jobs.give_unpicklable), Queue.prepare_data(jobs.give_unpicklable)])
    sent = {"succeed": 1, "count": 1, "fail": 1, "ask_once": 1, "give_unpicklable": 2}
    assert published(workers) == sent
    with workers.running(FORKING, "--with-scheduler"):
        workers.await_ends(9 if RQ_VERSION >= (2, 1) else 8)
    assert published(workers) == sent


@pytest.mark.usefixtures("producing")
def test_published_by_a_class_until_it_is_uninstrumented(workers: Workers) -> None:
    class Own(Queue):
        pass

    before = dict(Own.__dict__)
    instrument_queue(instrument_queue(Own))
    queue = instrument_queue(Own(QUEUE, connection=workers.connection))
    queue.enqueue(jobs.count)
    assert published(workers) == {"count": 1}
    uninstrument_queue(queue)
    uninstrument_queue(Own)
    assert dict(Own.__dict__) == before
    queue.enqueue(jobs.count)
    assert published(workers) == {"count": 1}


@pytest.mark.usefixtures("producing")
def test_published_jobs_that_run_at_once_and_what_they_send(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEDGER", str(workers.written))
    queue = instrument_queue(Queue(QUEUE, connection=workers.connection, is_async=False))
    queue.enqueue(jobs.count)
    assert published(workers) == {"count": 1}
    assert workers.ended() == {}


@pytest.mark.usefixtures("producing")
def test_a_job_that_could_not_be_sent_is_not_published(workers: Workers) -> None:
    queue = instrument_queue(Queue(QUEUE, connection=workers.connection))
    workers.connection.set(f"rq:queue:{QUEUE}", "no list")
    with pytest.raises(Exception, match="WRONGTYPE"):
        queue.enqueue(jobs.count)
    assert published(workers) == {}


@pytest.mark.parametrize("worker_class", CLASSES)
def test_hostile_jobs_break_nothing_and_leak_nothing(worker_class: str, workers: Workers) -> None:
    sent = workers.queue
    sent.enqueue(jobs.count, jobs.Unreadable())
    sent.enqueue(jobs.count, b"secret" * 200_000)
    sent.enqueue(lambda: None)
    sent.enqueue('evil"} 1\n# TYPE x')
    sent.enqueue("x" * 100_000)
    sent.enqueue("no.such.\U0001f600.function")
    if worker_class != CLASSES[1]:
        sent.enqueue(jobs.count, jobs.Deadly())  # kills the process that unpickles it: the work-horse, never the worker
    sent.enqueue(jobs.succeed)
    workers.burst(worker_class)
    found = values(workers.directory, "jobs_total")
    names = {name for _, name, _, _ in found}
    assert sum(found.values()) == sent_number(worker_class)
    assert found["rq", f"{JOBS}.succeed", QUEUE, "success"] == 1
    assert found["rq", f"{JOBS}.count", QUEUE, "success"] == 1
    assert found["rq", f"{JOBS}.count", QUEUE, "failure"] == (1 if worker_class == CLASSES[1] else 2)
    assert max(map(len, names)) <= 1000
    assert not any("secret" in name for name in names)


def sent_number(worker_class: str) -> int:
    return 7 if worker_class == CLASSES[1] else 8
