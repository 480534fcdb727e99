"""Depth of RQ's queues on a real Redis, against what RQ itself puts there."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from redis import Redis
from redis.connection import AbstractConnection
from rq import Queue

from jobmetrics.collecting import Collector, CollectorOptions, Target
from jobmetrics.errors import CollectorError, SettingsError
from jobmetrics.families import JOBS_QUEUE_DEPTH
from jobmetrics.rq.queues import collectors
from tests.servers import RedisServer


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
    readings = made.collect()
    assert {reading.family for reading in readings} <= {JOBS_QUEUE_DEPTH}
    assert {reading.values[:2] for reading in readings} <= {("rq", "main")}
    return {reading.values[2]: reading.value for reading in readings}


def counted_sends(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Grows by one each time redis-py sends something."""
    sent: list[None] = []
    send: Any = AbstractConnection.send_packed_command

    def counting(*arguments: Any, **keywords: Any) -> None:
        sent.append(None)
        send(*arguments, **keywords)

    monkeypatch.setattr(AbstractConnection, "send_packed_command", counting)
    return sent


def test_depth_is_what_waits_in_each_queue_that_rq_lists(redis_url: str, client: Redis) -> None:
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


def test_a_name_that_is_no_text_is_still_read(redis_url: str, client: Redis) -> None:
    client.sadd("rq:queues", b"rq:queue:\xff", b"something else")
    client.lpush(b"rq:queue:\xff", "a")
    with collector(redis_url) as made:
        assert depths(made) == {"\udcff": 1}


def test_it_takes_two_round_trips_and_changes_nothing(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Redis.from_url(redis_server.url) as client, collector(redis_server.url) as made:
        for number in range(30):
            Queue(f"q{number}", connection=client).enqueue(print)
        made.collect()  # connects
        before = {key: client.dump(key) for key in client.scan_iter()}
        client.config_resetstat()
        sent = counted_sends(monkeypatch)
        made.collect()
        assert len(sent) == 2
        info = client.info("commandstats")
        assert (info.pop("cmdstat_llen")["calls"], info.pop("cmdstat_smembers")["calls"]) == (30, 1)
        assert info.keys() <= {"cmdstat_config|resetstat", "cmdstat_info"}
        assert {key: client.dump(key) for key in client.scan_iter()} == before


def test_what_is_no_list_is_an_error_not_0(redis_url: str, client: Redis) -> None:
    client.set("rq:queue:high", "not a list")
    with collector(redis_url, "high") as made, pytest.raises(CollectorError, match="WRONGTYPE"):
        made.collect()


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


def test_a_wrong_password_is_told_without_the_password(redis_server: RedisServer) -> None:
    with Redis.from_url(redis_server.url) as client:
        client.config_set("requirepass", "right-one")
    for wrong in ("redis://:wrong-one@", "redis://wrong-one:wrong-one@"):
        with collector(redis_server.url.replace("redis://", wrong)) as made, pytest.raises(CollectorError) as refused:
            made.collect()
        assert "wrong-one" not in str(refused.value)
    with collector(redis_server.url.replace("redis://", "redis://:right-one@")) as made:
        assert depths(made) == {}


def test_a_redis_that_accepts_and_says_nothing_times_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        with collector(url, timeout=0.2) as made, pytest.raises(CollectorError, match="cannot be read"):
            made.collect()


def test_an_unknown_option_in_the_query_is_one_clear_line() -> None:
    with collector("redis://127.0.0.1:1/0?nonsense=1") as made, pytest.raises(CollectorError, match="nonsense"):
        made.collect()


@pytest.mark.parametrize(
    "url", ["http://:secret@h", "redis://:secret@h:x", "redis://:secret@h/name", "amqp://secret@h"]
)
def test_a_url_that_is_none_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(SettingsError, match=r"^--rq-url: ") as refused:
        list(collectors(CollectorOptions(rq_urls=(Target("main", url),))))
    assert "secret" not in str(refused.value)


def test_queues_without_a_url_are_refused() -> None:
    with pytest.raises(SettingsError, match="--rq-queue needs --rq-url"):
        list(collectors(CollectorOptions(rq_queues=("high",))))
