"""Invariants 1, 4 and 5 for the children that one parent forks, one after another or at once."""

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

from jobmetrics.registry.write import fork_hooks
from jobmetrics.registry.write.process import ForkHints
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
    """A parent with children that record."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.hits.at(("all",))
        self.children: dict[int, Child] = {}

    def prepare(self) -> None:
        self.writer.prepare()

    def once(self, *steps: str) -> None:
        """Fork a child that calls these methods and ends."""
        pid = os.fork()
        if pid == 0:
            run_and_exit(in_order(*(getattr(self, step) for step in steps)))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    def lasting(self, *steps: str) -> int:
        """Fork a child that calls these methods and stays."""

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

    def describe(self) -> None:
        self.writer.describe("rq", "work-horse")

    def forget_hints(self) -> None:
        """Stop reading what children append to the index."""
        setattr(ForkHints, "appended", lambda *_: None)  # noqa: B010 - a method to mypy

    def high(self) -> None:
        self.level(9.0)

    def begin(self) -> None:
        self.start("it")

    def once_more(self) -> None:
        self.once("hit")

    def idle_grandchild(self) -> None:
        read_end, tell = os.pipe()
        if os.fork() == 0:
            os.write(tell, b"%d" % os.getpid())
            signal.pause()
        Path(self.writer.directory.path, "grandchild").write_bytes(os.read(read_end, 20))

    def no_fork(self) -> None:
        """Call the hooks as a failed fork does."""
        fork_hooks.hooks.before()
        fork_hooks.hooks.after_in_parent()


@contextlib.contextmanager
def parent(path: Path) -> Iterator[Child]:
    with child(lambda pipe: serve(Parent(path), pipe)) as one:
        try:
            yield one
        finally:
            if one.status is None:
                for lasting in psutil.Process(one.pid).children(recursive=True):
                    lasting.kill()


def test_a_parent_whose_children_record_nothing_leases_nothing_for_them(registry_dir: Path) -> None:
    with parent(registry_dir) as one:
        one.ask("hit")
        for _ in range(3):
            one.ask("lasting")
        snapshot = readings.snapshot(registry_dir)
        assert [owner.pid for owner in snapshot.owners] == [one.pid]
        assert slot_files(registry_dir) == ["slot-00000"]


def test_a_child_has_its_parents_description_until_it_sets_its_own(registry_dir: Path) -> None:
    with parent(registry_dir) as one:
        one.ask("describe")
        one.ask("prepare")
        pid = one.ask("lasting", "hit")
        (owner,) = readings.snapshot(registry_dir).owners
        assert (owner.pid, owner.system, owner.role) == (pid, "rq", "work-horse")


def test_the_lease_ends_with_the_child(registry_dir: Path) -> None:
    with parent(registry_dir) as one:
        one.ask("prepare")
        one.ask("once", "hit")
        pid = one.ask("lasting", "hit")
        assert readings.snapshot(registry_dir).live == 1
        one.ask("end_child", pid)
        assert readings.snapshot(registry_dir).live == 0
        record(registry_dir, ("hit", "all"))
        assert slot_files(registry_dir) == ["slot-00000"]


def test_the_lease_outlives_the_parent(registry_dir: Path) -> None:
    with parent(registry_dir) as one:
        one.ask("prepare")
        one.ask("once", "hit")
        pid = one.ask("lasting", "hit")
        one.kill()
        try:
            assert [owner.pid for owner in readings.snapshot(registry_dir).owners] == [pid]
            record(registry_dir, ("hit", "all"))
            assert len(slot_files(registry_dir)) == 2
        finally:
            os.kill(pid, signal.SIGKILL)


def test_a_grandchild_does_not_keep_the_lease(registry_dir: Path) -> None:
    with parent(registry_dir) as one:
        one.ask("prepare")
        one.ask("once", "hit")
        one.ask("once", "hit", "idle_grandchild")
        grandchild = int((registry_dir / "grandchild").read_text())
        try:
            os.kill(grandchild, 0)
            assert readings.snapshot(registry_dir).live == 0
        finally:
            os.kill(grandchild, signal.SIGKILL)


def test_a_grandchild_that_records_has_its_own_slot(registry_dir: Path) -> None:
    with parent(registry_dir) as one:
        one.ask("prepare")
        one.ask("once", "hit")
        one.ask("once", "hit", "once_more")
        one.leave()
    assert readings.values(registry_dir, "hits_total") == {("all",): 3.0}
    assert len(slot_files(registry_dir)) == 2


def test_children_that_record_nothing_hold_no_slot(registry_dir: Path) -> None:
    with parent(registry_dir) as one:
        one.ask("hit")
        one.ask("once", "hit")
        for _ in range(6):
            one.ask("lasting")
            one.ask("once", "hit")
        assert len(slot_files(registry_dir)) == 2, "the parent's, and one for the children that record"


def test_children_at_the_same_time_have_a_slot_each(registry_dir: Path) -> None:
    with parent(registry_dir) as one:
        one.ask("prepare")
        pids = [one.ask("lasting", "hit", "job") for _ in range(4)]
        snapshot = readings.snapshot(registry_dir)
        assert sorted(owner.pid for owner in snapshot.owners) == sorted(pids)
        assert len(slot_files(registry_dir)) == 4
        for pid in pids:
            one.ask("end_child", pid)
        one.leave()
    assert readings.values(registry_dir, "hits_total") == {("all",): 4.0}


def test_a_fork_that_fails_changes_nothing(registry_dir: Path) -> None:
    with parent(registry_dir) as one:
        one.ask("prepare")
        one.ask("once", "hit")
        one.ask("no_fork")
        assert readings.snapshot(registry_dir).live == 0
        one.ask("once", "hit")
        one.leave()
    assert readings.values(registry_dir, "hits_total") == {("all",): 2.0}


def test_live_gauges_of_the_child_before_are_gone(registry_dir: Path) -> None:
    with parent(registry_dir) as one:
        one.ask("prepare")
        one.ask("once", "high")
        one.ask("lasting", "hit")
        assert readings.values(registry_dir, "level") == {}


def test_live_gauges_of_series_that_the_parent_does_not_know_are_gone_too(registry_dir: Path) -> None:
    """They were placed after the parent read the index; the next child reads the index again."""
    with parent(registry_dir) as one:
        one.ask("hit")
        one.ask("forget_hints")
        one.ask("once", "high")
        one.ask("lasting", "hit")
        assert len(slot_files(registry_dir)) == 2
        assert readings.values(registry_dir, "level") == {}


def test_executions_of_a_killed_child_are_reported_lost(registry_dir: Path) -> None:
    with parent(registry_dir) as one:
        one.ask("prepare")
        one.ask("once", "hit", "job")
        pid = one.ask("lasting", "begin")
        assert sum(readings.active(registry_dir).values()) == 1
        one.ask("end_child", pid)
        assert readings.active(registry_dir) == {}
        one.ask("once", "hit")
        assert one.ask("lost", "it")
        assert not one.ask("lost", "it")
        one.leave()
    assert sum(readings.values(registry_dir, "jobs_failures_total").values()) == 1.0
    readings.assert_durations_add_up(registry_dir)


def test_a_wiped_directory_is_followed(registry_dir: Path) -> None:
    with parent(registry_dir) as one:
        one.ask("prepare")
        one.ask("once", "hit")
        for path in registry_dir.iterdir():
            path.unlink()
        one.ask("later")
        one.ask("prepare")
        one.ask("once", "hit")
        one.ask("once", "hit")
        one.leave()
    assert readings.values(registry_dir, "hits_total") == {("all",): 2.0}
    assert slot_files(registry_dir) == ["slot-00000"]


@pytest.mark.parametrize("when", [BEFORE, AFTER])
def test_a_parent_killed_at_each_call_around_the_fork(when: str, tmp_path: Path) -> None:
    """The previous child's slot is free; no count is lost."""

    def victim(path: Path, interruption: Interruption, pipe: Connection) -> None:
        one = Parent(path)
        one.prepare()
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


def test_forks_leave_no_descriptor_open_in_the_parent(registry_dir: Path) -> None:
    """Neither a child's slot nor any other file stays open."""

    def look(pipe: Connection) -> None:
        one = Parent(registry_dir)
        one.prepare()
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


def test_a_child_releases_the_lease_of_a_replaced_writer(registry_dir: Path) -> None:
    """Settings configured again make another writer: the earlier lease lasts as long as its process."""

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
