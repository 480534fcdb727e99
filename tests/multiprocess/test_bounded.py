"""Invariant 1: slot files never exceed the most processes that recorded at one time, however many forks there were."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import random
import resource
import signal
import stat
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from jobmetrics.registry import layout
from jobmetrics.registry.directory import SET_ASIDE_SUFFIX, Directory, same_file, slot_name
from jobmetrics.registry.files import try_lock
from jobmetrics.registry.layout import ProcessIdentity
from jobmetrics.registry.slots import Slot, SlotPlan
from jobmetrics.registry.write.lease import acquire
from tests.multiprocess.interruption import BEFORE, Interruption
from tests.multiprocess.places import small_disk
from tests.multiprocess.support import (
    Child,
    Worker,
    child,
    children,
    fork,
    in_order,
    names,
    record,
    run_and_exit,
    serve,
    slot_files,
    worker,
    workers,
)
from tests.support import readings
from tests.support.repetitions import sizes


def total(path: Path) -> float:
    return readings.values(path, "hits_total").get(("all",), 0.0)


def bytes_of(path: Path) -> int:
    return sum(entry.stat().st_size for entry in path.iterdir())


@sizes("times", 200, 10_000)
def test_one_work_horse_after_another_uses_one_slot(times: int, registry_dir: Path) -> None:
    """Fork as RQ does: the parent has read the index, and each job gets a child."""

    def run(_: Connection) -> None:
        one = Worker(registry_dir)
        one.writer.prepare()
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


@sizes("times", 150, 2_000)
def test_processes_that_come_and_go_at_random(times: int, registry_dir: Path) -> None:
    """At most eight processes run at a time; half of them are killed."""
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


@sizes("times", 3, 20)
def test_many_processes_that_start_at_once_share_no_slot(times: int, registry_dir: Path) -> None:
    """They wait for one signal, then lease: first in an empty directory, then among the slots of the previous round."""
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


def lease_one(path: Path) -> Slot:
    return acquire(
        SlotPlan(Directory(str(path)), bytes(16), 1), ProcessIdentity(os.getpid()), cells=1, present_cells=lambda _: []
    )


class Neighbours:
    """Other processes that lease slots of the same directory, step by step."""

    def make(self, path: Path) -> None:
        """Make the first slot's file as a process does that has not locked it yet."""
        (path / slot_name(0)).touch(0o600)

    def clear(self, path: Path) -> None:
        """Remove the empty file as a process does that gets its lock."""
        file = path / slot_name(0)
        with contextlib.suppress(FileNotFoundError), file.open("r+b") as opened:
            if try_lock(opened.fileno()) and not os.fstat(opened.fileno()).st_size:
                file.unlink()

    def lease(self, path: Path) -> None:
        """Lease a slot and keep it."""
        self.slot = lease_one(path)

    def has_its_file(self, path: Path) -> bool:
        """Whether the slot's name is still the file that was leased."""
        return same_file(self.slot.lock_fd, str(path / slot_name(self.slot.number)))


def leased_beside(path: Path, acts: dict[int, str]) -> bool:
    """Let neighbours act before the given system calls of a process that leases a slot; the last act is to lease.
    In the end each process has a slot, and there are no other slots. Return False if the process finished before
    the last act.
    """
    with child(lambda pipe: serve(Neighbours(), pipe)) as neighbours:

        def run(pipe: Connection) -> None:
            steps = [
                Interruption((BEFORE, at), functools.partial(neighbours.ask, act, path)) for at, act in acts.items()
            ]
            with contextlib.ExitStack() as stack:
                for step in steps:
                    stack.enter_context(step.armed())
                slot = lease_one(path)
            pipe.send((True, (steps[-1].seen, same_file(slot.lock_fd, str(path / slot_name(slot.number))))))
            pipe.recv()

        with child(run) as one:
            calls, has_its_file = one.answer()
            if calls < max(acts):
                return False
            assert has_its_file, acts
            assert neighbours.ask("has_its_file", path), acts
            assert len(slot_files(path)) == 2, (acts, names(path))
            return True


@pytest.mark.parametrize("gap", [1, 2, 3, 4])
def test_files_made_and_removed_during_a_lease_lose_nothing(gap: int, registry_dir: Path) -> None:
    """In a new directory a file is made and removed some calls later; then another process leases a slot."""
    for at in itertools.count(1):
        path = registry_dir / f"{at}"
        path.mkdir(0o700)
        if not leased_beside(path, {at: "make", at + gap: "clear", at + gap + 1: "lease"}):
            break
        assert not [name for name in names(path) if name.endswith(SET_ASIDE_SUFFIX)], f"call {at}"
    assert at > 10, "no call was counted"


def test_something_other_than_a_file_is_set_aside_once_and_slots_are_kept(registry_dir: Path) -> None:
    """Two processes find it; the faster one has already leased a slot of that name."""
    for at in itertools.count(1):
        path = registry_dir / f"{at}"
        path.mkdir(0o700)
        os.mkfifo(path / slot_name(0))
        if not leased_beside(path, {at: "lease"}):
            break
        assert stat.S_ISFIFO((path / (slot_name(0) + SET_ASIDE_SUFFIX)).stat().st_mode), f"call {at}"
    assert at > 10, "no call was counted"


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


def test_living_writers_that_move_keep_one_slot_per_generation_and_process(registry_dir: Path) -> None:
    """A thread may be about to write into the slot its process left: the slot stays leased, and is freed afterwards."""
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


def test_workers_of_different_capacity_do_not_accumulate_slots(registry_dir: Path) -> None:
    """A worker that runs a hundred jobs at once needs a longer journal; every worker finds its slots again."""
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


def test_files_set_aside_do_not_accumulate(registry_dir: Path) -> None:
    for _ in range(10):
        record(registry_dir, ("hit", "all"))
        for name in ["index", *slot_files(registry_dir)]:
            (registry_dir / name).write_bytes(b"damaged" * 1000)
    record(registry_dir, ("hit", "all"))
    assert len(list(registry_dir.iterdir())) <= 4


def test_children_of_a_pool_share_no_slot_with_their_parent(registry_dir: Path) -> None:
    """Fork as Celery does: the parent records too, and its children live long."""

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


class Starved(Worker):
    """A worker with too few free descriptors to lease a slot."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, propagate_errors=False)

    def leave_free(self, descriptors: int | None) -> None:
        """Limit how many more descriptors can be opened; None lifts the limit."""
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if descriptors is None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            return
        held = [os.dup(0) for _ in range(32)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (held[-1] + 1, hard))  # all lower numbers are taken
        for fd in held[len(held) - descriptors :]:
            os.close(fd)


@pytest.mark.parametrize("free", range(4))
def test_a_process_short_of_descriptors_makes_at_most_one_file(free: int, tmp_path: Path) -> None:
    """A worker that cannot lease does not make files again and again; its counts wait in memory."""
    with (
        small_disk(tmp_path / "disk", "size=4m") as disk,
        worker(disk / "registry", propagate_errors=False) as other,
        child(lambda pipe: serve(Starved(disk / "registry"), pipe)) as one,
    ):
        path = disk / "registry"
        other.ask("hit", "all")
        one.ask("leave_free", free)
        for _ in range(3):
            one.ask("hit", "all")
            one.ask("later")
        assert len(slot_files(path)) <= 2
        one.ask("leave_free", None)
        one.ask("later")
        assert total(path) == 4.0
        assert len(slot_files(path)) == 2
        one.leave()
        other.leave()
