"""The Celery tasks of the integration tests: they write a ledger, and end in every way a task can.

A line of the ledger is TASK:WORD; the first line of every execution has the word start.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from celery import Celery, Task
from celery.exceptions import Ignore, Reject
from celery.signals import celeryd_init, task_postrun, worker_process_init, worker_ready

from tests.integration import execution_ledger

RETRY_ON_WORKER_LOST = hasattr(Task, "retry_on_worker_lost")  # Celery 5.7

app = Celery("jobs", broker=os.environ.get("BROKER", "redis://127.0.0.1:1/0"))
app.conf.update(
    imports=("jobmetrics.celery.plugin",),
    result_backend=os.environ.get("RESULTS"),
    task_default_queue="jobs",
    broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=1,
    worker_lost_wait=1.0,
    worker_soft_shutdown_timeout=float(os.environ.get("SOFT_SHUTDOWN", "0")),
    **json.loads(os.environ.get("CONF", "{}")),
)


def short(name: str) -> str:
    return name.rpartition(".")[2]


@celeryd_init.connect(weak=False)
def _note_worker(**_: Any) -> None:
    os.environ["WORKER_PID"] = str(os.getpid())


def write(task: Any, word: str) -> None:
    execution_ledger.write(f"{short(task.name)}:{word}")


def seen(task: Any) -> bool:
    """Whether this job has started before; a file remembers it, since no memory survives these tasks."""
    try:
        os.close(os.open(f"{os.environ['LEDGER']}.{task.request.id}", os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return True
    return False


@app.task(bind=True)
def succeed(self: Any, seconds: float = 0.0) -> str:
    write(self, "start")
    time.sleep(seconds)
    write(self, "success")
    return "done"


@app.task(bind=True)
def fail(self: Any) -> None:
    write(self, "start")
    raise ValueError("on purpose")


@app.task(bind=True, throws=(LookupError,))
def throw(self: Any) -> None:
    write(self, "start")
    raise KeyError("expected")


@app.task(bind=True, max_retries=2)
def retry(self: Any, ends_well: bool) -> None:
    write(self, "start")
    if ends_well and self.request.retries == 2:
        return
    raise self.retry(exc=KeyError("again"), countdown=0)


@app.task(bind=True, autoretry_for=(OSError,), max_retries=1, default_retry_delay=0)
def autoretry(self: Any) -> None:
    write(self, "start")
    raise ConnectionError("always")


@app.task(bind=True)
def ignore(self: Any) -> None:
    write(self, "start")
    raise Ignore


@app.task(bind=True)
def replace(self: Any) -> None:
    write(self, "start")
    self.replace(succeed.si())


@app.task(bind=True, acks_late=True)
def reject(self: Any) -> None:
    write(self, "start")
    raise Reject("no", requeue=False)


@app.task(bind=True, acks_late=True)
def reject_once(self: Any) -> None:
    write(self, "start")
    if not seen(self):
        raise Reject("later", requeue=True)


@app.task(bind=True, soft_time_limit=1)
def soft_limit(self: Any, seconds: float) -> None:
    write(self, "start")
    time.sleep(seconds)
    write(self, "success")


@app.task(bind=True, time_limit=1)
def hard_limit(self: Any, seconds: float) -> None:
    write(self, "start")
    time.sleep(seconds)
    write(self, "success")


@app.task(bind=True, time_limit=1)
def hard_limit_deaf(self: Any) -> None:
    """Ignores the soft limit, so it is killed."""
    write(self, "start")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(30)


@app.task(bind=True)
def kill_itself(self: Any) -> None:
    write(self, "start")
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(bind=True)
def leave(self: Any) -> None:
    write(self, "start")
    os._exit(3)


@app.task(bind=True)
def killed_after_its_end(self: Any) -> None:
    write(self, "start")


@app.task(bind=True, acks_late=True, reject_on_worker_lost=True)
def lost_once(self: Any) -> None:
    write(self, "start")
    if not seen(self):
        os.kill(os.getpid(), signal.SIGKILL)


if RETRY_ON_WORKER_LOST:

    @app.task(bind=True, retry_on_worker_lost=True, default_retry_delay=0)
    def lost_and_retried(self: Any) -> None:
        write(self, "start")
        if not seen(self):
            os.kill(os.getpid(), signal.SIGKILL)


@app.task(bind=True)
def system_exit(self: Any) -> None:
    write(self, "start")
    raise SystemExit(1)


@app.task(bind=True)
def interrupt(self: Any) -> None:
    write(self, "start")
    raise KeyboardInterrupt


@app.task(bind=True)
def out_of_memory(self: Any) -> None:
    write(self, "start")
    raise MemoryError


@app.task(bind=True)
def store_fails(self: Any) -> None:
    write(self, "start")


@app.task(bind=True)
def wait(self: Any) -> None:
    write(self, "start")
    time.sleep(600)


def _hold() -> None:
    """Run until the test releases the tasks."""
    deadline = time.monotonic() + 120  # limit for a hung test
    while not Path(os.environ["LEDGER"] + ".released").exists() and time.monotonic() < deadline:
        time.sleep(0.02)


@app.task(bind=True, acks_late=True)
def hold(self: Any) -> None:
    write(self, "start")
    _hold()


@app.task(bind=True)
def hold_acknowledged(self: Any) -> None:
    write(self, "start")
    _hold()


@app.task(bind=True, acks_late=True)
def last_of_its_worker(self: Any) -> None:
    """Succeeds; then its worker is killed, once, before it could acknowledge."""
    write(self, "start")


@app.task(bind=True)
def eager(self: Any) -> None:
    """Runs another task in place, which is not a separate execution."""
    write(self, "start")
    quiet.apply()


@app.task
def quiet(*_: Any) -> None:
    """Writes nothing: it runs inside another execution."""


@app.task(bind=True)
def errback(self: Any, _: str) -> None:
    write(self, "start")


@app.task(bind=True, max_retries=1)
def retry_once(self: Any, number: int) -> int:
    write(self, "start")
    if self.request.retries == 0:
        raise self.retry(countdown=0)
    return number


@app.task(bind=True)
def tick(self: Any) -> None:
    """For tests with many executions."""
    write(self, "start")


class HostileError(Exception):
    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    __str__ = __repr__


class UnpicklableError(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__("two arguments, one of which pickle never sees")
        self.held = lambda: None

    def __reduce__(self) -> Any:
        raise TypeError("no pickle")


@app.task(bind=True)
def hostile_error(self: Any) -> None:
    write(self, "start")
    raise HostileError


@app.task(bind=True)
def unpicklable_error(self: Any) -> None:
    write(self, "start")
    raise UnpicklableError(1, 2)


@app.task(bind=True, name='tests."quoted"\n{name}\\é.' + "x" * 300)
def hostile_name(self: Any) -> None:
    execution_ledger.write("hostile_name:start")


@app.task(bind=True)
def swallow(self: Any, *args: Any, **kwargs: Any) -> None:
    write(self, "start")


@app.task(bind=True)
def add(self: Any, *numbers: Any) -> int:
    write(self, "start")
    return sum(n if isinstance(n, int) else sum(n) for n in numbers)


@worker_ready.connect(weak=False)
@worker_process_init.connect(weak=False)
def _connect_last(**_: Any) -> None:
    """Connect after the plugin's handlers: this handler runs after the end was recorded."""
    task_postrun.connect(_kill_after_end, weak=False)


def _kill_after_end(task: Any = None, **_: Any) -> None:
    if task.name == killed_after_its_end.name:
        os.kill(os.getpid(), signal.SIGKILL)
    if task.name == last_of_its_worker.name and not seen(task):
        os.kill(int(os.environ["WORKER_PID"]), signal.SIGKILL)
        time.sleep(60)  # in a child, until it is killed with its worker
