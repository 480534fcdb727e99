"""Celery's prefork pool on a real RabbitMQ: the effects of real acknowledgements and redeliveries."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.celery_rows import CELERY, OF_BROKERS, PREFORK, Row, check, some
from tests.integration.celery_workers import TASKS, Worker, running
from tests.support.readings import counts, until, values
from tests.support.servers import RabbitMQServer, RedisServer

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def worker(
    _shared_rabbitmq: RabbitMQServer, _shared_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Worker]:
    _shared_redis.flush()
    base: Path = tmp_path_factory.mktemp("rabbitmq")
    vhost = base.name
    _shared_rabbitmq.add_vhost(vhost)
    with running(
        _shared_rabbitmq.url_of(vhost), _shared_redis.url, base, "--pool=prefork", "--concurrency=2"
    ) as started:
        yield started
    _shared_rabbitmq.delete_vhost(vhost)
    assert "Signal handler" not in started.log


@pytest.mark.parametrize("row", some(PREFORK, OF_BROKERS), ids=lambda row: row.name)
def test_row(worker: Worker, row: Row) -> None:
    check(worker, row)


@pytest.mark.skipif(CELERY < (5, 5), reason="Celery 5.5 brought delays by the broker itself")
def test_jobs_delayed_by_the_broker_show_their_queue(rabbitmq_url: str, redis_url: str, tmp_path: Path) -> None:
    conf = {"task_default_queue_type": "quorum", "task_default_exchange_type": "topic"}
    with running(rabbitmq_url, redis_url, tmp_path, "--concurrency=1", CONF=json.dumps(conf)) as worker:
        worker.app.conf.update(conf)
        for countdown in (1, 2):
            worker.send("succeed", countdown=countdown)
        until(lambda: sum(worker.counted("jobs_total").values()) == 2, "both jobs")
        job = ("celery", f"{TASKS}.succeed", "jobs")
        assert values(worker.directory, "jobs_total") == {(*job, "success"): 2}
        assert counts(worker.directory, "jobs_queue_wait_seconds") == {job: 2}
        assert values(worker.directory, "jobs_published_total") == {job: 2}
        worker.assert_consistent()
