"""A fork and the child's first record, with 200 series, beside 8 and 256 living processes.

Each side is a separate process that has bound 200 series and forks on request. A figure adds up the time of the
library's own fork hooks, in parent and child, and of the child's first record. The fork itself and the standard
library's hooks are not included.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import compiled, pages
from benchmarks.measuring import NO_BUDGET, Row, compare

SERIES = 200
ROUNDS = 60
BUDGET = 0.50
WORK_HORSE_BUDGET_MS = 1.0

LIBRARIES = ("jobmetrics", "prometheus_client")
TIME, PAGES = "time", "pages"

_in_hooks = {"before": 0, "after_in_parent": 0, "after_in_child": 0}
_reading: list[Callable[[], int]] = [time.perf_counter_ns]  # the current measure: nanoseconds, or page faults


def _measure_hooks() -> None:
    """Measure the fork hooks that the libraries register after this call."""
    register = os.register_at_fork

    def timed(kind: str, hook: Callable[[], object]) -> Callable[[], None]:
        def call() -> None:
            reading = _reading[0]
            start = reading()
            hook()
            _in_hooks[kind] += reading() - start

        return call

    def register_timed(**hooks: Callable[[], object]) -> None:
        register(
            **{
                kind: timed(kind, hook) if hook.__module__.startswith(LIBRARIES) else hook
                for kind, hook in hooks.items()
            }
        )

    os.register_at_fork = register_timed  # type: ignore[assignment]  # accepts the same keywords


def side(name: str, directory: str, living: int) -> None:
    """Run as the measured process: answer each line with the child's and the parent's figures, as JSON.

    The figures are microseconds; for the line `PAGES`, page faults.
    """
    _measure_hooks()
    if name == "ours":
        from jobmetrics import Counter, settings

        settings.configure(dir=directory, propagate_errors=True)
    else:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory
        from prometheus_client import Counter  # type: ignore[assignment]
    counter = Counter("bench_jobs", "d", ["n"])
    bound = [counter.labels(str(number)) for number in range(SERIES)]
    for series in bound:
        series.inc()
    idle = [_idle_child(bound[0]) for _ in range(living)]
    print("ready", flush=True)
    try:
        for line in sys.stdin:
            print(json.dumps(_measured(bound[-1], line.strip())), flush=True)
    finally:
        for pid in idle:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _idle_child(series: object) -> int:
    """Fork a child that records once and then waits; returns its pid."""
    reading_end, writing_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        series.inc()  # type: ignore[attr-defined]
        os.write(writing_end, b"x")
        while True:
            signal.pause()
    os.read(reading_end, 1)
    os.close(reading_end)
    os.close(writing_end)
    return pid


def _measured(series: object, which: str) -> tuple[float, float]:
    if which == TIME:
        return _first_record(series)
    _reading[0] = pages.faults
    try:
        child, parent = _first_record(series)
        return child * 1000, parent * 1000
    finally:
        _reading[0] = time.perf_counter_ns


def _first_record(series: object) -> tuple[float, float]:
    reading_end, writing_end = os.pipe()
    _in_hooks.update(dict.fromkeys(_in_hooks, 0))
    reading = _reading[0]
    pid = os.fork()
    if pid == 0:
        start = reading()
        series.inc()  # type: ignore[attr-defined]
        took = reading() - start + _in_hooks["after_in_child"]
        os.write(writing_end, repr(took / 1000).encode())
        os._exit(0)
    in_parent = (_in_hooks["before"] + _in_hooks["after_in_parent"]) / 1000
    os.waitpid(pid, 0)
    in_child = float(os.read(reading_end, 64))
    os.close(reading_end)
    os.close(writing_end)
    return in_child, in_parent


@contextmanager
def _side(name: str, directory: Path, living: int) -> Iterator[subprocess.Popen[str]]:
    started = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.forking", name, str(directory), str(living)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=compiled.beforehand("benchmarks.forking", "jobmetrics", "prometheus_client"),
    )
    assert started.stdout is not None
    assert started.stdout.readline() == "ready\n"
    try:
        yield started
    finally:
        started.communicate()


def _ask(process: subprocess.Popen[str], which: str) -> tuple[float, float]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{which}\n")
    process.stdin.flush()
    in_child, in_parent = json.loads(process.stdout.readline())
    return in_child, in_parent


def _rows(living: int, ours: subprocess.Popen[str], peer: subprocess.Popen[str]) -> list[Row]:
    figures: tuple[list[tuple[float, float]], list[tuple[float, float]]] = ([], [])
    for number in range(ROUNDS):
        sides = ((figures[0], ours), (figures[1], peer))
        for found, process in sides if number % 2 == 0 else reversed(sides):
            found.append(_ask(process, TIME))
    child = tuple([in_child for in_child, _ in found] for found in figures)
    both = tuple([in_child + in_parent for in_child, in_parent in found] for found in figures)
    what = f"fork and first record, 200 series, {living} living"
    copied = statistics.median(_ask(ours, PAGES)[0] for _ in range(ROUNDS // 4))
    profile = f"the child has {copied:.0f} page faults; one that copies a page takes {pages.copied_us():.1f} us here"
    rows = [
        compare(f"{what}: parent's hooks and child", "us", BUDGET, (both[0], both[1]), profile=profile),
        compare(f"{what}: child alone", "us", NO_BUDGET, (child[0], child[1])),
    ]
    if living == 8:
        limit = WORK_HORSE_BUDGET_MS * 1000
        rows.append(compare(f"{what}: for a work-horse", "us", BUDGET, (both[0], both[1]), absolute=limit))
    return rows


def rows() -> list[Row]:
    """Measure the rows."""
    found = []
    base = "/dev/shm" if Path("/dev/shm").is_dir() else None
    for living in (8, 256):
        with tempfile.TemporaryDirectory(dir=base) as root:
            ours, peer = Path(root, "ours"), Path(root, "peer")
            peer.mkdir()
            with _side("ours", ours, living) as one, _side("peer", peer, living) as other:
                found += _rows(living, one, other)
    return found


if __name__ == "__main__":
    side(sys.argv[1], sys.argv[2], int(sys.argv[3]))
