"""Queues, workers and schedulers as RQ's Redis shows them, on real servers, compared with what RQ puts there."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.connection import AbstractConnection
from redis.exceptions import RedisError
from rq import Queue, SimpleWorker
from rq.scheduler import RQScheduler

from jobmetrics import families as f
from jobmetrics.collector_api import Collector, CollectorOptions, Target
from jobmetrics.errors import CollectorError, SettingsError
from jobmetrics.families import JOBS_QUEUE_DEPTH, Family
from jobmetrics.rq.queue_collector import collectors
from tests.integration.first_reading import first_reading
from tests.integration.processes import process
from tests.integration.rq_workers import RQ_VERSION
from tests.support.readings import until
from tests.support.servers import RedisServer, free_ports, program
from tests.support.servers import redis_server as redis_on


def succeed() -> None:
    pass


def fail() -> None:
    raise ValueError("on purpose")


@contextmanager
def collector(url: str, *queues: str, timeout: float = 5.0) -> Iterator[Collector]:
    (made,) = collectors(CollectorOptions(rq_urls=(Target("main", url),), rq_queues=queues, timeout=timeout))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def client(redis_url: str) -> Iterator[Redis]:
    with Redis.from_url(redis_url) as made:
        yield made


def depths(made: Collector) -> dict[str, float]:
    return {labels[0]: value for labels, value in read(made, JOBS_QUEUE_DEPTH).items()}


def read(made: Collector, family: Family) -> dict[tuple[str, ...], float]:
    """A family's readings by the labels beyond system and broker."""
    readings = made.collect()
    assert {reading.values[:2] for reading in readings} <= {("rq", "main")}
    return {reading.values[2:]: reading.value for reading in readings if reading.family is family}


def states(made: Collector, queue: str) -> dict[str, float]:
    """Jobs by state without those that are 0; those must be present."""
    found = {state: value for (name, state), value in read(made, f.JOBS_QUEUE_JOBS).items() if name == queue}
    assert found.keys() == {"started", "deferred", "scheduled", "finished", "failed", "canceled", "ready_to_enqueue"}
    return {state: value for state, value in found.items() if value}


def counted_sends(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """A list that grows by one each time redis-py sends something."""
    sent: list[None] = []
    send: Any = AbstractConnection.send_packed_command

    def counting(*arguments: Any, **keywords: Any) -> None:
        sent.append(None)
        send(*arguments, **keywords)

    monkeypatch.setattr(AbstractConnection, "send_packed_command", counting)
    return sent


def test_depth_counts_waiting_jobs_of_each_queue_that_rq_lists(redis_url: str, client: Redis) -> None:
    with collector(redis_url) as made:
        assert depths(made) == {}
        high, low = Queue("high", connection=client), Queue("low:with:colons", connection=client)
        for _ in range(3):
            high.enqueue(print)
        low.enqueue(print)
        assert depths(made) == {"high": 3, "low:with:colons": 1}
        low.empty()  # type: ignore[no-untyped-call]  # RQ types most of its methods only
        assert depths(made) == {"high": 3, "low:with:colons": 0}
        low.delete()
        assert depths(made) == {"high": 3}


def test_named_queues_are_read_whether_rq_lists_them_or_not(redis_url: str, client: Redis) -> None:
    Queue("high", connection=client).enqueue(print)
    with collector(redis_url, "high", "new", "high") as made:
        assert depths(made) == {"high": 1, "new": 0}


def test_a_queue_name_that_is_not_utf8_is_still_read(redis_url: str, client: Redis) -> None:
    client.sadd("rq:queues", b"rq:queue:\xff", b"something else")
    client.lpush(b"rq:queue:\xff", "a")
    with collector(redis_url) as made:
        assert depths(made) == {"\udcff": 1}


@pytest.mark.parametrize("size", [1, 60])
def test_it_takes_three_round_trips_at_any_size_and_changes_nothing(
    size: int, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Redis.from_url(redis_server.url) as client, collector(redis_server.url) as made:
        for number in range(size):
            queue = Queue(f"q{number}", connection=client)
            for _ in range(10):
                queue.enqueue(print)
            queue.enqueue_at(datetime(2020, 1, 1, tzinfo=timezone.utc), print)
            client.zadd(f"rq:wip:q{number}", {"job:execution": 1.0})
            client.sadd("rq:workers", f"rq:worker:{number}")
            client.hset(f"rq:worker:{number}", mapping={"state": "busy", "last_heartbeat": "2026-01-01T00:00:00Z"})
            client.zadd("rq:cron_schedulers", {f"cron{number}": 1.0})
        made.collect()  # opens the connection
        before = {key: client.dump(key) for key in client.scan_iter()}
        client.config_resetstat()
        sent = counted_sends(monkeypatch)
        readings = made.collect()
        assert len(sent) == 3
        assert sum(reading.value for reading in readings if reading.family is JOBS_QUEUE_DEPTH) == 10 * size
        info: Any = client.info("commandstats")
        asked = {name.removeprefix("cmdstat_"): calls["calls"] for name, calls in info.items()}
        assert {key: client.dump(key) for key in client.scan_iter()} == before
    for name in ("config|resetstat", "info"):
        asked.pop(name, None)
    reading_commands = {
        "smembers",
        "time",
        "zrange",
        "llen",
        "zcard",
        "zcount",
        "lrange",
        "exists",
        "hmget",
        "hget",
    }
    assert asked.keys() == reading_commands
    assert (asked["llen"], asked["zcard"], asked["hmget"]) == (size, 7 * size, size)
    assert asked["smembers"] == 2 + size  # of all queues, all workers, and each queue's workers


def test_jobs_by_state_match_the_registries_of_rq(redis_url: str, client: Redis) -> None:
    queue = Queue("high", connection=client)
    with collector(redis_url, "high", "empty") as made:
        assert states(made, "high") == states(made, "empty") == {}
        first = queue.enqueue(succeed)
        queue.enqueue(succeed, depends_on=queue.enqueue(fail))
        SimpleWorker([queue], connection=client).work(burst=True)
        later = queue.enqueue_in(timedelta(hours=1), succeed)
        waiting = queue.enqueue(succeed)
        assert states(made, "high") == {"finished": 1, "failed": 1, "deferred": 1, "scheduled": 1}
        waiting.cancel()
        assert states(made, "high") == {"finished": 1, "failed": 1, "deferred": 1, "scheduled": 1, "canceled": 1}
        assert depths(made) == {"high": 0, "empty": 0}
        first.delete()
        later.delete()
        assert states(made, "high") == {"failed": 1, "deferred": 1, "canceled": 1}
        assert states(made, "empty") == {}


@pytest.mark.skipif(RQ_VERSION < (3, 0), reason="RQ has this state from 3.0 on")
def test_a_job_ready_to_enqueue_is_in_that_state_only(redis_url: str, client: Redis) -> None:
    from rq.registry import ReadyJobRegistry

    queue = Queue("high", connection=client)
    first = queue.enqueue(succeed)
    dependent = queue.enqueue(succeed, depends_on=first)
    ready: Any = ReadyJobRegistry(queue=queue)
    with collector(redis_url, "high") as made:
        assert states(made, "high") == {"deferred": 1}
        with client.pipeline() as pipe:
            ready.register_jobs([dependent], pipe)
            pipe.execute()
        assert states(made, "high") == {"ready_to_enqueue": 1}
        assert depths(made) == {"high": 1}
        ready.cleanup()
        assert states(made, "high") == {}
        assert depths(made) == {"high": 2}


READ_WITH_PREFIX = """
import sys
from redis import Redis
from rq import Queue, SimpleWorker
from jobmetrics.collector_api import CollectorOptions, Target
from jobmetrics.rq.queue_collector import collectors
client = Redis.from_url(sys.argv[1])
queue = Queue("high", connection=client)
queue.enqueue(print)
queue.enqueue(print)
queue.enqueue(print, depends_on=queue.enqueue(print))
worker = SimpleWorker([queue], connection=client)
worker.register_birth()
worker.set_state("idle")
(made,) = collectors(CollectorOptions(rq_urls=(Target("main", sys.argv[1]),)))
for reading in made.collect():
    if reading.value and reading.family.name.endswith(("depth", "jobs", "consumers", "registered_workers")):
        print(reading.family.name, *reading.values[2:], reading.value)
"""


@pytest.mark.skipif(RQ_VERSION < (3, 0), reason="RQ has this variable from 3.0 on")
def test_keys_have_the_prefix_that_rq_gives_them(redis_url: str, client: Redis) -> None:
    Queue("of another prefix", connection=client).enqueue(print)
    done = subprocess.run(
        [sys.executable, "-c", READ_WITH_PREFIX, redis_url],
        env={**os.environ, "RQ_KEY_PREFIX": "app:{one}"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert sorted(done.stdout.splitlines()) == [
        "jobs_queue_consumers high 1.0",
        "jobs_queue_depth high 3.0",
        "jobs_queue_jobs high deferred 1.0",
        "jobs_registered_workers idle 1.0",
    ]


@pytest.mark.skipif(RQ_VERSION < (3, 0), reason="RQ has this variable from 3.0 on")
def test_a_prefix_that_rq_refuses_is_one_clear_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jobmetrics", "exporter", "--rq-url", "redis://127.0.0.1:1/0"],
        env={**os.environ, "RQ_KEY_PREFIX": "a b"}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode != 0
    assert done.stderr.startswith("jobmetrics: rq cannot be imported: Invalid RQ_KEY_PREFIX 'a b'")
    assert done.stderr.count("\n") == 1


def test_orphaned_and_overdue_by_the_servers_clock(redis_url: str, client: Redis) -> None:
    queue = Queue("high", connection=client)
    with collector(redis_url, "high") as made:
        assert read(made, f.JOBS_QUEUE_ORPHANED) == read(made, f.JOBS_QUEUE_OVERDUE) == {("high",): 0}
        assert read(made, f.JOBS_QUEUE_OVERDUE_OLDEST) == {}
        now = time.time()
        client.zadd("rq:wip:high", {"a:1": now - 60, "b:1": now + 600, "c:1": "inf"})
        queue.enqueue_at(datetime(2020, 1, 1, tzinfo=timezone.utc), print)
        queue.enqueue_at(datetime(2021, 1, 1, tzinfo=timezone.utc), print)
        queue.enqueue_in(timedelta(hours=1), print)
        assert read(made, f.JOBS_QUEUE_ORPHANED) == {("high",): 1}
        assert states(made, "high") == {"started": 3, "scheduled": 3}
        assert read(made, f.JOBS_QUEUE_OVERDUE) == {("high",): 2}
        assert read(made, f.JOBS_QUEUE_OVERDUE_OLDEST) == {("high",): 1577836800.0}
        # Reading removed nothing.
        assert client.zcard("rq:wip:high") == 3


def test_the_oldest_timestamp_is_that_of_the_next_job_to_run(redis_url: str, client: Redis) -> None:
    queue = Queue("high", connection=client)
    with collector(redis_url, "high") as made:
        assert read(made, f.JOBS_QUEUE_OLDEST) == {}
        first = queue.enqueue(print)
        second = queue.enqueue(print)
        assert first.enqueued_at is not None
        assert second.enqueued_at is not None
        assert read(made, f.JOBS_QUEUE_OLDEST) == {("high",): pytest.approx(_seconds(first.enqueued_at), abs=1)}
        client.hset(first.key, "enqueued_at", "2026-01-31T23:59:59.500000Z")
        assert read(made, f.JOBS_QUEUE_OLDEST) == {("high",): 1769903999.5}
        client.delete(first.key)  # it expired: the next one is the oldest
        client.hset(second.key, "enqueued_at", "2026-01-31T23:59:59Z")  # the format of old releases
        assert read(made, f.JOBS_QUEUE_OLDEST) == {("high",): 1769903999.0}
        client.hset(second.key, "enqueued_at", "not a timestamp")
        assert read(made, f.JOBS_QUEUE_OLDEST) == {}


def test_workers_by_state_consumers_and_stale_heartbeats(redis_url: str, client: Redis) -> None:
    with collector(redis_url, "high", "low") as made:
        none = dict.fromkeys([("started",), ("idle",), ("busy",), ("suspended",), ("other",)], 0.0)
        assert read(made, f.JOBS_REGISTERED_WORKERS) == none
        assert read(made, f.JOBS_REGISTERED_WORKERS_HEARTBEAT) == {}
        worker: Any = SimpleWorker([Queue("high", connection=client)], connection=client)
        worker.register_birth()
        worker.set_state("idle")
        lost: Any = SimpleWorker([Queue("high", connection=client), Queue("low", connection=client)], connection=client)
        lost.register_birth()
        lost.set_state("busy")
        assert read(made, f.JOBS_QUEUE_CONSUMERS) == {("high",): 2, ("low",): 1}
        assert read(made, f.JOBS_REGISTERED_WORKERS) == {**none, ("idle",): 1, ("busy",): 1}
        assert read(made, f.JOBS_REGISTERED_WORKERS_STALE) == {(): 0}
        client.hset(lost.key, mapping={"last_heartbeat": "2026-01-31T23:59:59Z", "state": "paused"})
        assert read(made, f.JOBS_REGISTERED_WORKERS_HEARTBEAT) == {(): 1769903999.0}
        assert read(made, f.JOBS_REGISTERED_WORKERS) == {**none, ("idle",): 1, ("other",): 1}
        client.delete(lost.key)  # its heartbeats expired
        assert client.scard("rq:workers:high") == 2, "RQ removes dead workers from its sets at once"
        assert read(made, f.JOBS_QUEUE_CONSUMERS) == {("high",): 1, ("low",): 0}
        assert read(made, f.JOBS_REGISTERED_WORKERS) == {**none, ("idle",): 1}
        assert read(made, f.JOBS_REGISTERED_WORKERS_STALE) == {(): 1}
        worker.register_death()
        assert read(made, f.JOBS_QUEUE_CONSUMERS) == {("high",): 0, ("low",): 0}


def test_consumers_of_a_killed_worker_end_with_its_time_to_live(redis_url: str, client: Redis) -> None:
    with collector(redis_url, "high") as made:
        worker: Any = SimpleWorker([Queue("high", connection=client)], connection=client)
        worker.register_birth()
        worker.heartbeat(1)  # the last one; its time to live is in seconds
        assert read(made, f.JOBS_QUEUE_CONSUMERS) == {("high",): 1}
        until(lambda: not client.exists(worker.key), "the worker's state to expire")
        assert read(made, f.JOBS_QUEUE_CONSUMERS) == {("high",): 0}
        assert read(made, f.JOBS_REGISTERED_WORKERS_STALE) == {(): 1}


def test_consumers_are_absent_while_workers_cannot_be_read(redis_url: str, client: Redis) -> None:
    client.set("rq:workers", "not a set")
    with collector(redis_url, "high") as made:
        assert read(made, f.JOBS_QUEUE_CONSUMERS) == {}


def test_schedulers_and_cron(redis_url: str, client: Redis) -> None:
    with collector(redis_url, "high", "low") as made:
        assert read(made, f.JOBS_QUEUE_SCHEDULERS) == {("high",): 0, ("low",): 0}
        assert read(made, f.JOBS_CRON_SCHEDULERS) == {(): 0}
        scheduler: Any = RQScheduler(["high"], connection=client)
        scheduler.acquire_locks()
        assert read(made, f.JOBS_QUEUE_SCHEDULERS) == {("high",): 1, ("low",): 0}
        scheduler.release_locks()
        assert read(made, f.JOBS_QUEUE_SCHEDULERS) == {("high",): 0, ("low",): 0}


@pytest.mark.skipif(RQ_VERSION < (2, 7), reason="RQ has this cron from 2.7 on")
def test_cron_schedulers_heartbeat_and_next_job(redis_url: str, client: Redis) -> None:
    from rq.cron import CronScheduler

    cron = CronScheduler(connection=client)
    cron.register(print, queue_name="high", interval=60)
    with collector(redis_url, "high") as made:
        cron.register_birth()
        cron.enqueue_jobs()
        cron.save()
        assert read(made, f.JOBS_CRON_SCHEDULERS) == {(): 1}
        (heartbeat,) = read(made, f.JOBS_CRON_HEARTBEAT).values()
        (planned,) = read(made, f.JOBS_CRON_NEXT).values()
        assert abs(heartbeat - time.time()) < 30
        assert 30 < planned - heartbeat < 90
        client.hset(cron.key, "cron_jobs", "no json")
        assert read(made, f.JOBS_CRON_NEXT) == {}
        client.delete(cron.key)
        assert read(made, f.JOBS_CRON_SCHEDULERS) == {(): 1}
        cron.register_death()


@pytest.mark.skipif(RQ_VERSION < (2, 7), reason="RQ has this cron from 2.7 on")
def test_a_dead_cron_scheduler_does_not_count_beside_a_fresh_one(redis_url: str, client: Redis) -> None:
    """RQ keeps it in its list until asked for the list. `rq cron` was killed and started again."""
    from rq.cron import CronScheduler

    now = time.time()
    dead, fresh = CronScheduler(connection=client, name="dead"), CronScheduler(connection=client, name="fresh")
    with collector(redis_url, "high") as made:
        dead.register_birth()
        client.zadd("rq:cron_schedulers", {"dead": now - 600})
        client.hset(dead.key, "cron_jobs", '[{"next_enqueue_time": "2020-01-01T00:00:00Z"}]')
        assert read(made, f.JOBS_CRON_SCHEDULERS) == {(): 0}
        assert read(made, f.JOBS_CRON_HEARTBEAT) == {(): pytest.approx(now - 600, abs=1)}, "the alert needs it"
        assert read(made, f.JOBS_CRON_NEXT) == {(): 1577836800.0}
        client.zadd("rq:cron_schedulers", {"dead too": now - 900})
        assert read(made, f.JOBS_CRON_HEARTBEAT) == {(): pytest.approx(now - 900, abs=1)}
        fresh.register(print, queue_name="high", interval=60)
        fresh.register_birth()
        fresh.enqueue_jobs()
        fresh.save()
        assert read(made, f.JOBS_CRON_SCHEDULERS) == {(): 1}
        assert read(made, f.JOBS_CRON_HEARTBEAT)[()] > now - 60
        assert read(made, f.JOBS_CRON_NEXT)[()] > now
        assert client.zcard("rq:cron_schedulers") == 3, "reading changes nothing"


def known(*names: str) -> Callable[[str], Sequence[str]]:
    """The queues of RQ that the registry directory knows."""
    return lambda system: names if system == "rq" else ("of another system",)


def test_queues_that_the_directory_knows_are_read_if_this_redis_has_them(redis_url: str, client: Redis) -> None:
    options = CollectorOptions(
        rq_urls=(Target("main", redis_url),), rq_queues=("high",), recorded=known("elsewhere", "high", "low", "served")
    )
    (made,) = collectors(options)
    low: Any = Queue("low", connection=client)
    low.enqueue(print)
    Queue("unknown", connection=client).enqueue(print)
    worker: Any = SimpleWorker([Queue("served", connection=client)], connection=client)
    worker.register_birth()
    assert depths(made) == {"high": 0, "low": 1, "served": 0}
    worker.register_death()
    low.delete()
    assert depths(made) == {"high": 0, "low": 0, "served": 0}, "a queue that was there is shown with 0"
    made.close()


def test_without_named_queues_those_of_the_directory_join_the_list_of_rq(redis_url: str, client: Redis) -> None:
    Queue("listed", connection=client).enqueue(print)
    client.lpush("rq:queue:low", "a job")  # not in RQ's list
    options = CollectorOptions(rq_urls=(Target("main", redis_url),), recorded=known("listed", "low", "elsewhere"))
    (made,) = collectors(options)
    assert depths(made) == {"listed": 1, "low": 1}
    made.close()


def test_several_servers_have_different_labels(redis_url: str, redis_server: RedisServer) -> None:
    targets = (Target("one", redis_url), Target("two", redis_server.url))
    with Redis.from_url(redis_server.url) as other:
        Queue("high", connection=other).enqueue(print)
    found = {}
    for made in collectors(CollectorOptions(rq_urls=targets, rq_queues=("high",))):
        for reading in made.collect():
            if reading.family is JOBS_QUEUE_DEPTH:
                found[reading.values] = reading.value
        made.close()
    assert found == {("rq", "one", "high"): 0, ("rq", "two", "high"): 1}


def test_acl_user_that_may_only_read(redis_server: RedisServer) -> None:
    client: Any
    with Redis.from_url(redis_server.url) as client:
        client.execute_command("ACL", "SETUSER", "reader", "on", ">s3cret", "~rq:*", "+@read", "+time", "+@connection")
        Queue("high", connection=client).enqueue(print)
        url = redis_server.url.replace("redis://", "redis://reader:s3cret@")
        with collector(url) as made:
            assert depths(made) == {"high": 1}
        client.execute_command("ACL", "SETUSER", "reader", "-llen")
        with collector(url) as made, pytest.raises(CollectorError) as refused:
            made.collect()
    assert "s3cret" not in str(refused.value)


def test_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    with redis_on("--unixsocket", str(path)):
        with Redis(unix_socket_path=str(path), db=3) as client:
            Queue("high", connection=client).enqueue(print)
        with collector(f"unix://{path}?db=3") as made:
            assert depths(made) == {"high": 1}


def test_tls(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-keyout", str(key), "-out", str(certificate), "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    (port,) = free_ports(1)
    options = ["--tls-port", str(port), "--tls-cert-file", str(certificate), "--tls-key-file", str(key)]
    with redis_on(*options, "--tls-ca-cert-file", str(certificate), "--tls-auth-clients", "no") as server:
        with Redis.from_url(server.url) as client:
            Queue("high", connection=client).enqueue(print)
        with collector(f"rediss://localhost:{port}/0?ssl_ca_certs={certificate}") as made:
            assert depths(made) == {"high": 1}
        with collector(f"rediss://localhost:{port}/0") as made, pytest.raises(CollectorError, match="certificate"):
            made.collect()


def test_sentinel_leads_to_the_master(redis_server: RedisServer, tmp_path: Path) -> None:
    configuration = tmp_path / "sentinel.conf"
    configuration.write_text(f"sentinel monitor mymaster 127.0.0.1 {redis_server.port} 1\n")
    (port,) = free_ports(1)
    command = [program("redis-server"), str(configuration), "--sentinel", "--bind", "127.0.0.1", "--port", str(port)]
    with Redis.from_url(redis_server.url.replace("/0", "/2")) as client:
        Queue("high", connection=client).enqueue(print)
    with process(command, tmp_path / "sentinel.log"):
        with Redis(port=port) as sentinel:
            until(lambda: _answers(sentinel), "the sentinel")
        url = f"sentinel://127.0.0.1:1/mymaster/2;sentinel://127.0.0.1:{port}"  # the first one is down
        with collector(url) as made:
            assert depths(made) == {"high": 1}
        with collector(f"sentinel://127.0.0.1:{port}/other") as made, pytest.raises(CollectorError, match="other"):
            made.collect()


def _answers(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except OSError:
        return False
    except RedisError:
        return False


def _seconds(at: datetime) -> float:
    return (at if at.tzinfo else at.replace(tzinfo=timezone.utc)).timestamp()


def test_a_key_that_is_not_a_list_is_an_error_not_0(redis_url: str, client: Redis) -> None:
    client.set("rq:queue:high", "not a list")
    with collector(redis_url, "high") as made, pytest.raises(CollectorError, match="WRONGTYPE"):
        made.collect()


def test_a_key_of_another_type_hides_only_its_queue(
    redis_url: str, client: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    Queue("low", connection=client).enqueue(succeed)
    Queue("high", connection=client).enqueue(succeed)
    client.set("rq:workers", "not a set")
    client.set("rq:cron_schedulers", "not a sorted set")
    client.set("rq:failed:high", "not a sorted set")
    with collector(redis_url) as made:
        for _ in range(3):
            assert depths(made) == {"low": 1}
        assert caplog.text.count("'high' is left out") == 1
        assert read(made, f.JOBS_REGISTERED_WORKERS) == {}
        client.delete("rq:failed:high")
        assert depths(made) == {"low": 1, "high": 1}


def test_queues_beyond_the_cap_share_a_series(redis_url: str, client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        for _ in range(number + 1):
            Queue(f"q{number}", connection=client).enqueue(succeed)
    options = CollectorOptions(rq_urls=(Target("main", redis_url),), max_queues=2)
    (made,) = collectors(options)
    made.collect()
    sent = counted_sends(monkeypatch)
    assert depths(made) == {"q0": 1, "q1": 2, "__other__": 3 + 4 + 5}
    assert len(sent) == 3
    assert {values[0] for values in read(made, f.JOBS_QUEUE_JOBS)} == {"q0", "q1"}
    made.close()


@pytest.mark.full
def test_the_first_reading_of_50000_queues_is_bounded(redis_url: str, client: Redis) -> None:
    """In labels, processor seconds and memory."""
    for start in range(0, 50_000, 5000):
        with client.pipeline(transaction=False) as pipe:
            for number in range(start, start + 5000):
                pipe.sadd("rq:queues", f"rq:queue:q{number}")
                pipe.rpush(f"rq:queue:q{number}", "job")
            pipe.execute()
    found = first_reading("jobmetrics.rq.queue_collector", "rq_urls", redis_url)
    assert (found.queues, found.depth) == (2000 + 1, 50_000)
    assert found.seconds < 15
    assert found.megabytes < 100


def test_a_redis_that_is_down_is_one_clear_line_and_is_read_again_when_back(redis_server: RedisServer) -> None:
    with collector(redis_server.url, "high") as made:
        assert depths(made) == {"high": 0}
        redis_server.kill()
        for _ in range(2):
            with pytest.raises(
                CollectorError, match=rf"^redis://127\.0\.0\.1:{redis_server.port}/0 cannot be read: "
            ) as down:
                made.collect()
            assert "\n" not in str(down.value)
        redis_server.start()
        with Redis.from_url(redis_server.url) as client:
            Queue("high", connection=client).enqueue(print)
        assert depths(made) == {"high": 1}


def test_a_wrong_password_is_reported_without_the_password(redis_server: RedisServer) -> None:
    with Redis.from_url(redis_server.url) as client:
        client.config_set("requirepass", "right-one")
    for wrong in ("redis://:wrong-one@", "redis://wrong-one:wrong-one@"):
        with collector(redis_server.url.replace("redis://", wrong)) as made, pytest.raises(CollectorError) as refused:
            made.collect()
        assert "wrong-one" not in str(refused.value)
    with collector(redis_server.url.replace("redis://", "redis://:right-one@")) as made:
        assert depths(made) == {}


def test_a_redis_that_accepts_and_never_answers_times_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        with collector(url, timeout=0.2) as made, pytest.raises(CollectorError, match="cannot be read"):
            made.collect()


def test_an_unknown_option_in_the_query_is_one_clear_line() -> None:
    with collector("redis://127.0.0.1:1/0?nonsense=1") as made, pytest.raises(CollectorError, match="nonsense"):
        made.collect()


@pytest.mark.parametrize(
    "url",
    [
        "sentinel://:secret@h",
        "sentinel://:secret@h/m/x",
        "http://:secret@h",
        "redis://:secret@h:x",
        "redis://:secret@h/name",
        "amqp://secret@h",
    ],
)
def test_an_invalid_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(SettingsError, match=r"^--rq-url: ") as refused:
        list(collectors(CollectorOptions(rq_urls=(Target("main", url),))))
    assert "secret" not in str(refused.value)


def test_queues_without_a_url_are_refused() -> None:
    with pytest.raises(SettingsError, match="--rq-queue needs --rq-url"):
        list(collectors(CollectorOptions(rq_queues=("high",))))
