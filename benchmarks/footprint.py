"""The import time of the worker side, and the memory that 200 series add to a process."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import compiled
from benchmarks.measuring import Row, compare, interleaved

ROUNDS = 15
SERIES = 200
IMPORT_BUDGET_MS = 15.0
MEMORY_BUDGET_MIB = 2.0

# What `celery worker` imports before the plugin: the modules of all commands. That of amqp imports asyncio and hashlib.
# Without celery.bin.celery: it imports jobmetrics' own command by its entry point, and no import would be left.
_CELERY = "celery.bin.amqp, celery.bin.worker, celery.apps.worker, celery.concurrency.prefork, celery.worker.consumer"

_IMPORT = "import {framework}, time; start = time.perf_counter(); {more}; print((time.perf_counter() - start) * 1000)"
_MARK = "framework loaded"
_RSS = "import psutil; rss = lambda: psutil.Process().memory_info().rss / 2**20"
_OURS = "from jobmetrics import Counter, settings; settings.configure(dir={directory!r})"
_PEER = "import os; os.environ['PROMETHEUS_MULTIPROC_DIR'] = {directory!r}; from prometheus_client import Counter"
_RECORD = """
counter = Counter("bench_jobs", "d", ["n"])
for number in range({series}):
    counter.labels(str(number)).inc()
print(rss() - before)
"""


def _run(script: str) -> float:
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=compiled.environment())
    return float(done.stdout)


def _import_ms(framework: str, module: str) -> Row:
    """Measure the import of a module in a process that has imported the framework's worker.

    The peer imports nothing, so the budget is absolute.
    """
    ours = _IMPORT.format(framework=framework, more=f"import {module}")
    bare = _IMPORT.format(framework=framework, more="pass")
    _run(ours)  # compiles
    figures = interleaved(lambda: _run(ours), lambda: _run(bare), ROUNDS)
    profile = _import_profile(framework, module)
    return compare(f"import of {module}", "ms", float("nan"), figures, absolute=IMPORT_BUDGET_MS, profile=profile)


def _import_profile(framework: str, module: str) -> str:
    """Import times of the modules beyond the framework's, from Python's -X importtime."""
    script = f"import {framework}, sys; print({_MARK!r}, file=sys.stderr); import {module}"
    command = [sys.executable, "-X", "importtime", "-c", script]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=compiled.environment())
    lines = [line.partition(":")[2].split("|") for line in done.stderr.partition(_MARK)[2].splitlines() if "|" in line]
    took = {name.strip(): int(own) / 1000 for own, _, name in lines}
    ours = {name: own for name, own in took.items() if name.partition(".")[0] == "jobmetrics"}
    slowest = sorted(ours.items(), key=lambda item: -item[1])[:5]
    return (
        f"{len(ours)} modules of jobmetrics: {sum(ours.values()):.1f} ms; {len(took) - len(ours)} other modules: "
        f"{sum(took.values()) - sum(ours.values()):.1f} ms; slowest: "
        + ", ".join(f"{name} {own:.1f} ms" for name, own in slowest)
    )


def _memory_mib() -> Row:
    base = "/dev/shm" if Path("/dev/shm").is_dir() else None

    def measured(side: str) -> float:
        with tempfile.TemporaryDirectory(dir=base) as root:
            path = f"{root}/registry" if side == _OURS else root
            begin = f"{_RSS}; import celery.app.trace, numbers; before = rss(); {side.format(directory=path)}"
            return _run(begin + _RECORD.format(series=SERIES))

    figures = interleaved(lambda: measured(_OURS), lambda: measured(_PEER), ROUNDS)
    return compare(f"memory added, {SERIES} series", "MiB", float("nan"), figures, absolute=MEMORY_BUDGET_MIB)


def rows() -> list[Row]:
    """Measure the rows."""
    return [
        _import_ms(_CELERY, "jobmetrics.celery.plugin"),
        _import_ms("rq", "jobmetrics.rq.worker"),
        _memory_mib(),
    ]
