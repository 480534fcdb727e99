"""Celery tasks that use every API inside a job."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
import time
from typing import Any

from celery import Celery, shared_task

from jobmetrics import Counter, add_items, current_job, duration, increment, observe, set_gauge, stage, timed_job
from tests.integration import execution_ledger

ROWS = Counter("inside_rows", "Rows.", ["table"])

app = Celery("inside", broker=os.environ.get("BROKER", "redis://127.0.0.1:1/0"))
app.conf.update(
    imports=("jobmetrics.celery.plugin",),
    task_default_queue="jobs",
    broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=1,
)
app.set_default()

_meeting = threading.Barrier(2)


@timed_job(target=60.0)
def helper() -> None:
    """Part of many jobs; it has its own target."""


@app.task
@timed_job(target=30.0)
def below() -> None:
    helper()


@app.task(name="renamed.below")
@timed_job(target=30.0)
def renamed_below() -> None:
    helper()


@timed_job(target=30.0)
@app.task
def above() -> None:
    helper()


@shared_task
@timed_job(target=30.0)
def shared_below() -> None:
    helper()


@timed_job(target=30.0)
@shared_task
def shared_above() -> None:
    helper()


@app.task
def undecorated() -> None:
    helper()


@app.task
@timed_job(target=0.001)
def too_late() -> None:
    time.sleep(0.01)


@app.task
@timed_job
def needs(one: int, *, two: int = 0) -> None:
    """A task with two arguments, which Celery checks when the task is sent."""


@app.task(bind=True)
def parts(self: Any) -> None:
    with stage("download"):
        add_items(3)
    job = current_job()
    assert job is not None
    execution_ledger.write(f"{job.system}|{job.job_type}|{job.queue_name}|{job.id == self.request.id}")
    asyncio.run(_aparts())
    thread = threading.Thread(target=contextvars.copy_context().run, args=(add_items, 10))
    thread.start()
    thread.join()


@stage("parse")
async def _aparts() -> None:
    await asyncio.gather(*(asyncio.create_task(_one_item()) for _ in range(4)))


async def _one_item() -> None:
    await asyncio.sleep(0)
    add_items()


def _write_current_job() -> None:
    execution_ledger.write(str(current_job()))


@app.task
def outside() -> None:
    """Write the current job that a thread without the job's context sees."""
    thread = threading.Thread(target=contextvars.Context().run, args=(_write_current_job,))
    thread.start()
    thread.join()


@app.task
def own_metrics() -> None:
    ROWS.labels("orders").inc(3)
    increment("inside_orders", shop="a")
    set_gauge("inside_level", 2.5)
    observe("inside_size_bytes", 100)
    with duration("inside_load", table="orders"):
        pass


@app.task
def misuse() -> str:
    ROWS.labels("a", "b").inc()
    ROWS.labels(tabel="a").inc()
    ROWS.inc()
    ROWS.labels("orders").inc(-1)
    increment("two words")
    return "done"


@app.task
def burn(seconds: float) -> None:
    """Use this many seconds of processor time."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


@app.task
def burn_together(seconds: float) -> None:
    """Like `burn`, with two tasks at the same time in one process."""
    _meeting.wait(60)
    burn(seconds)
    _meeting.wait(60)
