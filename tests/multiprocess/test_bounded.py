"""Invariant 1: slot files never exceed the most processes that recorded at one time, however many forks there were."""

from __future__ import annotations

import functools
import os
import random
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from jobmetrics.registry import layout
from tests import readings
from tests.multiprocess.support import (
    Child,
    Worker,
    child,
    children,
    fork,
    in_order,
    record,
    run_and_exit,
    sizes,
    slot_files,
    workers,
)


def total(path: Path) -> float:
    return readings.values(path, "hits_total").get(("all",), 0.0)


def bytes_of(path: Path) -> int:
    return sum(entry.stat().st_size for entry in path.iterdir())


@sizes(500, 10_000)
def test_one_work_horse_after_another_uses_one_slot(times: int, registry_dir: Path) -> None:
    """As RQ forks: a parent that has the index read, and a child for each job."""

    def run(_: Connection) -> None:
        one = Worker(registry_dir)
        one.writer.prepare("python", "child")
        for n in range(times):
            pid = os.fork()
            if pid == 0:
                run_and_exit(in_order(functools.partial(one.job, f"{n}"), one.hit))
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    record(registry_dir, ("job", "first"), ("hit", "all"))
    size = bytes_of(registry_dir)
    with child(run) as parent:
        assert parent.wait(3000.0) == 0
    assert total(registry_dir) == times + 1
    assert sum(readings.values(registry_dir, "jobs_total").values()) == times + 1
    assert slot_files(registry_dir) == ["slot-00000"]
    assert bytes_of(registry_dir) == size


@sizes(150, 2_000)
def test_processes_that_come_and_go_at_random(times: int, registry_dir: Path) -> None:
    """Never more than eight at one time; half of them are killed."""
    chance = random.Random(times)
    most = 8

    def run(life: float, _: Connection) -> None:
        one = Worker(registry_dir)
        one.hit("all")
        one.hit(f"{os.getpid() % 7}")
        time.sleep(life)

    alive: list[Child] = []
    started = 0
    try:
        while started < times or alive:
            while started < times and len(alive) < most:
                alive.append(fork(functools.partial(run, chance.choice([0.0, 0.002, 0.01]))))
                started += 1
            leaving = alive.pop(chance.randrange(len(alive)))
            if chance.random() < 0.5:
                leaving.signal(signal.SIGKILL)
            leaving.wait()
            leaving.end()
    finally:
        for one in alive:
            one.end()
    assert 0 < len(slot_files(registry_dir)) <= most
    assert times / 4 <= total(registry_dir) <= times


PROCESSES = 48


@sizes(3, 20)
def test_many_processes_that_start_at_once_share_no_slot(times: int, registry_dir: Path) -> None:
    """They wait for one signal, then lease: in an empty directory first, then among the slots of the round before."""
    for n in range(times):
        with workers(registry_dir, PROCESSES) as all_:
            for one in all_:
                one.send("hit", "all", 1.0, 10)
            for one in all_:
                one.answer()
            snapshot = readings.snapshot(registry_dir)
            states = (snapshot.live, snapshot.free, snapshot.damaged)
            seen = (
                f"round {n}: live, free, damaged {states}, {len(snapshot.owners)} owners, {total(registry_dir)} counted"
            )
            assert sorted(owner.pid for owner in snapshot.owners) == sorted(one.pid for one in all_), seen
            assert states == (PROCESSES, 0, 0), seen
            for one in all_:
                one.send("hit", "all", 1.0, 10)
            for one in all_:
                one.answer()
                one.kill()
        assert len(slot_files(registry_dir)) == PROCESSES
        assert total(registry_dir) == 20.0 * PROCESSES * (n + 1)


def test_a_process_leases_nothing_before_it_records(registry_dir: Path) -> None:
    with workers(registry_dir, 5) as all_:
        all_[0].ask("hit", "all")
        for one in all_:
            one.ask("later")
        assert len(slot_files(registry_dir)) == 1


def test_slots_of_an_old_generation_are_used_again(registry_dir: Path) -> None:
    """All generations together need no more files than one."""
    for _ in range(4):
        with workers(registry_dir, 6) as all_:
            for one in all_:
                one.ask("hit", "all")
            for one in all_:
                one.leave()
        assert total(registry_dir) == 6.0
        (registry_dir / "index").unlink()
    record(registry_dir, ("hit", "all"))
    assert total(registry_dir) == 1.0
    assert len(slot_files(registry_dir)) == 6


def test_moves_under_living_writers_keep_to_one_slot_a_generation_and_process(registry_dir: Path) -> None:
    """A thread may be about to write into the slot that its process has left: it stays held, and is free after."""
    moves = 3
    with workers(registry_dir, 4) as all_:
        for one in all_:
            one.ask("hit", "all")
        for n in range(moves):
            (registry_dir / "index").unlink()
            for one in all_:
                one.ask("later")
                one.ask("hit", "all")
            assert total(registry_dir) == 4.0
            assert len(slot_files(registry_dir)) <= 4 * (n + 2)
        for one in all_:
            one.leave()
    files = len(slot_files(registry_dir))
    with workers(registry_dir, 8) as all_:
        for one in all_:
            one.ask("hit", "all")
    assert len(slot_files(registry_dir)) == files
    assert total(registry_dir) == 12.0


def test_workers_of_different_capacity_do_not_pile_slots_up(registry_dir: Path) -> None:
    """One that runs a hundred jobs at once needs a longer journal; it and the small ones find theirs again."""
    for n in range(20):
        with child(lambda _, n=n: _of_capacity(registry_dir, 1 if n % 2 else 100)) as one:  # type: ignore[misc]
            one.join()
    assert total(registry_dir) == 20.0
    assert len(slot_files(registry_dir)) <= 2


def _of_capacity(path: Path, capacity: int) -> None:
    one = Worker(path)
    one.writer.describe("python", "worker", capacity)
    for n in range(capacity):
        one.start(f"{n}")
    assert len(readings.active(path)) == 1
    assert sum(readings.active(path).values()) == capacity
    for n in range(capacity):
        one.end(f"{n}")
    one.hit("all")


@pytest.mark.parametrize("series", [10, 300])
def test_files_are_as_long_as_their_cells_need(series: int, registry_dir: Path) -> None:
    for _ in range(5):
        record(registry_dir, *(("measure", 1.0, f"{n}") for n in range(series)))
    (name,) = slot_files(registry_dir)
    data = (registry_dir / name).read_bytes()
    cells = (len(data) - layout.SlotHeader.unpack(data).cells_offset) // layout.CELL
    assert cells <= max(512, 2 * series * 5)


def test_what_was_set_aside_does_not_pile_up(registry_dir: Path) -> None:
    for _ in range(10):
        record(registry_dir, ("hit", "all"))
        for name in ["index", *slot_files(registry_dir)]:
            (registry_dir / name).write_bytes(b"damaged" * 1000)
    record(registry_dir, ("hit", "all"))
    assert len(list(registry_dir.iterdir())) <= 4


def test_children_of_a_pool_share_no_slot_with_their_parent(registry_dir: Path) -> None:
    """As Celery forks: the parent records too, and its children live long."""

    def run(pipe: Connection) -> None:
        one = Worker(registry_dir)
        one.hit("all")

        def pool_child(own: Connection) -> None:
            one.hit("all")
            own.send((True, None))
            own.recv()

        with children([pool_child] * 4) as pool:
            for process in pool:
                process.answer()
            one.hit("all")
            pipe.send((True, [process.pid for process in pool]))
            pipe.recv()

    with child(run) as parent:
        pids = parent.answer()
        assert {owner.pid for owner in readings.snapshot(registry_dir).owners} == {parent.pid, *pids}
        parent.pipe.send(None)
        parent.join()
    assert len(slot_files(registry_dir)) == 5
    assert total(registry_dir) == 6.0
