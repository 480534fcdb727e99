"""The Celery application of all worlds: `celery -A tests.incidents.celery_app worker`."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

from tests.incidents import jobs

app = Celery("incidents")
app.conf.update(
    broker_url=os.environ.get("CELERY_BROKER_URL"),
    broker_connection_retry_on_startup=True,
    imports=("jobmetrics.celery.plugin",),
    task_ignore_result=True,
    worker_prefetch_multiplier=1,
    beat_schedule={"tidy": {"task": "tests.incidents.jobs.tidy", "schedule": 20.0, "options": {"queue": "mail"}}},
    beat_max_loop_interval=5,
)

for job in (jobs.resize, jobs.pay, jobs.report, jobs.crash, jobs.tidy):
    app.task(name=f"tests.incidents.jobs.{job.__name__}")(job)


@app.task(bind=True, name="tests.incidents.jobs.call_partner", max_retries=None)
def call_partner(self: Any, succeed: bool = False, countdown: float | None = None) -> None:
    """Retry until the world is mended. countdown: seconds; None for Celery's default delay."""
    if not succeed and not jobs.released():
        raise self.retry(countdown=countdown)
