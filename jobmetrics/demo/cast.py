"""The processes of the demo: how each is started and how one knows that it is ready."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from redis import RedisError

from jobmetrics.demo import applications, redis_source
from jobmetrics.demo import config as run_config
from jobmetrics.demo.config import DemoConfig
from jobmetrics.demo.errors import DemoError
from jobmetrics.demo.interrupts import Interrupts
from jobmetrics.demo.processes import Process, Processes
from jobmetrics.demo.scrape import ScrapeError, scrape

FOREIGN = ("JOBMETRICS_", "CELERY", "RQ_", "SHOP_")
"""Prefixes of variables that would make the demo's processes other than they are described."""
READY_SECONDS = 60.0
POLL_SECONDS = 0.05
CELERY_PROCESSES = 2
REFRESH_SECONDS = 0.5
"""How often the exporter asks for the depth of the queues: more often than usual, since somebody looks on."""


def environment(home: Path, registry: Path, outer: Mapping[str, str]) -> dict[str, str]:
    """The variables of every process of the run."""
    kept = {name: value for name, value in outer.items() if not name.startswith(FOREIGN)}
    # The processes work elsewhere, so relative paths would lead nowhere.
    paths = [str(Path(path).absolute()) for path in kept.get("PYTHONPATH", "").split(os.pathsep) if path]
    temporary = home / "tmp"
    temporary.mkdir(exist_ok=True)
    return {
        **kept,
        run_config.HOME_VARIABLE: str(home),
        "PYTHONPATH": os.pathsep.join([str(applications.folder()), *paths]),
        "JOBMETRICS_DIR": str(registry),
        "TMPDIR": str(temporary),
        "PYTHONUNBUFFERED": "1",
    }


def start_exporter(processes: Processes, config: DemoConfig) -> tuple[Process, str]:
    """Start the exporter; returns it with the URL of its metrics."""
    address = f"127.0.0.1:{redis_source.free_port()}"
    arguments = [sys.executable, "-m", "jobmetrics", "exporter", "--listen", address]
    variables = {}
    if config.redis_url is not None:
        arguments += ["--celery-queue", config.celery_queue, "--rq-queue", config.rq_queue]
        arguments += ["--refresh", str(REFRESH_SECONDS)]
        # Not --celery-broker and --rq-url: they may hold a password, and everybody can read a command line.
        variables["JOBMETRICS_EXPORTER_CELERY_BROKER"] = config.celery_url
        variables["JOBMETRICS_EXPORTER_RQ_URL"] = config.redis_url
    return processes.start("exporter", arguments, variables), f"http://{address}/metrics"


def start_celery(processes: Processes, config: DemoConfig) -> Process:
    """Start a prefork worker of the examples' application, whose setting `imports` instruments it."""
    arguments = [sys.executable, "-m", "celery", "-A", "jobmetrics.demo.celery_app", "worker"]
    arguments += ["--pool", "prefork", "--concurrency", str(CELERY_PROCESSES)]
    arguments += ["--queues", config.celery_queue, "--hostname", f"demo-{config.run}@%h"]
    # Neither of these has anybody to talk to, and the filesystem transport pays for each message.
    arguments += ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "WARNING"]
    return processes.start("Celery worker", arguments)


def start_rq(processes: Processes, config: DemoConfig) -> Process:
    """Start a worker of the instrumented class, which forks a work-horse for each job."""
    arguments = [sys.executable, "-m", "rq.cli", "worker", "--worker-class", "jobmetrics.rq.Worker"]
    arguments += ["--job-class", "jobmetrics.demo.rq_job.LedgerJob"]
    arguments += ["--name", config.rq_worker, config.rq_queue]
    # Not --url, for the same reason as above.
    return processes.start("RQ worker", arguments, {"RQ_REDIS_URL": config.redis_url or ""})


def start_producer(processes: Processes) -> Process:
    """Start the process that sends jobs until SIGTERM."""
    return processes.start("producer", [sys.executable, "-m", "jobmetrics.demo.producer"])


def exporter_answers(url: str) -> Callable[[], bool]:
    """Whether /metrics can be read."""

    def ready() -> bool:
        try:
            scrape(url)
        except ScrapeError:
            return False
        return True

    return ready


def rq_listens(config: DemoConfig) -> Callable[[], bool]:
    """Whether the RQ worker has registered."""

    def ready() -> bool:
        try:
            with redis_source.client(config.redis_url or "") as connection:
                return bool(connection.exists(f"rq:worker:{config.rq_worker}"))
        except RedisError:
            return False

    return ready


def wait_for(process: Process, ready: Callable[[], bool], processes: Processes, interrupts: Interrupts) -> None:
    """Wait until the process is ready; DemoError with the end of its log if it is not in time."""
    deadline = time.monotonic() + READY_SECONDS
    while not ready():
        processes.check()
        if time.monotonic() > deadline:
            raise DemoError(
                f"the {process.name} is not ready after {READY_SECONDS:.0f} seconds. "
                f"The end of its log:\n{process.tail()}"
            )
        interrupts.pause(POLL_SECONDS)
