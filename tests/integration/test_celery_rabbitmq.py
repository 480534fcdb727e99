"""Celery's prefork pool on a real RabbitMQ: what a broker with real acknowledgements and redeliveries changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.celery_rows import PREFORK, Row, check, rows
from tests.integration.celery_workers import Worker, running
from tests.servers import RabbitMQServer, RedisServer

# The broker itself drops a message that has expired: no worker hears of it.
BUT = frozenset({"expired"})


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


@pytest.mark.parametrize("row", rows(PREFORK, BUT), ids=lambda row: row.name)
def test_row(worker: Worker, row: Row) -> None:
    check(worker, row)
