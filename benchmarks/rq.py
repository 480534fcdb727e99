"""Design section 8, RQ: what a job costs more, what is left behind, and how many empty jobs a worker does.

Each run is a real worker process in burst mode on a Redis of this benchmark's own: bare, with jobmetrics, and with
prometheus_client's multiprocess mode inside the job, one after another in each round. Processor time is the
worker's with all its work-horses, less that of a worker that finds no job.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from redis import Redis
from rq import Queue

from benchmarks import rq_jobs
from benchmarks.measuring import Row, spread
from tests.servers import redis_server

JOBS = 300
ROUNDS = 5
CPU_BUDGET = 0.03
SIDES = ("bare", "ours", "peer")


@dataclass(frozen=True)
class Run:
    """One worker's run.

    cpu: processor seconds a job, start and imports taken off; rate: jobs a second; files, size: left, in bytes.
    """

    cpu: float
    rate: float
    files: int
    size: int


def _run(side: str, simple: bool, url: str, directory: Path) -> Run:
    """One worker on all jobs, less one on none: what starting a worker and importing costs is not a job's."""
    idle, _ = _burst(side, simple, url, directory, 0)
    cpu, took = _burst(side, simple, url, directory, JOBS)
    left = [path for path in directory.rglob("*") if path.is_file()]
    return Run((cpu - idle) / JOBS, JOBS / took, len(left), sum(path.stat().st_size for path in left))


def _burst(side: str, simple: bool, url: str, directory: Path, jobs: int) -> tuple[float, float]:
    """Processor seconds and seconds of a worker, with all its work-horses, on so many jobs."""
    with Redis.from_url(url) as connection:
        connection.flushdb()
        queue = Queue("bench", connection=connection)
        function = rq_jobs.counted if side == "peer" else rq_jobs.empty
        queue.enqueue_many([Queue.prepare_data(function) for _ in range(jobs)])
    package = "jobmetrics.rq" if side == "ours" else "rq"
    worker_class = f"{package}.{'SimpleWorker' if simple else 'Worker'}"
    directory.mkdir(mode=0o700, exist_ok=True)
    environment = {**os.environ, "JOBMETRICS_DIR": str(directory), "PROMETHEUS_MULTIPROC_DIR": str(directory)}
    command = [sys.executable, "-m", "rq.cli", "worker", "--url", url, "--worker-class", worker_class]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([*command, "--burst", "--logging_level", "ERROR", "bench"], env=environment, check=True)
    took, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, took


@contextmanager
def _directories() -> Iterator[dict[str, Path]]:
    base = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=base) as root:
        yield {side: Path(root, side) for side in SIDES}


def rows() -> list[Row]:
    """The rows, measured."""
    found = []
    with redis_server() as server:
        for simple in (False, True):
            name = "SimpleWorker" if simple else "Worker"
            with _directories() as directories:
                runs: dict[str, list[Run]] = {side: [] for side in SIDES}
                for number in range(ROUNDS):
                    for side in SIDES if number % 2 == 0 else reversed(SIDES):
                        runs[side].append(_run(side, simple, server.url, directories[side]))
            found += _rows(name, runs)
    return found


def _rows(name: str, runs: dict[str, list[Run]]) -> list[Row]:
    bare, ours, peer = (runs[side] for side in SIDES)
    added = [(mine.cpu - theirs.cpu) * 1e6 for mine, theirs in zip(ours, bare, strict=True)]
    cpu = [run.cpu * 1e6 for run in bare]
    rates = {side: [run.rate for run in runs[side]] for side in SIDES}
    middle = {side: statistics.median(rates[side]) for side in SIDES}
    spreads = {side: spread(rates[side]) for side in SIDES}
    return [
        Row(
            f"RQ {name}: processor time added to a job (peer: the job's own)",
            statistics.median(added), statistics.median(cpu), "us", CPU_BUDGET,
            f"{min(added):.0f}..{max(added):.0f} us",
        ),
        # Bare against bare varies more than any of these differ: printed, and held to no budget finer than that.
        Row(f"RQ {name}: empty jobs a second (peer: bare)", middle["ours"], middle["bare"], "/s", 10.0,
            f"{spreads['ours']} / {spreads['bare']}"),
        Row(f"RQ {name}: empty jobs a second (peer: prometheus_client inside)", middle["ours"], middle["peer"], "/s",
            10.0, f"{spreads['ours']} / {spreads['peer']}"),
        Row(f"RQ {name}: files left by {JOBS * ROUNDS} jobs", ours[-1].files, peer[-1].files, "", 1.0),
        Row(f"RQ {name}: bytes left by {JOBS * ROUNDS} jobs", ours[-1].size, peer[-1].size, "B", 1.0),
    ]  # fmt: skip
