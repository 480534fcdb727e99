"""The examples' jobs as the demo runs them, each writing to the ledger, and the producer that sends them.

The Celery worker loads `app` from this module, and the RQ worker loads `LedgerJob`. `python -m demo.workload` is the
producer. The workers are instrumented as in an application: by the setting `imports`, and by the worker class.
"""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from celery import Task
from celery.exceptions import Retry
from celery.signals import worker_ready
from kombu.transport import filesystem
from kombu.utils.json import dumps
from rq.job import Job

from celery_app import app
from demo import ledger
from demo.redis_cleanup import celery_url
from demo.services import Interrupted, Interrupts
from shop import orders

__all__ = ["FileTransport", "LedgerJob", "LedgerTask", "app", "celery_settings"]

ROUND_SECONDS = 0.4
DAMAGE_EVERY = 2
"""One file is damaged in this number of rounds, so that a short run shows failures of each kind."""
KILL_EVERY, FIRST_KILL = 50, 2
"""Rounds between two jobs that kill their process, and the first round with such a job."""
MAX_OUTSTANDING = 24
"""Jobs of one system that may be outstanding. At this number its rounds pause, so that the drain stays short."""
KEEP_SECONDS = 600
POLLING_SECONDS = 0.1


# ------------------------------------------------------------------ Celery


class FileChannel(filesystem.Channel):
    """kombu's channel over files, with messages that are complete when they appear.

    kombu 5.7 opens a message under its final name before it writes it. A worker can then read an empty message, and its
    consumer fails (transport/filesystem.py, Channel._put).
    """

    def _put(self, queue: str, payload: dict[str, Any], **kwargs: Any) -> None:
        name = f"{round(time.monotonic() * 1000)}_{uuid.uuid4()}.{queue}.msg"
        folder = Path(self.data_folder_out)
        draft = folder / f"{name}.draft"  # no queue reads this name
        draft.write_text(dumps(payload), encoding="utf-8")
        draft.rename(folder / name)


class FileTransport(filesystem.Transport):
    """The transport without Redis."""

    Channel = FileChannel


def celery_settings(run: ledger.Run) -> dict[str, Any]:
    """The settings of this run that differ from the application's."""
    if run.redis_url is None:
        messages, control = run.home / "messages", run.home / "control"
        for folder in (messages, control):
            folder.mkdir(exist_ok=True)
        broker = {
            "broker_url": "filesystem://",
            "broker_transport": f"{__name__}:{FileTransport.__name__}",
            "broker_transport_options": {
                "data_folder_in": str(messages),
                "data_folder_out": str(messages),
                "control_folder": str(control),
                "polling_interval": POLLING_SECONDS,
            },
        }
    else:
        broker = {
            "broker_url": celery_url(run.redis_url),
            # By default, all queues of a server share the keys of unacknowledged messages, and it may have other users.
            "broker_transport_options": {
                "unacked_key": f"unacked-{run.id}",
                "unacked_index_key": f"unacked-index-{run.id}",
                "unacked_mutex_key": f"unacked-mutex-{run.id}",
            },
        }
    return {
        **broker,
        "task_default_queue": run.celery_queue,
        "task_routes": {},
        "worker_enable_remote_control": False,
        "worker_hijack_root_logger": False,
    }


class LedgerTask(Task):
    """A task that writes a line about each of its executions."""

    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> object:
        """Run the task. Workers call this method instead of `run` if a task class defines it."""
        with ledger.execution(RUN.ledger, "celery", self.name, self.request.id, _outcome):
            return self.run(*args, **kwargs)


def _outcome(error: BaseException) -> str:
    return ledger.RETRY if isinstance(error, Retry) else ledger.FAILURE


def _say_ready(**_: object) -> None:
    RUN.celery_ready.touch()


RUN = ledger.Run.load()
app.task_cls = LedgerTask  # before the application makes its first task
app.conf.update(celery_settings(RUN))
worker_ready.connect(_say_ready, weak=False, dispatch_uid="demo-ready")


# ------------------------------------------------------------------ RQ


class LedgerJob(Job):
    """A job that writes a line about each of its executions."""

    def perform(self) -> Any:
        with ledger.execution(RUN.ledger, "rq", str(self.func_name), self.id, self._outcome):
            return super().perform()

    def _outcome(self, error: BaseException) -> str:
        # RQ retries after any exception while the job has retries left (Job.should_retry).
        return ledger.RETRY if self.retries_left else ledger.FAILURE


# ------------------------------------------------------------------ the producer

Send = Callable[[orders.Order, str], str]
"""Publish an order under a job id; returns the job type."""


def celery_sender(run: ledger.Run) -> Send:
    """Send through the Celery application, instrumented as in a web process."""
    from celery_app import tasks
    from jobmetrics.celery import instrument

    instrument(app)

    def send(order: orders.Order, job_id: str) -> str:
        task = getattr(tasks, order.job)
        task.apply_async(order.arguments, task_id=job_id, queue=run.celery_queue, retry=False)
        return str(task.name)

    return send


def rq_sender(run: ledger.Run) -> Send:
    """Send through an RQ queue.

    Retries have no delay: it would need RQ's scheduler, which has a key without the run's id.
    """
    from redis import Redis
    from rq import Queue
    from rq import Retry as Retries

    from jobmetrics.rq import instrument_queue
    from rq_app import jobs

    queue = instrument_queue(Queue(run.rq_queue, connection=Redis.from_url(run.redis_url or "")))

    def send(order: orders.Order, job_id: str) -> str:
        job = queue.enqueue(
            getattr(jobs, order.job),
            args=order.arguments,
            job_id=job_id,
            job_timeout=60,
            result_ttl=KEEP_SECONDS,
            failure_ttl=KEEP_SECONDS,
            retry=Retries(max=jobs.RETRIES[order.job].max) if order.job in jobs.RETRIES else None,
        )
        return str(job.func_name)

    return send


def produce() -> int:
    """Send rounds until a signal arrives, and end after the current round; returns the exit code."""
    with Interrupts() as interrupts:
        read = ledger.Ledger(RUN)
        makers = {"celery": celery_sender, "rq": rq_sender}
        senders = {system: makers[system](RUN) for system in RUN.queues}
        rounds = {system: enumerate(orders.rounds(RUN.shop, DAMAGE_EVERY), 1) for system in senders}
        try:
            while True:
                read.update()
                for system, send in senders.items():
                    if read.outstanding(system) >= MAX_OUTSTANDING:
                        continue
                    number, batch = next(rounds[system])
                    if number % KILL_EVERY == FIRST_KILL:
                        batch.append(orders.Order(ledger.DEADLY, ()))
                    for order in batch:
                        job_id = f"{RUN.id}-{uuid.uuid4()}"
                        ledger.append(RUN.sent, ledger.Sent(system, send(order, job_id), job_id))
                interrupts.pause(ROUND_SECONDS)
        except Interrupted:
            return 0


if __name__ == "__main__":
    sys.exit(produce())
