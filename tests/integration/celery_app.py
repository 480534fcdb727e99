"""The Celery app of the integration tests: its tasks write a ledger and end in every way a task can."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from celery import Celery
from celery.signals import task_postrun, worker_process_init

from tests.integration import ledger

app = Celery("jobs", broker=os.environ.get("BROKER", "redis://127.0.0.1:1/0"))
app.conf.update(
    imports=("jobmetrics.celery.plugin",),
    result_backend=os.environ.get("RESULTS"),
    task_default_queue="jobs",
    broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=1,
)


@app.task
def succeed(seconds: float = 0.0) -> str:
    ledger.write("start")
    time.sleep(seconds)
    ledger.write("success")
    return "done"


@app.task
def fail() -> None:
    ledger.write("failure")
    raise ValueError("on purpose")


@app.task(bind=True, max_retries=2)
def retry(self: Any, ends_well: bool) -> None:
    if ends_well and self.request.retries == 2:
        ledger.write("success")
        return
    ledger.write("retry" if self.request.retries < 2 else "failure")
    raise self.retry(exc=KeyError("again"), countdown=0)


@app.task
def kill_itself() -> None:
    ledger.write("killed")
    os.kill(os.getpid(), signal.SIGKILL)


@app.task
def killed_after_its_end() -> None:
    ledger.write("success")


@worker_process_init.connect(weak=False)
def _connect_last(**_: Any) -> None:
    """Connected in the child, so after the plugin's handlers: what it does comes after the end was recorded."""
    task_postrun.connect(_kill_after_end, weak=False)


def _kill_after_end(task: Any = None, **_: Any) -> None:
    if task.name == killed_after_its_end.name:
        os.kill(os.getpid(), signal.SIGKILL)
