"""The cost of one host's exporter: `python -m benchmarks.host` prints the table of docs/scaling.md.

Worker processes record a success, a failure and a retry of each job type. Then a real exporter is scraped over HTTP.
Sizes and numbers of samples are exact; times depend on the machine. With the argument `prometheus`, it measures the
memory of a Prometheus that scrapes many such hosts.
"""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.scrape import _exporter as exporter
from tests.support.servers import prometheus_server

PROCESSES = 16
JOB_TYPES = (10, 50, 200)
SCRAPES = 100
HOSTS = 60
INTERVAL = 15  # seconds
ROUNDS = 12
MEGABYTE = 1e6


@dataclass(frozen=True)
class Cost:
    """Figures of one host.

    plain, zipped: bytes of a response. took, cpu: milliseconds per scrape. resident, directory: bytes.
    """

    job_types: int
    samples: int
    plain: int
    zipped: int
    took: float
    cpu: float
    resident: int
    directory: int


def fill(directory: str, job_types: int) -> None:
    """Start the worker processes one after another, and keep them until standard input is closed."""
    import os
    import signal

    from jobmetrics import recorder, settings
    from jobmetrics.events import FAILURE, RETRY, SUCCESS, Ended, Job, Started

    settings.configure(dir=directory, propagate_errors=True)
    jobs = [Job("celery", f"shop.tasks.job_number_{number}", "celery") for number in range(job_types)]
    reading_end, writing_end = os.pipe()
    alive = []
    for process in range(PROCESSES):
        pid = os.fork()
        if pid == 0:
            record = recorder.default()
            for number, job in enumerate(jobs):
                for status in (SUCCESS, FAILURE, RETRY):
                    name = f"{process}-{number}-{status}"
                    execution = record.started(Started(job, name, time.time() - 0.1))
                    assert execution is not None
                    record.ended(execution, Ended(status, "ValueError" if status == FAILURE else None))
            os.write(writing_end, b"x")
            signal.pause()
        os.read(reading_end, 1)
        alive.append(pid)
    print("filled", flush=True)
    sys.stdin.read()
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _get(connection: http.client.HTTPConnection) -> bytes:
    connection.request("GET", "/metrics", headers={"Accept-Encoding": "gzip"})
    return connection.getresponse().read()


def _measured(process: psutil.Process, connection: http.client.HTTPConnection) -> tuple[float, float]:
    """Milliseconds per scrape: wall-clock time, and the exporter's processor time."""
    for _ in range(10):
        _get(connection)
    before, took = process.cpu_times(), []
    for _ in range(SCRAPES):
        start = time.perf_counter()
        _get(connection)
        took.append(time.perf_counter() - start)
    after = process.cpu_times()
    cpu = after.user + after.system - before.user - before.system
    return statistics.median(took) * 1000, cpu / SCRAPES * 1000


@contextlib.contextmanager
def _workers(job_types: int) -> Iterator[str]:
    """The directory that living worker processes have recorded into."""
    base = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with (
        tempfile.TemporaryDirectory(dir=base) as root,
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.host", "fill", root, str(job_types)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as workers,
    ):  # fmt: skip
        assert workers.stdout is not None
        assert workers.stdout.readline() == "filled\n"
        try:
            yield root
        finally:
            workers.communicate()


def cost(job_types: int) -> Cost:
    """Measure one host with this number of job types."""
    with _workers(job_types) as root, exporter(Path(root)) as (process, connection):
        took, cpu = _measured(process, connection)
        zipped = _get(connection)
        plain = gzip.decompress(zipped)
        samples = sum(not line.startswith(b"#") for line in plain.splitlines())
        resident = process.memory_info().rss
        directory = sum(path.stat().st_blocks * 512 for path in Path(root).iterdir())
    return Cost(job_types, samples, len(plain), len(zipped), took, cpu, resident, directory)


def prometheus() -> None:
    """Print the memory of a Prometheus that has scraped HOSTS such hosts ROUNDS times. It must be installed."""
    labelled = [{"targets": ["@"], "labels": {"host": f"host-{number}"}} for number in range(HOSTS)]
    with _workers(JOB_TYPES[1]) as root, exporter(Path(root)) as (_, connection):
        scrape = {"job_name": "jobmetrics", "scrape_interval": f"{INTERVAL}s", "static_configs": labelled}
        config = json.dumps({"scrape_configs": [scrape]}).replace("@", f"127.0.0.1:{connection.port}")
        with prometheus_server(config) as server:
            time.sleep(INTERVAL * ROUNDS)
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port)) as asked:
                asked.request("GET", "/metrics")
                text = asked.getresponse().read().decode()
    found = dict(re.findall(r"^(prometheus_tsdb_head_series|process_resident_memory_bytes) (\S+)$", text, re.MULTILINE))
    series, resident = (float(found[name]) for name in sorted(found, reverse=True))
    print(f"{HOSTS} hosts, {series:.0f} series: {resident / MEGABYTE:.0f} MB, {resident / series:.0f} bytes per series")


def main() -> None:
    """Measure and print."""
    table = Table(title=f"One host, {PROCESSES} worker processes")
    headings = (
        "job types", "samples", "answer, kB", "gzip, kB", "scrape, ms", "cpu per scrape, ms", "exporter, MB",
        "directory, MB",
    )  # fmt: skip
    for heading in headings:
        table.add_column(heading, justify="right")
    for job_types in JOB_TYPES:
        found = cost(job_types)
        table.add_row(
            str(found.job_types), str(found.samples), f"{found.plain / 1000:.0f}", f"{found.zipped / 1000:.0f}",
            f"{found.took:.1f}", f"{found.cpu:.1f}", f"{found.resident / MEGABYTE:.0f}",
            f"{found.directory / MEGABYTE:.1f}",
        )  # fmt: skip
    Console(width=140).print(table)


if __name__ == "__main__":
    if sys.argv[1:2] == ["fill"]:
        fill(sys.argv[2], int(sys.argv[3]))
    elif sys.argv[1:] == ["prometheus"]:
        prometheus()
    else:
        main()
