"""The data of the plots: a real Prometheus scrapes the examples under load, while things go wrong."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from demo.services import Process, Processes, exporter_answers
from tests.support import servers

EXAMPLES = Path(__file__).parent.parent / "examples"

SCRAPE_SECONDS = 2
RATE_SECONDS = 16
MIN_SECONDS = 10 * RATE_SECONDS
READY_SECONDS = 60.0
CELERY_PROCESSES = 3
ROUND_SECONDS = {"celery_app": 0.4, "rq_app": 2.0}  # between rounds; a worker keeps up with that


@dataclass(frozen=True, slots=True)
class Phase:
    """A span of time in which something was wrong, in epoch seconds, and what was wrong."""

    what: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Story:
    """A recorded scenario: the address of the Prometheus that scraped it, its start and end in epoch seconds."""

    prometheus: str
    start: float
    end: float
    phases: Sequence[Phase]


class Services:
    """Workers, producers and an exporter, with their files in one directory."""

    def __init__(self, home: Path, redis: str) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("JOBMETRICS_")}
        environment = {
            **kept,
            "PYTHONPATH": str(EXAMPLES),
            "JOBMETRICS_DIR": str(home / "registry"),
            "CELERY_BROKER_URL": redis,
            "RQ_REDIS_URL": redis,
            "SHOP_DIR": str(home / "shop"),
        }
        self._redis = redis
        self.processes = Processes(home, environment)

    def exporter(self) -> str:
        """Start the exporter; returns its address."""
        (port,) = servers.free_ports(1)
        options = ["--listen", f"127.0.0.1:{port}", "--celery-broker", self._redis, "--rq-url", self._redis]
        self._run(
            "exporter", "jobmetrics", "exporter", *options, "--celery-queue", "celery", "--celery-queue", "archives"
        )
        self._wait_for(lambda: exporter_answers(f"http://127.0.0.1:{port}/metrics"))
        return f"127.0.0.1:{port}"

    def celery(self) -> Process:
        """Start a Celery worker."""
        options = ["--queues", "celery,archives", "--concurrency", str(CELERY_PROCESSES), "--loglevel", "WARNING"]
        return self._run("Celery worker", "celery", "-A", "celery_app", "worker", *options)

    def rq(self) -> Process:
        """Start an RQ worker."""
        options = ["--worker-class", "jobmetrics.rq.Worker", "--with-scheduler"]
        return self._run("RQ worker", "rq.cli", "worker", *options, "high", "default")

    def producer(self, application: str, *troubles: str) -> Process:
        """Start a producer of an example application, with these troubles in every round."""
        options = [part for trouble in troubles for part in ("--trouble", trouble)]
        name = "-".join([application, "producer", *troubles])
        return self._run(name, f"{application}.produce", "--every", str(ROUND_SECONDS[application]), *options)

    def play(self, seconds: float) -> None:
        """Let the processes work for some seconds. Raises DemoError if one ends."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.processes.check()
            time.sleep(min(left, 1.0))

    def _run(self, name: str, module: str, *arguments: str) -> Process:
        return self.processes.start(name, [sys.executable, "-m", module, *arguments])

    def _wait_for(self, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not ready():
            self.processes.check()
            if time.monotonic() > deadline:
                raise TimeoutError(f"the exporter does not answer after {READY_SECONDS:g} seconds")
            time.sleep(0.1)


@contextmanager
def played(seconds: float) -> Iterator[Story]:
    """Play the scenario in this number of seconds. Prometheus answers until the context is left."""
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jobmetrics-plots-")))
        redis = stack.enter_context(servers.redis_server())
        services = Services(home, redis.url)
        stack.callback(services.processes.stop_all)
        prometheus = stack.enter_context(servers.prometheus_server(_configuration(services.exporter())))
        yield _play(services, prometheus.url, seconds)


def _play(services: Services, prometheus: str, seconds: float) -> Story:
    celery = services.celery()
    services.rq()
    for application in ROUND_SECONDS:
        services.producer(application)
    services.play(RATE_SECONDS + 3 * SCRAPE_SECONDS)  # the first rate needs earlier samples
    start = time.time()
    services.play(0.2 * seconds)
    damaged = time.time()
    producer = services.producer("celery_app", "failures", "retries")
    services.play(0.2 * seconds)
    services.processes.stop(producer)
    repaired = time.time()
    services.play(0.2 * seconds)
    stopped = time.time()
    services.processes.stop(celery)
    services.play(0.1 * seconds)
    restarted = time.time()
    services.celery()
    services.play(0.3 * seconds)
    phases = [Phase("bad files arrive", damaged, repaired), Phase("Celery worker stopped", stopped, restarted)]
    return Story(prometheus, start, time.time(), phases)


def _configuration(exporter: str) -> str:
    return (
        f"global: {{scrape_interval: {SCRAPE_SECONDS}s, scrape_timeout: {SCRAPE_SECONDS}s}}\n"
        f"scrape_configs: [{{job_name: shop, static_configs: [{{targets: ['{exporter}']}}]}}]\n"
    )
