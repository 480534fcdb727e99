"""RQ: processor time added to a job, files left behind, and the throughput of empty jobs.

Three real workers run in burst mode on one private Redis: bare, with jobmetrics, and with prometheus_client's
multiprocess mode inside the job. Each worker lives through all rounds, so no figure contains starting and importing. In
each round the workers take turns, with the same number of jobs. Processor time is that of the worker and all its
work-horses. The worker of the third side imports prometheus_client before it forks.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import rq
from redis import Redis
from rq import Queue
from rq.executions import Execution
from rq.job import Job

from benchmarks import compiled, pages, rq_jobs
from benchmarks.measuring import NO_BUDGET, Row, compare, interleaved, spread
from benchmarks.rq_worker import QUEUE
from tests.support.readings import values
from tests.support.servers import redis_server

JOBS = 50  # per round; rounds are short, because a job's cost drifts within a minute by more than the sides differ
FIRST = 100  # jobs before the first round; the files and bytes that they leave are the baseline
ROUNDS = 48
CPU_BUDGET = 0.05
SIMPLE_BUDGET = 40.0  # microseconds that the hooks of a worker without work-horses add, in process
IN_PROCESS = 2000  # executions per round
IN_PROCESS_ROUNDS = 12
SIDES = {"bare": ("rq", rq_jobs.empty), "ours": ("jobmetrics.rq", rq_jobs.empty), "peer": ("rq", rq_jobs.counted)}


@dataclass(frozen=True)
class Run:
    """One round of one side. All figures are per job; times are in seconds."""

    cpu: float
    seconds: float
    faults: float
    horse_faults: float


@dataclass(frozen=True)
class Left:
    """The files in a directory, and their size."""

    files: int
    size: int  # bytes


class Side:
    """A worker that waits for commands, its directory and the figures of its rounds."""

    def __init__(self, process: subprocess.Popen[str], directory: Path, queue: Queue, job: Callable[[], None]) -> None:
        self._process = process
        self._queue = queue
        self._job = job
        self.directory = directory
        self.runs: list[Run] = []

    def work(self, jobs: int) -> Run:
        """Send a number of jobs and wait for their end."""
        self._queue.enqueue_many([Queue.prepare_data(self._job) for _ in range(jobs)])
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(file=self._process.stdin, flush=True)
        return Run(*(used / jobs for used in json.loads(self._process.stdout.readline())))

    def left(self) -> Left:
        """The files in its directory."""
        sizes = [path.stat().st_size for path in self.directory.iterdir() if path.is_file()]
        return Left(len(sizes), sum(sizes))


@contextmanager
def _side(name: str, worker: str, url: str, base: Path) -> Iterator[Side]:
    package, job = SIDES[name]
    directory = base / f"{worker}-{name}"
    directory.mkdir(mode=0o700)
    command = [sys.executable, "-m", "benchmarks.rq_worker", f"{package}.{worker}", url]
    if name == "peer":
        command.append("benchmarks.rq_peer")
    environment = {
        **compiled.beforehand(
            "benchmarks.rq_worker", "benchmarks.rq_jobs", "benchmarks.rq_peer", "jobmetrics.rq.worker"
        ),
        "JOBMETRICS_DIR": str(directory),
        "PROMETHEUS_MULTIPROC_DIR": str(directory),
    }
    with (
        Redis.from_url(url) as connection,
        subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process,
    ):
        yield Side(process, directory, Queue(QUEUE, connection=connection), job)
        assert process.stdin is not None
        process.stdin.close()


def _rows(worker: str, url: str, base: Path) -> list[Row]:
    with ExitStack() as stack:
        sides = {name: stack.enter_context(_side(name, worker, url, base)) for name in SIDES}
        for side in sides.values():
            side.work(FIRST)
        bare, ours, peer = sides.values()
        first = ours.left()
        for number in range(ROUNDS):
            turn = number % len(SIDES)
            order = list(sides.values())
            for side in order[turn:] + order[:turn]:
                side.runs.append(side.work(JOBS))
    done = FIRST + ROUNDS * JOBS
    assert sum(values(ours.directory, "jobs_total").values()) == done
    return [
        _added(worker, bare.runs, ours.runs),
        _throughput(f"RQ {worker}: wall clock an empty job, jobmetrics / bare", ours, bare),
        _throughput(f"RQ {worker}: the same, jobmetrics / prometheus_client multiprocess in the job", ours, peer),
        _throughput(f"RQ {worker}: the same, prometheus_client multiprocess in the job / bare", peer, bare),
        Row(f"RQ {worker}: files left by {done:,} jobs / by {FIRST}", ours.left().files, first.files, "", 1.0),
        Row(f"RQ {worker}: bytes left by {done:,} jobs / by {FIRST}", ours.left().size, first.size, "B", 1.0),
        Row(
            f"RQ {worker}: files left by {done:,} jobs / prometheus_client multiprocess in the job",
            ours.left().files, peer.left().files, "", NO_BUDGET,
        ),
        Row(
            f"RQ {worker}: bytes left by {done:,} jobs / prometheus_client multiprocess in the job",
            ours.left().size, peer.left().size, "B", NO_BUDGET,
        ),
    ]  # fmt: skip


def _added(worker: str, bare: list[Run], ours: list[Run]) -> Row:
    added = [(mine.cpu - theirs.cpu) * 1e6 for mine, theirs in zip(ours, bare, strict=True)]
    whole = [run.cpu * 1e6 for run in bare]
    low, _, high = statistics.quantiles(added, n=4)
    of_worker = statistics.median(run.faults for run in ours) - statistics.median(run.faults for run in bare)
    of_horse = statistics.median(run.horse_faults for run in ours) - statistics.median(run.horse_faults for run in bare)
    return Row(
        f"RQ {worker}: processor time added to a job / bare worker's for an empty job",
        statistics.median(added),
        statistics.median(whole),
        "us",
        CPU_BUDGET,
        f"{low:+.0f}..{high:+.0f} us / {spread(whole)}",
        profile=f"{of_worker:+.0f} page faults in the worker and {of_horse:+.0f} in its work-horse; one that copies a "
        f"page takes {pages.copied_us():.1f} us here, or half of that in the worker after its work-horse has ended",
    )


class _Performs(rq.SimpleWorker):
    """A worker that does nothing for a job, so that the hooks are the only cost."""

    def perform_job(self, job: Job, queue: Queue, *_: object) -> bool:  # noqa: ARG002 - RQ's interface
        return True


def _in_process(kind: type[rq.SimpleWorker], url: str) -> Callable[[], float]:
    """Measure processor microseconds per execution in this process, with warm processor caches."""
    connection = Redis.from_url(url)
    queue = Queue(QUEUE, connection=connection)
    worker = kind([queue], connection=connection)
    job = Job.create(rq_jobs.empty, connection=connection, origin=QUEUE)
    job.enqueued_at = datetime.now(timezone.utc)
    execution = Execution("1", job.id, connection)

    def measure() -> float:
        start = time.process_time()
        for _ in range(IN_PROCESS):
            worker.perform_job(job, queue, execution)
        return (time.process_time() - start) / IN_PROCESS * 1e6

    measure()
    return measure


def _simple_in_process(url: str, base: Path) -> Row:
    """Measure what a SimpleWorker's hooks add, in process as for Celery.

    In a real worker the same code is slower, because RQ's own milliseconds per job evict it from the caches.
    """
    from jobmetrics import settings
    from jobmetrics.rq import instrument

    settings.configure(dir=base / "in-process", propagate_errors=True)

    @instrument
    class Recorded(_Performs):
        pass

    figures = interleaved(_in_process(Recorded, url), _in_process(_Performs, url), IN_PROCESS_ROUNDS)
    added = [ours - bare for ours, bare in zip(*figures, strict=True)]
    what = "RQ SimpleWorker: processor time added to a job, in process"
    return Row(
        what, statistics.median(added), statistics.median(figures[1]), "us", NO_BUDGET, spread(added), SIMPLE_BUDGET
    )


def _throughput(what: str, one: Side, other: Side) -> Row:
    figures = [run.seconds * 1e6 for run in one.runs], [run.seconds * 1e6 for run in other.runs]
    return compare(what, "us", NO_BUDGET, figures)  # bare against bare varies by more than the sides differ


def rows() -> list[Row]:
    """Measure the rows."""
    shm = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=shm) as base, redis_server() as server:
        found = [row for worker in ("Worker", "SimpleWorker") for row in _rows(worker, server.url, Path(base))]
        return [*found, _simple_in_process(server.url, Path(base))]
