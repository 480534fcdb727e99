"""Celery's queues on RabbitMQ, classic and quorum: a passive declare asks, and neither creates nor consumes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from amqp.exceptions import NotFound

from jobmetrics.celery.broker_reading import BrokerQueues
from jobmetrics.celery.messages import SYSTEM
from jobmetrics.collecting import Reading, capped
from jobmetrics.families import JOBS_QUEUE_CONSUMERS, JOBS_QUEUE_DEPTH, OVERFLOW

logger = logging.getLogger("jobmetrics")


class AmqpQueues(BrokerQueues):
    """Reads one virtual host. What is ready counts as depth; AMQP tells nobody what is unacknowledged or how old."""

    def __init__(self, broker: str, where: str, connection: Any, queues: Sequence[str], max_queues: int) -> None:
        super().__init__(broker, where, connection, queues)
        _, rest = capped(self._queues, max_queues)
        self._rest = frozenset(rest)
        self._missing: set[str] = set()

    def _read(self) -> list[Reading]:
        readings = []
        others = None  # messages in the queues that share a series
        for queue in self._queues:
            try:
                found = self._connected().queue_declare(queue=queue, passive=True)
            except NotFound:
                self._channel = None  # the broker closes it with this answer
                self._log_missing(queue)
                continue
            self._missing.discard(queue)
            if queue in self._rest:
                others = (others or 0.0) + float(found.message_count)
                continue
            labels = (SYSTEM, self.broker, queue)
            readings.append(Reading(JOBS_QUEUE_DEPTH, labels, float(found.message_count)))
            readings.append(Reading(JOBS_QUEUE_CONSUMERS, labels, float(found.consumer_count)))
        if others is not None:
            readings.append(Reading(JOBS_QUEUE_DEPTH, (SYSTEM, self.broker, OVERFLOW), others))
        return readings

    def _log_missing(self, queue: str) -> None:
        if queue not in self._missing:
            self._missing.add(queue)
            logger.info("jobmetrics: %s has no queue %r yet; nothing is shown for it", self._where, queue)
