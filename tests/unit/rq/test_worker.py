from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fakeredis
import pytest
import rq
from rq import Queue
from rq.job import Job, JobStatus, Retry
from rq.registry import StartedJobRegistry
from rq.version import VERSION

from jobmetrics.job_context import current_execution
from jobmetrics.recorder import default
from jobmetrics.rq.worker import instrument, uninstrument
from jobmetrics.settings import Settings
from tests.support import readings
from tests.unit.doubles import die

HERE = __name__
RQ_VERSION = tuple(int(part) for part in VERSION.split(".")[:2])


class Refused(Exception):
    pass


class Vanishes:
    """Its pickle cannot be read again."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return int, ("no number",)


def succeed(*_: object) -> str:
    return "done"


def fail() -> None:
    raise Refused("on purpose")


def ask_again() -> Retry:
    return Retry(max=1)


def exit_early() -> None:
    raise SystemExit(3)


def tell_execution() -> str:
    execution = current_execution()
    return "" if execution is None else execution.job.job_type


def give_unpicklable() -> object:
    return lambda: None


class Worker(rq.SimpleWorker):
    """Jobs run in the test's own process."""


@pytest.fixture(autouse=True)
def recorded(active_settings: Settings) -> Iterator[None]:
    instrument(Worker)
    yield
    uninstrument(Worker)
    die(default().writer)


@pytest.fixture
def queue() -> Queue:
    return Queue("high", connection=fakeredis.FakeStrictRedis(server=fakeredis.FakeServer()))


def work(queue: Queue, worker_class: type[rq.SimpleWorker] = Worker) -> None:
    """Perform everything that is queued."""
    worker = worker_class([queue], connection=queue.connection)
    while (job := queue.dequeue_any([queue], None, connection=queue.connection)) is not None:
        worker.execute_job(job[0], job[1])


def ended(registry_dir: Path) -> dict[tuple[str, str], float]:
    """Executions by job type and status."""
    found = readings.values(registry_dir, "jobs_total")
    assert {(values[0], values[2]) for values in found} <= {("rq", "high")}
    return {(values[1], values[3]): number for values, number in found.items()}


def failures(registry_dir: Path) -> dict[str, float]:
    return {values[3]: number for values, number in readings.values(registry_dir, "jobs_failures_total").items()}


def test_success(registry_dir: Path, queue: Queue) -> None:
    queue.enqueue(succeed)
    work(queue)
    assert ended(registry_dir) == {(f"{HERE}.succeed", "success"): 1.0}
    assert failures(registry_dir) == {}


def test_every_execution_has_a_duration(registry_dir: Path, queue: Queue) -> None:
    queue.enqueue(succeed)
    queue.enqueue(fail)
    work(queue)
    readings.assert_durations_add_up(registry_dir)
    assert sum(readings.counts(registry_dir, "jobs_duration_seconds").values()) == 2.0


def test_wait_is_observed(registry_dir: Path, queue: Queue) -> None:
    queue.enqueue(succeed)
    work(queue)
    assert readings.counts(registry_dir, "jobs_queue_wait_seconds") == {("rq", f"{HERE}.succeed", "high"): 1.0}


def test_nothing_runs_once_the_job_is_done(registry_dir: Path, queue: Queue) -> None:
    queue.enqueue(succeed)
    work(queue)
    assert readings.active(registry_dir) == {}


def test_failure_by_its_exceptions_class(registry_dir: Path, queue: Queue) -> None:
    queue.enqueue(fail)
    work(queue)
    assert ended(registry_dir) == {(f"{HERE}.fail", "failure"): 1.0}
    assert failures(registry_dir) == {"Refused": 1.0}


def test_retry_after_an_exception(registry_dir: Path, queue: Queue) -> None:
    queue.enqueue(fail, retry=Retry(max=2))
    work(queue)
    assert ended(registry_dir) == {(f"{HERE}.fail", "retry"): 2.0, (f"{HERE}.fail", "failure"): 1.0}
    assert failures(registry_dir) == {"Refused": 1.0}


def test_retry_after_an_exception_with_an_interval(registry_dir: Path, queue: Queue) -> None:
    queue.enqueue(fail, retry=Retry(max=1, interval=60))
    work(queue)
    assert ended(registry_dir) == {(f"{HERE}.fail", "retry"): 1.0}


@pytest.mark.skipif(RQ_VERSION < (2, 1), reason="RQ takes a returned Retry from 2.1 on")
def test_retry_by_return_and_then_used_up(registry_dir: Path, queue: Queue) -> None:
    queue.enqueue(ask_again)
    work(queue)
    assert ended(registry_dir) == {(f"{HERE}.ask_again", "retry"): 1.0, (f"{HERE}.ask_again", "failure"): 1.0}
    assert failures(registry_dir) == {"MaxRetriesExceeded": 1.0}
    assert readings.values(registry_dir, "jobs_retries_total") == {("rq", f"{HERE}.ask_again", "high"): 1.0}


def test_stopped_job_is_revoked(registry_dir: Path, queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    queue.enqueue(fail)
    original = Worker.prepare_job_execution

    def stop(self: Any, job: Job, *args: Any, **kwargs: Any) -> None:
        original(self, job, *args, **kwargs)
        self._stopped_job_id = job.id  # what an operator's stop command sets

    monkeypatch.setattr(Worker, "prepare_job_execution", stop)
    work(queue)
    assert ended(registry_dir) == {(f"{HERE}.fail", "revoked"): 1.0}
    assert failures(registry_dir) == {}


def test_function_that_does_not_exist(registry_dir: Path, queue: Queue) -> None:
    queue.enqueue("nowhere.at.all")
    work(queue)
    assert ended(registry_dir) == {("nowhere.at.all", "failure"): 1.0}
    assert len(failures(registry_dir)) == 1


def test_data_that_cannot_be_unpickled(registry_dir: Path, queue: Queue) -> None:
    queue.enqueue(succeed, Vanishes())
    work(queue)
    assert ended(registry_dir) == {(f"{HERE}.succeed", "failure"): 1.0}
    assert failures(registry_dir) == {"DeserializationError": 1.0}


def test_result_that_cannot_be_pickled_is_a_success_as_rq_calls_it(registry_dir: Path, queue: Queue) -> None:
    job = queue.enqueue(give_unpicklable)
    work(queue)
    status = "success" if job.get_status() == JobStatus.FINISHED else "failure"
    assert ended(registry_dir) == {(f"{HERE}.give_unpicklable", status): 1.0}


def test_exit_in_a_job_is_a_failure(registry_dir: Path, queue: Queue) -> None:
    queue.enqueue(exit_early)
    work(queue)
    assert ended(registry_dir) == {(f"{HERE}.exit_early", "failure"): 1.0}
    assert failures(registry_dir) == {"SystemExit": 1.0}


def test_job_knows_its_execution(queue: Queue) -> None:
    job = queue.enqueue(tell_execution)
    work(queue)
    assert job.return_value() == f"{HERE}.tell_execution"
    assert current_execution() is None


def test_job_result_and_status_are_rqs_own(queue: Queue) -> None:
    good, bad = queue.enqueue(succeed), queue.enqueue(fail)
    work(queue)
    assert (good.return_value(), good.get_status(), bad.get_status()) == ("done", JobStatus.FINISHED, JobStatus.FAILED)


def test_ignored_job_type_is_not_recorded(
    registry_dir: Path, queue: Queue, active_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(default(), "_ignore", (f"{HERE}.succ*",))
    queue.enqueue(succeed)
    work(queue)
    assert ended(registry_dir) == {}


def test_instrumenting_twice_counts_once(registry_dir: Path, queue: Queue) -> None:
    instrument(Worker)
    queue.enqueue(succeed)
    work(queue)
    assert ended(registry_dir) == {(f"{HERE}.succeed", "success"): 1.0}


def test_instrumented_subclass_of_an_instrumented_class_counts_once(registry_dir: Path, queue: Queue) -> None:
    class Own(Worker):
        pass

    instrument(Own)
    queue.enqueue(succeed)
    work(queue, Own)
    assert ended(registry_dir) == {(f"{HERE}.succeed", "success"): 1.0}


def test_class_instrumented_before_its_base_counts_once(registry_dir: Path, queue: Queue) -> None:
    class Base(rq.SimpleWorker):
        pass

    class Own(Base):
        pass

    instrument(Own)
    instrument(Base)
    queue.enqueue(fail)
    work(queue, Own)
    assert ended(registry_dir) == {(f"{HERE}.fail", "failure"): 1.0}


def _overriding(base: type[rq.SimpleWorker]) -> type[rq.SimpleWorker]:
    class Own(base):  # type: ignore[valid-type,misc]  # a class made for the row
        def execute_job(self, *args: Any, **kwargs: Any) -> Any:
            return super().execute_job(*args, **kwargs)

        def perform_job(self, *args: Any, **kwargs: Any) -> bool:
            return bool(super().perform_job(*args, **kwargs))

        def handle_exception(self, job: Job, *exc_info: Any) -> Any:
            return super().handle_exception(job, *exc_info)

        def handle_job_failure(self, *args: Any, **kwargs: Any) -> Any:
            return super().handle_job_failure(*args, **kwargs)

    return Own


def _inheriting(base: type[rq.SimpleWorker]) -> type[rq.SimpleWorker]:
    return type("Own", (base,), {})


@pytest.mark.parametrize("make", [_inheriting, _overriding])
@pytest.mark.parametrize(
    "order", ["base", "own", "base own", "own base", "base own base", "own base own"], ids=lambda order: order
)
def test_base_and_subclass_instrumented_in_any_order_count_once(
    order: str,
    make: Callable[[type[rq.SimpleWorker]], type[rq.SimpleWorker]],
    registry_dir: Path,
    queue: Queue,
) -> None:
    base = type("Base", (rq.SimpleWorker,), {})
    own = make(base)
    before = dict(base.__dict__), dict(own.__dict__)
    for name in order.split():
        instrument(base if name == "base" else own)
    queue.enqueue(succeed)
    queue.enqueue(fail)
    queue.enqueue(fail, retry=Retry(max=1))
    work(queue, own)
    assert ended(registry_dir) == {
        (f"{HERE}.succeed", "success"): 1.0,
        (f"{HERE}.fail", "failure"): 2.0,
        (f"{HERE}.fail", "retry"): 1.0,
    }
    assert failures(registry_dir) == {"Refused": 2.0}
    uninstrument(own)
    uninstrument(base)
    assert (dict(base.__dict__), dict(own.__dict__)) == before


def test_cleaning_of_two_workers_at_once_leaves_rqs_registry_as_it_was(queue: Queue) -> None:
    """Each worker is inside while the other one enters or leaves."""
    entered, go_on = [threading.Event(), threading.Event()], [threading.Event(), threading.Event()]

    class Cleaning(rq.SimpleWorker):
        number = 0

        def clean_registries(self) -> None:
            entered[self.number].set()
            go_on[self.number].wait(10)

    instrument(Cleaning)
    cleanup = StartedJobRegistry.cleanup
    workers = [Cleaning([queue], connection=queue.connection) for _ in range(2)]
    threads = []
    for number, worker in enumerate(workers):
        worker.number = number
        threads.append(threading.Thread(target=worker.clean_registries))
        threads[-1].start()
        assert entered[number].wait(10)
    for event, thread in zip(go_on, threads, strict=True):
        event.set()
        thread.join()
    assert StartedJobRegistry.cleanup is cleanup


def expire_started(queue: Queue) -> None:
    """Let the entries of started jobs without a heartbeat expire."""
    members: Any = queue.connection.zrange(queue.started_job_registry.key, 0, -1)
    for member in members:
        queue.connection.zadd(queue.started_job_registry.key, {member: 1.0})


@pytest.mark.skipif(RQ_VERSION < (2, 0), reason="RQ has executions from 2.0 on")
def test_abandoned_job_is_counted_by_an_instrumented_worker_alone(registry_dir: Path, queue: Queue) -> None:
    worker = Worker([queue], connection=queue.connection)
    for counted in (0.0, 1.0):
        job = queue.enqueue(succeed)
        queue.dequeue_any([queue], None, connection=queue.connection)
        worker.prepare_execution(job)
        job.set_status(JobStatus.STARTED)
        expire_started(queue)
        if counted:
            worker.clean_registries()  # type: ignore[no-untyped-call]  # RQ types it in part
        else:
            queue.started_job_registry.cleanup()
        assert sum(ended(registry_dir).values()) == counted
    assert failures(registry_dir) == {"AbandonedJobError": 1.0}


@pytest.mark.skipif(RQ_VERSION < (3, 0), reason="RQ looks at the job's status from 3.0 on")
def test_entry_that_a_finished_job_left_behind_is_not_an_abandoned_job(registry_dir: Path, queue: Queue) -> None:
    worker = Worker([queue], connection=queue.connection)
    job = queue.enqueue(succeed)
    worker.prepare_execution(job)
    job.set_status(JobStatus.FINISHED)
    expire_started(queue)
    worker.clean_registries()  # type: ignore[no-untyped-call]  # RQ types it in part
    assert queue.connection.zcard(queue.started_job_registry.key) == 0
    assert ended(registry_dir) == {}


@pytest.mark.skipif(RQ_VERSION < (3, 0), reason="RQ passes the execution from 3.0 on")
def test_worker_whose_execution_rq_has_dropped_is_not_made_to_look_it_up(registry_dir: Path, queue: Queue) -> None:
    worker = Worker([queue], connection=queue.connection)
    job = queue.enqueue(succeed)
    execution = worker.prepare_execution(job)
    worker.executions.pop(execution.id)  # as RQ's worker does once its work-horse is gone
    worker.handle_job_failure(job, queue=queue, exc_string="", execution=execution)
    assert worker.get_current_job_id() is None
    assert failures(registry_dir) == {"WorkHorseKilled": 1.0}


def test_uninstrumented_worker_records_nothing(registry_dir: Path, queue: Queue) -> None:
    uninstrument(Worker)
    queue.enqueue(succeed)
    work(queue)
    assert list(registry_dir.iterdir()) == []


def test_uninstrumenting_leaves_the_class_as_it_was() -> None:
    class Own(rq.SimpleWorker):
        def handle_exception(self, job: Job, *exc_info: Any) -> Any:
            return super().handle_exception(job, *exc_info)

    before = dict(Own.__dict__)
    uninstrument(instrument(Own))
    assert dict(Own.__dict__) == before


def test_uninstrumenting_what_was_never_instrumented_changes_nothing() -> None:
    before = dict(rq.SimpleWorker.__dict__)
    uninstrument(rq.SimpleWorker)
    assert dict(rq.SimpleWorker.__dict__) == before


def test_worker_describes_its_slot(registry_dir: Path, queue: Queue) -> None:
    queue.enqueue(succeed)
    work(queue)
    (owner,) = readings.snapshot(registry_dir).owners
    assert (owner.system, owner.role) == ("rq", "worker")
