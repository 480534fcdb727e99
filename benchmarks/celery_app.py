"""The app of the Celery benchmarks: a task that does nothing and one that waits 10 ms."""

from __future__ import annotations

import os
import time

from celery import Celery
from celery.signals import worker_process_init

app = Celery("bench", broker=os.environ.get("BROKER", "redis://127.0.0.1:1/0"))
app.conf.update(
    task_ignore_result=True,
    imports=("jobmetrics.celery.plugin",) if os.environ.get("PLUGIN") else (),
    task_default_queue="idle",
    broker_connection_retry_on_startup=True,
)


@app.task(name="empty")
def empty() -> None:
    return None


@app.task(name="wait")
def wait() -> None:
    time.sleep(0.01)


if os.environ.get("OPENTELEMETRY"):
    from benchmarks.celery_spans import instrument

    # In each child, as OpenTelemetry's documentation requires: the exporting thread does not survive a fork.
    worker_process_init.connect(lambda **_: instrument(), weak=False)
