"""The examples' Celery application, on the run's broker, with tasks that keep the ledger.

The worker is instrumented by the application's own setting `imports`, as a user's worker is; the producer,
which never loads `imports`, calls `jobmetrics.celery.instrument(app)`.
"""

from __future__ import annotations

from typing import Any

from celery import Task
from celery.exceptions import Retry
from celery.signals import worker_ready

from celery_app import app
from jobmetrics.demo import ledger, spool
from jobmetrics.demo.config import DemoConfig, load

__all__ = ["SYSTEM", "LedgerTask", "app", "settings"]

SYSTEM = "celery"


def settings(config: DemoConfig) -> dict[str, Any]:
    """What differs from the application's own settings in this run."""
    common = {
        "task_default_queue": config.celery_queue,
        "task_routes": {},
        "worker_enable_remote_control": False,
        "worker_hijack_root_logger": False,
    }
    if config.redis_url is None:
        return {
            **common,
            "broker_url": spool.URL,
            "broker_transport": spool.TRANSPORT,
            "broker_transport_options": spool.options(config.spool),
        }
    return {
        **common,
        "broker_url": config.celery_url,
        # kombu keeps what is delivered and not acknowledged under keys common to all queues of a
        # server. On a shared one other people's messages lie there too.
        "broker_transport_options": {
            "unacked_key": f"unacked-{config.run}",
            "unacked_index_key": f"unacked-index-{config.run}",
            "unacked_mutex_key": f"unacked-mutex-{config.run}",
        },
    }


def _classify(error: BaseException) -> tuple[str, str]:
    if isinstance(error, Retry):
        return ledger.RETRY, type(error.exc).__name__
    return ledger.FAILURE, type(error).__name__


class LedgerTask(Task):
    """A task that writes a line of the ledger about each of its executions."""

    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> object:
        """What a worker calls instead of `run` where it is there."""
        with ledger.execution(load().ledger, SYSTEM, self.name, self.request.id, _classify):
            return self.run(*args, **kwargs)


def _say_ready(**_: object) -> None:
    load().celery_ready.touch()


app.task_cls = LedgerTask  # before the application makes its first task
app.conf.update(settings(load()))
worker_ready.connect(_say_ready, weak=False, dispatch_uid="jobmetrics-demo-ready")
