"""The process that sends jobs, `python -m jobmetrics.demo.producer`, instrumented as a web process is.

It goes on until SIGTERM and then ends after the round it is in, so that what it wrote down as sent is
what it sent.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable
from typing import Any

from jobmetrics.demo import ledger, materials, plan
from jobmetrics.demo.config import DemoConfig, load
from jobmetrics.demo.errors import Interrupted
from jobmetrics.demo.interrupts import Interrupts

ROUND_SECONDS = 0.4
MAX_OUTSTANDING = 24
"""Jobs of one system sent and not over; beyond that its rounds pause, so that the drain stays short."""
RQ_MAX_RETRIES = 3
KEEP_SECONDS = 600

Send = Callable[[plan.Order, str], str]
"""Publish an order under a job id; returns the job type."""


def celery_sender(config: DemoConfig) -> Send:
    """Send through the demo's Celery application."""
    from jobmetrics.celery import instrument
    from jobmetrics.demo.celery_app import app, task_name

    instrument(app)

    def send(order: plan.Order, job_id: str) -> str:
        name = task_name(order.job)
        app.tasks[name].apply_async(order.arguments, task_id=job_id, queue=config.celery_queue, retry=False)
        return name

    return send


def rq_sender(config: DemoConfig) -> Send:
    """Send through an RQ queue."""
    from redis import Redis
    from rq import Queue, Retry

    from jobmetrics.demo import rq_jobs

    queue = Queue(config.rq_queue, connection=Redis.from_url(config.redis_url or ""))

    def send(order: plan.Order, job_id: str) -> str:
        options: dict[str, Any] = {"retry": Retry(max=RQ_MAX_RETRIES)} if order.retries else {}
        queue.enqueue(
            getattr(rq_jobs, order.job),
            args=order.arguments,
            job_id=job_id,
            job_timeout=60,
            result_ttl=KEEP_SECONDS,
            failure_ttl=KEEP_SECONDS,
            **options,
        )
        return rq_jobs.job_path(order.job)

    return send


def main() -> int:
    """Send rounds until a signal comes; returns the exit code."""
    with Interrupts() as interrupts:
        config = load()
        books = ledger.Books(config.sent, config.ledger)
        stock = materials.load(config.home)
        makers = {"celery": celery_sender, "rq": rq_sender}
        senders = {system: makers[system](config) for system in config.systems}
        rounds = {system: plan.rounds(stock, config.home / "work" / system) for system in senders}
        try:
            while True:
                books.update()
                for system, send in senders.items():
                    if books.outstanding(system) >= MAX_OUTSTANDING:
                        continue
                    for order in next(rounds[system]):
                        job_id = f"{config.run}-{uuid.uuid4()}"
                        job_type = send(order, job_id)
                        ledger.append(config.sent, ledger.Sent(system, job_type, job_id))
                interrupts.pause(ROUND_SECONDS)
        except Interrupted:
            return 0


if __name__ == "__main__":
    sys.exit(main())
