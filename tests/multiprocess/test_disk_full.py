"""Invariant 8: a full disk is a counted error, never a SIGBUS; the job continues; recording resumes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobmetrics.registry import layout
from tests.multiprocess.places import PAGE, fill, small_disk
from tests.multiprocess.support import Worker, child, in_child, record, serve, slot_files, worker, workers
from tests.support import readings

# A directory, an index and a slot take about five pages.
FIRST_RECORD_PAGES = 10
GROWTH_SERIES = 400  # of five cells each: several times the cells of a new slot


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", f"size={64 * PAGE}") as path:
        yield path


def calm(path: Path) -> Worker:
    """A worker as in production: errors are counted, and lock waits are not extended."""
    return Worker(path, propagate_errors=False)


class Calm(Worker):
    def __init__(self, path: Path) -> None:
        super().__init__(path, propagate_errors=False)

    def many(self, series: int) -> None:
        for n in range(series):
            self.hit("all")
            self.measure(1.0, f"{n}")


@pytest.mark.parametrize("free", range(FIRST_RECORD_PAGES + 1))
def test_a_first_record_with_few_pages_free(free: int, disk: Path) -> None:
    """With any free space: no signal, no error in the job, and nothing is lost once there is space."""
    path = disk / "registry"
    filler = fill(disk, free)
    with child(lambda pipe: serve(Calm(path), pipe)) as one:
        one.ask("job", "first")
        one.ask("hit", "all", 1.0, 3)
        one.ask("measure", 1.0)
        if path.exists():
            with readings.reader(path) as reader:
                _reads_or_refuses(reader)
        filler.unlink()
        one.ask("later")
        one.ask("job", "second")
        one.ask("hit", "all", 1.0, 3)
        one.leave()
    assert readings.values(path, "hits_total") == {("all",): 6.0}
    assert readings.counts(path, "sizes") == {("all",): 1.0}
    assert sum(readings.values(path, "jobs_total").values()) == 2.0
    readings.assert_durations_add_up(path)
    assert readings.snapshot(path).damaged == 0
    if free == 0:
        assert sum(readings.values(path, "jobmetrics_internal_errors_total").values()) >= 1.0


def _reads_or_refuses(reader: object) -> None:
    from jobmetrics.errors import RegistryError

    try:
        reader.read()  # type: ignore[attr-defined]
    except RegistryError:
        pass  # an unfinished index has nothing to serve


@pytest.mark.parametrize("free", range(9))
def test_growth_with_few_pages_free(free: int, disk: Path) -> None:
    """Series without space wait in memory; series that have their cells still count."""
    path = disk / "registry"
    with child(lambda pipe: serve(Calm(path), pipe)) as one:
        one.ask("hit", "all")
        filler = fill(disk, free)
        one.ask("many", GROWTH_SERIES)
        assert readings.values(path, "hits_total") == {("all",): GROWTH_SERIES + 1.0}
        with worker(path, propagate_errors=False) as other:  # a half-written file misleads no other process
            other.ask("hit", "all", 0.0)
            other.leave()
        filler.unlink()
        one.ask("later")
        one.ask("many", GROWTH_SERIES)
        one.leave()
    assert readings.values(path, "hits_total") == {("all",): 2 * GROWTH_SERIES + 1.0}
    assert readings.counts(path, "sizes") == {(f"{n}",): 2.0 for n in range(GROWTH_SERIES)}


@pytest.mark.parametrize("room", [2, 4, 7])
def test_processes_on_a_disk_with_space_for_some_of_them(room: int, disk: Path) -> None:
    """The others wait in memory for space, and lose nothing."""
    path = disk / "registry"
    record(path, ("hit", "all", 0.0))
    filler = fill(disk, room)
    with workers(path, 8, propagate_errors=False) as all_:
        for one in all_:
            one.ask("hit", "all", 1.0, 5)
        assert readings.values(path, "hits_total").get(("all",), 0.0) < 40.0
        filler.unlink()
        for one in all_:
            one.ask("later")
        assert readings.values(path, "hits_total") == {("all",): 40.0}
        for one in all_:
            one.leave()
    assert len(slot_files(path)) <= 8


def test_a_disk_without_a_free_inode(tmp_path: Path) -> None:
    """No file can be made; a job that finds this does not try one name after another."""
    with (
        small_disk(tmp_path / "disk", "size=1m,nr_inodes=3") as disk,
        child(lambda pipe: serve(Counting(disk / "registry"), pipe)) as one,
    ):
        path = disk / "registry"
        for _ in range(2):
            before = one.ask("opened")
            one.ask("hit", "all")
            one.ask("later")
            assert one.ask("opened") - before < 50
        subprocess.run(["mount", "-o", "remount,nr_inodes=100", str(disk)], check=True)
        one.ask("later")
        one.ask("hit", "all")
        one.leave()
        assert readings.values(path, "hits_total") == {("all",): 3.0}


class Counting(Calm):
    """Count the files that this process opens or tries to open."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._opened = 0
        original = os.open

        def counted(*arguments: Any, **keywords: Any) -> int:
            self._opened += 1
            return original(*arguments, **keywords)

        setattr(os, "open", counted)  # noqa: B010 - a function to mypy

    def opened(self) -> int:
        return self._opened


def test_a_slot_with_holes_does_not_crash_its_owner(disk: Path) -> None:
    """A file copied without its zeros has a length but no reserved space: writing there would raise SIGBUS."""
    path = disk / "registry"
    with worker(path) as one:
        one.ask("hit", "all")
        for n in range(300):
            one.ask("measure", 1.0, f"{n}")
        one.leave()
    (name,) = slot_files(path)
    data = (path / name).read_bytes()
    kept = layout.SlotHeader.unpack(data).cells_offset + PAGE
    with (path / name).open("r+b") as file:
        file.truncate(kept)
        file.truncate(len(data))
    filler = fill(disk)
    with child(lambda pipe: serve(Calm(path), pipe)) as one:
        one.ask("many", 300)
        filler.unlink()
        one.ask("later")
        one.leave()
    assert readings.values(path, "hits_total") == {("all",): 301.0}


def test_a_worker_that_is_forked_on_a_full_disk(disk: Path) -> None:
    """Each child finds the disk full for itself, and none fails."""
    path = disk / "registry"
    with child(lambda pipe: serve(Calm(path), pipe)) as one:
        one.ask("hit", "all")
        filler = fill(disk)
        for _ in range(3):
            in_child(lambda: calm(path).hit("lost with its process"))
        one.ask("hit", "all")
        filler.unlink()
        in_child(lambda: calm(path).hit("all"))
        one.leave()
    assert readings.values(path, "hits_total")["all",] == 3.0


def test_what_a_full_disk_drops_is_bounded_in_memory(tmp_path: Path) -> None:
    with (
        small_disk(tmp_path / "disk", "size=4m") as disk,
        child(lambda pipe: serve(Calm(disk / "registry"), pipe)) as one,
    ):
        path = disk / "registry"
        filler = fill(disk)
        one.ask("many", 4000)
        memory = one.ask("resident")
        one.ask("many", 9000)
        assert one.ask("resident") - memory < 8 << 20
        filler.unlink()
        one.ask("later")
        one.ask("job", "one")
        one.ask("later")
        one.ask("job", "two")
        one.leave()
        counted = sum(readings.counts(path, "sizes").values())
        by_reason = readings.values(path, "jobmetrics_dropped_updates_total")
        dropped = sum(by_reason.values())
        assert {reason for reason, *_ in by_reason} == {"disk full"}
        assert 0 < dropped < 13_000
        assert counted + dropped == 13_000
        assert readings.values(path, "hits_total") == {("all",): 13_000.0}


def test_a_full_disk_is_retried_at_growing_intervals(disk: Path) -> None:
    """A directory that cannot be used must not cost each job its system calls."""
    path = disk / "registry"
    fill(disk)

    def run() -> None:
        one = calm(path)
        tries = 0
        original = os.mkdir

        def counted(*arguments: object, **keywords: object) -> None:
            nonlocal tries
            tries += 1
            original(*arguments, **keywords)  # type: ignore[arg-type]

        setattr(os, "mkdir", counted)  # noqa: B010 - a function to mypy
        for _ in range(100):
            one.job()
        assert tries <= 2
        for _ in range(100):
            one.clock.now += 10.0
            one.job()
        assert 2 < tries < 60

    in_child(run)
