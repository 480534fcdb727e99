"""The demo's Celery application: `celery -A jobmetrics.demo.celery_app worker`.

The worker is instrumented by one setting, `imports`, as a user's worker is; the producer, which never
loads `imports`, calls `jobmetrics.celery.instrument(app)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery import Celery
from celery.exceptions import Retry
from celery.signals import worker_ready

from jobmetrics.demo import jobs, ledger, spool
from jobmetrics.demo.config import DemoConfig, load

SYSTEM = "celery"
MAX_RETRIES = 4
FIRST_RETRY_SECONDS = 0.15


def settings(config: DemoConfig) -> dict[str, Any]:
    """Celery's settings for this run."""
    common = {
        "imports": ("jobmetrics.celery.plugin",),
        "task_default_queue": config.celery_queue,
        "task_ignore_result": True,
        "worker_enable_remote_control": False,
        "worker_hijack_root_logger": False,
        "broker_connection_retry_on_startup": True,
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


def _register(app: Celery, work: Callable[..., object]) -> None:
    name = task_name(work.__name__)

    def body(task: Any, *arguments: str) -> object:
        with ledger.execution(load().ledger, SYSTEM, name, task.request.id, _classify):
            try:
                return work(*arguments)
            except jobs.NOT_READY as error:
                # Raises celery.exceptions.Retry, or the error itself once the retries are used up.
                pause = FIRST_RETRY_SECONDS * 2**task.request.retries
                raise task.retry(exc=error, countdown=pause) from error

    app.task(name=name, bind=True, max_retries=MAX_RETRIES)(body)


def task_name(job: str) -> str:
    """The registered task name of a function of `jobs`."""
    return f"demo.{job}"


def _say_ready(**_: object) -> None:
    load().celery_ready.touch()


app = Celery("jobmetrics-demo")
# A function, so that the run's file is read when the settings are first asked for, not at import.
app.add_defaults(lambda: settings(load()))
for _work in jobs.ALL:
    _register(app, _work)
worker_ready.connect(_say_ready, weak=False, dispatch_uid="jobmetrics-demo-ready")
