"""The process that sends jobs, `python -m jobmetrics.demo.producer`, instrumented as a web process is.

It goes on until SIGTERM and then ends after the round it is in, so that what it wrote down as sent is
what it sent.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable

from jobmetrics.demo import ledger
from jobmetrics.demo.config import DemoConfig, load
from jobmetrics.demo.errors import Interrupted
from jobmetrics.demo.interrupts import Interrupts
from shop import orders

ROUND_SECONDS = 0.4
DAMAGE_EVERY = 2
"""In one of so many rounds a file is damaged, so that a short run shows failures of each kind."""
MAX_OUTSTANDING = 24
"""Jobs of one system sent and not over; beyond that its rounds pause, so that the drain stays short."""
KEEP_SECONDS = 600

Send = Callable[[orders.Order, str], str]
"""Publish an order under a job id; returns the job type."""


def celery_sender(config: DemoConfig) -> Send:
    """Send through the Celery application."""
    from celery_app import tasks
    from jobmetrics.celery import instrument
    from jobmetrics.demo.celery_app import app

    instrument(app)

    def send(order: orders.Order, job_id: str) -> str:
        task = getattr(tasks, order.job)
        task.apply_async(order.arguments, task_id=job_id, queue=config.celery_queue, retry=False)
        return str(task.name)

    return send


def rq_sender(config: DemoConfig) -> Send:
    """Send through an RQ queue.

    Retries come at once: their pauses would need RQ's scheduler, whose key on a shared server cannot be told
    from other people's.
    """
    from redis import Redis
    from rq import Queue, Retry

    from jobmetrics.rq import instrument_queue
    from rq_app import jobs

    queue = instrument_queue(Queue(config.rq_queue, connection=Redis.from_url(config.redis_url or "")))

    def send(order: orders.Order, job_id: str) -> str:
        job = queue.enqueue(
            getattr(jobs, order.job),
            args=order.arguments,
            job_id=job_id,
            job_timeout=60,
            result_ttl=KEEP_SECONDS,
            failure_ttl=KEEP_SECONDS,
            retry=Retry(max=jobs.RETRIES[order.job].max) if order.job in jobs.RETRIES else None,
        )
        return str(job.func_name)

    return send


def main() -> int:
    """Send rounds until a signal comes; returns the exit code."""
    with Interrupts() as interrupts:
        config = load()
        books = ledger.Books(config.sent, config.ledger)
        makers = {"celery": celery_sender, "rq": rq_sender}
        senders = {system: makers[system](config) for system in config.systems}
        rounds = {system: orders.rounds(config.shop, DAMAGE_EVERY) for system in senders}
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
