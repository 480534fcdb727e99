"""Processes that run no jobs notice a removed or replaced directory, and a lease ended by a daemoniser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

import jobmetrics
from jobmetrics import recorder, runtime, settings
from jobmetrics.events import Job, Published
from jobmetrics.registry.write import current
from tests.multiprocess.support import Worker, child, in_child, record, serve, slot_files, worker
from tests.support.readings import counts, values


class Producer(Worker):
    """A process that uses the public instruments. It checks the directory when `later` makes a check due."""

    def __init__(self, path: Path, **more: Any) -> None:
        super().__init__(path, **more)
        state = runtime.state(current.Current)
        state.writer, state.made_from = self.writer, settings.peek()
        self.sent = jobmetrics.Counter("sent", "Labelled.", ["to"])
        self.plain = jobmetrics.Counter("plain", "Without labels.")
        self.level_set = jobmetrics.Gauge("level_set", "Labelled.", ["to"], multiprocess_mode="mostrecent")
        self.seconds = jobmetrics.Histogram("took_seconds", "Labelled.", ["to"])
        self.held = self.sent.labels("a")
        self.held_histogram = self.seconds.labels("a")
        self.held_gauge = self.level_set.labels("a")

    def pass_time(self, seconds: float = 2.0) -> None:
        self.clock.now += seconds

    def published(self) -> None:
        recorder.default().published(Published(Job("python", "job", "queue")))

    def labelled(self) -> None:
        self.sent.labels("a").inc()

    def labelled_by_name(self) -> None:
        self.sent.labels(to="a").inc()

    def without_labels(self) -> None:
        self.plain.inc()

    def timed_block(self) -> None:
        with self.held_histogram.time():
            pass

    def timed_gauge(self) -> None:
        with self.held_gauge.time():
            pass

    def duration(self) -> None:
        with jobmetrics.duration("block"):
            pass

    def increment(self) -> None:
        jobmetrics.increment("adhoc")

    def set_gauge(self) -> None:
        jobmetrics.set_gauge("adhoc_level", 1.0)

    def observe(self) -> None:
        jobmetrics.observe("adhoc_size", 1.0)

    def refreshed(self) -> None:
        jobmetrics.refresh()
        self.held.inc()

    def stage(self) -> None:
        """In a job that began before the directory was removed."""
        if not self.running:
            self.start("long")
        execution = self.running["long"]
        assert execution is not None
        self.recorder.stage(execution, "part", 1.0)

    def bound(self, times: int = 1) -> None:
        for _ in range(times):
            self.held.inc()


WAYS = {
    "published": "jobs_published_total", "labelled": "sent_total", "labelled_by_name": "sent_total",
    "without_labels": "plain_total", "timed_block": "took_seconds", "timed_gauge": "level_set",
    "duration": "block_seconds", "increment": "adhoc_total", "set_gauge": "adhoc_level", "observe": "adhoc_size",
    "refreshed": "sent_total", "stage": "jobs_stage_duration_seconds",
}  # fmt: skip


def removed(path: Path) -> None:
    shutil.rmtree(path)


def replaced(path: Path) -> None:
    """Replace the directory as a deploy does: it is moved away, and another worker makes a new one."""
    path.rename(path.parent / "old")
    record(path, ("hit", "other"))


@pytest.mark.parametrize(("way", "change"), [*((way, removed) for way in WAYS), ("published", replaced)])
def test_a_process_without_jobs_follows_its_directory(
    way: str, change: Callable[[Path], None], registry_dir: Path
) -> None:
    with child(lambda pipe: serve(Producer(registry_dir), pipe)) as one:
        one.ask(way)
        change(registry_dir)
        one.ask("pass_time")
        one.ask(way)
        found = {**values(registry_dir, WAYS[way]), **counts(registry_dir, WAYS[way])}
        assert len(found) == 1
        assert WAYS[way] == "level_set" or list(found.values()) == [1.0]
        one.leave()


def test_directory_checks_are_a_second_apart(registry_dir: Path) -> None:
    def run() -> None:
        one = Producer(registry_dir)
        one.labelled()
        looks = []
        one.writer.tick = lambda: looks.append(one.clock.now)  # type: ignore[method-assign]
        for _ in range(10):
            one.labelled()
            one.published()
        assert not looks

    in_child(run)


def test_a_bound_update_never_reads_the_clock(registry_dir: Path) -> None:
    """A handle that is kept checks nothing: that is the purpose of `refresh`."""

    def run() -> None:
        one = Producer(registry_dir)
        one.bound()
        asked = []

        def clock() -> float:
            asked.append(1)
            return 0.0

        one.writer.clock = clock
        one.bound(100)
        assert not asked

    in_child(run)


def close_all_but(pipe: Connection) -> None:
    """Close descriptors as a daemoniser does."""
    for fd in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
        if fd > 2 and fd != pipe.fileno():
            try:
                os.close(fd)
            except OSError:
                pass  # the descriptor that listed them


def daemon(path: Path, pipe: Connection) -> None:
    one = Producer(path)
    one.bound()
    close_all_but(pipe)
    serve(one, pipe)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_a_daemon_that_closed_its_descriptors_shares_its_slot_with_no_process(registry_dir: Path) -> None:
    """A handle kept in a loop gets no notice: its slot is not leased to others while its process lives."""
    times = 100_000
    with child(lambda pipe: daemon(registry_dir, pipe)) as one, worker(registry_dir) as other:
        one.ask("bound")
        other.ask("hit", "all")
        assert len(slot_files(registry_dir)) == 2
        one.send("bound", times)
        other.ask("hit", "all", times=times)
        one.answer()
        one.ask("published")
        one.ask("pass_time")
        one.ask("published")  # leases again: its own slot
        assert len(slot_files(registry_dir)) == 2
        one.kill()
        with worker(registry_dir) as third:
            third.ask("hit", "all")
            assert len(slot_files(registry_dir)) == 2
            third.leave()
        other.leave()
    assert values(registry_dir, "sent_total") == {("a",): 2.0 + times}
    assert values(registry_dir, "hits_total") == {("all",): 2.0 + times}
    assert values(registry_dir, "jobs_published_total") == {("python", "job", "queue"): 2.0}


def test_the_slot_of_a_zombie_is_free(registry_dir: Path) -> None:
    def run() -> None:
        pid = os.fork()
        if pid == 0:
            Worker(registry_dir).hit()
            os._exit(0)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        Worker(registry_dir).hit()
        assert len(slot_files(registry_dir)) == 1
        os.waitpid(pid, 0)

    in_child(run)
