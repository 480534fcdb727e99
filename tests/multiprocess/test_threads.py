"""Under the GIL, bound updates lose nothing without a lock; builds without the GIL use one. Nothing deadlocks.

Each supported Python must pass the first test: `cells[i] += x` is one step only while the interpreter switches
threads nowhere inside it.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from jobmetrics import families, settings
from jobmetrics.families import COUNTER, GAUGE, HISTOGRAM
from jobmetrics.instruments import BoundCounter, BoundGauge, BoundHistogram, Labelled, define
from jobmetrics.instruments.bound import UPDATES, locked
from jobmetrics.registry.write.writer import Writer
from tests.multiprocess.support import in_child
from tests.support import readings
from tests.support.repetitions import sizes

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
THREADS = 4

COUNTED = define(COUNTER, "threads_counted", "Counted.", ())
SIZED = define(HISTOGRAM, "threads_sized", "Sized.", (), buckets=(1.0, 2.0))
LEVEL = define(GAUGE, "threads_level", "Level.", (), mode=families.LIVE_SUM)
HIGHEST = define(GAUGE, "threads_highest", "Highest.", (), mode=families.HIGH_WATER)


def hammer(path: Path, times: int) -> None:
    """Record the same series from many threads, with a very short switch interval."""
    sys.setswitchinterval(1e-6)
    writer = Writer(settings.Settings(dir=str(path), propagate_errors=True))
    counter = Labelled(BoundCounter, COUNTED, writer).at(())
    histogram = Labelled(BoundHistogram, SIZED, writer).at(())
    level = Labelled(BoundGauge, LEVEL, writer).at(())
    highest = Labelled(BoundGauge, HIGHEST, writer).at(())

    def record(number: int) -> None:
        for n in range(times):
            counter.inc()
            histogram.observe(1.5)
            level.inc()
            highest.set(float(n * THREADS + number))

    threads = [threading.Thread(target=record, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    level.dec(float(THREADS * times - 7))
    found = readings.snapshot(path)
    said = {family.name: samples[0] for family, samples in found.families}
    assert said["threads_counted_total"].value == THREADS * times
    assert list(said["threads_sized"].buckets) == [0.0, float(THREADS * times), 0.0]
    assert said["threads_sized"].sum == 1.5 * THREADS * times
    assert said["threads_level"].value == 7.0
    # The last thread's values are shown, and each thread's last value is among the last THREADS.
    assert THREADS * (times - 1) <= said["threads_highest"].value < THREADS * times


@sizes("times", 20_000, 500_000)
def test_threads_lose_no_update(times: int, registry_dir: Path) -> None:
    in_child(lambda: hammer(registry_dir, times))


@sizes("times", 10_000, 100_000)
def test_threads_lose_no_update_under_the_lock_of_builds_without_the_gil(times: int, registry_dir: Path) -> None:
    def run() -> None:
        for bound, name in UPDATES:
            setattr(bound, name, locked(getattr(bound, name)))
        hammer(registry_dir, times)

    in_child(run)


@sizes("times", 20_000, 500_000)
@pytest.mark.parametrize("version", VERSIONS)
def test_every_supported_python_loses_no_update(version: str, times: int, tmp_path: Path) -> None:
    """Record in that interpreter; read with this one, which has numpy."""
    python = _interpreter(version)
    if python is None:
        pytest.skip(f"no Python {version} on this machine")
    path = tmp_path / "registry"
    script = (
        "import sys; sys.path.insert(0, '.');"
        "from tests.multiprocess.threads_without_reader import main; main(sys.argv[1], int(sys.argv[2]))"
    )
    subprocess.run([python, "-c", script, str(path), str(times)], cwd=ROOT, check=True)
    assert readings.values(path, "threads_counted_total") == {(): 4.0 * times}
    assert readings.counts(path, "threads_sized") == {(): 4.0 * times}


def _interpreter(version: str) -> str | None:
    """An interpreter of this version: on PATH or installed by pyenv."""
    if "{}.{}".format(*sys.version_info[:2]) == version:
        return sys.executable
    roots = sorted(Path(os.environ.get("PYENV_ROOT", "/nonexistent")).glob(f"versions/{version}.*/bin/python"))
    return str(roots[-1]) if roots else shutil.which(f"python{version}")


def test_signal_handlers_and_finalisers_that_record_never_deadlock(registry_dir: Path) -> None:
    """They run at any point, the slow path included: what they record there is counted later."""

    def run() -> None:
        writer = Writer(settings.Settings(dir=str(registry_dir), propagate_errors=True))
        family = define(COUNTER, "interrupted", "Counted anywhere.", ("who",))
        counted = Labelled(BoundCounter, family, writer)
        signals = finalised = 0

        def handle(*_: object) -> None:
            nonlocal signals
            signals += 1
            counted.at((f"handler {signals % 50}",)).inc()

        class Finalised:
            def __init__(self) -> None:
                self.itself = self

            def __del__(self) -> None:
                nonlocal finalised
                finalised += 1
                counted.at((f"finaliser {finalised % 50}",)).inc()

        gc.set_threshold(5)
        signal.signal(signal.SIGALRM, handle)
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        for number in range(2000):
            Finalised()
            counted.at((f"job {number % 200}",)).inc()
        signal.setitimer(signal.ITIMER_REAL, 0)
        gc.collect()
        counted.at(("last",)).inc()
        said = readings.values(registry_dir, "interrupted_total")
        by_kind = {
            kind: sum(value for (who,), value in said.items() if who.startswith(kind))
            for kind in ("job", "handler", "finaliser")
        }
        assert by_kind == {"job": 2000, "handler": signals, "finaliser": finalised}
        assert signals > 0
        assert finalised > 0

    in_child(run)
