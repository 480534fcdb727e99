"""The bindings that kombu keeps in Redis: found by scanning a part of the keys at a time, and remembered."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from fakeredis import FakeRedis
from redis.exceptions import ResponseError

from jobmetrics.celery import bindings as module
from jobmetrics.celery.bindings import Bindings, holds_tasks
from jobmetrics.celery.queue_collector import _ask

SEP = "\x06\x16"


@pytest.fixture
def redis() -> Iterator[FakeRedis]:
    made = FakeRedis()
    yield made
    made.close()


@pytest.fixture
def channel(redis: FakeRedis) -> Any:
    return SimpleNamespace(sep=SEP, keyprefix_queue="_kombu.binding.%s", client=redis)


def bind(redis: FakeRedis, exchange: str, *queues: str) -> None:
    for queue in queues:
        redis.sadd(f"_kombu.binding.{exchange}", SEP.join((queue, "", queue)))


def read(bindings: Bindings, channel: Any) -> tuple[str, ...]:
    bindings.take(channel, _ask(channel, bindings.commands(channel)))
    return bindings.queues


def test_queues_of_every_exchange_are_found_and_remembered(redis: FakeRedis, channel: Any) -> None:
    bind(redis, "celery", "celery")
    bind(redis, "video", "video.high", "video.low")
    bind(redis, "celery.pidbox", "w@host.celery.pidbox")
    redis.sadd("_kombu.binding_permanent.video", "other")
    bindings = Bindings("here", 100)
    assert read(bindings, channel) == ("celery",)
    for _ in range(3):
        assert read(bindings, channel) == ("celery", "video.high", "video.low")


def test_a_reading_scans_a_part_of_the_keys_and_the_next_one_goes_on(
    redis: FakeRedis, channel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEYS_SCANNED", 5)
    for number in range(40):
        bind(redis, f"x{number}", f"q{number}")
    bindings = Bindings("here", 100)
    found = [len(read(bindings, channel)) for _ in range(12)]
    assert found[1] < found[3] < found[-1] == 40
    assert found == sorted(found)


def test_a_binding_that_is_gone_is_forgotten_and_a_new_queue_of_a_known_exchange_is_found(
    redis: FakeRedis, channel: Any
) -> None:
    bind(redis, "mail", "mail")
    bind(redis, "video", "video")
    bindings = Bindings("here", 100)
    for _ in range(2):
        read(bindings, channel)
    redis.delete("_kombu.binding.mail")
    bind(redis, "video", "audio")
    assert read(bindings, channel) == ("audio", "video")


def test_a_key_prefix_is_part_of_the_pattern_without_special_characters(redis: Any, channel: Any) -> None:
    redis.global_keyprefix = "shop[1]*:"  # as kombu's client has it
    for prefix, queue in (("shop[1]*:", "mail"), ("shop1:", "other"), ("", "other")):
        redis.sadd(f"{prefix}_kombu.binding.{queue}", SEP.join((queue, "", queue)))
    bindings = Bindings("here", 100)
    for _ in range(3):
        read(bindings, channel)
    assert bindings.queues == ("mail",)


def test_the_number_of_remembered_exchanges_is_bounded(redis: FakeRedis, channel: Any) -> None:
    for number in range(10):
        bind(redis, f"x{number}", f"q{number}")
    bindings = Bindings("here", 4)
    for _ in range(3):
        assert len(read(bindings, channel)) <= 3  # and the default exchange


def test_without_permission_to_scan_the_default_exchange_is_read_and_the_log_has_one_line(
    redis: FakeRedis, channel: Any, caplog: pytest.LogCaptureFixture
) -> None:
    bind(redis, "celery", "celery", "mail")
    bindings = Bindings("here", 100)
    for _ in range(3):
        *members, _ = _ask(channel, bindings.commands(channel))
        bindings.take(channel, [*members, ResponseError("NOPERM")])
        assert bindings.queues == ("celery", "mail")
    assert [record.getMessage() for record in caplog.records] == [
        "jobmetrics: here: queues of other exchanges than celery cannot be found: NOPERM"
    ]


@pytest.mark.parametrize(
    "queue",
    [
        "",
        "celery@host.celery.pidbox",
        "5b3c9d2e-0e3a-3c3e-9a35-1d1b3f0a9c11.reply.celery.pidbox",
        "5b3c9d2e-0e3a-3c3e-9a35-1d1b3f0a9c11",
        "celeryev.5b3c9d2e-0e3a-3c3e-9a35-1d1b3f0a9c11",
        "bcast.5b3c9d2e-0e3a-3c3e-9a35-1d1b3f0a9c11",
        "news.5b3c9d2e-0e3a-3c3e-9a35-1d1b3f0a9c11",
        "amq.gen-abc",
        "_kombu.x",
    ],
)
def test_queues_for_events_control_replies_and_broadcasts_hold_no_tasks(queue: str) -> None:
    assert not holds_tasks(queue)


@pytest.mark.parametrize("queue", ["celery", "reprots", "tenant-5b3c9d2e-0e3a-3c3e-9a35-1d1b3f0a9c11", "pidbox", "a.b"])
def test_other_queues_may_hold_tasks(queue: str) -> None:
    assert holds_tasks(queue)
