"""The shop's jobs as Celery tasks."""

from __future__ import annotations

from typing import Any

from celery_app import app
from jobmetrics import timed_job
from shop import files, work

MAX_RETRIES = 4
FIRST_RETRY_SECONDS = 0.2


@app.task
@timed_job(target=0.5)
def import_orders(path: str) -> int:
    """See `work.import_orders`. Its target is half a second."""
    return work.import_orders(path)


@app.task
def deliver_file(source: str, target: str) -> int:
    """See `work.deliver_file`."""
    return work.deliver_file(source, target)


@app.task(bind=True, max_retries=MAX_RETRIES)
def verify_delivery(self: Any, path: str, digest: str) -> int:
    """Retry while the delivery may be incomplete, with twice the delay after each attempt."""
    try:
        return work.verify_delivery(path, digest)
    except work.NOT_READY as error:
        raise self.retry(exc=error, countdown=FIRST_RETRY_SECONDS * 2**self.request.retries) from error


@app.task
def compress_file(path: str, target: str) -> int:
    """See `work.compress_file`."""
    return work.compress_file(path, target)


@app.task
def check_archive(path: str) -> int:
    """See `work.check_archive`."""
    return work.check_archive(path)


@app.task
def clean_up(seconds: float) -> int:
    """See `work.clean_up`. Beat sends this task."""
    return work.clean_up(str(files.folder()), seconds)


@app.task
def call_partner(seconds: float) -> None:
    """See `work.call_partner`."""
    work.call_partner(seconds)


@app.task
def exhaust_memory() -> None:
    """See `work.exhaust_memory`."""
    work.exhaust_memory()
