"""Invariant 4: executions and gauges of a dead process are gone at the next scrape."""

from __future__ import annotations

import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from tests.multiprocess.interruption import AFTER, BEFORE, LINE, Interruption, interrupted_at
from tests.multiprocess.support import Worker, child, in_child, in_order, record, slot_files, worker, workers
from tests.support import readings

JOB = ("python", "job", "queue")


def levels(path: Path) -> dict[tuple[str, ...], float]:
    return readings.values(path, "level")


def oldest(path: Path) -> list[float | None]:
    return [entry.oldest for entry in readings.snapshot(path).active]


def test_a_killed_process_takes_its_gauges_and_executions_with_it(registry_dir: Path) -> None:
    with workers(registry_dir, 2) as (one, two), readings.reader(registry_dir) as reader:
        for each, level in ((one, 3.0), (two, 4.0)):
            each.ask("level", level)
            each.ask("start", "running")
        assert levels(registry_dir) == {("all",): 7.0}
        assert readings.active(registry_dir) == {JOB: 2}
        reader.read()
        one.kill()
        assert levels(registry_dir) == {("all",): 4.0}
        assert readings.active(registry_dir) == {JOB: 1}
        assert [owner.pid for owner in reader.read().owners] == [two.pid]
        two.kill()
        assert levels(registry_dir) == {}
        assert oldest(registry_dir) == [None]
        snapshot = reader.read()
        assert (snapshot.live, snapshot.free, snapshot.owners) == (0, 2, [])
        assert [entry.count for entry in snapshot.active] == [0], "its 0 is shown"


def test_a_zombie_counts_as_dead(registry_dir: Path) -> None:
    """The process is a zombie: its parent may wait for it later."""
    with worker(registry_dir) as one:
        one.ask("level", 3.0)
        one.ask("start", "running")
        one.signal(signal.SIGKILL)
        os.waitid(os.P_PID, one.pid, os.WEXITED | os.WNOWAIT)
        assert levels(registry_dir) == {}
        assert readings.active(registry_dir) == {}


def test_a_stopped_process_is_alive(registry_dir: Path) -> None:
    with worker(registry_dir) as one:
        one.ask("level", 3.0)
        one.ask("start", "running")
        one.signal(signal.SIGSTOP)
        os.waitpid(one.pid, os.WUNTRACED)
        assert levels(registry_dir) == {("all",): 3.0}
        assert readings.active(registry_dir) == {JOB: 1}
        one.signal(signal.SIGCONT)
        one.ask("end", "running")
        one.leave()


def test_the_next_owner_starts_at_zero(registry_dir: Path) -> None:
    record(registry_dir, ("level", 3.0), ("level", 5.0, "other"), ("start", "one"), ("start", "two"), ("hit", "all"))
    with worker(registry_dir) as one:
        one.ask("hit", "all")
        assert len(slot_files(registry_dir)) == 1
        assert levels(registry_dir) == {}
        assert readings.active(registry_dir) == {}
        one.ask("level", 1.0)
        one.ask("start", "three")
        assert levels(registry_dir) == {("all",): 1.0}
        assert readings.active(registry_dir) == {JOB: 1}
        one.leave()
    assert readings.values(registry_dir, "hits_total") == {("all",): 2.0}


def test_the_oldest_of_many(registry_dir: Path) -> None:
    with workers(registry_dir, 3) as all_:
        for n in range(30):
            all_[n % 3].ask("start", f"{n}")
        starts = sorted(_starts(registry_dir))
        assert readings.active(registry_dir) == {JOB: 30}
        assert oldest(registry_dir) == [starts[0]]
        for n in range(10):
            all_[n % 3].ask("end", f"{n}")
        assert readings.active(registry_dir) == {JOB: 20}
        remaining = oldest(registry_dir)[0]
        assert remaining is not None
        assert remaining > starts[0]
        all_[10 % 3].kill()
        assert readings.active(registry_dir) == {JOB: 20 - len([n for n in range(10, 30) if n % 3 == 10 % 3])}


def _starts(path: Path) -> list[float]:
    found = oldest(path)[0]
    assert found is not None
    return [found]


@pytest.mark.parametrize(
    ("when", "stride"), [(BEFORE, 1), (AFTER, 1), (LINE, 13), pytest.param(LINE, 3, marks=pytest.mark.full)]
)
def test_a_lessee_stopped_at_any_step_never_shows_its_predecessors_gauges(
    when: str, stride: int, tmp_path: Path
) -> None:
    """It has the lock, so the slot belongs to a living process; the gauges in it may be its predecessor's."""
    path = tmp_path / "registry"

    def lease(interruption: Interruption, _: Connection) -> None:
        path.mkdir(mode=0o700)
        record(path, ("level", 3.0), ("level", 5.0, "other"), ("start", "one"), ("hit", "all"))
        one = Worker(path)
        with interruption.armed():
            one.hit("all")
            one.level(1.0)
            one.start("two")

    steps = 0
    for stopped in interrupted_at(when, lease, signal_number=signal.SIGSTOP, stride=stride):
        steps += 1
        assert set(levels(path).items()) <= {(("all",), 1.0)}, f"step {steps}"
        assert readings.active(path).get(JOB, 0) <= 1, f"step {steps}"
        for start in oldest(path):
            assert start is None or start >= 0.0
        stopped.signal(signal.SIGKILL)
        stopped.wait()
        assert levels(path) == {}, f"step {steps}"
        assert readings.active(path) == {}, f"step {steps}"
        path.rename(tmp_path / f"done-{steps}")
    assert steps > 10


@pytest.mark.parametrize("kill", [True, False])
def test_threads_that_run_jobs_at_once(kill: bool, registry_dir: Path) -> None:
    def run(pipe: Connection) -> None:
        import threading

        one = Worker(registry_dir)
        one.writer.describe("python", "worker", 50)
        running, go_on = threading.Barrier(51), threading.Event()

        def job(n: int) -> None:
            one.start(f"{n}")
            running.wait()
            go_on.wait()
            one.end(f"{n}")

        threads = [threading.Thread(target=job, args=(n,), daemon=True) for n in range(50)]
        for thread in threads:
            thread.start()
        running.wait()
        pipe.send((True, None))
        pipe.recv()
        go_on.set()
        for thread in threads:
            thread.join()
        pipe.send((True, None))
        pipe.recv()

    with child(run) as one:
        one.answer()
        assert readings.active(registry_dir) == {JOB: 50}
        if kill:
            one.kill()
        else:
            one.pipe.send(None)
            one.answer()
        assert readings.active(registry_dir) == {}


def test_a_gauge_follows_its_process_to_a_new_index(registry_dir: Path) -> None:
    """A count of things in progress that began before the wipe must not fall below zero after it."""
    with worker(registry_dir) as one:
        one.ask("level", 3.0)
        one.ask("start", "running")
        (registry_dir / "index").unlink()
        one.ask("later")
        one.ask("lower")
        assert all(value >= 0.0 for value in levels(registry_dir).values())
        one.ask("end", "running")
        one.ask("start", "next")
        assert readings.active(registry_dir) == {JOB: 1}
        one.leave()


def test_a_parents_gauge_is_not_its_childs(registry_dir: Path) -> None:
    def run(pipe: Connection) -> None:
        one = Worker(registry_dir)
        one.level(3.0)
        one.start("the parent's")
        in_child(in_order(one.hit, lambda: pipe.send((True, None)), pipe.recv))
        pipe.recv()

    with child(run) as one:
        one.answer()
        assert levels(registry_dir) == {("all",): 3.0}
        assert readings.active(registry_dir) == {JOB: 1}
        one.pipe.send(None)
        one.pipe.send(None)
        one.join()
    assert levels(registry_dir) == {}
