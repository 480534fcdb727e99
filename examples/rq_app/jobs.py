"""The shop's jobs as functions that RQ finds by their path."""

from __future__ import annotations

from rq import Retry

from jobmetrics import timed_job
from shop import files, work

RETRIES = {"verify_delivery": Retry(max=3, interval=[1, 2, 4])}
"""Retries by job, with their delays in seconds. The worker needs --with-scheduler for delays."""


@timed_job(target=0.5)
def import_orders(path: str) -> int:
    """See `work.import_orders`. Its target is half a second."""
    return work.import_orders(path)


def deliver_file(source: str, target: str) -> int:
    """See `work.deliver_file`."""
    return work.deliver_file(source, target)


def verify_delivery(path: str, digest: str) -> int:
    """See `work.verify_delivery`."""
    return work.verify_delivery(path, digest)


def compress_file(path: str, target: str) -> int:
    """See `work.compress_file`."""
    return work.compress_file(path, target)


def check_archive(path: str) -> int:
    """See `work.check_archive`."""
    return work.check_archive(path)


def clean_up(seconds: float) -> int:
    """See `work.clean_up`. The cron scheduler sends this job."""
    return work.clean_up(str(files.folder()), seconds)


def call_partner(seconds: float) -> None:
    """See `work.call_partner`."""
    work.call_partner(seconds)


def exhaust_memory() -> None:
    """See `work.exhaust_memory`."""
    work.exhaust_memory()
