from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from jobmetrics.errors import Damaged, DirectoryMissing, DirectoryRefused, FormatRefused
from jobmetrics.families import HIGH_WATER, JOBS_ACTIVE, LIVE_SUM, MAX, MIN, MOST_RECENT, OVERFLOW, Family
from jobmetrics.instruments import BoundCounter, BoundGauge, BoundHistogram
from jobmetrics.registry import layout
from jobmetrics.registry.cells import BoundSeries
from jobmetrics.registry.read.snapshot import SnapshotReader
from jobmetrics.registry.write.writer import Writer
from jobmetrics.settings import Settings
from tests.support import readings
from tests.unit.doubles import FakeClock, die
from tests.unit.registry.test_layout import of_version

COUNTER = Family("c_total", "counter", "", ("user",))
LIVE = Family("g", "gauge", "", (), LIVE_SUM)
SIZES = Family("h", "histogram", "", (), buckets=(1.0, 2.0))

Worker = Callable[[], Writer]


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
    with_clock = SnapshotReader(str(registry_dir), clock)
    yield with_clock
    with_clock.close()


def value(reader: SnapshotReader, name: str, *values: str) -> float | None:
    """The value of a counter or gauge; None if it is not shown."""
    for family, found in reader.read().families:
        if family.name == name:
            return next((sample.value for sample in found if sample.values == values), None)
    return None


def count(worker: Writer, amount: float, user: str = "a") -> None:
    BoundCounter(worker, COUNTER, (user,)).inc(amount)


# ------------------------------------------------------------------ contents of the directory


def test_a_directory_without_records_is_empty(reader: SnapshotReader, clock: FakeClock) -> None:
    found = reader.read()
    assert (found.families, found.series, found.live, found.taken_at) == ([], 0, 0, clock.now)


def test_a_missing_directory_has_its_own_error(tmp_path: Path) -> None:
    with pytest.raises(DirectoryMissing):
        SnapshotReader(str(tmp_path / "none")).read()


def test_directory_that_anyone_may_write_to_is_refused(registry_dir: Path, reader: SnapshotReader) -> None:
    registry_dir.chmod(0o777)
    with pytest.raises(DirectoryRefused):
        reader.read()


def test_an_unfinished_index_is_not_an_error(registry_dir: Path, reader: SnapshotReader) -> None:
    (registry_dir / "index").write_bytes(b"")
    assert reader.read().families == []


def test_damaged_index_is_an_error(registry_dir: Path, reader: SnapshotReader) -> None:
    (registry_dir / "index").write_bytes(bytes(64))
    with pytest.raises(Damaged):
        reader.read()


def test_index_of_another_version_is_refused(registry_dir: Path, reader: SnapshotReader, worker: Worker) -> None:
    count(worker(), 1.0)
    data = (registry_dir / "index").read_bytes()
    other = of_version(layout.FORMAT_VERSION + 1, layout.IndexHeader.unpack(data)) + data[layout.COMMITTED_OFFSET :]
    (registry_dir / "index").write_bytes(other)
    with pytest.raises(FormatRefused):
        reader.read()


def test_reading_changes_no_file(registry_dir: Path, reader: SnapshotReader, worker: Worker) -> None:
    count(worker(), 1.0)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in registry_dir.iterdir()}
    reader.read()
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in registry_dir.iterdir()} == before


def test_closed_reader_holds_no_descriptor(reader: SnapshotReader, worker: Worker) -> None:
    count(worker(), 1.0)
    before = len(list(Path("/proc/self/fd").iterdir()))
    reader.read()
    reader.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_repeated_reading_opens_no_more_descriptors(reader: SnapshotReader, worker: Worker) -> None:
    count(worker(), 1.0)
    reader.read()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        reader.read()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# ------------------------------------------------------------------ merging


def test_counters_of_all_slots_add_up(reader: SnapshotReader, worker: Worker) -> None:
    count(worker(), 1.0)
    count(worker(), 2.5)
    assert value(reader, "c_total", "a") == 3.5


def test_counters_of_dead_workers_still_count(reader: SnapshotReader, worker: Worker) -> None:
    gone = worker()
    count(gone, 1.0)
    die(gone)
    assert value(reader, "c_total", "a") == 1.0


def test_histogram_shows_counts_per_bucket_and_the_sum(reader: SnapshotReader, worker: Worker) -> None:
    for each in (worker(), worker()):
        for amount in (0.5, 1.0, 1.5, 9.0):
            BoundHistogram(each, SIZES, ()).observe(amount)
    ((family, (sample,)),) = reader.read().families
    assert (family, sample.buckets, sample.sum) == (SIZES, (4.0, 2.0, 2.0), 24.0)


def test_live_gauge_adds_the_living_only(reader: SnapshotReader, worker: Worker) -> None:
    gone, alive = worker(), worker()
    BoundGauge(gone, LIVE, ()).set(5.0)
    BoundGauge(alive, LIVE, ()).set(3.0)
    assert value(reader, "g") == 8.0
    die(gone)
    assert value(reader, "g") == 3.0


def test_live_gauge_of_a_slot_without_a_complete_owner_does_not_count(
    registry_dir: Path, reader: SnapshotReader, worker: Worker
) -> None:
    BoundGauge(worker(), LIVE, ()).set(5.0)
    overwrite(registry_dir / "slot-00000", layout.OWNER_CRC_OFFSET, bytes(4))
    assert value(reader, "g") == 0.0


@pytest.mark.parametrize(("mode", "expected"), [(MAX, 7.0), (MIN, -3.0)])
def test_max_and_min_gauges_are_those_of_all_slots(
    reader: SnapshotReader, worker: Worker, mode: str, expected: float
) -> None:
    family = Family("x", "gauge", "", (), mode)
    gone = worker()
    for each, number in ((gone, -3.0), (worker(), 7.0), (worker(), 1.0)):
        BoundGauge(each, family, ()).set(number)
    die(gone)
    assert value(reader, "x") == expected


def test_most_recent_gauge_is_the_one_set_last(
    reader: SnapshotReader, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = Family("x", "gauge", "", (), MOST_RECENT)
    for at, number in ((100.0, 1.0), (300.0, 2.0), (200.0, 3.0)):
        monkeypatch.setattr("time.time", lambda at=at: at)
        BoundGauge(worker(), family, ()).set(number)
    assert value(reader, "x") == 2.0


@pytest.mark.parametrize("mode", [MAX, MIN])
def test_a_max_or_min_gauge_that_no_process_has_set_is_0(reader: SnapshotReader, worker: Worker, mode: str) -> None:
    family = Family("x", "gauge", "", (), mode)
    unset, one = worker(), worker()
    unset.bind(BoundGauge(unset, family, ()), lambda _: None)
    assert value(reader, "x") == 0.0
    for number in (0.0, -2.0, 7.0):  # the process that has not set it does not count
        BoundGauge(one, family, ()).set(number)
        assert value(reader, "x") == number


@pytest.mark.parametrize("mode", [HIGH_WATER, MOST_RECENT])
def test_gauge_that_was_never_set_is_absent(reader: SnapshotReader, worker: Worker, mode: str) -> None:
    each = worker()
    each.bind(BoundGauge(each, Family("x", "gauge", "", (), mode), ()), lambda _: None)
    assert reader.read().series == 1
    assert value(reader, "x") is None


def test_sums_are_made_in_slot_order_to_the_last_bit(reader: SnapshotReader, worker: Worker) -> None:
    amounts = [0.1, 1e16, 0.3, -0.0, 7.7, 1e-9]
    for amount in amounts:
        count(worker(), amount)
    expected = 0.0
    for amount in amounts:
        expected += amount
    assert value(reader, "c_total", "a") == expected


def test_counter_never_falls_when_a_worker_starts_or_ends(reader: SnapshotReader, worker: Worker) -> None:
    seen = []
    for amount in (0.1, 0.7, 0.2):
        each = worker()
        count(each, amount)
        seen.append(value(reader, "c_total", "a"))
        die(each)
        seen.append(value(reader, "c_total", "a"))
    numbers = [number for number in seen if number is not None]
    assert numbers == sorted(numbers)
    assert len(numbers) == 6


# ------------------------------------------------------------------ running executions


def test_running_executions_are_counted_with_the_oldest_start(reader: SnapshotReader, worker: Worker) -> None:
    for start in (70.0, 50.0):
        each = worker()
        each.begin(BoundSeries(each, JOBS_ACTIVE, ("rq", "f", "q")), 1, start)
    (entry,) = reader.read().active
    assert (entry.values, entry.count, entry.oldest) == (("rq", "f", "q"), 2, 50.0)


def test_executions_of_a_dead_worker_are_gone(reader: SnapshotReader, worker: Worker) -> None:
    each = worker()
    each.begin(BoundSeries(each, JOBS_ACTIVE, ("rq", "f", "q")), 1, 50.0)
    die(each)
    (entry,) = reader.read().active
    assert (entry.count, entry.oldest) == (0, None)


def test_executions_of_a_dead_worker_are_not_shown_for_its_successor(reader: SnapshotReader, worker: Worker) -> None:
    gone = worker()
    gone.begin(BoundSeries(gone, JOBS_ACTIVE, ("rq", "f", "q")), 1, 50.0)
    die(gone)
    count(worker(), 1.0)
    assert [entry.count for entry in reader.read().active] == [0]


def test_the_journal_family_is_not_shown_as_a_gauge(reader: SnapshotReader, worker: Worker) -> None:
    each = worker()
    each.begin(BoundSeries(each, JOBS_ACTIVE, ("rq", "f", "q")), 1, 50.0)
    assert reader.read().families == []


# ------------------------------------------------------------------ counts of slots and series


def test_slots_are_counted_by_state(registry_dir: Path, reader: SnapshotReader, worker: Worker) -> None:
    gone = worker()
    count(gone, 1.0)
    count(worker(), 1.0)
    die(gone)
    (registry_dir / "slot-00007").write_bytes(b"x" * 10_000)
    found = reader.read()
    assert (found.live, found.free, found.damaged) == (1, 1, 1)


def test_owners_of_live_slots_are_listed(reader: SnapshotReader, worker: Worker) -> None:
    gone, alive = worker(), worker()
    alive.describe("rq", "worker", 3)
    count(gone, 1.0)
    count(alive, 1.0)
    die(gone)
    assert [(owner.system, owner.capacity) for owner in reader.read().owners] == [("rq", 3)]


def test_histogram_counts_as_one_series(reader: SnapshotReader, worker: Worker) -> None:
    each = worker()
    count(each, 1.0)
    BoundHistogram(each, SIZES, ()).observe(1.0)
    found = reader.read()
    assert (found.series, found.limit) == (2, 10_000)


def test_newest_definition_is_shown_and_the_rest_counted(reader: SnapshotReader, worker: Worker) -> None:
    each = worker()
    count(each, 1.0)
    count(each, 1.0, "b")
    BoundCounter(each, Family("c_total", "counter", "", ("user", "region")), ("a", "eu")).inc(5.0)
    found = reader.read()
    assert found.superseded == 2
    assert [(sample.values, sample.value) for _, samples in found.families for sample in samples] == [
        (("a", "eu"), 5.0)
    ]


def histogram(worker: Worker, *bounds: float) -> BoundHistogram:
    return BoundHistogram(worker(), Family("h", "histogram", "", ("user",), buckets=bounds), ("a",))


def shown(reader: SnapshotReader) -> list[tuple[tuple[float, ...], tuple[float, ...], float]]:
    """Bounds, counts and sum of each series of a histogram."""
    return [
        (family.buckets, sample.buckets, sample.sum) for family, found in reader.read().families for sample in found
    ]


@pytest.mark.parametrize(
    ("before", "after", "counts"),
    [
        ((1.0, 4.0), (1.0, 2.0, 4.0), (1.0, 0.0, 1.0, 1.0)),
        ((1.0, 2.0, 4.0), (1.0, 4.0), (1.0, 1.0, 1.0)),
        ((1.0, 2.0), (2.0,), (1.0, 2.0)),
    ],
)
def test_counts_of_nested_earlier_buckets_are_shown_in_the_newest(
    reader: SnapshotReader,
    worker: Worker,
    before: tuple[float, ...],
    after: tuple[float, ...],
    counts: tuple[float, ...],
) -> None:
    earlier = histogram(worker, *before)
    for value in (0.5, 3.0, 9.0):
        earlier.observe(value)
    newest = histogram(worker, *after)
    BoundHistogram(worker(), newest.family, ("b",)).observe(
        0.0
    )  # declares it; series a exists only with the earlier definition
    assert (after, counts, 12.5) in shown(reader)
    newest.observe(0.5)
    assert (after, (counts[0] + 1.0, *counts[1:]), 13.0) in shown(reader)
    assert reader.read().superseded == 0


def test_counts_of_other_earlier_buckets_are_not_shown(reader: SnapshotReader, worker: Worker) -> None:
    histogram(worker, 1.0, 3.0).observe(0.5)
    histogram(worker, 2.0).observe(0.5)
    assert shown(reader) == [((2.0,), (1.0, 0.0), 0.5)]
    assert reader.read().superseded == 1


def test_several_earlier_declarations_are_added_in_their_order(reader: SnapshotReader, worker: Worker) -> None:
    first = histogram(worker, 1.0)
    first.observe(0.1)
    before = shown(reader)[0][2]
    for bounds in ((1.0, 2.0), (1.0, 2.0, 4.0)):
        histogram(worker, *bounds).observe(0.7)
        now = shown(reader)[0][2]
        assert now > before
        before = now
    first.observe(1e-17)
    assert shown(reader)[0][2] >= before


def test_series_removed_from_an_earlier_declaration_stay_removed(reader: SnapshotReader, worker: Worker) -> None:
    old = worker()
    sizes = histogram(lambda: old, 1.0, 2.0)
    for size in (0.5, 1.5):
        sizes.observe(size)
    old.erase(sizes, hide=True)
    sizes.observe(1.5)
    histogram(worker, 2.0).observe(0.5)
    assert shown(reader) == [((2.0,), (2.0, 0.0), 2.0)]
    assert reader.read().superseded == 0


def test_earlier_series_that_change_are_not_hidden(registry_dir: Path, clock: FakeClock, worker: Worker) -> None:
    hiding = SnapshotReader(str(registry_dir), clock, hide_after=60.0)
    earlier, newest = histogram(worker, 1.0), histogram(worker, 1.0, 2.0)
    earlier.observe(0.5)
    newest.observe(0.5)
    assert [counts for _, counts, _ in shown(hiding)] == [(2.0, 0.0, 0.0)]
    clock.advance(50.0)
    earlier.observe(0.5)
    shown(hiding)
    clock.advance(50.0)
    assert [counts for _, counts, _ in shown(hiding)] == [(3.0, 0.0, 0.0)]
    clock.advance(50.0)
    assert shown(hiding) == []
    hiding.close()


def test_overflow_series_is_shown_as_any_other(registry_dir: Path, reader: SnapshotReader) -> None:
    small = Writer(Settings(dir=str(registry_dir), max_series=4))
    for user in "abcdef":
        count(small, 1.0, user)
    found = value(reader, "c_total", OVERFLOW)
    die(small)
    assert found == 4.0


# ------------------------------------------------------------------ damage


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.fixture
def two_slots(reader: SnapshotReader, worker: Worker) -> None:
    """Make two free slots that have counted 1 and 2, and read both."""
    first, second = worker(), worker()
    count(first, 1.0)
    count(second, 2.0)
    die(first)
    die(second)
    assert value(reader, "c_total", "a") == 3.0


@pytest.mark.usefixtures("two_slots")
@pytest.mark.parametrize("size", [0, 10, 100, 4095, 4096, 5000, 8191])
def test_the_last_row_of_a_truncated_slot_is_served(registry_dir: Path, reader: SnapshotReader, size: int) -> None:
    os.truncate(registry_dir / "slot-00000", size)
    assert value(reader, "c_total", "a") == 3.0
    assert reader.read().damaged == 1


@pytest.mark.usefixtures("two_slots")
@pytest.mark.parametrize("byte", [0, 9, 13, 17, 33, 49])
def test_the_last_row_of_a_slot_with_a_flipped_header_is_served(
    registry_dir: Path, reader: SnapshotReader, byte: int
) -> None:
    path = registry_dir / "slot-00000"
    overwrite(path, byte, bytes([path.read_bytes()[byte] ^ 4]))
    assert value(reader, "c_total", "a") == 3.0
    assert reader.read().damaged == 1


@pytest.mark.usefixtures("two_slots")
def test_a_removed_slot_still_counts(registry_dir: Path, reader: SnapshotReader) -> None:
    (registry_dir / "slot-00000").unlink()
    assert value(reader, "c_total", "a") == 3.0


@pytest.mark.usefixtures("two_slots")
def test_a_replaced_slot_adds_to_the_earlier_counts(registry_dir: Path, reader: SnapshotReader, worker: Worker) -> None:
    (registry_dir / "slot-00000").unlink()
    count(worker(), 4.0)  # leases slot 1
    count(worker(), 8.0)  # makes slot 0 again
    assert value(reader, "c_total", "a") == 15.0


def test_zeroed_cells_do_not_restore_erased_series(registry_dir: Path, reader: SnapshotReader, worker: Worker) -> None:
    one = worker()
    count(one, 5.0)
    one.erase(BoundCounter(one, COUNTER, ("a",)), hide=False)
    count(one, 2.0)
    assert value(reader, "c_total", "a") == 2.0
    assert one.slot is not None
    for cell in range(len(one.slot.cells)):
        one.slot.cells[cell] = 0.0
    assert value(reader, "c_total", "a") == 2.0
    count(one, 1.0)
    assert value(reader, "c_total", "a") == 3.0


@pytest.mark.parametrize("mode", [LIVE_SUM, MAX, MIN, MOST_RECENT, HIGH_WATER])
def test_gauge_of_a_slot_that_was_replaced_is_not_added(
    registry_dir: Path, reader: SnapshotReader, worker: Worker, mode: str
) -> None:
    family = Family("x", "gauge", "", (), mode)
    BoundGauge(worker(), family, ()).set(5.0)
    assert value(reader, "x") == 5.0
    (registry_dir / "slot-00000").unlink()
    BoundGauge(worker(), family, ()).set(4.0)
    assert value(reader, "x") == 4.0


@pytest.mark.usefixtures("two_slots")
def test_a_new_reader_skips_only_the_damaged_slot(registry_dir: Path) -> None:
    overwrite(registry_dir / "slot-00000", 0, b"x")
    assert readings.values(registry_dir, "c_total") == {("a",): 2.0}


@pytest.mark.usefixtures("two_slots")
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -1.0])
def test_an_impossible_value_loses_only_its_cell(registry_dir: Path, bad: float) -> None:
    overwrite(registry_dir / "slot-00000", layout.SlotHeader(64, bytes(16)).cells_offset, np.float64(bad).tobytes())
    assert readings.values(registry_dir, "c_total") == {("a",): 2.0}


@pytest.mark.usefixtures("two_slots")
def test_damage_is_logged_once_a_minute(
    registry_dir: Path, reader: SnapshotReader, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    overwrite(registry_dir / "slot-00000", 0, b"x")
    for _ in range(3):
        reader.read()
    assert len(caplog.records) == 1
    clock.advance(60.0)
    reader.read()
    assert len(caplog.records) == 2


def test_slot_of_another_generation_is_never_read(registry_dir: Path, reader: SnapshotReader, worker: Worker) -> None:
    count(worker(), 1.0)
    (registry_dir / "index").unlink()
    count(worker(), 2.0)
    found = reader.read()
    assert [sample.value for _, samples in found.families for sample in samples] == [2.0]
    assert (found.live, found.free, found.damaged) == (1, 0, 0)


def test_reader_follows_to_a_new_index(registry_dir: Path, reader: SnapshotReader, worker: Worker) -> None:
    count(worker(), 1.0)
    assert value(reader, "c_total", "a") == 1.0
    (registry_dir / "index").unlink()
    count(worker(), 2.0)
    assert value(reader, "c_total", "a") == 2.0


# ------------------------------------------------------------------ hiding unchanged series


@pytest.fixture
def hiding(registry_dir: Path, clock: FakeClock) -> Iterator[SnapshotReader]:
    hides = SnapshotReader(str(registry_dir), clock, hide_after=60.0)
    yield hides
    hides.close()


def test_series_without_a_change_is_hidden(hiding: SnapshotReader, worker: Worker, clock: FakeClock) -> None:
    count(worker(), 1.0)
    assert value(hiding, "c_total", "a") == 1.0
    clock.advance(60.0)
    assert value(hiding, "c_total", "a") == 1.0
    clock.advance(0.5)
    assert value(hiding, "c_total", "a") is None


def test_a_reset_series_that_is_hidden_comes_back_with_its_count_since_the_reset(
    hiding: SnapshotReader, worker: Worker, clock: FakeClock
) -> None:
    one = worker()
    count(one, 1.0)
    one.erase(BoundCounter(one, COUNTER, ("a",)), hide=False)
    assert value(hiding, "c_total", "a") == 0.0
    clock.advance(1e6)
    assert value(hiding, "c_total", "a") is None
    count(one, 2.0)
    assert value(hiding, "c_total", "a") == 2.0


def test_hidden_series_comes_back_with_its_whole_count(
    hiding: SnapshotReader, worker: Worker, clock: FakeClock
) -> None:
    each = worker()
    count(each, 1.0)
    hiding.read()
    clock.advance(61.0)
    assert value(hiding, "c_total", "a") is None
    count(each, 1.0)
    assert value(hiding, "c_total", "a") == 2.0


def test_live_gauge_is_never_hidden(hiding: SnapshotReader, worker: Worker, clock: FakeClock) -> None:
    BoundGauge(worker(), LIVE, ()).set(3.0)
    hiding.read()
    clock.advance(1000.0)
    assert value(hiding, "g") == 3.0


def test_max_gauge_that_rises_in_another_slot_is_not_hidden(
    hiding: SnapshotReader, worker: Worker, clock: FakeClock
) -> None:
    family = Family("x", "gauge", "", (), MAX)
    each = worker()
    BoundGauge(each, family, ()).set(3.0)
    hiding.read()
    clock.advance(61.0)
    BoundGauge(each, family, ()).set(4.0)
    assert value(hiding, "x") == 4.0
