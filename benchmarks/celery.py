"""Celery: processor time added to an execution, and throughput against worker events.

The added processor time is the difference between executions with and without the plugin, in microseconds. It covers
`task_received`, a signal of the main process, and `task_prerun` to `task_postrun`, signals of the child; this process
runs both parts, the second by Celery's tracer. The peer is the processor time, user and system, that a bare worker
spends on an empty task in all its processes: the main process and two children. Not included are the main process's
sample of its gauges once a second, and the timestamp that a producer adds.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from math import inf
from pathlib import Path

import psutil
from redis import Redis

from benchmarks.measuring import Row, compare, interleaved, spread
from tests.support import servers

ROUNDS = 12
TASKS = {"empty": 1000, "wait": 200}  # tasks per round, by name
TRACED = 2000  # executions per round, traced in this process


class Load:
    """A running worker with a separate Redis. All tasks of a round are queued before the worker consumes them."""

    def __init__(self, redis: servers.RedisServer, process: psutil.Process) -> None:
        from celery import Celery

        self._client = Redis.from_url(redis.url)
        self._process = process
        self._app = Celery("load", broker=redis.url, set_as_current=False)
        self._round = 0
        self.cpu: dict[str, list[float]] = {task: [] for task in TASKS}

    def seconds_per_task(self, task: str) -> float:
        """Run a round; return wall-clock seconds per task, and append processor seconds per task to `cpu`."""
        self._round += 1
        queue = f"load{self._round}"
        count = TASKS[task]
        with self._app.connection_for_write() as connection:
            for _ in range(count):
                self._app.send_task(task, queue=queue, connection=connection)
        before, start = self._cpu(), time.perf_counter()
        self._app.control.add_consumer(queue)
        while self._client.llen(queue) or self._client.hlen("unacked"):
            time.sleep(0.002)
        seconds = time.perf_counter() - start
        self.cpu[task].append((self._cpu() - before) / count)
        self._app.control.cancel_consumer(queue, reply=True, limit=1, timeout=5)
        return seconds / count

    def _cpu(self) -> float:
        family = [self._process, *self._process.children(recursive=True)]
        return sum(sum(each.cpu_times()[:2]) for each in family)


@contextmanager
def _load(base: Path, *options: str, **environment: str) -> Iterator[Load]:
    with servers.redis_server() as redis:
        log = base / f"worker-{redis.port}.log"
        command = [sys.executable, "-m", "celery", "-A", "benchmarks.celery_app", "worker", "-c2", "-lINFO", *options]
        with log.open("wb") as output:
            worker = subprocess.Popen(
                [*command, "--without-gossip", "--without-mingle"],
                env={**os.environ, "BROKER": redis.url, "JOBMETRICS_DIR": str(base / "registry"), **environment},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            while b" ready." not in log.read_bytes():
                assert worker.poll() is None, log.read_text()
                time.sleep(0.05)
            yield Load(redis, psutil.Process(worker.pid))
            # Celery only logs an exception of a signal handler, and a side with failing handlers would look fast.
            assert b"Signal handler" not in log.read_bytes(), log.read_text()
        finally:
            worker.terminate()
            worker.wait()


def _traced(instrumented: bool) -> Callable[[], float]:
    """Measure the processor seconds of one execution: the child's part and the main process's part."""
    from celery import signals
    from celery.app.trace import build_tracer

    from benchmarks.celery_app import app
    from jobmetrics.celery import instrument, uninstrument
    from jobmetrics.celery.messages import PUBLISHED_AT

    empty = app.tasks["empty"]  # the task that a worker runs; the decorator returned a proxy
    headers = {
        "delivery_info": {"exchange": "", "routing_key": "idle", "redelivered": False},
        "ignore_result": True,
        PUBLISHED_AT: repr(time.time()),
    }

    class Received:
        """The request that the main process keeps while the task runs; the plugin reads its id."""

        def __init__(self, task_id: str) -> None:
            self.id = task_id

    def measure() -> float:
        (instrument if instrumented else uninstrument)(app)
        tracer = build_tracer("empty", empty, app=app)
        start = time.process_time()
        for number in range(TRACED):
            task_id = str(number)
            signals.task_received.send(sender=app, request=Received(task_id))
            tracer(task_id, (), {}, {**headers, "id": task_id})
        return (time.process_time() - start) / TRACED

    return measure


def _has_opentelemetry() -> bool:
    try:
        found = [importlib.util.find_spec(f"opentelemetry.{name}") for name in ("sdk", "instrumentation.celery")]
    except ImportError:
        return False
    return None not in found


def rows() -> list[Row]:
    """Measure the rows."""
    from jobmetrics import settings
    from jobmetrics.celery import uninstrument

    shm = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=shm) as directory, ExitStack() as stack:
        base = Path(directory)
        settings.configure(dir=base / "traced", propagate_errors=True)
        with_plugin, without = interleaved(_traced(True), _traced(False), ROUNDS)
        uninstrument()
        bare = stack.enter_context(_load(base))
        plugin = stack.enter_context(_load(base, PLUGIN="1"))
        peers = {
            "-E without plugin": (stack.enter_context(_load(base, "-E")), 1.0),
            "bare, for comparison": (bare, inf),
        }
        if _has_opentelemetry():
            spans = stack.enter_context(_load(base, OPENTELEMETRY="1"))
            peers["OpenTelemetry's instrumentation, for comparison"] = spans, inf
        else:
            print("Celery: no comparison with OpenTelemetry; install opentelemetry-instrumentation-celery and -sdk")
        loads = (plugin, *(load for load, _ in peers.values()))
        for load in loads:
            load.seconds_per_task("empty")  # warm
            load.cpu["empty"].clear()
        found: dict[tuple[Load, str], list[float]] = {}
        for number in range(ROUNDS):
            for task in TASKS:
                for load in loads[number % len(loads) :] + loads[: number % len(loads)]:
                    found.setdefault((load, task), []).append(load.seconds_per_task(task))
    added = [ours - theirs for ours, theirs in zip(with_plugin, without, strict=True)]
    whole = bare.cpu["empty"]
    return [
        Row(
            "processor time added to one Celery execution / bare worker's for an empty task",
            statistics.median(added) * 1e6,
            statistics.median(whole) * 1e6,
            "us",
            0.03,
            f"{spread(added)} / {spread(whole)}",
        ),
        *(
            compare(
                f"Celery, wall clock a task ({task}), plugin / {name}",
                "us",
                budget,
                ([s * 1e6 for s in found[plugin, task]], [s * 1e6 for s in found[peer, task]]),
            )
            for task in TASKS
            for name, (peer, budget) in peers.items()
        ),
    ]
