"""A run of the demo, from its first process to its exit code."""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from prometheus_client.metrics_core import Metric
from rich.console import Console
from rich.live import Live

from demo import DemoError, services
from demo.comparison import Account, Comparison, Samples, compare, console, say, table, verdict
from demo.ledger import Ledger, Run
from demo.redis_cleanup import check, hide, purge
from demo.services import Interrupted, Interrupts, Processes
from jobmetrics.cli.top import render
from jobmetrics.errors import JobmetricsError
from jobmetrics.exporter.client import read_metrics
from jobmetrics.exporter.overview import Overview, summarize

DEFAULT_SECONDS = 20.0
REFRESH_SECONDS = 0.5
POLL_SECONDS = 0.1
STALLED_SECONDS = 60.0
"""The drain gives up after this time without a new line in the ledger."""
SETTLE_SECONDS = 20.0
"""/metrics may lag behind the ledger by this time: Celery reports a killed process after ten seconds."""

WITHOUT_REDIS = (
    "RQ is left out, because {reason}. Install redis-server (on Debian: `apt-get install redis-server`), "
    "or set REDIS_URL to the address of a running Redis."
)


def run(seconds: float | None, environment: Mapping[str, str]) -> int:
    """Run the demo for `seconds`, or until Ctrl-C on a terminal; returns the exit code."""
    out, errors = console(), console(stderr=True)
    with Interrupts() as interrupts:
        try:
            with ExitStack() as cleanup:
                return 0 if _play(_set_up(cleanup, environment, interrupts, out), seconds) else 1
        except Interrupted as interrupted:
            say(errors, f"demo: ended by {signal.Signals(interrupted.signum).name}")
            return 128 + interrupted.signum
        except DemoError as error:
            say(errors, hide(f"demo: {error}", environment.get("REDIS_URL")), "red")
            return 1


@dataclass(frozen=True)
class Running:
    """A run after all its processes but the producer have started."""

    run: Run
    processes: Processes
    interrupts: Interrupts
    ledger: Ledger
    url: str
    out: Console

    def metrics(self) -> list[Metric]:
        """The metrics that the exporter shows now."""
        try:
            return read_metrics(self.url)
        except JobmetricsError as error:
            self.processes.check()
            raise DemoError(str(error)) from error

    def account(self) -> Account:
        """What was sent and what ran until now."""
        self.ledger.update()
        return Account(self.ledger.sent, self.ledger.entries)


def _set_up(cleanup: ExitStack, environment: Mapping[str, str], interrupts: Interrupts, out: Console) -> Running:
    """Start everything but the producer. `cleanup` ends the processes and removes files and keys."""
    home = Path(tempfile.mkdtemp(prefix="jobmetrics-demo-"))
    cleanup.callback(_remove, home)
    without = environment.get("DEMO_WITHOUT_REDIS", "") not in {"", "0"}
    found = _describe(home, None if without else environment.get("REDIS_URL") or None)
    if found.redis_url is not None:
        check(found.redis_url)
        cleanup.callback(purge, found)
    variables = services.environment_of(home, environment)
    processes = Processes(home, variables, impatient=lambda: interrupts.count > 1)
    cleanup.callback(processes.stop_all)
    if found.redis_url is None:
        server = None if without else services.redis_server(environment)
        if server is not None:
            found = replace(found, redis_url=services.start_redis(processes, server, home, interrupts.pause))
        else:
            reason = "DEMO_WITHOUT_REDIS is set" if without else "this machine has no redis-server"
            say(out, WITHOUT_REDIS.format(reason=reason), "yellow")
    found.save()
    found.shop.mkdir()
    exporter, url = services.start_exporter(processes, found)
    conditions = {
        exporter: lambda: services.exporter_answers(url),
        services.start_celery(processes, found): found.celery_ready.exists,
    }
    if found.redis_url is not None:
        conditions[services.start_rq(processes, found)] = lambda: services.rq_listens(found)
    for process, ready in conditions.items():
        processes.wait_for(process, ready, interrupts.pause)
    names = " and ".join(process.name for process in conditions if process is not exporter)
    say(out, f"Running: {names}. Their metrics: {url}")
    return Running(found, processes, interrupts, Ledger(found), url, out)


def _describe(home: Path, url: str | None) -> Run:
    """A run before its private Redis has started."""
    run_id = uuid.uuid4().hex[:12]
    mark = "" if url is None else f"-{run_id}"  # on the user's server, names contain the run's id
    return Run(home, run_id, url, celery_queue=f"demo-celery{mark}", rq_queue=f"demo-rq{mark}")


def _play(running: Running, seconds: float | None) -> bool:
    """Produce, drain, compare and print; True if everything agrees."""
    producer = services.start_producer(running.processes)
    running.processes.wait_for(producer, lambda: running.ledger.update() > 0, running.interrupts.pause)
    if seconds is None and running.out.is_terminal:
        _show(running)
    else:
        seconds = DEFAULT_SECONDS if seconds is None else seconds
        say(running.out, f"Producing jobs for {seconds:g} seconds.")
        _watch(running, seconds)
    running.processes.stop(producer)
    if producer.popen.returncode != 0:
        raise DemoError(f"the producer failed. {producer.tail()}")
    _drain(running)
    samples, comparisons = _settle(running)
    account = running.account()
    running.out.print(table(account, samples))
    return verdict(running.out, comparisons, account.executions.total())


def _watch(running: Running, seconds: float) -> None:
    """Let the producer work for this time. Raises DemoError if a process ends."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        running.processes.check()
        running.interrupts.pause(min(left, POLL_SECONDS))


def _show(running: Running) -> None:
    """Show what `jobmetrics top` shows until Ctrl-C."""
    say(running.out, "Ctrl-C ends the demo.")
    try:
        with Live(console=running.out, auto_refresh=False) as display:
            before = _look(running)
            while True:
                running.processes.check()
                running.interrupts.pause(REFRESH_SECONDS)
                now = _look(running)
                display.update(render(now, before, running.url, running.out.height), refresh=True)
                before = now
    except Interrupted as interrupted:
        if interrupted.signum != signal.SIGINT:
            raise
        running.interrupts.accept()
        say(running.out, "Ending when the jobs that were sent are over. Ctrl-C again ends at once.")


def _look(running: Running) -> Overview:
    """An overview of the metrics, with job types without their module."""
    found = summarize(running.metrics(), time.monotonic())
    jobs = {(system, job.rpartition(".")[2], queue): totals for (system, job, queue), totals in found.jobs.items()}
    return replace(found, jobs=jobs)


def _drain(running: Running) -> None:
    """Wait until every job sent is over. Give up when the ledger has stopped growing."""
    deadline = time.monotonic() + STALLED_SECONDS
    while True:
        if running.ledger.update():
            deadline = time.monotonic() + STALLED_SECONDS
        left = running.ledger.outstanding()
        if left == 0:
            return
        if time.monotonic() > deadline:
            say(running.out, f"{left} jobs are not over, and the ledger has not grown for a minute.", "red")
            return
        running.processes.check()
        running.interrupts.pause(POLL_SECONDS)


def _settle(running: Running) -> tuple[Samples, list[Comparison]]:
    """Compare until everything agrees, for at most SETTLE_SECONDS."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        running.processes.check()
        samples = Samples(running.metrics())
        with_depth = running.run.redis_url is not None
        found = compare(running.account(), samples, running.run.queues, with_depth=with_depth)
        if all(comparison.agrees for comparison in found) or time.monotonic() > deadline:
            return samples, found
        running.interrupts.pause(POLL_SECONDS)


def _remove(home: Path) -> None:
    try:
        shutil.rmtree(home)
    except OSError as error:
        raise DemoError(f"{home} could not be removed: {error}") from error
