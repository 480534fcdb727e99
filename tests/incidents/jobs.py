"""The jobs of all worlds. RQ runs these functions, Celery the tasks of `celery_app`, which have the same names."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from jobmetrics import Counter, timed_job

ORDERS = Counter("world_orders", "Orders by customer.", ["customer"])

_PAUSE = 0.5  # seconds between two looks at the file


def released() -> bool:
    """Whether the world's trouble is mended: its file is there."""
    return Path(os.environ["WORLD_RELEASED"]).exists()


def resize(seconds: float = 0.1, fail: bool = False, hold: bool = False, customers: int = 0) -> None:
    """Take this time. fail: raise. hold: wait until the world is mended. customers: values of a label."""
    time.sleep(seconds)
    while hold and not released():
        time.sleep(_PAUSE)
    for _ in range(customers):
        ORDERS.labels(os.urandom(6).hex()).inc()
    if fail:
        raise OSError("on purpose")


@timed_job(target=0.5)
def pay(seconds: float) -> None:
    """A job with a target of half a second."""
    time.sleep(seconds)


def report(seconds: float) -> None:
    """A job that takes long."""
    time.sleep(seconds)


def crash() -> None:
    """Kill the process."""
    os.kill(os.getpid(), signal.SIGKILL)


def tidy() -> None:
    """The job of the schedules."""
