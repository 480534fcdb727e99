"""Design section 8: the first record after a fork, with 200 series, beside 8 and 256 living processes.

Each side is a process of its own that has bound 200 series and forks on request. The child's clock starts in the
first hook that runs in it, so that our own hook is inside what is measured, and the bare fork is not.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measuring import Row, compare, interleaved

SERIES = 200
ROUNDS = 60
WORK_HORSE_BUDGET_MS = 1.0

_started_ns = 0


def _stamp() -> None:
    global _started_ns
    _started_ns = time.perf_counter_ns()


def side(name: str, directory: str, living: int) -> None:
    """The measured process: prints the microseconds of one fork's first record for each line it reads."""
    os.register_at_fork(after_in_child=_stamp)  # registered first, so it runs first
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
        for _ in sys.stdin:
            print(_first_record(bound[-1]), flush=True)
    finally:
        for pid in idle:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _idle_child(series: object) -> int:
    """A child that has recorded once and stays."""
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        series.inc()  # type: ignore[attr-defined]
        os.write(tell, b"x")
        while True:
            signal.pause()
    os.read(told, 1)
    os.close(told)
    os.close(tell)
    return pid


def _first_record(series: object) -> float:
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        series.inc()  # type: ignore[attr-defined]
        os.write(tell, repr((time.perf_counter_ns() - _started_ns) / 1000).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    took = float(os.read(told, 64))
    os.close(told)
    os.close(tell)
    return took


@contextmanager
def _side(name: str, directory: Path, living: int) -> Iterator[subprocess.Popen[str]]:
    started = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.forking", name, str(directory), str(living)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert started.stdout is not None
    assert started.stdout.readline() == "ready\n"
    try:
        yield started
    finally:
        started.communicate()


def _ask(process: subprocess.Popen[str]) -> float:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def rows() -> list[Row]:
    """The rows, measured."""
    found = []
    base = "/dev/shm" if Path("/dev/shm").is_dir() else None
    for living, budget in ((8, 0.03), (256, 0.10)):
        with tempfile.TemporaryDirectory(dir=base) as root:
            ours, peer = Path(root, "ours"), Path(root, "peer")
            peer.mkdir()
            with _side("ours", ours, living) as one, _side("peer", peer, living) as other:
                figures = interleaved(lambda: _ask(one), lambda: _ask(other), ROUNDS)
        found.append(compare(f"first record after fork, 200 series, {living} living", "us", budget, figures))
        if living == 8:
            row = compare("the same, for a work-horse", "us", budget, figures, absolute=WORK_HORSE_BUDGET_MS * 1000)
            found.append(row)
    return found


if __name__ == "__main__":
    side(sys.argv[1], sys.argv[2], int(sys.argv[3]))
