"""Send jobs that no worker can run: `python -m tests.e2e.send_trouble QUEUE`.

The examples' producers send jobs that fail, are retried, take long or kill their process; this adds jobs that
never start and, in QUEUE, jobs that no worker takes.
"""

from __future__ import annotations

import os
import sys
from datetime import datetime, timedelta, timezone

from redis import Redis
from rq import Queue

from celery_app import app, tasks
from jobmetrics.celery import instrument
from jobmetrics.rq import instrument_queue
from rq_app import jobs


def main(unattended: str) -> None:
    instrument(app)
    instrument_queue(Queue)
    app.send_task("celery_app.tasks.forgotten")
    tasks.clean_up.apply_async((300.0,), expires=datetime.now(timezone.utc) - timedelta(minutes=1))
    for _ in range(3):
        tasks.clean_up.apply_async((300.0,), queue=unattended)
    queue = Queue(unattended, connection=Redis.from_url(os.environ["RQ_REDIS_URL"]))
    queue.enqueue(jobs.clean_up, 300.0)
    queue.enqueue_at(datetime.now(timezone.utc) - timedelta(hours=1), jobs.clean_up, 300.0)


if __name__ == "__main__":
    main(sys.argv[1])
