"""Updates that wait in memory: which processes keep them, when they are retried, and what happens at process exit."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from jobmetrics.registry.layout import MIN_CELLS
from tests.multiprocess.places import PAGE, fill, small_disk
from tests.multiprocess.support import (
    HANG_SECONDS,
    Worker,
    child,
    children,
    in_child,
    record,
    run_and_exit,
    serve,
    slot_files,
)
from tests.multiprocess.test_fork_safe import locked_index
from tests.multiprocess.test_index_lock import stopped_holder
from tests.support import readings

CHILDREN = 20
NEWCOMERS = 200
WAITING = 2_000
HERD = 40

SCRIPT = """
import sys, jobmetrics
sys.stdin.read()
for n in range(5):
    jobmetrics.increment(f"herd_{n}", who=sys.argv[1])
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", f"size={64 * PAGE}") as path:
        yield path


def calm(path: Path, **more: Any) -> Worker:
    """A worker as in production: errors are counted."""
    return Worker(path, propagate_errors=False, **more)


class Parent(Worker):
    """Fork children one after another, each of which counts once and exits without clean-up."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, propagate_errors=False)

    def many(self, series: int) -> None:
        for n in range(series):
            self.clock.now += 10.0
            self.hit(f"{n}")

    def fork_and_end(self, times: int) -> None:
        """As `fork_and_hit`, with two observations, and exits as Python's own."""

        def run() -> None:
            self.hit("child")
            self.measure(1.0, "child")
            self.measure(2.0, "child")
            atexit._run_exitfuncs()

        for _ in range(times):
            pid = os.fork()
            if pid == 0:
                run_and_exit(run)
            assert os.waitpid(pid, 0)[1] == 0

    def fork_and_hit(self, times: int) -> None:
        for _ in range(times):
            pid = os.fork()
            if pid == 0:
                run_and_exit(self.hit)
            assert os.waitpid(pid, 0)[1] == 0


def test_children_of_a_process_that_found_no_room_use_the_free_slot(disk: Path) -> None:
    """Its failures with new series do not affect them: their series have space."""
    path = disk / "registry"
    with (
        child(lambda pipe: serve(Worker(path), pipe)) as other,
        child(lambda pipe: serve(Parent(path), pipe)) as parent,
    ):
        other.ask("hit")
        parent.ask("hit")
        other.leave()
        fill(disk)
        parent.ask("many", 3 * MIN_CELLS)
        parent.ask("fork_and_hit", CHILDREN)
        parent.leave()
    assert readings.values(path, "hits_total")["all",] == CHILDREN + 2.0


def test_updates_that_children_lose_to_a_full_disk_are_counted_by_their_parent(disk: Path) -> None:
    path = disk / "registry"
    with child(lambda pipe: serve(Parent(path), pipe)) as parent:
        parent.ask("job")
        filler = fill(disk)
        parent.ask("fork_and_end", CHILDREN)
        filler.unlink()
        parent.ask("later")
        parent.ask("job")
        parent.leave()
    dropped = readings.values(path, "jobmetrics_dropped_updates_total")
    assert dropped == {("disk full", "__other__"): 3.0 * CHILDREN}


def test_new_processes_count_known_series_when_the_index_has_grown_on_a_full_disk(disk: Path) -> None:
    """The index may have space for another series while no slot has."""
    path = disk / "registry"

    def run() -> None:
        one = calm(path)
        one.hit()
        one.writer.tick()
        n = 0
        while one.writer.session.index is not None and one.writer.session.index.next_cell < MIN_CELLS:
            one.hit(f"{n}")
            n += 1
        fill(disk)
        one.hit("one more")

    in_child(run)
    for _ in range(NEWCOMERS):
        in_child(lambda: calm(path).hit())
    assert readings.values(path, "hits_total")["all",] == NEWCOMERS + 1.0
    assert len(slot_files(path)) == 1


class Counting(Worker):
    """Count the files that this process opens or tries to open."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, patient=False)
        self.opened = 0
        original = os.open

        def counted(*arguments: Any, **keywords: Any) -> int:
            self.opened += 1
            return original(*arguments, **keywords)

        setattr(os, "open", counted)  # noqa: B010 - a function to mypy

    def many(self, series: int) -> None:
        for n in range(series):
            self.hit(f"waiting {n}")

    def opened_in_ends(self, times: int, seconds: float) -> int:
        """Files opened at the ends of a number of jobs of a given duration."""
        opened, slowest = 0, 0.0
        for _ in range(times):
            self.start("one")
            self.clock.now += seconds
            before, start = self.opened, time.perf_counter()
            self.end("one")
            slowest = max(slowest, time.perf_counter() - start)
            opened += self.opened - before
        print(f"slowest end: {slowest * 1e6:.0f} microseconds", file=sys.stderr)
        return opened


def test_updates_that_wait_for_the_index_lock_are_retried_together_once_a_second(registry_dir: Path) -> None:
    record(registry_dir, ("job",))
    with child(lambda pipe: serve(Counting(registry_dir), pipe)) as one:
        one.ask("job")
        with stopped_holder(registry_dir):
            one.ask("many", WAITING)
            assert one.ask("opened_in_ends", 10, 0.0) == 0
            assert one.ask("opened_in_ends", 10, 1.0) <= 10
        one.ask("later")
        one.leave()
    values = readings.values(registry_dir, "hits_total")
    assert sum(values[f"waiting {n}",] for n in range(WAITING)) == WAITING


def test_many_short_processes_with_different_series(registry_dir: Path) -> None:
    """Each process finds the index locked, and counts what it could not place when it ends."""

    def run(n: int, pipe: Connection) -> None:
        pipe.recv()
        one = calm(registry_dir, patient=False)
        one.hit(f"{n}")
        one.job(f"job {n}")
        atexit._run_exitfuncs()

    with children([lambda pipe, n=n: run(n, pipe) for n in range(HERD)]) as herd:  # type: ignore[misc]
        for one in herd:
            one.pipe.send(None)
        for one in herd:
            one.join()
    assert readings.values(registry_dir, "hits_total") == {(f"{n}",): 1.0 for n in range(HERD)}
    assert sum(readings.values(registry_dir, "jobs_total").values()) == HERD


def test_a_process_that_ends_waits_for_the_index_lock(registry_dir: Path) -> None:
    def run(pipe: Connection) -> None:
        one = calm(registry_dir, patient=False)
        pipe.recv()
        one.hit()
        pipe.send((True, "about to end"))
        atexit._run_exitfuncs()

    record(registry_dir, ("hit", "known"))
    with child(run) as one:
        with locked_index(registry_dir):
            one.pipe.send("now")
            one.answer()
        one.join()
    assert readings.values(registry_dir, "hits_total")["all",] == 1.0


def test_a_process_that_ends_without_the_lock_counts_what_it_loses(registry_dir: Path) -> None:
    """The series was appended by another process while this one waited at its end."""

    def run(pipe: Connection) -> None:
        one = calm(registry_dir, patient=False)
        one.writer.show_dropped = one.recorder.show_dropped
        one.hit("known")
        pipe.recv()
        one.hit(f"{os.getpid()}")
        one.measure(1.0, f"{os.getpid()}")
        one.measure(2.0, f"{os.getpid()}")
        pipe.send((True, "about to end"))
        pipe.recv()
        one.writer.settle(0.0)

    record(registry_dir, ("hit", "known"))
    for _ in range(2):
        with child(run) as first, child(run) as second:
            with locked_index(registry_dir):
                for one in (first, second):
                    one.pipe.send("record")
                    one.answer()
                second.pipe.send("end")
                second.join()
            first.pipe.send("end")
            first.join()
    dropped = readings.values(registry_dir, "jobmetrics_dropped_updates_total")
    assert dropped == {("process ended", "__other__"): 3.0}  # the first round's loss had no series yet
    assert readings.values(registry_dir, "hits_total")["known",] == 5.0


@pytest.mark.full
@pytest.mark.serial  # each process waits up to 2 s at its end
@pytest.mark.parametrize("count", [60, 200])
def test_many_scripts_that_start_at_the_full_minute(count: int, registry_dir: Path) -> None:
    environment = {**os.environ, "JOBMETRICS_DIR": str(registry_dir)}
    waiting, minute = os.pipe()
    herd = [
        subprocess.Popen([sys.executable, "-c", SCRIPT, f"{n}"], env=environment, stdin=waiting) for n in range(count)
    ]
    os.close(minute)
    os.close(waiting)
    assert {one.wait(HANG_SECONDS) for one in herd} == {0}
    counted = [sum(readings.values(registry_dir, f"herd_{n}_total").values()) for n in range(5)]
    assert counted == [float(count)] * 5
