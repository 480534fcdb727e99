"""A producer, `python -m rq_app.produce`. It is instrumented as in a web process that enqueues jobs."""

from __future__ import annotations

import os
import sys

from redis import Redis
from rq import Queue

from jobmetrics.rq import instrument_queue
from rq_app import jobs
from shop.orders import Order
from shop.producing import produce

HIGH = ("import_orders",)
"""Jobs for the queue `high`, which workers empty first."""

connection = Redis.from_url(os.environ.get("RQ_REDIS_URL", "redis://localhost:6379/0"))
high, default = Queue("high", connection=connection), Queue("default", connection=connection)


def send(order: Order) -> None:
    """Enqueue one job."""
    queue = high if order.job in HIGH else default
    queue.enqueue(getattr(jobs, order.job), *order.arguments, retry=jobs.RETRIES.get(order.job), failure_ttl=3600)


if __name__ == "__main__":
    instrument_queue(Queue)
    sys.exit(produce(send))
