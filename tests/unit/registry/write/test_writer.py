from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from jobmetrics import guard, settings
from jobmetrics.families import JOBS_ACTIVE, LIVE_SUM, MAX, MIN, MOST_RECENT, OVERFLOW, Family
from jobmetrics.instruments import BoundCounter, BoundGauge, BoundHistogram
from jobmetrics.registry.cells import CAPACITY, BoundSeries
from jobmetrics.registry.files import try_lock
from jobmetrics.registry.index import Contended
from jobmetrics.registry.layout import execution_hash, last_lease
from jobmetrics.registry.write import session, zeros
from jobmetrics.registry.write import writer as writers
from jobmetrics.registry.write.process import FIRST_PAUSE, LOAD, LONGEST_PAUSE
from jobmetrics.registry.write.writer import CHECK_INTERVAL, Writer
from jobmetrics.settings import Settings
from tests.support import readings
from tests.unit.doubles import FakeClock, die

COUNTER = Family("c_total", "counter", "", ("user",))
LIVE = Family("g", "gauge", "", (), LIVE_SUM)
LARGEST = Family("m", "gauge", "", (), MAX)
SIZES = Family("h", "histogram", "", (), buckets=(1.0, 2.0))


def counter(writer: Writer, user: str = "a") -> BoundCounter:
    return BoundCounter(writer, COUNTER, (user,))


def counted(registry_dir: Path) -> dict[tuple[str, ...], float]:
    return readings.values(registry_dir, "c_total")


@pytest.fixture
def held_index(registry_dir: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch) -> int:
    """The index's lock, held by another process until this descriptor is closed."""
    monkeypatch.setattr(session, "LOCK_WAIT", 0.0)
    counter(writer, "first").inc()
    fd = os.open(registry_dir / "index", os.O_RDWR)
    assert try_lock(fd)
    return fd


@pytest.fixture
def swallowing() -> None:
    """Errors are suppressed, as in production."""
    settings.use(Settings())


# ------------------------------------------------------------------ without failures


def test_nothing_is_opened_until_something_is_recorded(registry_dir: Path, writer: Writer) -> None:
    counter(writer)
    writer.tick()
    assert list(registry_dir.iterdir()) == []


def test_first_update_makes_an_index_and_a_slot(registry_dir: Path, writer: Writer) -> None:
    counter(writer).inc()
    assert sorted(path.name for path in registry_dir.iterdir()) == ["index", "slot-00000"]


def test_updates_are_there_at_once(registry_dir: Path, writer: Writer) -> None:
    series = counter(writer)
    series.inc()
    series.inc(2.5)
    assert counted(registry_dir) == {("a",): 3.5}


def test_two_bound_series_of_the_same_labels_share_their_cells(registry_dir: Path, writer: Writer) -> None:
    counter(writer).inc()
    counter(writer).inc()
    assert counted(registry_dir) == {("a",): 2.0}


def test_more_series_than_the_slot_had_cells_for(registry_dir: Path, writer: Writer) -> None:
    for number in range(1200):
        counter(writer, f"{number:04}").inc(number + 1.0)
    assert counted(registry_dir) == {(f"{number:04}",): number + 1.0 for number in range(1200)}


def test_series_bound_before_growth_goes_on_in_the_same_cells(registry_dir: Path, writer: Writer) -> None:
    series = counter(writer)
    series.inc()
    for number in range(600):
        counter(writer, str(number)).inc()
    series.inc()
    assert counted(registry_dir)["a",] == 2.0


def test_writers_of_two_processes_add_up(registry_dir: Path, writer: Writer, active_settings: Settings) -> None:
    other = Writer(active_settings)
    counter(writer).inc()
    counter(other).inc(2.0)
    assert counted(registry_dir) == {("a",): 3.0}
    die(other)


def test_switched_off_writer_touches_nothing(registry_dir: Path) -> None:
    off = Writer(Settings(dir=str(registry_dir), enabled=False))
    counter(off).inc()
    BoundHistogram(off, SIZES, ()).observe(1.0)
    off.tick()
    off.prepare()
    assert list(registry_dir.iterdir()) == []
    assert off.take_dropped_updates() == {}


def test_index_is_prepared_without_leasing_a_slot(registry_dir: Path, writer: Writer) -> None:
    writer.prepare()
    assert [path.name for path in registry_dir.iterdir()] == ["index"]
    assert writer.slot is None


def test_dropped_updates_are_returned_once(writer: Writer) -> None:
    writer.drop("x", "m")
    writer.drop("x", "m")
    assert [writer.take_dropped_updates(), writer.take_dropped_updates()] == [{("x", "m"): 2}, {}]


def test_the_owner_record_has_the_description_from_before_the_lease(registry_dir: Path, writer: Writer) -> None:
    writer.describe("celery", "child", 2)
    counter(writer).inc()
    (owner,) = readings.snapshot(registry_dir).owners
    assert (owner.pid, owner.system, owner.role, owner.capacity) == (os.getpid(), "celery", "child", 2)


def test_the_owner_record_has_the_description_from_after_the_lease(registry_dir: Path, writer: Writer) -> None:
    counter(writer).inc()
    writer.describe("celery", "child", 2)
    (owner,) = readings.snapshot(registry_dir).owners
    assert (owner.pid, owner.system, owner.role, owner.capacity) == (os.getpid(), "celery", "child", 2)
    assert last_lease((registry_dir / "slot-00000").read_bytes()) == 1


# ------------------------------------------------------------------ the cap


def test_series_beyond_the_cap_count_as_others_and_nothing_is_lost(registry_dir: Path) -> None:
    small = Writer(Settings(dir=str(registry_dir), max_series=10))
    for number in range(50):
        counter(small, str(number)).inc()
    found = counted(registry_dir)
    assert sum(found.values()) == 50.0
    assert found[OVERFLOW,] == 45.0
    assert small.take_dropped_series() == 45
    die(small)


def test_at_the_cap_the_log_names_the_metric_and_the_largest_one_once_a_minute(
    registry_dir: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    small = Writer(Settings(dir=str(registry_dir), max_series=10), clock)
    for number in range(9):
        counter(small, str(number)).inc()
    (record,) = caplog.records
    assert record.getMessage() == (
        "jobmetrics: no room for more series of c_total: new label values are counted under __other__; "
        "c_total has most series, 6 of 10: find its label with too many values, or raise max_series"
    )
    other = Family("d_total", "counter", "", ("user",))
    clock.advance(58.0)
    counter(small, "9").inc()
    assert len(caplog.records) == 1
    clock.advance(2.0)
    for number in range(9):
        BoundCounter(small, other, (str(number),)).inc()
    assert [record.getMessage().partition(";")[0] for record in caplog.records[1:]] == [
        "jobmetrics: no room for more series of d_total: new label values are counted under __other__"
    ]
    assert "; c_total has most series, 6 of 10:" in caplog.records[1].getMessage()
    die(small)


def test_forked_processes_log_the_cap_once_for_all(
    registry_dir: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """An RQ worker forks a process for each job."""
    small = Writer(Settings(dir=str(registry_dir), max_series=10), clock)
    for number in range(5):
        counter(small, str(number)).inc()
    pid = os.fork()
    if not pid:
        try:
            counter(small, "of the child").inc()
        finally:
            os._exit(len(caplog.records))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    counter(small, "of the parent").inc()
    assert not caplog.records
    die(small)


# ------------------------------------------------------------------ a held index lock


def test_update_under_a_held_lock_waits_in_memory(registry_dir: Path, writer: Writer, held_index: int) -> None:
    counter(writer).inc(5.0)
    os.close(held_index)
    assert counted(registry_dir) == {("first",): 1.0}
    assert writer.take_dropped_updates() == {}


def test_updates_in_memory_are_counted_once_the_lock_is_free(
    registry_dir: Path, writer: Writer, clock: FakeClock, held_index: int
) -> None:
    series = counter(writer)
    series.inc(5.0)
    series.inc(1.0)
    os.close(held_index)
    clock.advance(CHECK_INTERVAL)
    writer.tick()
    series.inc(2.0)
    assert counted(registry_dir) == {("first",): 1.0, ("a",): 8.0}


def test_updates_in_memory_are_counted_at_the_end_of_a_job_of_a_second(
    registry_dir: Path, writer: Writer, clock: FakeClock, held_index: int
) -> None:
    counter(writer).inc(5.0)
    os.close(held_index)
    clock.advance(FIRST_PAUSE)
    writer.flush()
    assert counted(registry_dir)["a",] == 5.0


def test_each_end_of_a_job_places_one_waiting_series_once_the_lock_is_free(
    registry_dir: Path, writer: Writer, clock: FakeClock, held_index: int
) -> None:
    for name in ("a", "b", "c"):
        counter(writer, name).inc()
    os.close(held_index)
    clock.advance(FIRST_PAUSE)
    for placed in (2, 3, 4):
        writer.flush()
        assert len(counted(registry_dir)) == placed


def test_updates_in_memory_are_counted_when_the_process_ends(
    registry_dir: Path, writer: Writer, held_index: int
) -> None:
    counter(writer).inc(5.0)
    os.close(held_index)
    writer.settle()
    assert counted(registry_dir)["a",] == 5.0


def test_updates_in_memory_after_a_first_end_are_counted_at_the_next(
    registry_dir: Path, writer: Writer, held_index: int
) -> None:
    counter(writer).inc(5.0)
    os.close(held_index)
    writer.settle()
    held = os.open(registry_dir / "index", os.O_RDWR)
    assert try_lock(held)
    counter(writer, "b").inc(4.0)
    os.close(held)
    writer.settle()
    assert counted(registry_dir) == {("first",): 1.0, ("a",): 5.0, ("b",): 4.0}


def test_every_kind_of_series_survives_the_wait(
    registry_dir: Path, writer: Writer, clock: FakeClock, held_index: int
) -> None:
    BoundHistogram(writer, SIZES, ()).observe(1.5)
    BoundGauge(writer, LIVE, ()).set(4.0)
    BoundGauge(writer, LARGEST, ()).set(-7.0)
    os.close(held_index)
    clock.advance(CHECK_INTERVAL)
    writer.tick()
    sizes = readings.samples(registry_dir, "h")[()]
    assert (sizes.buckets, sizes.sum) == ((0.0, 1.0, 0.0), 1.5)
    assert (readings.values(registry_dir, "g"), readings.values(registry_dir, "m")) == ({(): 4.0}, {(): -7.0})


def test_series_already_placed_is_not_delayed_by_a_held_lock(
    registry_dir: Path, writer: Writer, held_index: int
) -> None:
    counter(writer, "first").inc()
    os.close(held_index)
    assert counted(registry_dir) == {("first",): 2.0}


def test_lock_is_waited_for_once(
    writer: Writer, clock: FakeClock, held_index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    place = writer.session.file.place
    monkeypatch.setattr(session, "LOCK_WAIT", 0.05)

    def spy(index: object, family: object, values: object, wait: float) -> object:
        waits.append(wait)
        return place(index, family, values, 0.0)  # type: ignore[arg-type]

    monkeypatch.setattr(writer.session.file, "place", spy)
    counter(writer, "a").inc()
    counter(writer, "waits for the first one's next try").inc()
    clock.advance(FIRST_PAUSE)
    counter(writer, "b").inc()
    os.close(held_index)
    assert waits == [0.05, 0.0]


def test_memory_that_is_full_drops_and_counts(writer: Writer, held_index: int) -> None:
    wide = Family("w", "histogram", "", ("user",), buckets=tuple(map(float, range(126))))
    for number in range(CAPACITY // wide.width + 3):
        BoundHistogram(writer, wide, (str(number),)).observe(1.0)
    os.close(held_index)
    assert writer.take_dropped_updates() == {("no room in memory", "w"): 3}


# ------------------------------------------------------------------ a directory that cannot be used


@pytest.fixture
def unusable(registry_dir: Path, swallowing: None) -> Path:
    registry_dir.rmdir()
    registry_dir.write_bytes(b"in the way")
    return registry_dir


def usable_again(path: Path) -> None:
    path.unlink()
    path.mkdir(mode=0o700)
    path.chmod(0o700)


def test_unusable_directory_is_noted_and_raises_nothing(writer: Writer, unusable: Path) -> None:
    counter(writer).inc()
    assert guard.take_counts() == {"lease": 1}


def test_unusable_directory_is_not_tried_again_at_once(writer: Writer, unusable: Path, clock: FakeClock) -> None:
    counter(writer, "a").inc()
    clock.advance(FIRST_PAUSE / 2)
    counter(writer, "b").inc()
    assert guard.take_counts() == {"lease": 1}


def test_recording_resumes_with_the_updates_in_memory(writer: Writer, unusable: Path, clock: FakeClock) -> None:
    counter(writer).inc(3.0)
    usable_again(unusable)
    clock.advance(FIRST_PAUSE + CHECK_INTERVAL)
    writer.tick()
    assert counted(unusable) == {("a",): 3.0}


def test_the_pause_doubles_up_to_its_maximum(writer: Writer, unusable: Path, clock: FakeClock) -> None:
    pauses = []
    for number in range(10):
        counter(writer, str(number)).inc()
        seconds, until = writer.session.process.pauses._known[LOAD]
        pauses.append(seconds)
        clock.now = until
    assert pauses[:4] == [FIRST_PAUSE, FIRST_PAUSE * 2, FIRST_PAUSE * 4, FIRST_PAUSE * 8]
    assert pauses[-1] == LONGEST_PAUSE


def test_errors_propagate_if_configured(writer: Writer, registry_dir: Path) -> None:
    registry_dir.chmod(0o777)
    with pytest.raises(Exception, match="may be written by anyone"):
        counter(writer).inc()


def test_an_excessive_help_text_never_raises_in_the_job(registry_dir: Path, writer: Writer, swallowing: None) -> None:
    BoundCounter(writer, Family("long_total", "counter", "x" * (1 << 20)), ()).inc()
    assert sum(guard.take_counts().values()) == 1


# ------------------------------------------------------------------ leases and generations


def test_lost_lease_is_replaced_and_no_count_is_lost(registry_dir: Path, writer: Writer) -> None:
    series = counter(writer)
    series.inc()
    assert writer.slot is not None
    os.close(writer.slot.lock_fd)
    writer.tick()
    series.inc()
    assert counted(registry_dir) == {("a",): 2.0}
    assert readings.snapshot(registry_dir).live == 1


def test_a_wiped_index_is_noticed_at_the_next_check(registry_dir: Path, writer: Writer, clock: FakeClock) -> None:
    series = counter(writer)
    series.inc()
    (registry_dir / "index").unlink()
    clock.advance(CHECK_INTERVAL)
    writer.tick()
    series.inc(4.0)
    assert counted(registry_dir) == {("a",): 4.0}


def test_wiped_index_is_not_looked_for_more_often(registry_dir: Path, writer: Writer, clock: FakeClock) -> None:
    counter(writer).inc()
    writer.tick()
    (registry_dir / "index").unlink()
    clock.advance(CHECK_INTERVAL / 2)
    writer.tick()
    assert not (registry_dir / "index").exists()
    assert writer.session.index is not None


def test_wiped_index_is_noticed_at_the_next_new_series(registry_dir: Path, writer: Writer) -> None:
    old = counter(writer, "old")
    old.inc()
    (registry_dir / "index").unlink()
    counter(writer, "new").inc()
    old.inc(2.0)
    assert counted(registry_dir) == {("new",): 1.0, ("old",): 2.0}


def test_the_old_slot_stays_leased_after_a_move(registry_dir: Path, writer: Writer) -> None:
    counter(writer, "old").inc()
    (registry_dir / "index").unlink()
    counter(writer, "new").inc()
    assert sorted(path.name for path in registry_dir.glob("slot-*")) == ["slot-00000", "slot-00001"]
    writer.session.process.old_slots[0].release()


@pytest.mark.parametrize("mode", [LIVE_SUM, MAX, MIN])
def test_present_value_follows_to_a_new_generation_once(registry_dir: Path, writer: Writer, mode: str) -> None:
    gauges = [BoundGauge(writer, Family("x", "gauge", "", (), mode), ()) for _ in range(2)]
    for gauge in gauges:
        gauge.inc(2.0)
    (registry_dir / "index").unlink()
    counter(writer).inc()
    assert readings.values(registry_dir, "x") == {(): 4.0}
    for gauge in gauges:
        gauge.inc()
    assert readings.values(registry_dir, "x") == {(): 6.0}


@pytest.mark.parametrize("mode", [LIVE_SUM, MAX, MIN])
def test_present_value_follows_to_a_slot_with_a_longer_journal(registry_dir: Path, writer: Writer, mode: str) -> None:
    gauges = [BoundGauge(writer, Family("x", "gauge", "", ("of",), mode), (of,)) for of in ("set", "added", "left")]
    for gauge in gauges:
        gauge.set(5.0 if mode != MIN else -5.0)
    writer.describe("celery", "threads", 100)
    gauges[0].set(3.0)
    gauges[1].inc(2.0)
    values = {("set",): 3.0, ("added",): 7.0, ("left",): 5.0}
    if mode == MIN:
        values = {("set",): 3.0, ("added",): -3.0, ("left",): -5.0}
    assert readings.values(registry_dir, "x") == values


def test_a_live_gauge_without_space_in_the_new_generation_waits_in_memory(
    registry_dir: Path, writer: Writer, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its memory is being emptied meanwhile: the waiting value is not discarded with the others."""
    level = BoundGauge(writer, LIVE, ())
    level.set(3.0)
    place, refusals = writer.session.file.place, [Contended(), Contended()]

    def contended(*arguments: Any) -> Any:
        if refusals:
            raise refusals.pop()
        return place(*arguments)

    monkeypatch.setattr(writer.session.file, "place", contended)
    counter(writer).inc()  # waits in memory
    for path in registry_dir.iterdir():
        path.unlink()
    for _ in range(2):
        clock.advance(CHECK_INTERVAL)
        writer.tick()
    assert readings.values(registry_dir, "g") == {(): 3.0}
    level.set(4.0)
    assert readings.values(registry_dir, "g") == {(): 4.0}


# ------------------------------------------------------------------ recording while in the slow path


def test_an_update_during_the_slow_path_is_made_later(registry_dir: Path, writer: Writer) -> None:
    writer.session.process.in_slow_path(counter(writer).inc, 3.0)  # as in a signal handler
    assert list(registry_dir.iterdir()) == []
    counter(writer, "b").inc()
    assert counted(registry_dir) == {("a",): 3.0, ("b",): 1.0}


def test_postponed_updates_are_bounded_and_counted(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writers, "MAX_POSTPONED", 2)

    def signal_handler() -> None:
        for number in range(5):
            counter(writer, str(number)).inc()

    writer.session.process.in_slow_path(signal_handler)
    assert writer.take_dropped_updates() == {("postponed", "c_total"): 3}


# ------------------------------------------------------------------ journal


def active(writer: Writer, job_type: str = "f") -> BoundSeries:
    return BoundSeries(writer, JOBS_ACTIVE, ("rq", job_type, "q"))


def test_execution_that_began_is_running(registry_dir: Path, writer: Writer) -> None:
    series = active(writer)
    writer.begin(series, execution_hash("rq", "1"), 50.0)
    writer.begin(series, execution_hash("rq", "2"), 40.0)
    (entry,) = readings.snapshot(registry_dir).active
    assert (entry.values, entry.count, entry.oldest) == (("rq", "f", "q"), 2, 40.0)


def test_execution_is_found_by_its_name(writer: Writer) -> None:
    writer.begin(active(writer), execution_hash("rq", "1"), 50.0)
    (found,) = writer.find_execution(execution_hash("rq", "1"))
    assert (found.start, found.running) == (50.0, True)
    assert writer.find_execution(execution_hash("rq", "2")) == []


def test_execution_beyond_the_journal_is_dropped_and_counted(writer: Writer) -> None:
    series = active(writer)
    begun = [writer.begin(series, number, 50.0) for number in range(65)]
    assert begun[-1] is None
    assert begun[-2] is not None
    assert writer.take_dropped_updates() == {("journal full", "jobs_active"): 1}


def test_journal_holds_the_capacity_that_was_described_before_the_lease(writer: Writer) -> None:
    writer.describe("celery", "threads", 100)
    series = active(writer)
    assert None not in [writer.begin(series, number, 50.0) for number in range(100)]


def test_journal_holds_the_capacity_that_was_described_after_the_lease(writer: Writer) -> None:
    counter(writer).inc()
    writer.describe("celery", "threads", 100)
    series = active(writer)
    assert None not in [writer.begin(series, number, 50.0) for number in range(100)]


def test_switched_off_writer_keeps_no_journal(registry_dir: Path) -> None:
    off = Writer(Settings(dir=str(registry_dir), enabled=False))
    assert off.begin(active(off), 1, 50.0) is None
    assert off.find_execution(1) == []


def test_no_execution_is_found_in_a_directory_that_is_gone(registry_dir: Path, writer: Writer) -> None:
    registry_dir.rmdir()
    assert writer.find_execution(1) == []


def test_zeros_that_end_with_the_process_are_not_lost_updates(
    writer: Writer, monkeypatch: pytest.MonkeyPatch, held_index: int
) -> None:
    gauge = BoundGauge(writer, Family("latest", "gauge", "", (), MOST_RECENT), ())
    monkeypatch.setattr(zeros, "take", lambda: [gauge])
    monkeypatch.setattr(zeros, "any_waiting", lambda: True)
    writer.shows_zeros = True
    writer.show_zeros()
    writer.settle(0.0)
    os.close(held_index)
    assert writer.take_dropped_updates() == {}
