"""A scrape of 256 processes x 200 histogram series x 15 buckets, and the exporter's memory.

Ours is a request over HTTP to a real exporter, while the recording processes live. The peer is MultiProcessCollector
and generate_latest in this process, without HTTP.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from benchmarks.measuring import Row, compare, interleaved

PROCESSES = 256
SERIES = 200
BOUNDS = tuple(0.005 * 1.7**power for power in range(14))  # and +Inf
WARM_ROUNDS = 7
COLD_ROUNDS = 5
SCRAPES = 2000
WARM_UP = 1000
MEGABYTE = 1e6
RESIDENT_MB = 70.0
GROWTH_MB = 2.0


def fill(name: str, directory: str) -> None:
    """Start one side's processes. Each records into all series; ours live until standard input is closed."""
    if name == "ours":
        from jobmetrics import Histogram, settings

        settings.configure(dir=directory, propagate_errors=True)
    else:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory
        from prometheus_client import Histogram  # type: ignore[assignment]
    histogram = Histogram("bench_seconds", "d", ["n"], buckets=BOUNDS)
    children = [histogram.labels(str(number)) for number in range(SERIES)]
    reading_end, writing_end = os.pipe()
    alive = []
    for number in range(PROCESSES):
        pid = os.fork()
        if pid == 0:
            for child in children:
                child.observe(0.01 * number)
            os.write(writing_end, b"x")
            if name == "ours":
                signal.pause()
            os._exit(0)
        os.read(reading_end, 1)
        if name == "ours":
            alive.append(pid)
        else:
            os.waitpid(pid, 0)
    print("filled", flush=True)
    sys.stdin.read()
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@contextlib.contextmanager
def _filled(name: str, directory: Path) -> Iterator[None]:
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.scrape", name, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "filled\n"
        try:
            yield
        finally:
            process.communicate()


@contextlib.contextmanager
def _exporter(directory: Path) -> Iterator[tuple[psutil.Process, http.client.HTTPConnection]]:
    with subprocess.Popen(
        [sys.executable, "-m", "jobmetrics", "exporter", "--listen", "127.0.0.1:0", "--dir", str(directory)],
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            found = re.search(r"http://127\.0\.0\.1:(\d+)/", process.stderr.readline())
            assert found is not None
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", int(found[1]))) as connection:
                connection.connect()
                yield psutil.Process(process.pid), connection
        finally:
            process.terminate()
            process.communicate()


def _scrape(connection: http.client.HTTPConnection) -> float:
    """Scrape once; returns milliseconds."""
    start = time.perf_counter()
    connection.request("GET", "/metrics")
    body = connection.getresponse().read()
    took = time.perf_counter() - start
    assert body.count(b"bench_seconds_bucket") == SERIES * (len(BOUNDS) + 1)
    return took * 1000


def _peer(directory: Path) -> float:
    """Read the peer's directory once; returns milliseconds."""
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.multiprocess import MultiProcessCollector

    start = time.perf_counter()
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(directory))  # type: ignore[no-untyped-call]  # ships no types
    body = generate_latest(registry)
    took = time.perf_counter() - start
    assert body.count(b"bench_seconds_bucket") == SERIES * (len(BOUNDS) + 1)
    return took * 1000


def _cold(directory: Path) -> float:
    with _exporter(directory) as (_, connection):
        return _scrape(connection)


def rows() -> list[Row]:
    """Measure the rows."""
    base = "/dev/shm" if Path("/dev/shm").is_dir() else None
    what = f"scrape over HTTP, {PROCESSES} x {SERIES} x {len(BOUNDS) + 1}"
    with tempfile.TemporaryDirectory(dir=base) as root:
        ours, peer = Path(root, "ours"), Path(root, "peer")
        peer.mkdir()
        with _filled("peer", peer), _filled("ours", ours), _exporter(ours) as (process, connection):
            for _ in range(3):
                _scrape(connection)
            warm = interleaved(lambda: _scrape(connection), lambda: _peer(peer), WARM_ROUNDS)
            cold = interleaved(lambda: _cold(ours), lambda: _peer(peer), COLD_ROUNDS)
            for _ in range(WARM_UP):
                _scrape(connection)
            resident = process.memory_info().rss / MEGABYTE
            for _ in range(SCRAPES - WARM_UP):
                _scrape(connection)
            grown = process.memory_info().rss / MEGABYTE - resident
    none = float("nan")
    return [
        compare(f"{what}, warm", "ms", 0.02, warm),
        compare(f"{what}, cold", "ms", 0.05, cold),
        Row("exporter resident memory of it", resident, none, "MB", none, absolute=RESIDENT_MB),
        Row(f"the same, scrapes {WARM_UP} to {SCRAPES} add", grown, none, "MB", none, absolute=GROWTH_MB),
    ]


if __name__ == "__main__":
    fill(sys.argv[1], sys.argv[2])
