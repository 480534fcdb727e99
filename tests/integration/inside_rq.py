"""RQ jobs that use every API inside a job."""

from __future__ import annotations

import asyncio
import time

from redis import Redis
from rq import get_current_job
from rq.decorators import job

from jobmetrics import Counter, add_items, current_job, increment, stage, timed_job
from tests.integration import execution_ledger

ROWS = Counter("inside_rows", "Rows.", ["table"])
nowhere = Redis(port=1)  # the tests enqueue jobs themselves


@timed_job(target=60.0)
def helper() -> None:
    """Part of many jobs; it has its own target."""


@timed_job(target=30.0)
def plain() -> None:
    helper()


@job("jobs", connection=nowhere)
@timed_job(target=30.0)
def below() -> None:
    helper()


@timed_job(target=30.0)
@job("jobs", connection=nowhere)
def above() -> None:
    helper()


@timed_job(target=30.0)
async def coroutine() -> None:
    helper()
    await asyncio.sleep(0)
    await _step()


@stage("step")
async def _step() -> None:
    add_items(2)


class Reports:
    @timed_job(target=30.0)
    @staticmethod
    def static() -> None:
        helper()


def undecorated() -> None:
    helper()


def parts() -> None:
    with stage("download"):
        add_items(3)
    now, known = get_current_job(), current_job()
    assert now is not None
    assert known is not None
    execution_ledger.write(f"{known.system}|{known.job_type}|{known.queue_name}|{now.id in known.id}")
    ROWS.labels("orders").inc(3)
    ROWS.labels("a", "b").inc()
    increment("inside_orders", shop="a")


def burn(seconds: float) -> None:
    """Use this many seconds of processor time."""
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass
