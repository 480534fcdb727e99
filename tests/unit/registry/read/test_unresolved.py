"""Executions that were killed: which of them are shown as unresolved."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobmetrics.families import JOBS_ACTIVE
from jobmetrics.registry import Writer
from jobmetrics.registry.cells import BoundSeries
from jobmetrics.registry.read import SnapshotReader
from jobmetrics.registry.read.unresolved import SHOWN_FOR
from jobmetrics.settings import Settings
from tests.unit.doubles import FakeClock, die

Worker = Callable[[], Writer]

LABELS = ("celery", "f", "q")


@pytest.fixture
def worker(active_settings: Settings) -> Iterator[Worker]:
    """The writer of another worker process."""
    made: list[Writer] = []

    def start() -> Writer:
        made.append(Writer(active_settings))
        return made[-1]

    yield start
    for each in made:
        die(each)


@pytest.fixture
def reader(registry_dir: Path, clock: FakeClock) -> Iterator[SnapshotReader]:
    opened = SnapshotReader(str(registry_dir), clock)
    yield opened
    opened.close()


def begin(worker: Writer, execution: int, at: float) -> None:
    assert worker.begin(BoundSeries(worker, JOBS_ACTIVE, LABELS), execution, at) is not None


def kill_in(worker: Writer, execution: int, at: float) -> None:
    """Start an execution, and kill its process."""
    begin(worker, execution, at)
    die(worker)


def unresolved(reader: SnapshotReader) -> int:
    (entry,) = reader.read().active
    assert entry.values == LABELS
    return entry.unresolved


def test_a_killed_execution_is_unresolved(reader: SnapshotReader, worker: Worker, clock: FakeClock) -> None:
    kill_in(worker(), 1, clock.now - 5)
    assert unresolved(reader) == 1


def test_a_running_execution_is_not_unresolved(reader: SnapshotReader, worker: Worker, clock: FakeClock) -> None:
    begin(worker(), 1, clock.now)
    assert unresolved(reader) == 0


def test_it_stays_when_the_slot_has_another_owner(reader: SnapshotReader, worker: Worker, clock: FakeClock) -> None:
    kill_in(worker(), 1, clock.now)
    begin(worker(), 2, clock.now)
    (entry,) = reader.read().active
    assert (entry.count, entry.unresolved) == (1, 1)


def test_an_end_in_another_journal_resolves_it(reader: SnapshotReader, worker: Worker, clock: FakeClock) -> None:
    other = worker()
    begin(other, 7, clock.now)
    kill_in(worker(), 1, clock.now)
    noted = other.begin(BoundSeries(other, JOBS_ACTIVE, LABELS), 1, clock.now)
    assert noted is not None
    noted[0].end(noted[1], clock.now + 1)
    assert unresolved(reader) == 0


@pytest.mark.parametrize("dies", [False, True], ids=["that runs", "that was killed"])
def test_a_later_start_resolves_the_earlier_one(
    reader: SnapshotReader, worker: Worker, clock: FakeClock, dies: bool
) -> None:
    first, second = worker(), worker()
    begin(second, 9, clock.now)
    kill_in(first, 1, clock.now - 5)
    begin(second, 1, clock.now)
    if dies:
        die(second)
    assert unresolved(reader) == (2 if dies else 0)  # 9, and the second start of 1


def test_an_end_of_an_earlier_execution_does_not_resolve_a_later_one(
    reader: SnapshotReader, worker: Worker, clock: FakeClock
) -> None:
    one = worker()
    noted = one.begin(BoundSeries(one, JOBS_ACTIVE, LABELS), 1, clock.now - 9)
    assert noted is not None
    noted[0].end(noted[1], clock.now - 8)
    kill_in(one, 1, clock.now)
    assert unresolved(reader) == 1


def test_a_marked_execution_does_not_come_back(reader: SnapshotReader, worker: Worker, clock: FakeClock) -> None:
    kill_in(worker(), 1, clock.now)
    worker().mark_counted(1, clock.now)
    assert unresolved(reader) == 0


def test_it_is_not_shown_after_a_day(reader: SnapshotReader, worker: Worker, clock: FakeClock) -> None:
    kill_in(worker(), 1, clock.now)
    clock.advance(SHOWN_FOR - 1)
    assert unresolved(reader) == 1
    clock.advance(2)
    assert unresolved(reader) == 0


def test_a_copy_of_a_slot_is_not_a_second_execution(
    registry_dir: Path, reader: SnapshotReader, worker: Worker, clock: FakeClock
) -> None:
    kill_in(worker(), 1, clock.now)
    shutil.copy(registry_dir / "slot-00000", registry_dir / "slot-00001")
    assert unresolved(reader) == 1


def test_a_copy_of_a_running_workers_slot_is_not_a_killed_execution(
    registry_dir: Path, reader: SnapshotReader, worker: Worker, clock: FakeClock
) -> None:
    begin(worker(), 1, clock.now)
    shutil.copy(registry_dir / "slot-00000", registry_dir / "slot-00001")
    assert unresolved(reader) == 0


def test_an_execution_of_another_generation_is_shown_for_no_series(
    registry_dir: Path, reader: SnapshotReader, worker: Worker, clock: FakeClock
) -> None:
    kill_in(worker(), 1, clock.now)
    (registry_dir / "index").unlink()
    begin(worker(), 2, clock.now)
    assert unresolved(reader) == 0
