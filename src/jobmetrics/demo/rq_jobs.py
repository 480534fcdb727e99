"""The same jobs for RQ: each is a function with a path that RQ can import."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rq import get_current_job

from jobmetrics.demo import jobs, ledger
from jobmetrics.demo.config import load

SYSTEM = "rq"


def job_path(job: str) -> str:
    """The function path of a function of `jobs` as RQ knows it."""
    return f"{__name__}.{job}"


@contextmanager
def _execution(job: str) -> Iterator[None]:
    current = get_current_job()
    if current is None:
        raise RuntimeError("this is work for an RQ worker")

    def classify(error: BaseException) -> tuple[str, str]:
        # RQ retries whatever was raised as long as the job's own count lasts (Job.should_retry).
        outcome = ledger.RETRY if current.retries_left else ledger.FAILURE
        return outcome, type(error).__name__

    with ledger.execution(load().ledger, SYSTEM, job_path(job), current.id, classify):
        yield


def hash_file(path: str) -> str:
    """See `jobs.hash_file`."""
    with _execution("hash_file"):
        return jobs.hash_file(path)


def compress_file(path: str, target: str) -> int:
    """See `jobs.compress_file`."""
    with _execution("compress_file"):
        return jobs.compress_file(path, target)


def decompress_file(path: str) -> int:
    """See `jobs.decompress_file`."""
    with _execution("decompress_file"):
        return jobs.decompress_file(path)


def parse_source(path: str) -> int:
    """See `jobs.parse_source`."""
    with _execution("parse_source"):
        return jobs.parse_source(path)


def deliver_file(source: str, target: str) -> int:
    """See `jobs.deliver_file`."""
    with _execution("deliver_file"):
        return jobs.deliver_file(source, target)


def verify_delivery(path: str, digest: str) -> int:
    """See `jobs.verify_delivery`."""
    with _execution("verify_delivery"):
        return jobs.verify_delivery(path, digest)
