"""Invariants 1, 4 and 5 for slots that a parent leases for the child it is about to fork."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import pytest

from jobmetrics.registry.write import fork_hooks, session
from tests.multiprocess.interruption import AFTER, BEFORE, Interruption, interrupted_at
from tests.multiprocess.support import (
    Child,
    Worker,
    child,
    fork,
    in_order,
    record,
    run_and_exit,
    serve,
    slot_files,
)
from tests.support import readings


class Parent(Worker):
    """A parent whose children record, and were told so or seen to."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.hits.at(("all",))
        self.children: dict[int, Child] = {}

    def told(self) -> None:
        self.writer.prepare("rq", "work-horse")

    def once(self, *steps: str) -> None:
        """A child that does these, and ends."""
        pid = os.fork()
        if pid == 0:
            run_and_exit(in_order(*(getattr(self, step) for step in steps)))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    def lasting(self, *steps: str) -> int:
        """A child that does these, and stays."""

        def stay(pipe: Connection) -> None:
            for step in steps:
                getattr(self, step)()
            pipe.send((True, None))
            while True:
                signal.pause()

        started = fork(stay)
        self.children[started.pid] = started
        started.answer()
        return started.pid

    def end_child(self, pid: int) -> None:
        self.children.pop(pid).kill()

    def hand_over_nothing(self) -> None:
        """From now on children lease for themselves."""
        setattr(self.writer, "_offer", lambda: None)  # noqa: B010 - a method to mypy

    def lease_nothing(self) -> None:
        """From now on a lease of one's own fails."""

        def refuse(*_: object, **__: object) -> None:
            raise AssertionError("a slot was leased by the child itself")

        assert hasattr(session, "acquire")
        setattr(session, "acquire", refuse)  # noqa: B010 - a function to mypy

    def high(self) -> None:
        self.level(9.0)

    def begin(self) -> None:
        self.start("it")

    def once_more(self) -> None:
        self.once("hit")

    def idle_grandchild(self) -> None:
        told, tell = os.pipe()
        if os.fork() == 0:
            os.write(tell, b"%d" % os.getpid())
            signal.pause()
        Path(self.writer.directory.path, "grandchild").write_bytes(os.read(told, 20))

    def no_fork(self) -> None:
        """What the hooks see when a fork fails."""
        fork_hooks._before_fork()
        fork_hooks._after_fork_in_parent()


@contextlib.contextmanager
def parent(path: Path) -> Iterator[Child]:
    with child(lambda pipe: serve(Parent(path), pipe)) as one:
        try:
            yield one
        finally:
            if one.status is None:
                for lasting in psutil.Process(one.pid).children(recursive=True):
                    lasting.kill()


def test_a_child_records_without_a_lease_of_its_own(registry_dir: Path) -> None:
    with parent(registry_dir) as one:
        one.ask("told")
        one.ask("once", "hit")
        for _ in range(5):
            one.ask("once", "lease_nothing", "hit", "job")
        one.leave()
    assert readings.values(registry_dir, "hits_total") == {("all",): 6.0}
    assert slot_files(registry_dir) == ["slot-00000"]


def test_children_that_were_seen_to_record_are_given_one_too(registry_dir: Path) -> None:
    with parent(registry_dir) as one:
        one.ask("hit")
        one.ask("once", "hit")
        one.ask("once", "lease_nothing", "hit")
        one.leave()
    assert readings.values(registry_dir, "hits_total") == {("all",): 3.0}


def test_a_parent_whose_children_record_nothing_leases_nothing_for_them(registry_dir: Path) -> None:
    with parent(registry_dir) as one:
        one.ask("hit")
        for _ in range(3):
            one.ask("lasting")
        snapshot = readings.snapshot(registry_dir)
        assert [owner.pid for owner in snapshot.owners] == [one.pid]
        assert slot_files(registry_dir) == ["slot-00000"]


def test_the_child_is_the_owner_by_what_it_was_said_to_be(registry_dir: Path) -> None:
    with parent(registry_dir) as one:
        one.ask("told")
        one.ask("once", "hit")
        pid = one.ask("lasting")
        (owner,) = readings.snapshot(registry_dir).owners
        assert (owner.pid, owner.system, owner.role) == (pid, "rq", "work-horse")


def test_the_lease_ends_with_the_child(registry_dir: Path) -> None:
    with parent(registry_dir) as one:
        one.ask("told")
        one.ask("once", "hit")
        pid = one.ask("lasting", "lease_nothing", "hit")
        assert readings.snapshot(registry_dir).live == 1
        one.ask("end_child", pid)
        assert readings.snapshot(registry_dir).live == 0
        record(registry_dir, ("hit", "all"))
        assert slot_files(registry_dir) == ["slot-00000"]


def test_the_lease_outlives_the_parent(registry_dir: Path) -> None:
    with parent(registry_dir) as one:
        one.ask("told")
        one.ask("once", "hit")
        pid = one.ask("lasting", "lease_nothing", "hit")
        one.kill()
        try:
            assert [owner.pid for owner in readings.snapshot(registry_dir).owners] == [pid]
            record(registry_dir, ("hit", "all"))
            assert len(slot_files(registry_dir)) == 2
        finally:
            os.kill(pid, signal.SIGKILL)


def test_a_grandchild_does_not_keep_the_lease(registry_dir: Path) -> None:
    with parent(registry_dir) as one:
        one.ask("told")
        one.ask("once", "hit")
        one.ask("once", "lease_nothing", "hit", "idle_grandchild")
        grandchild = int((registry_dir / "grandchild").read_text())
        try:
            os.kill(grandchild, 0)
            assert readings.snapshot(registry_dir).live == 0
        finally:
            os.kill(grandchild, signal.SIGKILL)


def test_a_grandchild_that_records_has_a_slot_of_its_own(registry_dir: Path) -> None:
    with parent(registry_dir) as one:
        one.ask("told")
        one.ask("once", "hit")
        one.ask("once", "hit", "once_more")
        one.leave()
    assert readings.values(registry_dir, "hits_total") == {("all",): 3.0}
    assert len(slot_files(registry_dir)) == 2


def test_children_that_record_nothing_hold_one_slot_in_all(registry_dir: Path) -> None:
    with parent(registry_dir) as one:
        one.ask("hit")
        one.ask("once", "hit")
        for _ in range(6):
            one.ask("lasting")
            one.ask("once", "hit")
        assert len(slot_files(registry_dir)) == 3, "the parent's, one that an idle child holds, one for the rest"


def test_a_second_child_at_the_same_time_leases_for_itself(registry_dir: Path) -> None:
    with parent(registry_dir) as one:
        one.ask("told")
        pids = [one.ask("lasting", "hit", "job") for _ in range(4)]
        snapshot = readings.snapshot(registry_dir)
        assert sorted(owner.pid for owner in snapshot.owners) == sorted(pids)
        assert len(slot_files(registry_dir)) == 4
        for pid in pids:
            one.ask("end_child", pid)
        one.leave()
    assert readings.values(registry_dir, "hits_total") == {("all",): 4.0}


def test_a_fork_that_fails_leaves_the_slot_free(registry_dir: Path) -> None:
    with parent(registry_dir) as one:
        one.ask("told")
        one.ask("once", "hit")
        one.ask("no_fork")
        assert readings.snapshot(registry_dir).live == 0
        one.ask("once", "lease_nothing", "hit")
        one.leave()
    assert readings.values(registry_dir, "hits_total") == {("all",): 2.0}


def test_live_gauges_of_the_child_before_are_gone(registry_dir: Path) -> None:
    with parent(registry_dir) as one:
        one.ask("told")
        one.ask("once", "high")
        one.ask("lasting", "lease_nothing", "hit")
        assert readings.values(registry_dir, "level") == {}


def test_live_gauges_that_the_parent_never_heard_of_are_gone_too(registry_dir: Path) -> None:
    """A child that leases for itself knows no series that were placed after its parent read the index."""
    with parent(registry_dir) as one:
        one.ask("hit")
        one.ask("hand_over_nothing")
        one.ask("once", "high")
        one.ask("lasting", "hit")
        assert len(slot_files(registry_dir)) == 2
        assert readings.values(registry_dir, "level") == {}


def test_what_a_killed_child_was_running_is_known_to_be_lost(registry_dir: Path) -> None:
    with parent(registry_dir) as one:
        one.ask("told")
        one.ask("once", "hit", "job")
        pid = one.ask("lasting", "lease_nothing", "begin")
        assert sum(readings.active(registry_dir).values()) == 1
        one.ask("end_child", pid)
        assert readings.active(registry_dir) == {}
        one.ask("once", "lease_nothing", "hit")
        assert one.ask("lost", "it")
        assert not one.ask("lost", "it")
        one.leave()
    assert sum(readings.values(registry_dir, "jobs_failures_total").values()) == 1.0
    readings.assert_durations_add_up(registry_dir)


def test_a_wiped_directory_is_followed(registry_dir: Path) -> None:
    with parent(registry_dir) as one:
        one.ask("told")
        one.ask("once", "hit")
        for path in registry_dir.iterdir():
            path.unlink()
        one.ask("later")
        one.ask("told")
        one.ask("once", "hit")
        one.ask("once", "lease_nothing", "hit")
        one.leave()
    assert readings.values(registry_dir, "hits_total") == {("all",): 2.0}
    assert slot_files(registry_dir) == ["slot-00000"]


@pytest.mark.parametrize("when", [BEFORE, AFTER])
def test_a_parent_killed_at_each_call_around_the_fork(when: str, tmp_path: Path) -> None:
    """The slot is free again, or the child's that was born in time; nothing counted is lost."""

    def victim(path: Path, interruption: Interruption, pipe: Connection) -> None:
        one = Parent(path)
        one.told()
        one.once("hit")
        with interruption.armed():
            one.no_fork()

    number = 0

    def run(interruption: Interruption, pipe: Connection) -> None:
        victim(tmp_path / f"{number}", interruption, pipe)

    for _ in interrupted_at(when, run):
        path = tmp_path / f"{number}"
        assert readings.snapshot(path).live == 0
        record(path, ("hit", "all"))
        assert readings.values(path, "hits_total") == {("all",): 2.0}
        assert slot_files(path) == ["slot-00000"]
        number += 1


def test_the_parents_pages_are_its_own(registry_dir: Path) -> None:
    """After many forks the parent holds no descriptor and no lock of any child's slot."""

    def look(pipe: Connection) -> None:
        one = Parent(registry_dir)
        one.told()
        one.once("hit")
        one.once("hit")
        before = _open_descriptors()
        for _ in range(50):
            one.once("hit")
        pipe.send((True, (before, _open_descriptors())))

    with child(look) as started:
        before, after = started.answer()
        started.join()
    assert after == before


def _open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - the count alone


def test_a_child_lets_go_of_what_a_writer_that_is_gone_had_leased(registry_dir: Path) -> None:
    """Settings put in force anew make another writer: the lease of the one before lasts as long as its process."""

    def run(pipe: Connection) -> None:
        Worker(registry_dir).hit()
        gc.collect()
        one = Parent(registry_dir)
        pipe.send((True, one.lasting()))
        signal.pause()

    with child(run) as started:
        lasting = started.answer()
        started.kill()
        try:
            os.kill(lasting, 0)
            assert readings.snapshot(registry_dir).live == 0
        finally:
            os.kill(lasting, signal.SIGKILL)
