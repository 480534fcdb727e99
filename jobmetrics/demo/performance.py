"""The demo from its first process to its exit code."""

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

from rich.console import Console
from rich.live import Live

from jobmetrics.demo import cast, compare, ledger, redis_source, report, tables
from jobmetrics.demo import config as run_config
from jobmetrics.demo.config import DemoConfig
from jobmetrics.demo.errors import DemoError, Interrupted
from jobmetrics.demo.interrupts import Interrupts
from jobmetrics.demo.own_keys import purge
from jobmetrics.demo.processes import Processes
from jobmetrics.demo.redis_url import hide
from jobmetrics.demo.rows import depths, rows
from jobmetrics.demo.scrape import Exposition, ScrapeError, scrape

DEFAULT_SECONDS = 20.0
REFRESH_SECONDS = 0.5
POLL_SECONDS = 0.1
STALLED_SECONDS = 60.0
"""How long the drain waits for the next line of the ledger before it gives up."""
SETTLE_SECONDS = 10.0
"""How long /metrics may lag behind the ledger, whose lines are written before an execution's very end."""

WITHOUT_REDIS = (
    "RQ is left out, because {reason}: `apt-get install redis-server` (or your system's package) brings one, "
    "and REDIS_URL names one that runs already."
)


def perform(seconds: float | None, environment: Mapping[str, str]) -> int:
    """Run the demo for `seconds`, or until Ctrl-C on a terminal; returns the exit code."""
    out = report.console()
    errors = report.console(stderr=True)
    url = redis_source.given_url(environment)
    with Interrupts() as interrupts:
        try:
            with ExitStack() as cleanup:
                stage = _set_up(cleanup, environment, interrupts, out)
                return 0 if _play(stage, seconds) else 1
        except Interrupted as interrupted:
            report.say(errors, f"jobmetrics demo: ended by {signal.Signals(interrupted.signum).name}")
            return 128 + interrupted.signum
        except DemoError as error:
            report.say(errors, hide(f"jobmetrics demo: {error}", url), "red")
            return 1


@dataclass(frozen=True)
class Stage:
    """Everything that runs, and what is needed to go on."""

    config: DemoConfig
    processes: Processes
    interrupts: Interrupts
    books: ledger.Books
    url: str
    out: Console


def _set_up(cleanup: ExitStack, environment: Mapping[str, str], interrupts: Interrupts, out: Console) -> Stage:
    """Start everything but the producer. What is left in `cleanup` takes all of it away again."""
    home = Path(tempfile.mkdtemp(prefix="jobmetrics-demo-"))
    cleanup.callback(_remove, home)
    config = _configure(home, environment)
    config.logs.mkdir()
    if config.redis_url is not None:
        redis_source.check(config.redis_url)
        cleanup.callback(purge, config)
    variables = cast.environment(home, config.registry, environment)
    processes = Processes(home, config.logs, variables, impatient=lambda: interrupts.count > 1)
    cleanup.callback(processes.stop_all)
    if config.redis_url is None:
        config = _private_redis(config, environment, processes, interrupts, out)
    run_config.save(config)
    config.shop.mkdir()
    exporter, url = cast.start_exporter(processes, config)
    conditions = {
        exporter: cast.exporter_answers(url),
        cast.start_celery(processes, config): config.celery_ready.exists,
    }
    if config.redis_url is not None:
        conditions[cast.start_rq(processes, config)] = cast.rq_listens(config)
    for process, ready in conditions.items():
        cast.wait_for(process, ready, processes, interrupts)
    names = " and ".join(process.name for process in conditions if process is not exporter)
    report.say(out, f"Running: {names}. Their metrics: {url}")
    return Stage(config, processes, interrupts, ledger.Books(config.sent, config.ledger), url, out)


def _configure(home: Path, environment: Mapping[str, str]) -> DemoConfig:
    """The run as it is before a private Redis is known of."""
    run = uuid.uuid4().hex[:12]
    url = None if redis_source.unwanted(environment) else redis_source.given_url(environment)
    # On a server that others use too, every name has to be the run's own.
    mark = "" if url is None else f"-{run}"
    return DemoConfig(home, run, url, celery_queue=f"demo-celery{mark}", rq_queue=f"demo-rq{mark}")


def _private_redis(
    config: DemoConfig,
    environment: Mapping[str, str],
    processes: Processes,
    interrupts: Interrupts,
    out: Console,
) -> DemoConfig:
    """Start a Redis of our own and name it in the configuration, or say what follows from having none."""
    server = None if redis_source.unwanted(environment) else redis_source.find_server(environment)
    if server is not None:
        return replace(config, redis_url=redis_source.start(server, processes, config.home, interrupts))
    unwanted = redis_source.unwanted(environment)
    reason = f"{redis_source.WITHOUT_VARIABLE} is set" if unwanted else "this machine has no redis-server"
    report.say(out, WITHOUT_REDIS.format(reason=reason), "yellow")
    return config


def _play(stage: Stage, seconds: float | None) -> bool:
    """Produce, drain, compare and print; True if everything agrees."""
    producer = cast.start_producer(stage.processes)
    cast.wait_for(producer, lambda: stage.books.update() > 0, stage.processes, stage.interrupts)
    if seconds is None and stage.out.is_terminal:
        _show(stage)
    else:
        seconds = DEFAULT_SECONDS if seconds is None else seconds
        report.say(stage.out, f"Producing jobs for {seconds:g} seconds.")
        _watch(stage, seconds)
    stage.processes.stop(producer)
    if producer.popen.returncode != 0:
        raise DemoError(f"the producer failed. The end of its log:\n{producer.tail()}")
    _drain(stage)
    exposition, comparisons = _settle(stage)
    account = compare.Account(stage.books.sent, stage.books.entries)
    stage.out.print(tables.summary(rows(account.sent, exposition)))
    return report.verdict(stage.out, comparisons, account.executions.total())


def _watch(stage: Stage, seconds: float) -> None:
    """Let the producer work, and see to it that nothing has ended."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        stage.processes.check()
        stage.interrupts.pause(min(left, POLL_SECONDS))


def _show(stage: Stage) -> None:
    """Keep a table of /metrics up to date until Ctrl-C, which is the way to end it."""
    try:
        with Live(console=stage.out, auto_refresh=False) as display:
            while True:
                stage.processes.check()
                stage.books.update()
                exposition = _scrape(stage)
                sent = compare.Account(stage.books.sent, ()).sent
                waiting = depths(exposition, stage.config.queues)
                display.update(tables.live(rows(sent, exposition), waiting, stage.url), refresh=True)
                stage.interrupts.pause(REFRESH_SECONDS)
    except Interrupted as interrupted:
        if interrupted.signum != signal.SIGINT:
            raise
        stage.interrupts.accept()
        report.say(stage.out, "Ending: the jobs that were sent are done first. Ctrl-C again ends at once.")


def _drain(stage: Stage) -> None:
    """Wait until every job sent is over, for as long as the ledger grows."""
    deadline = time.monotonic() + STALLED_SECONDS
    while True:
        if stage.books.update():
            deadline = time.monotonic() + STALLED_SECONDS
        left = stage.books.outstanding()
        if left == 0:
            return
        if time.monotonic() > deadline:
            report.say(stage.out, f"{left} jobs are not over, and nothing has happened for a minute.", "red")
            return
        stage.processes.check()
        stage.interrupts.pause(POLL_SECONDS)


def _settle(stage: Stage) -> tuple[Exposition, list[compare.Comparison]]:
    """Compare until everything agrees, or until what differs will not change any more."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        stage.processes.check()
        exposition = _scrape(stage)
        stage.books.update()
        account = compare.Account(stage.books.sent, stage.books.entries)
        with_depth = stage.config.redis_url is not None
        found = compare.compare(account, exposition, stage.config.queues, with_depth=with_depth)
        if all(comparison.agrees for comparison in found) or time.monotonic() > deadline:
            return exposition, found
        stage.interrupts.pause(POLL_SECONDS)


def _scrape(stage: Stage) -> Exposition:
    try:
        return scrape(stage.url)
    except ScrapeError as error:
        stage.processes.check()
        raise DemoError(f"the exporter's metrics cannot be read: {error}") from error


def _remove(home: Path) -> None:
    try:
        shutil.rmtree(home)
    except OSError as error:
        raise DemoError(f"{home} could not be removed: {error}") from error
