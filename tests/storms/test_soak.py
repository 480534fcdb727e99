"""Everything at once for SOAK_SECONDS (60; 1800 for a full soak): recording processes that are killed, fork and see
the clock jump, deploys with other buckets, a disk that fills up, real workers with killed processes, a broker
that hangs, and an exporter that is scraped throughout. At the end counted = ledger.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e import exporters
from tests.integration import execution_ledger
from tests.integration.celery_workers import Worker as CeleryWorker
from tests.integration.celery_workers import running as celery_running
from tests.integration.rq_workers import Workers as RQWorkers
from tests.multiprocess.places import fill, small_disk
from tests.storms import processes
from tests.storms.processes import Storm, storm
from tests.storms.update_ledger import UpdateLedger
from tests.storms.watch import Watch, reconcile
from tests.support import readings, servers

SECONDS = float(os.environ.get("SOAK_SECONDS", "60"))
SIZE = 4  # recording processes at one time, without the workers

pytestmark = [pytest.mark.full, pytest.mark.timeout(int(SECONDS) * 4 + 300)]

KINDS = (
    processes.until_killed,
    processes.deployed,
    processes.with_clock_jumps,
    processes.with_threads,
    processes.recycled,
)


class Jobs:
    """A worker; its processes are killed at random while it works.

    Args:
        parent: The process that the workers' processes are children of.
        directory: The registry directory.
        ledger: The file in which each job writes one line when it starts.
    """

    def __init__(self, parent: int, directory: Path, ledger: Path, system: str) -> None:
        self._parent = psutil.Process(parent)
        self._directory = directory
        self._ledger = ledger
        self._system = system
        self.kills = 0

    def kill_one(self, chance: random.Random) -> None:
        """Kill a process that runs jobs, if one exists now."""
        found = self._parent.children()
        if found:
            with contextlib.suppress(psutil.NoSuchProcess):
                chance.choice(found).kill()
                self.kills += 1

    def started(self) -> int:
        """Executions that wrote their first line."""
        return sum(":success" not in line for line in execution_ledger.read(self._ledger))

    def counted(self) -> float:
        found = readings.values(self._directory, "jobs_total")
        return sum(value for labels, value in found.items() if labels[0] == self._system)

    def assert_agree(self) -> None:
        """A killed process may have ended before its job wrote, or between the journal's mark and the cells."""
        readings.until(lambda: abs(self.counted() - self.started()) <= self.kills, f"the {self._system} jobs to agree")
        print(f"{self._system}: started {self.started()}, counted {self.counted():.0f}, kills {self.kills}")
        assert self.started() > 0


@contextlib.contextmanager
def hung(server: servers.Server, seconds: float) -> Iterator[None]:
    """The server does not answer for some seconds."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        time.sleep(seconds)
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


class Soak:
    """A sequence of random events."""

    def __init__(self, raging: Storm, chance: random.Random, disk: Path, broker: servers.Server) -> None:
        self._raging = raging
        self._chance = chance
        self._disk = disk
        self._broker = broker
        self._filler: Path | None = None
        self.events: dict[str, int] = {}

    def happen(self, jobs: list[Jobs]) -> None:
        events = [self._replace] * 12 + [self._fill_or_clear] * 2 + [self._hang]
        event = self._chance.choice([*events, *(lambda one=one: self._kill(one) for one in jobs)])
        event()
        name = getattr(event, "__name__", "kill").strip("_").replace("<lambda>", "kill a job's process")
        self.events[name] = self.events.get(name, 0) + 1

    def _replace(self) -> None:
        self._raging.kill_one()
        self._raging.start(self._chance.choice(KINDS))

    def _fill_or_clear(self) -> None:
        if self._filler is None:
            self._filler = fill(self._disk, self._chance.randrange(4))
        else:
            self.clear()

    def clear(self) -> None:
        """Free the space on the disk."""
        if self._filler is not None:
            self._filler.unlink()
            self._filler = None

    def _hang(self) -> None:
        with hung(self._broker, self._chance.uniform(0.1, 3.0)):
            pass

    def _kill(self, jobs: Jobs) -> None:
        jobs.kill_one(self._chance)


def test_a_soak(chance: random.Random, redis_server: servers.RedisServer, tmp_path: Path) -> None:
    base = tmp_path / "celery"
    base.mkdir()
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(small_disk(base / "registry", "size=1m,mode=700"))
        redis = redis_server.url
        celery = stack.enter_context(celery_running(redis, redis, base, "--concurrency", "2"))
        rq = RQWorkers(redis.replace("/0", "/1"), directory, tmp_path)
        stack.callback(rq.connection.close)
        rq_process = stack.enter_context(rq.running())
        options = ("--rq-url", rq.url, "--celery-broker", redis)
        exporter = stack.enter_context(exporters.running(directory, tmp_path / "exporter.log", *options))
        jobs = [
            Jobs(celery.process.pid, directory, celery.written, "celery"),
            Jobs(rq_process.pid, directory, rq.written, "rq"),
        ]
        ledger, watch = UpdateLedger(), Watch(directory, deploy=True)
        with storm(directory, chance, ledger) as raging:
            for n in range(SIZE):
                raging.start(KINDS[n % len(KINDS)])
            readings.until(watch.begins, "the first process to record")
            soak = Soak(raging, chance, directory, redis_server)
            _rage(soak, celery, rq, jobs, exporter, watch, chance)
            soak.clear()
        for one in jobs:
            one.assert_agree()
        reconcile(directory, ledger, deploy=True)
    print(f"{soak.events}; {watch.scrapes} readings, {len(ledger.accounts)} processes")


def _rage(
    soak: Soak,
    celery: CeleryWorker,
    rq: RQWorkers,
    jobs: list[Jobs],
    exporter: exporters.Exporter,
    watch: Watch,
    chance: random.Random,
) -> None:
    end = time.monotonic() + SECONDS
    n = 0
    while time.monotonic() < end:
        time.sleep(chance.choice([0.0, 0.02, 0.1]))
        celery.send(chance.choice(["succeed", "fail"]))
        rq.queue.enqueue(f"tests.integration.rq_jobs.{chance.choice(['succeed', 'fail'])}")
        soak.happen(jobs)
        watch.look()
        if (n := n + 1) % 10 == 0:
            assert exporter.scrape()("jobmetrics_directory_up") == 1.0
