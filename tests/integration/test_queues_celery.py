"""Depth of Celery's queues on a real Redis, compared with what Celery and kombu put there."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from amqp.exceptions import NotFound
from celery import Celery
from celery.signals import before_task_publish
from kombu import Exchange, Queue
from kombu.transport import TRANSPORT_ALIASES
from redis import Redis
from redis.connection import AbstractConnection

from jobmetrics.celery import bindings, producer
from jobmetrics.celery.queue_collector import ASKED_AGAIN, RedisQueues, collectors
from jobmetrics.collector_api import Collector, CollectorOptions, Target
from jobmetrics.errors import CollectorError, SettingsError
from jobmetrics.exporter.app import build
from jobmetrics.families import (
    JOBS_QUEUE_CONSUMERS,
    JOBS_QUEUE_DEPTH,
    JOBS_QUEUE_OLDEST,
    JOBS_QUEUE_UNACKNOWLEDGED,
    Family,
)
from jobmetrics.settings import load
from tests.integration.first_reading import first_reading
from tests.integration.processes import process
from tests.support import servers
from tests.support.readings import until
from tests.support.servers import RedisServer


def make_app(url: str, **settings: Any) -> Any:
    app = Celery("queues", broker=url, set_as_current=False)
    app.conf.update(broker_connection_retry_on_startup=False, **settings)
    return app


def send(app: Any, queue: str, count: int = 1, **options: Any) -> None:
    with app.connection_for_write() as connection:
        for _ in range(count):
            app.send_task("a.task", queue=queue, connection=connection, **options)


@contextmanager
def collector(options: CollectorOptions) -> Iterator[Collector]:
    (made,) = collectors(options)
    try:
        yield made
    finally:
        made.close()


def options_for(
    url: str, *queues: str, app: str | None = None, timeout: float = 5.0, most: int = 2000
) -> CollectorOptions:
    return CollectorOptions(
        celery_brokers=(Target("main", url),), celery_queues=queues, celery_app=app, timeout=timeout, max_queues=most
    )


def depths(made: Collector) -> dict[str, float]:
    return read(made, JOBS_QUEUE_DEPTH)


def read(made: Collector, family: Family) -> dict[str, float]:
    """A family's values by queue; the key is "" without a queue label."""
    readings = made.collect()
    assert {reading.values[:2] for reading in readings} <= {("celery", made.broker)}
    return {"".join(reading.values[2:]): reading.value for reading in readings if reading.family is family}


def counted_sends(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """A list that grows by one each time redis-py sends something."""
    sent: list[None] = []
    send: Any = AbstractConnection.send_packed_command

    def counting(*arguments: Any, **keywords: Any) -> None:
        sent.append(None)
        send(*arguments, **keywords)

    monkeypatch.setattr(AbstractConnection, "send_packed_command", counting)
    return sent


@pytest.fixture
def app_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redis_url: str) -> Iterator[str]:
    """The name of an importable application with a key prefix, priority steps and two queues."""
    (tmp_path / "queues_app.py").write_text(
        "from celery import Celery\n"
        "from kombu import Queue\n"
        f"app = Celery('queues', broker={redis_url!r}, set_as_current=False)\n"
        "app.conf.task_queues = (Queue('mail'), Queue('video'))\n"
        "app.conf.broker_transport_options = "
        "{'global_keyprefix': 'pre:', 'priority_steps': [0, 5], 'sep': ':', 'queue_order_strategy': 'priority'}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "queues_app:app"
    sys.modules.pop("queues_app", None)


def test_depth_counts_waiting_messages_and_an_empty_known_queue_is_0(redis_url: str) -> None:
    app = make_app(redis_url)
    with collector(options_for(redis_url, "mail", "empty", "mail")) as made:
        assert depths(made) == {"mail": 0, "empty": 0}
        send(app, "mail", 3)
        assert depths(made) == {"mail": 3, "empty": 0}
        with Redis.from_url(redis_url) as client:
            client.rpop("mail")
        assert depths(made) == {"mail": 2, "empty": 0}


def test_the_default_queue_is_that_of_celery(redis_url: str) -> None:
    send(make_app(redis_url), "celery", 2)
    with collector(options_for(redis_url)) as made:
        assert depths(made) == {"celery": 2}


def test_all_priorities_count(redis_url: str) -> None:
    app = make_app(redis_url)
    for priority in range(10):
        send(app, "mail", priority=priority)
    with Redis.from_url(redis_url) as client:
        assert int(client.llen("mail")) < 10, "kombu no longer separates priorities"
    with collector(options_for(redis_url, "mail")) as made:
        assert depths(made) == {"mail": 10}


def test_prefix_steps_queues_and_broker_of_an_application_are_used(redis_url: str, app_module: str) -> None:
    transport = {"global_keyprefix": "pre:", "priority_steps": [0, 5], "sep": ":"}
    app = make_app(redis_url, broker_transport_options=transport)
    for priority in (0, 4, 5, 9):
        send(app, "mail", priority=priority)
    with Redis.from_url(redis_url) as client:
        assert client.exists("pre:mail", "pre:mail:5") == 2
    with collector(CollectorOptions(celery_app=app_module)) as made:
        assert made.broker == "default"
        assert depths(made) == {"mail": 4, "video": 0}
    with collector(CollectorOptions(celery_app=app_module, celery_queues=("other",))) as made:
        assert depths(made) == {"other": 0, "mail": 4}, "mail is bound to an exchange"
    with collector(options_for(redis_url, app=app_module)) as made:
        assert (made.broker, depths(made)) == ("main", {"mail": 4, "video": 0})
    with collector(options_for(redis_url, "mail")) as made:
        assert depths(made) == {"mail": 0}, "the prefix is known only from the application"


def test_it_reads_in_two_round_trips_and_changes_nothing(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = redis_server.url
    send(make_app(url), "mail", 2)
    with collector(options_for(url, "mail", *(f"q{i}" for i in range(50)))) as made, Redis.from_url(url) as client:
        made.collect()  # opens the connection
        before = {key: client.dump(key) for key in client.scan_iter()}
        client.config_resetstat()
        sent = counted_sends(monkeypatch)
        made.collect()
        assert len(sent) == 2  # lengths, then the first messages of queues that are not empty
        commands = {name: stats["calls"] for name, stats in client.info("commandstats").items()}
        assert commands.pop("cmdstat_llen") == 51 * 4
        assert (commands.pop("cmdstat_hlen"), commands.pop("cmdstat_lindex"), commands.pop("cmdstat_eval")) == (1, 1, 1)
        assert (commands.pop("cmdstat_smembers"), commands.pop("cmdstat_scan")) == (2, 1)  # exchanges celery and mail
        assert commands.keys() <= {"cmdstat_config|resetstat", "cmdstat_info", "cmdstat_client|setinfo"}
        assert {key: client.dump(key) for key in client.scan_iter()} == before


def test_a_key_that_is_not_a_list_is_an_error_not_0(redis_url: str) -> None:
    with Redis.from_url(redis_url) as client:
        client.set("mail", "not a list")
    with collector(options_for(redis_url, "mail")) as made, pytest.raises(CollectorError, match="WRONGTYPE"):
        made.collect()


def test_a_key_of_another_type_hides_only_its_queue(redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    send(make_app(redis_url), "mail", 2)
    with Redis.from_url(redis_url) as client, collector(options_for(redis_url, "mail", "video")) as made:
        client.set("video", "not a list")
        client.set("unacked", "not a hash")
        for _ in range(3):
            assert depths(made) == {"mail": 2}
        assert caplog.text.count("'video' is left out") == 1
        client.delete("video")
        assert depths(made) == {"mail": 2, "video": 0}


def test_queues_beyond_the_cap_share_a_series(redis_url: str) -> None:
    app = make_app(redis_url)
    for number in range(5):
        send(app, f"q{number}", number)
    with collector(options_for(redis_url, *(f"q{n}" for n in range(5)), most=2)) as made:
        assert depths(made) == {"q0": 0, "q1": 1, "__other__": 2 + 3 + 4}
        assert set(read(made, JOBS_QUEUE_OLDEST)) <= {"q1"}


@pytest.mark.full
def test_the_first_reading_of_50000_queues_is_bounded(redis_url: str) -> None:
    """In labels, processor seconds and memory."""
    with Redis.from_url(redis_url) as client:
        for start in range(0, 50_000, 5000):
            numbers = range(start, start + 5000)
            client.sadd("_kombu.binding.celery", *(f"q{n}\x06\x16\x06\x16q{n}" for n in numbers))
            with client.pipeline(transaction=False) as pipe:
                for number in numbers:
                    pipe.rpush(f"q{number}", b"{}")
                pipe.execute()
    found = first_reading("jobmetrics.celery.queue_collector", "celery_brokers", redis_url)
    assert (found.readings, found.queues, found.depth) == (2000 + 2, 2000 + 1, 50_000)
    assert found.seconds < 15
    assert found.megabytes < 100


def test_a_long_message_is_not_read(redis_url: str, stamping: None) -> None:
    send(make_app(redis_url), "mail")
    send(make_app(redis_url), "video", kwargs={"frame": "x" * 100_000})
    with Redis.from_url(redis_url) as client, collector(options_for(redis_url, "mail", "video")) as made:
        made.collect()
        before = client.info("stats")["total_net_output_bytes"]
        assert set(read(made, JOBS_QUEUE_OLDEST)) == {"mail"}
        assert client.info("stats")["total_net_output_bytes"] - before < 50_000
        assert depths(made) == {"mail": 1, "video": 1}


def test_without_permission_for_scripts_only_the_ages_are_missing(
    redis_server: RedisServer, stamping: None, caplog: pytest.LogCaptureFixture
) -> None:
    send(make_app(redis_server.url), "mail")
    with Redis.from_url(redis_server.url) as client:
        client.acl_setuser(
            "reader", enabled=True, passwords=["+word"], keys=["*"], categories=["+@read", "+@connection"]
        )
    with collector(options_for(redis_server.url.replace("://", "://reader:word@"), "mail")) as made:
        for _ in range(2):
            assert depths(made) == {"mail": 1}
            assert read(made, JOBS_QUEUE_OLDEST) == {}
    assert caplog.text.count("age of queues cannot be read") == 1


def test_a_broker_that_is_down_is_one_clear_line_and_is_read_again_when_back(redis_server: RedisServer) -> None:
    with collector(options_for(redis_server.url, "mail")) as made:
        assert depths(made) == {"mail": 0}
        redis_server.kill()
        for _ in range(2):
            with pytest.raises(
                CollectorError, match=rf"^redis://127\.0\.0\.1:{redis_server.port}/0 cannot be read: "
            ) as down:
                made.collect()
            assert "\n" not in str(down.value)
        redis_server.start()
        send(make_app(redis_server.url), "mail")
        assert depths(made) == {"mail": 1}


def test_a_wrong_password_is_reported_without_the_password(redis_server: RedisServer) -> None:
    with Redis.from_url(redis_server.url) as client:
        client.config_set("requirepass", "right-one")
    wrong = redis_server.url.replace("redis://", "redis://:wrong-one@")
    with collector(options_for(wrong, "mail")) as made, pytest.raises(CollectorError) as refused:
        made.collect()
    assert "wrong-one" not in str(refused.value)
    right = redis_server.url.replace("redis://", "redis://:right-one@")
    with collector(options_for(right, "mail")) as made:
        assert depths(made) == {"mail": 0}


def test_the_next_host_of_a_broker_with_several_is_tried(redis_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        dead = f"redis://127.0.0.1:{unused.getsockname()[1]}/0"
    with collector(options_for(f"{dead};{redis_url}", "mail")) as made:
        assert depths(made) == {"mail": 0}


def test_a_broker_that_accepts_and_never_answers_times_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        with (
            collector(options_for(url, "mail", timeout=0.2)) as made,
            pytest.raises(CollectorError, match="cannot be read"),
        ):
            made.collect()


@pytest.mark.parametrize(
    "url", ["memory://", "filesystem://", "amqp://u:secret@127.0.0.1:1//", "sqs://key:secret@", "mongodb://u:secret@h"]
)
def test_other_transports_are_absent_with_a_reason(url: str) -> None:
    with (
        collector(options_for(url, "mail")) as made,
        pytest.raises(CollectorError, match="cannot be read: ") as refused,
    ):
        made.collect()
    assert "secret" not in str(refused.value)


OTHERS = sorted(
    name
    for name, path in TRANSPORT_ALIASES.items()
    if not path.startswith(("kombu.transport.redis", "kombu.transport.pyamqp", "kombu.transport.librabbitmq"))
)


@pytest.mark.parametrize("scheme", OTHERS)
def test_an_unsupported_transport_is_refused(scheme: str) -> None:
    """Whether or not the packages of the transport are installed."""
    with (
        collector(options_for(f"{scheme}://key:secret@host/", "mail")) as made,
        pytest.raises(CollectorError) as refused,
    ):
        made.collect()
    assert str(refused.value) == (
        f"{scheme}://***@host/ cannot be read: queues are read on Redis and RabbitMQ only, not on {scheme.lower()}"
    )


def test_an_application_on_an_unsupported_transport_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sqs_app.py").write_text("from celery import Celery\napp = Celery('x', broker='sqs://key:secret@')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    (made,) = collectors(CollectorOptions(celery_app="sqs_app:app"))
    with pytest.raises(CollectorError, match=r"broker URL cannot be read: queues are read on .* only, not on sqs$"):
        made.collect()


def test_an_application_that_cannot_be_loaded_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_app.py").write_text("raise RuntimeError('redis://u:secret@h')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SettingsError, match="--celery-app 'broken_app:app' cannot be loaded: RuntimeError") as refused:
        list(collectors(CollectorOptions(celery_app="broken_app:app")))
    assert "secret" not in str(refused.value)


def test_queues_without_a_broker_are_refused() -> None:
    with pytest.raises(SettingsError, match="--celery-queue needs"):
        list(collectors(CollectorOptions(celery_queues=("mail",))))


def test_kombu_queues_of_an_application_may_be_declared_in_any_form(redis_url: str) -> None:
    app = make_app(redis_url, task_queues=(Queue("a"), Queue("b", routing_key="x")))
    assert list(app.amqp.queues) == ["a", "b"]


# ------------------------------------------------------------------ age, acknowledgement, discovery


@pytest.fixture
def stamping() -> Iterator[None]:
    before_task_publish.connect(producer._add_timestamp, weak=False, dispatch_uid="test")
    yield
    before_task_publish.disconnect(dispatch_uid="test")


def test_the_oldest_message_is_the_next_one_to_run(redis_url: str, stamping: None) -> None:
    app = make_app(redis_url)
    with collector(options_for(redis_url, "mail", "empty")) as made:
        assert read(made, JOBS_QUEUE_OLDEST) == {}
        first, second, third = time.time(), 0.0, 0.0
        send(app, "mail", priority=9)
        second = time.time()
        send(app, "mail", priority=0)  # Redis serves priority 0 first
        third = time.time()
        send(app, "mail", priority=0)
        assert first < second <= read(made, JOBS_QUEUE_OLDEST)["mail"] <= third
        with Redis.from_url(redis_url) as client:
            client.delete("mail")
        assert first <= read(made, JOBS_QUEUE_OLDEST)["mail"] <= second


def test_a_message_without_a_stamp_has_no_age(redis_url: str) -> None:
    send(make_app(redis_url), "mail")
    with Redis.from_url(redis_url) as client:
        client.lpush("junk", "no message")
    with collector(options_for(redis_url, "mail", "junk")) as made:
        assert read(made, JOBS_QUEUE_OLDEST) == {}
        assert depths(made) == {"mail": 1, "junk": 1}


def test_delivered_messages_are_unacknowledged_until_they_are(redis_url: str) -> None:
    app = make_app(redis_url, broker_transport_options={"global_keyprefix": "pre:"})
    send(app, "mail", 2)
    with collector(CollectorOptions(celery_brokers=(Target("main", redis_url),), celery_queues=("mail",))) as plain:
        made = RedisQueues("main", "here", app.connection_for_read(), ["mail"], 2000, known())
        assert read(made, JOBS_QUEUE_UNACKNOWLEDGED) == {"": 0}
        with app.connection_for_read() as connection, connection.SimpleQueue("mail") as queue:
            message = queue.get(timeout=5)
            assert read(made, JOBS_QUEUE_UNACKNOWLEDGED) == {"": 1}
            assert depths(made) == {"mail": 1}
            assert read(plain, JOBS_QUEUE_UNACKNOWLEDGED) == {"": 0}, "another prefix is another broker"
            message.ack()
        assert read(made, JOBS_QUEUE_UNACKNOWLEDGED) == {"": 0}
        made.close()


def test_queues_bound_to_the_default_exchange_are_found(redis_url: str) -> None:
    app = make_app(redis_url)
    exchange = Exchange("celery", "direct")
    with app.connection_for_write() as connection:
        for name in ("celery", "mail", "w1@host.celery.pidbox", "celeryev.1"):
            Queue(name, exchange, routing_key=name)(connection.channel()).declare()
    send(app, "mail", 2)
    with collector(options_for(redis_url)) as made:
        assert depths(made) == {"celery": 0, "mail": 2}


def test_queues_bound_to_any_exchange_are_found_beside_the_named_ones(redis_url: str) -> None:
    """Celery makes an exchange for each queue that it does not know, such as a misspelt one."""
    app = make_app(redis_url)
    with app.connection_for_write() as connection:
        for exchange, queues in {
            "celery.pidbox": ["w1@host.celery.pidbox"],
            "reply.celery.pidbox": ["5b3c9d2e-0e3a-3c3e-9a35-1d1b3f0a9c11.reply.celery.pidbox"],
            "celeryev": ["celeryev.5b3c9d2e-0e3a-3c3e-9a35-1d1b3f0a9c11"],
            "video": ["video.high", "video.low"],
        }.items():
            for name in queues:
                Queue(name, Exchange(exchange, "direct"), routing_key=name)(connection.channel()).declare()
    send(app, "reprots", 3)
    with collector(options_for(redis_url, "reports")) as made:
        expected = {"reports": 0, "reprots": 3, "video.high": 0, "video.low": 0}
        assert depths(made) == expected, "the first reading finds them"
        assert read(made, JOBS_QUEUE_CONSUMERS) == {}, "Redis does not report them"
        send(app, "later")
        until(lambda: depths(made) == {**expected, "later": 1}, "the next scan to find it", seconds=10)


def test_bindings_among_many_keys_are_found_over_readings(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bindings, "KEYS_SCANNED", 100)
    with Redis.from_url(redis_url) as client, client.pipeline() as pipe:
        for number in range(5000):
            pipe.set(f"celery-task-meta-{number}", "result")
        pipe.execute()
    send(make_app(redis_url), "reprots", 3)
    with collector(options_for(redis_url, "reports")) as made:
        until(lambda: depths(made) == {"reports": 0, "reprots": 3}, "the scan to pass all keys")
        for _ in range(100):
            assert depths(made) == {"reports": 0, "reprots": 3}, "it stays while the scan begins again"


def test_without_permission_to_scan_the_rest_is_read(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    send(make_app(redis_server.url), "mail")
    with Redis.from_url(redis_server.url) as client:
        client.execute_command("ACL", "SETUSER", "reader", "on", ">word", "~*", "+@read", "+@connection", "-scan")
    with collector(options_for(redis_server.url.replace("://", "://reader:word@"), "mail")) as made:
        for _ in range(2):
            assert depths(made) == {"mail": 1}
    assert caplog.text.count("queues of other exchanges than celery cannot be found") == 1


def known(*names: str) -> Callable[[str], Sequence[str]]:
    """The queues of Celery that the registry directory knows."""
    return lambda system: names if system == "celery" else ("of another system",)


def test_queues_that_the_directory_knows_are_read_if_this_redis_has_them(redis_url: str) -> None:
    """A name may be another broker's queue, a routing key, or not a queue for tasks."""
    options = CollectorOptions(
        celery_brokers=(Target("main", redis_url),), recorded=known("celery", "elsewhere", "mail", "x.pidbox")
    )
    with Redis.from_url(redis_url) as client, collector(options) as made:
        assert depths(made) == {"celery": 0}
        client.lpush("mail", "{}")  # by another producer, without a binding
        assert depths(made) == {"celery": 0, "mail": 1}
        client.delete("mail")
        assert depths(made) == {"celery": 0, "mail": 0}, "a queue that was there is shown with 0"


MISSPELT = """
import sys
from celery import Celery
import jobmetrics
from jobmetrics.celery import instrument
jobmetrics.configure(dir=sys.argv[2])
app = Celery("shop", broker=sys.argv[1])
instrument(app)
for _ in range(3):
    app.send_task("shop.report", queue="reprots")
"""


def assert_the_misspelt_queue_is_shown(url: str, registry_dir: Path, consumers: float | None) -> None:
    """The exporter's options name no queue; a producer in another process has published to one."""
    subprocess.run([sys.executable, "-c", MISSPELT, url, str(registry_dir)], check=True, timeout=60)
    options = CollectorOptions(celery_brokers=(Target("main", url),))
    exporter = build(load({}, dir=str(registry_dir)), options, refresh=0.1)
    exporter.collectors.start()

    def shown(name: str) -> float | None:
        return next(
            (
                line.value
                for metric in exporter.scrape.collect()
                for line in metric.samples
                if line.name == name and line.labels.get("queue_name") == "reprots"
            ),
            None,
        )

    try:
        until(lambda: shown("jobs_queue_depth") == 3.0, "the depth of the misspelt queue")
        assert shown("jobs_published_total") == 3.0
        assert shown("jobs_queue_consumers") == consumers
    finally:
        exporter.close()


def test_a_misspelt_queue_is_shown_although_no_option_names_it(redis_url: str, registry_dir: Path) -> None:
    assert_the_misspelt_queue_is_shown(redis_url, registry_dir, consumers=None)


def test_a_misspelt_queue_on_rabbitmq_is_shown_without_consumers(rabbitmq_url: str, registry_dir: Path) -> None:
    assert_the_misspelt_queue_is_shown(rabbitmq_url, registry_dir, consumers=0.0)


# ------------------------------------------------------------------ sentinel and TLS


def test_a_sentinel_is_asked_for_its_master(redis_server: RedisServer, tmp_path: Path) -> None:
    (port,) = servers.free_ports(1)
    config = tmp_path / "sentinel.conf"
    config.write_text(f"port {port}\nbind 127.0.0.1\nsentinel monitor mine 127.0.0.1 {redis_server.port} 1\n")
    send(make_app(redis_server.url), "mail", 3)
    with process([servers.program("redis-server"), str(config), "--sentinel"], tmp_path / "log"):
        url = f"sentinel://127.0.0.1:{port}/0?master_name=mine"
        with collector(options_for(url, "mail")) as made:

            def answers() -> bool:
                try:
                    return depths(made) == {"mail": 3}
                except CollectorError:
                    return False

            until(answers, "the sentinel to know its master", seconds=20)


def test_a_tls_url_is_read(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        [
            *["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"],
            "-keyout",
            key,
            "-out",
            certificate,
        ],
        check=True,
        capture_output=True,
    )
    (port,) = servers.free_ports(1)
    options = ["--tls-port", str(port), "--tls-cert-file", str(certificate), "--tls-key-file", str(key)]
    with servers.redis_server(*options, "--tls-auth-clients", "no", "--tls-ca-cert-file", str(certificate)) as server:
        send(make_app(server.url), "mail", 2)
        url = f"rediss://127.0.0.1:{port}/0?ssl_cert_reqs=none"
        with collector(options_for(url, "mail")) as made:
            assert depths(made) == {"mail": 2}


# ------------------------------------------------------------------ RabbitMQ


def test_rabbitmq_reports_depth_and_consumers_of_classic_and_quorum_queues(rabbitmq_url: str) -> None:
    app = make_app(rabbitmq_url)
    with app.connection_for_write() as connection:
        channel = connection.channel()
        channel.queue_declare("classic", durable=True, auto_delete=False)
        channel.queue_declare("quorum", durable=True, auto_delete=False, arguments={"x-queue-type": "quorum"})
        channel.basic_consume("classic", callback=lambda _: None)
        with collector(options_for(rabbitmq_url, "classic", "quorum")) as made:
            assert read(made, JOBS_QUEUE_CONSUMERS) == {"classic": 1, "quorum": 0}
            channel.basic_publish(channel.prepare_message(b"x", content_encoding="binary"), "", "quorum")
            until(lambda: depths(made) == {"classic": 0, "quorum": 1}, "one message")
            assert read(made, JOBS_QUEUE_UNACKNOWLEDGED) == {}
            assert read(made, JOBS_QUEUE_OLDEST) == {}


def test_the_collector_never_declares_a_rabbitmq_queue(rabbitmq_url: str) -> None:
    with make_app(rabbitmq_url).connection_for_write() as connection:
        connection.channel().queue_declare("there", durable=True, auto_delete=False)
        with collector(options_for(rabbitmq_url, "missing", "there", "gone")) as made:
            for _ in range(2):
                assert depths(made) == {"there": 0}
        with pytest.raises(NotFound):
            connection.channel().queue_declare("missing", passive=True)
        assert connection.channel().queue_declare("there", passive=True).consumer_count == 0


def test_rabbitmq_queues_that_the_directory_knows_are_read_and_missing_ones_harm_no_other(
    rabbitmq_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "jobmetrics")
    gone = [f"gone{number}" for number in range(2 * ASKED_AGAIN)]
    options = CollectorOptions(
        celery_brokers=(Target("main", rabbitmq_url),),
        celery_queues=("named",),
        recorded=known(*gone, "there", "later"),
    )
    with make_app(rabbitmq_url).connection_for_write() as connection, collector(options) as made:
        connection.channel().queue_declare("there", durable=True, auto_delete=False)
        connection.channel().queue_declare("gone3", exclusive=True)  # unreadable for every other connection
        for _ in range(3):
            assert depths(made) == {"there": 0}
        assert caplog.text.count("has no queue") == 1, "only the named queue is mentioned"
        with pytest.raises(NotFound):
            connection.channel().queue_declare("gone0", passive=True)
        connection.channel().queue_declare("later", durable=True, auto_delete=False)
        asked = [depths(made) for _ in range(3)]
        assert asked[-1] == {"there": 0, "later": 0}, "missing ones are asked for again in turn"
        connection.channel().queue_delete("later")
        assert depths(made) == {"there": 0}
        for queue in ("there", "gone3"):
            connection.channel().queue_delete(queue)


def test_rabbitmq_that_is_down_is_one_clear_line(rabbitmq_url: str) -> None:
    wrong = rabbitmq_url.replace("guest:guest", "guest:wrong-one")
    with collector(options_for(wrong, "mail")) as made, pytest.raises(CollectorError, match="cannot be read") as error:
        made.collect()
    assert "wrong-one" not in str(error.value)
    assert "\n" not in str(error.value)


def test_several_brokers_are_read_by_name(redis_url: str, rabbitmq_url: str) -> None:
    send(make_app(redis_url), "mail")
    brokers = (Target("cache", redis_url), Target("bus", rabbitmq_url))
    found = {}
    for made in collectors(CollectorOptions(celery_brokers=brokers, celery_queues=("mail",))):
        found[made.broker] = depths(made)
        made.close()
    assert found == {"cache": {"mail": 1}, "bus": {}}
