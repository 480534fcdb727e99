"""The lock of the index: many processes make the same series at one time, and a stopped process blocks no job."""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from jobmetrics.registry import files, layout
from tests.multiprocess import damaging
from tests.multiprocess.interruption import AFTER, BEFORE, Interruption, interrupted_at
from tests.multiprocess.support import Clock, Worker, child, children, record, serve
from tests.multiprocess.test_fork_safe import locked_index
from tests.support import readings

PROCESSES = 8
SERIES = 1000
LONGEST_DELAY = 0.05  # seconds; longest delay of a job by a stopped process that has the lock


def columns(path: Path) -> list[tuple[int, int]]:
    """First cell and width of each series record in the index file, in the order of their cells."""
    data = (path / "index").read_bytes()
    identity = layout.IndexHeader.unpack(data).identity
    found = []
    for entry, _ in layout.records(data[layout.INDEX_HEADER_SIZE :], identity, layout.INDEX_HEADER_SIZE):
        assert entry is not None
        if entry.kind == layout.SERIES_RECORD:
            found.append((entry.number, entry.width))
    return sorted(found)


class Many(Worker):
    def measure_each(self, start: int, end: int) -> None:
        for n in range(start, end):
            self.measure(1.0, f"{n}")

    def make_all(self, backwards: bool) -> None:
        for n in reversed(range(SERIES)) if backwards else range(SERIES):
            self.hit(f"{n}")
            self.measure(1.0, f"{n}")


def test_processes_that_make_the_same_series_at_one_time_share_their_columns(registry_dir: Path) -> None:
    """Each series has one column, no columns overlap, and each update is in one."""
    with children([lambda pipe: serve(Many(registry_dir), pipe)] * PROCESSES) as all_:
        for n, one in enumerate(all_):
            one.send("make_all", bool(n % 2))
        for one in all_:
            one.answer()
        for one in all_:
            one.leave()
    found = columns(registry_dir)
    assert len(found) == 2 * SERIES
    for (start, width), (following, _) in itertools.pairwise(found):
        assert start + width <= following
    assert readings.values(registry_dir, "hits_total") == {(f"{n}",): float(PROCESSES) for n in range(SERIES)}
    assert readings.counts(registry_dir, "sizes") == {(f"{n}",): float(PROCESSES) for n in range(SERIES)}


class Delayed(Worker):
    """A worker that adds up its waits for locks instead of sleeping."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, patient=False)
        self.waiting = Clock()
        self.started = self.waiting.now
        setattr(time, "monotonic", self.waiting)  # noqa: B010 - a function to mypy
        setattr(time, "sleep", self._sleep)  # noqa: B010 - a function to mypy

    def _sleep(self, seconds: float) -> None:
        assert seconds > 0.0
        self.waiting.now += seconds

    def delay_of(self, name: str, *arguments: object) -> float:
        """Seconds of waiting in one call."""
        before = self.waiting.now
        getattr(self, name)(*arguments)
        return self.waiting.now - before

    def full_job(self, job_type: str) -> None:
        """A job that makes all its series."""
        self.start(job_type, job_type)
        self.hit(job_type)
        self.measure(1.0, job_type)
        self.level(1.0, job_type)
        self.end(job_type, "failure", f"app.{job_type}")


@contextmanager
def stopped_holder(path: Path) -> Iterator[None]:
    """A process is stopped with the index locked, and continued at the end of the block."""

    def run(interruption: Interruption, _: Connection) -> None:
        one = Worker(path)
        one.hit("known")
        with interruption.armed():
            one.hit("by the holder")

    for holder in interrupted_at(AFTER, run, signal_number=signal.SIGSTOP):
        if _index_is_locked(path):
            yield
            holder.signal(signal.SIGCONT)
            holder.join()
            return
        holder.end()
    pytest.fail("no call was made with the index locked")


def _index_is_locked(path: Path) -> bool:
    with (path / "index").open("r+b") as file:
        return not files.try_lock(file.fileno())


def test_a_stopped_lock_holder_delays_no_job_by_more_than_50_ms(registry_dir: Path) -> None:
    record(registry_dir, ("hit", "known"))
    with child(lambda pipe: serve(Delayed(registry_dir), pipe)) as one:
        with stopped_holder(registry_dir):
            for n in range(5):
                assert one.ask("delay_of", "full_job", f"job {n}") <= LONGEST_DELAY
                assert one.ask("delay_of", "hit", "known") == 0.0
                assert one.ask("delay_of", "later") <= LONGEST_DELAY
            assert ("job 0",) not in readings.values(registry_dir, "hits_total")
        one.ask("later")
        one.leave()
    values = readings.values(registry_dir, "hits_total")
    assert {f"job {n}" for n in range(5)} <= {who for (who,), count in values.items() if count == 1.0}
    assert values["by the holder",] == 1.0
    assert sum(readings.values(registry_dir, "jobs_total").values()) == 5.0
    readings.assert_durations_add_up(registry_dir)


def test_a_process_that_starts_beside_a_stopped_holder_is_not_delayed_either(registry_dir: Path) -> None:
    record(registry_dir, ("hit", "known"))
    with stopped_holder(registry_dir), child(lambda pipe: serve(Delayed(registry_dir), pipe)) as one:
        assert one.ask("delay_of", "full_job", "first") <= LONGEST_DELAY
        assert one.ask("delay_of", "full_job", "second") <= LONGEST_DELAY
        assert one.ask("delay_of", "hit", "known") == 0.0
        one.leave()


@pytest.mark.parametrize("damage", [damaging.zero, damaging.cut_to(0)], ids=damaging.named)
def test_a_stopped_holder_of_a_damaged_index_delays_no_job(damage: damaging.Damage, registry_dir: Path) -> None:
    """The stopped process was about to replace the index."""
    record(registry_dir, ("hit", "known"))
    with child(lambda pipe: serve(Delayed(registry_dir), pipe)) as one:
        with locked_index(registry_dir):
            damage(registry_dir / "index")
            for n in range(3):
                assert one.ask("delay_of", "full_job", f"job {n}") <= LONGEST_DELAY
        one.ask("later")
        one.leave()
    values = readings.values(registry_dir, "hits_total")
    assert values == {(f"job {n}",): 1.0 for n in range(3)}


@pytest.mark.parametrize("when", [BEFORE, AFTER])
def test_a_process_stopped_at_each_call_of_an_append_blocks_no_other(when: str, tmp_path: Path) -> None:
    """After SIGCONT it overwrites nothing that the others wrote meanwhile."""
    path = tmp_path / "registry"

    def run(interruption: Interruption, _: Connection) -> None:
        path.mkdir(mode=0o700)
        one = Worker(path)
        one.hit("all")
        with interruption.armed():
            one.hit("stopped")
            one.measure(1.0, "stopped")

    for steps, stopped in enumerate(interrupted_at(when, run, signal_number=signal.SIGSTOP), 1):
        with child(lambda pipe: serve(Delayed(path), pipe)) as one:
            for n in range(3):
                assert one.ask("delay_of", "full_job", f"job {n}") <= LONGEST_DELAY
            readings.snapshot(path)
            stopped.signal(signal.SIGCONT)
            stopped.join()
            one.ask("later")
            one.leave()
        values = readings.values(path, "hits_total")
        assert values == {("all",): 1.0, ("stopped",): 1.0, **{(f"job {n}",): 1.0 for n in range(3)}}, f"step {steps}"
        assert readings.counts(path, "sizes") == {("stopped",): 1.0, **{(f"job {n}",): 1.0 for n in range(3)}}
        assert readings.snapshot(path).damaged == 0
        path.rename(tmp_path / f"done-{steps}")


def test_updates_that_wait_for_the_lock_are_bounded_and_the_excess_is_counted(registry_dir: Path) -> None:
    record(registry_dir, ("hit", "known"))
    with child(lambda pipe: serve(Many(registry_dir, patient=False), pipe)) as one:
        with locked_index(registry_dir):
            one.ask("measure_each", 0, 4_000)
            memory = one.ask("resident")
            one.ask("measure_each", 4_000, 12_000)
            assert one.ask("resident") - memory < 8 << 20
        one.ask("later")
        one.ask("job")
        one.ask("later")
        one.ask("job")
        one.leave()
    counted = sum(readings.counts(registry_dir, "sizes").values())
    dropped = sum(readings.values(registry_dir, "jobmetrics_dropped_updates_total").values())
    assert counted + dropped == 12_000
    assert 0 < dropped < 12_000
