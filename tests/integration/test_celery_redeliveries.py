"""Jobs that lose their broker connection, worker or acknowledgement while they run: a redelivery counts again."""

from __future__ import annotations

import contextlib
import json
import urllib.error
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import psutil
import pytest
from redis import Redis

from tests.integration.celery_rows import CELERY, GEVENT, POOLS, PREFORK, SOLO, THREADS
from tests.integration.celery_workers import TASKS, Worker, running
from tests.support.readings import active, until, values
from tests.support.servers import RabbitMQServer, RedisServer

pytestmark = pytest.mark.full

REDIS, RABBITMQ = "redis", "rabbitmq"
LOST, SUCCESS, RETRY = ("hold", "failure"), ("hold", "success"), ("hold", "retry")


class Broker:
    """A broker to which the tests may cut connections. results: where Celery stores its results."""

    def __init__(self, kind: str, redis: RedisServer, rabbitmq: RabbitMQServer | None, vhost: str) -> None:
        self.kind = kind
        self.results = redis.url
        self.url = rabbitmq.url_of(vhost) if rabbitmq is not None else redis.url
        self._rabbitmq = rabbitmq
        self._vhost = vhost

    def await_connections(self, worker: Worker) -> None:
        """Wait until `cut` can find them: RabbitMQ lists a connection some seconds after it was opened."""
        until(lambda: bool(self._listed(_ports(worker))), "the broker to know its connections")

    def cut(self, worker: Worker) -> None:
        """Close the connections of a worker's main process on the broker's side."""
        ports = _ports(worker)
        if self._rabbitmq is None:
            with Redis.from_url(self.url) as client:
                for each in client.client_list():
                    if int(each["addr"].rpartition(":")[2]) in ports:
                        client.client_kill_filter(_id=each["id"])  # an error if it is already closed
            return
        until(lambda: self._close(ports) > 0, "the broker to know its connections")

    def _close(self, ports: set[int]) -> int:
        assert self._rabbitmq is not None
        names = self._listed(ports)
        for name in names:
            with contextlib.suppress(urllib.error.HTTPError):  # already closed: the list is some seconds old
                self._rabbitmq.manage("DELETE", f"connections/{urllib.parse.quote(name)}")
        return len(names)

    def _listed(self, ports: set[int]) -> list[str]:
        assert self._rabbitmq is not None
        found = json.loads(self._rabbitmq.manage("GET", f"vhosts/{self._vhost}/connections"))
        return [each["name"] for each in found if each.get("peer_port") in ports]


def _ports(worker: Worker) -> set[int]:
    return {each.laddr.port for each in psutil.Process(worker.process.pid).net_connections("tcp")}


@pytest.fixture
def broker(request: pytest.FixtureRequest, _shared_redis: RedisServer) -> Iterator[Broker]:
    """The broker that the parameter names; RabbitMQ without a parameter."""
    _shared_redis.flush()
    kind = getattr(request, "param", RABBITMQ)
    rabbitmq = request.getfixturevalue("_shared_rabbitmq") if kind == RABBITMQ else None
    vhost = f"redeliveries-{id(request)}"
    if rabbitmq is not None:
        rabbitmq.add_vhost(vhost)
    yield Broker(kind, _shared_redis, rabbitmq, vhost)
    if rabbitmq is not None:
        rabbitmq.delete_vhost(vhost)


Start = Callable[..., AbstractContextManager[Worker]]


@pytest.fixture
def start(broker: Broker, tmp_path: Path) -> Start:
    """Start a worker of a pool on the broker. base: the folder of its registry, for one on another host."""

    def make(pool: str, base: Path = tmp_path, **conf: object) -> AbstractContextManager[Worker]:
        options = (f"--pool={pool}", f"--concurrency={1 if pool == SOLO else 2}", f"--hostname={base.name}@%h")
        environment = {"CONF": json.dumps(conf), "LEDGER": str(tmp_path / "ledger")}
        return running(broker.url, broker.results, base, *options, **environment)

    return make


def _held(worker: Worker, task: str = "hold") -> None:
    """Send a job that runs until it is released."""
    worker.send(task)
    until(lambda: worker.started()[task] == 1, "the job to start")
    until(lambda: active(worker.directory) == {("celery", f"{TASKS}.{task}", "jobs"): 1}, "the job to be active")


def _counts(worker: Worker, wanted: dict[tuple[str, ...], int]) -> None:
    """Exactly these ends are counted, as many as have started."""
    # A worker that has lost its connection retries after growing pauses.
    until(lambda: sum(worker.counted("jobs_total").values()) >= sum(wanted.values()), f"{wanted}", 180.0)
    assert worker.counted("jobs_total") == wanted, worker.log[-6000:]
    worker.assert_consistent()


def _killed(worker: Worker) -> None:
    """Kill all processes of the worker with SIGKILL, as the end of its container would."""
    family = psutil.Process(worker.process.pid).children(recursive=True)
    worker.process.kill()
    worker.process.wait(60)
    psutil.wait_procs(family, timeout=60)  # its children exit after it


# ------------------------------------------------------------------ the connection is lost


@pytest.mark.parametrize("broker", [REDIS, RABBITMQ], indirect=True)
@pytest.mark.parametrize("pool", POOLS)
def test_a_job_that_outlives_its_connection_and_its_rerun_both_count(start: Start, broker: Broker, pool: str) -> None:
    with start(pool, worker_cancel_long_running_tasks_on_connection_loss=False) as worker:
        _held(worker)
        broker.cut(worker)
        if pool != SOLO:  # the solo pool learns of it once the job has ended
            until(lambda: worker.log.count("] received") == 2, "the job to come again")
        if CELERY >= (5, 7) and pool != SOLO:  # older pools keep the message until the first run has ended
            until(lambda: worker.started()["hold"] == 2, "its second run")
        worker.release()
        # Redis gets the solo pool's acknowledgement through a new connection.
        _counts(worker, {SUCCESS: 1 if (pool, broker.kind) == (SOLO, REDIS) else 2})
        assert values(worker.directory, "jobs_worker_processes_lost_total") == {}


@pytest.mark.parametrize("broker", [REDIS, RABBITMQ], indirect=True)
@pytest.mark.parametrize(
    "pool",
    [PREFORK, pytest.param(GEVENT, marks=pytest.mark.skipif(CELERY < (5, 5), reason="no greenlet is killed before"))],
)
def test_a_job_cancelled_with_its_connection_is_a_retry(start: Start, broker: Broker, pool: str) -> None:
    with start(pool, worker_cancel_long_running_tasks_on_connection_loss=True) as worker:
        _held(worker)
        broker.cut(worker)
        until(lambda: worker.started()["hold"] == 2, "the job to come again")
        worker.release()
        _counts(worker, {RETRY: 1, SUCCESS: 1})
        assert worker.counted("jobs_retries_total") == {("hold",): 1}
        assert values(worker.directory, "jobs_worker_processes_lost_total") == {}


@pytest.mark.skipif(CELERY < (5, 5), reason="no greenlet is killed before")
def test_a_slow_result_store_does_not_change_why_a_job_was_cancelled(start: Start, broker: Broker) -> None:
    """The worker samples each second, also between the kill of a greenlet and the signal with the reason."""
    with start(GEVENT, worker_cancel_long_running_tasks_on_connection_loss=True) as worker:
        _held(worker)
        broker.await_connections(worker)
        with Redis.from_url(broker.results) as client:
            client.client_pause(3000, all=False)  # milliseconds in which nothing is stored
        broker.cut(worker)
        until(lambda: worker.started()["hold"] == 2, "the job to come again")
        worker.release()
        _counts(worker, {RETRY: 1, SUCCESS: 1})


@pytest.mark.skipif(CELERY < (5, 7), reason="older workers give up when a thread cannot be cancelled")
def test_a_thread_that_cannot_be_cancelled_and_its_rerun_both_count(start: Start, broker: Broker) -> None:
    with start(THREADS, worker_cancel_long_running_tasks_on_connection_loss=True) as worker:
        _held(worker)
        broker.cut(worker)
        until(lambda: worker.started()["hold"] == 2, "the job to come again")
        worker.release()
        _counts(worker, {SUCCESS: 2})
        assert worker.counted("jobs_retries_total") == {}


@pytest.mark.parametrize("pool", [PREFORK, THREADS])
def test_an_acknowledged_job_ends_without_its_connection(start: Start, broker: Broker, pool: str) -> None:
    with start(pool, worker_cancel_long_running_tasks_on_connection_loss=True) as worker:
        _held(worker, "hold_acknowledged")
        broker.cut(worker)
        until(lambda: "onnection to broker lost" in worker.log, "the worker to notice")
        worker.release()
        worker.send("succeed")
        _counts(worker, {("hold_acknowledged", "success"): 1, ("succeed", "success"): 1})


# ------------------------------------------------------------------ the worker is lost


@pytest.mark.parametrize("pool", POOLS)
def test_a_job_of_a_killed_worker_is_a_failure_when_it_is_redelivered(start: Start, pool: str) -> None:
    with start(pool) as first:
        _held(first)
        _killed(first)
        assert active(first.directory) == {}
    with start(pool) as second:
        until(lambda: second.started()["hold"] == 2, "the job to come again")
        second.release()
        _counts(second, {LOST: 1, SUCCESS: 1})
        assert second.counted("jobs_failures_total") == {("hold", "WorkerLostError"): 1}
        assert values(second.directory, "jobs_worker_processes_lost_total") == {("celery",): 1}


def test_a_first_run_lost_on_another_host_is_not_counted(start: Start, tmp_path: Path) -> None:
    """Two directories are two hosts: the journal with the first run is not on the host of the second one."""
    (tmp_path / "elsewhere").mkdir()
    with start(PREFORK, tmp_path / "elsewhere") as first:
        first.written = tmp_path / "ledger"
        _held(first)
        _killed(first)
        assert active(first.directory) == {}
        assert first.counted("jobs_total") == {}
    with start(PREFORK) as second:
        until(lambda: second.started()["hold"] == 2, "the job to come again")
        second.release()
        until(lambda: second.counted("jobs_total") == {SUCCESS: 1}, "its end")
        assert second.counted("jobs_failures_total") == {}
        assert active(second.directory) == {}


# ------------------------------------------------------------------ the acknowledgement is lost


@pytest.mark.parametrize("pool", POOLS)
def test_a_success_that_was_not_acknowledged_runs_and_counts_again(start: Start, pool: str) -> None:
    with start(pool) as first:
        first.send("last_of_its_worker")
        first.process.wait(60)
    with start(pool) as second:
        until(lambda: second.started()["last_of_its_worker"] == 2, "the job to come again")
        _counts(second, {("last_of_its_worker", "success"): 2})
        assert values(second.directory, "jobs_worker_processes_lost_total") == {}


@pytest.mark.parametrize("pool", POOLS)
def test_a_deduplicated_redelivery_is_not_an_execution(start: Start, pool: str) -> None:
    with start(pool, worker_deduplicate_successful_tasks=True) as first:
        first.send("last_of_its_worker")
        first.process.wait(60)
    with start(pool, worker_deduplicate_successful_tasks=True) as second:
        until(lambda: "already completed successfully" in second.log, "Celery to pass it over")
        second.send("succeed")
        _counts(second, {("last_of_its_worker", "success"): 1, ("succeed", "success"): 1})
        assert second.started() == {"last_of_its_worker": 1, "succeed": 1}
