"""Send a world's jobs: `python -m tests.incidents.send`. Each line on standard input replaces what is sent.

A line is a JSON list of streams, as `worlds.Stream` has them.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
import threading
import time
from datetime import timedelta
from typing import Any

from kombu.exceptions import OperationalError
from redis import Redis
from redis.exceptions import RedisError
from rq import Queue

from jobmetrics.celery import instrument
from jobmetrics.rq import instrument_queue
from tests.incidents.celery_app import app

_LONGEST_WAIT = 1.0  # seconds


class Sender:
    """Send jobs of both systems to the world's Redis."""

    def __init__(self) -> None:
        self._redis = Redis.from_url(os.environ["RQ_REDIS_URL"])
        self._failures: dict[str, float] = {}

    def send(self, stream: dict[str, Any]) -> None:
        """Send one job of the stream. Fail as many of them as the stream says, evenly spread."""
        arguments = dict(stream["arguments"])
        name = f"tests.incidents.jobs.{stream['job']}"
        if stream["fail"]:
            due = self._failures.get(name, 0.0) + stream["fail"]
            arguments["fail"] = due >= 1.0
            self._failures[name] = due % 1.0
        with contextlib.suppress(RedisError, OperationalError):  # the broker may be the trouble
            if stream["system"] == "celery":
                app.send_task(name, kwargs=arguments, queue=stream["queue"], retry=False)
                return
            target = Queue(stream["queue"], connection=self._redis)
            if stream["delay"]:
                target.enqueue_in(timedelta(seconds=stream["delay"]), name, kwargs=arguments)
            else:
                target.enqueue(name, kwargs=arguments)


def main() -> None:
    instrument(app)
    instrument_queue(Queue)
    orders: queue.SimpleQueue[list[dict[str, Any]] | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(orders,), daemon=True).start()
    sender = Sender()
    streams: list[dict[str, Any]] = []
    due: list[float] = []
    while True:
        wait = max(0.0, min([_LONGEST_WAIT, *(at - time.monotonic() for at in due)]))
        with contextlib.suppress(queue.Empty):
            order = orders.get(timeout=wait)
            if order is None:
                return
            streams, due = order, [time.monotonic()] * len(order)
        for place, stream in enumerate(streams):
            if due[place] <= time.monotonic():
                for _ in range(stream["burst"]):
                    sender.send(stream)
                due[place] = due[place] + stream["every"] if stream["every"] else float("inf")


def _read(orders: queue.SimpleQueue[list[dict[str, Any]] | None]) -> None:
    for line in sys.stdin:
        orders.put(json.loads(line))
    orders.put(None)


if __name__ == "__main__":
    main()
