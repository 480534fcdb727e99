"""Invariant 7: damage stays local. It is skipped, counted and logged once; the rest is served; workers continue."""

from __future__ import annotations

import logging
import math
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobmetrics.errors import RegistryError
from jobmetrics.families import COUNTER, HISTOGRAM
from jobmetrics.registry import layout
from jobmetrics.registry.index import SeriesIndex
from jobmetrics.registry.read.snapshot import SnapshotReader
from tests.multiprocess import damaging
from tests.multiprocess.damaging import Damage, overwrite
from tests.multiprocess.places import ALICE, become, need_root, open_place
from tests.multiprocess.support import SIZES, Child, Worker, in_child, in_order, record, slot_files, worker, workers
from tests.support import readings
from tests.support.repetitions import sizes

OWN = (1.0, 10.0, 100.0)  # counts of slots 0, 1 and 2: a total shows which of them it includes
ALL = sum(OWN)
LATER = 3000.0  # counts of three processes after the damage

Flat = dict[tuple[str, tuple[str, ...]], tuple[float, tuple[float, ...], float]]


def fill(path: Path) -> None:
    """Make three free slots."""
    with workers(path, len(OWN)) as all_:
        for one, amount in zip(all_, OWN, strict=True):
            one.ask("hit", "all", amount)
            one.ask("hit", f"only {amount}", amount)
            one.ask("measure", amount)
            one.ask("level", amount)
        for one in all_:
            one.leave()
    assert total(path) == ALL
    assert len(slot_files(path)) == len(OWN)


def total(path: Path) -> float:
    return readings.values(path, "hits_total").get(("all",), 0.0)


def total_of(reader: SnapshotReader) -> float:
    return flat(reader).get(("hits_total", ("all",)), (0.0, (), 0.0))[0]


def flat(reader: SnapshotReader) -> Flat:
    return {
        (family.name, sample.values): (sample.value, sample.buckets, sample.sum)
        for family, found in reader.read().families
        for sample in found
    }


def count_later(path: Path) -> None:
    """Three processes record at once, so that each slot is leased; none fails."""
    with workers(path, 3) as all_:
        for one in all_:
            one.ask("hit", "all", LATER / 3)
        for one in all_:
            one.leave()


def lines_about(caplog: pytest.LogCaptureFixture, name: str) -> list[str]:
    return [line.getMessage() for line in caplog.records if name in line.getMessage()]


# ---------------------------------------------------------------- the matrix

SLOT_DAMAGE = (
    *damaging.WHOLE_FILE,
    damaging.cut_to(255),
    damaging.cut_to(4095),
    damaging.cut_to(4096),
    damaging.cut_to(4096 + 8),
    damaging.cut_to(4096 + 8 + 3),
    damaging.cut_in_half,
    damaging.cut_the_last_byte,
)


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("damage", SLOT_DAMAGE, ids=damaging.named)
def test_a_damaged_slot_loses_only_its_own_counts(
    damage: Damage, number: int, registry_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(registry_dir)
    name = slot_files(registry_dir)[number]
    with readings.reader(registry_dir) as knew_it, readings.reader(registry_dir) as new:
        assert total_of(knew_it) == ALL
        damage(registry_dir / name)
        caplog.clear()
        rest = ALL - OWN[number]
        for _ in range(3):
            assert total_of(new) == rest
        empty = (registry_dir / name).is_file() and not (registry_dir / name).stat().st_size
        if not empty:  # left by a process that dies between making a slot and filling it
            assert new.read().damaged == 1
            assert len(lines_about(caplog, name)) == 1
        assert total_of(knew_it) == ALL, "a reader that has read the slot serves its last row"
        assert knew_it.read().damaged == 1

        count_later(registry_dir)
        assert total(registry_dir) == rest + LATER
        assert total_of(new) == rest + LATER
        assert total_of(knew_it) == ALL + LATER
        assert new.read().damaged == 0
        assert len(slot_files(registry_dir)) == len(OWN)


def test_a_slot_cut_to_half_its_cells_is_not_served_as_less(registry_dir: Path) -> None:
    """The file looks like one that never grew, except to a reader that has read it before."""
    with worker(registry_dir) as one:
        for n in range(200):
            one.ask("measure", 1.0, f"{n}")
        one.leave()
    with readings.reader(registry_dir) as reader:
        before = flat(reader)
        assert len(before) == 200
        file = registry_dir / "slot-00000"
        os.truncate(file, 4096 + 512 * 8)
        assert flat(reader) == before
        assert reader.read().damaged == 1


@pytest.mark.parametrize("damage", damaging.WHOLE_FILE, ids=damaging.named)
def test_after_damage_to_the_index_a_worker_sets_it_aside_and_goes_on(damage: Damage, registry_dir: Path) -> None:
    fill(registry_dir)
    damage(registry_dir / "index")
    with readings.reader(registry_dir) as reader:
        try:
            assert total_of(reader) == 0.0
        except (RegistryError, OSError):
            pass  # the exporter shows nothing
        count_later(registry_dir)
        assert total_of(reader) == LATER, "a reader follows the workers"
    assert total(registry_dir) == LATER
    assert len(slot_files(registry_dir)) == len(OWN)


@pytest.mark.parametrize("eighths", range(1, 8))
def test_an_index_cut_within_its_records_loses_the_series_after_the_cut(
    eighths: int, registry_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(registry_dir)
    with readings.reader(registry_dir) as reader:
        truth = flat(reader)
    index = registry_dir / "index"
    os.truncate(index, 64 + (index.stat().st_size - 64) * eighths // 8)
    caplog.clear()
    with readings.reader(registry_dir) as reader:
        served = flat(reader)
        reader.read()
        assert len(lines_about(caplog, "index")) == 1
    assert served.items() <= truth.items()
    count_later(registry_dir)
    known = served.get(("hits_total", ("all",)), (0.0, (), 0.0))[0]
    assert total(registry_dir) == known + LATER
    with readings.reader(registry_dir) as reader:
        after = flat(reader)
    assert all(after[series] == value for series, value in served.items() if series != ("hits_total", ("all",)))


@pytest.mark.parametrize("name", ["slot-00001", "index"])
def test_an_unreadable_file_is_skipped(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Its mode is different, as after a worker that was once started as root."""
    need_root()
    with open_place() as place:
        path = place / "registry"
        path.mkdir(mode=0o700)
        os.chown(path, ALICE, ALICE)
        in_child(in_order(lambda: become(ALICE), lambda: fill(path)))
        os.chown(path / name, 0, 0)
        in_child(in_order(lambda: become(ALICE), lambda: _goes_on_without(path, name)))


def _goes_on_without(path: Path, name: str) -> None:
    with readings.reader(path) as reader:
        if name == "index":
            with pytest.raises(OSError, match="ermission"):
                reader.read()
        else:
            assert total_of(reader) == ALL - OWN[1]
            assert reader.read().damaged == 1
    in_child(lambda: _records(path, propagate=name != "index"))
    if name != "index":
        count_later(path)
        assert total(path) == ALL - OWN[1] + 1 + LATER


def _records(path: Path, *, propagate: bool) -> None:
    Worker(path, propagate_errors=propagate).hit("all")


def test_a_file_set_aside_keeps_its_contents(registry_dir: Path) -> None:
    fill(registry_dir)
    file = registry_dir / "slot-00000"
    damaging.zero_the_header(file)
    kept = file.read_bytes()
    count_later(registry_dir)
    aside = [other for other in registry_dir.iterdir() if other.name.startswith("slot-00000.")]
    assert [other.read_bytes() for other in aside] == [kept]


def test_the_target_of_a_link_is_never_written(registry_dir: Path) -> None:
    fill(registry_dir)
    targets = {}
    for name in ["index", *slot_files(registry_dir)]:
        damaging.link_to_its_copy(registry_dir / name)
        target = (registry_dir / name).readlink()
        targets[target] = target.read_bytes()
    count_later(registry_dir)
    assert {target: target.read_bytes() for target in targets} == targets
    assert total(registry_dir) == LATER


def test_files_of_other_names_are_ignored(registry_dir: Path) -> None:
    fill(registry_dir)
    for name in ["slot-1", "slot-000001", "slot-0000x", "slot-99999.bak", "notes", "slot-", "slot-" + "\u0660" * 5]:
        (registry_dir / name).write_text("whatever", encoding="utf-8")
    snapshot = readings.snapshot(registry_dir)
    assert (snapshot.live, snapshot.free, snapshot.damaged) == (0, 3, 0)
    count_later(registry_dir)
    assert total(registry_dir) == ALL + LATER


def test_slots_with_high_numbers_are_served_and_leased(registry_dir: Path) -> None:
    """The slot is an operator's copy, or a removed file left a gap in the numbers."""
    fill(registry_dir)
    (registry_dir / "slot-00001").rename(registry_dir / "slot-99999")
    assert total(registry_dir) == ALL
    count_later(registry_dir)
    assert total(registry_dir) == ALL + LATER
    assert len(slot_files(registry_dir)) == len(OWN)


# ---------------------------------------------------------------- flipped bytes


class Specimen:
    """A directory in which bytes are flipped and restored, and its undamaged contents."""

    def __init__(self, path: Path) -> None:
        self.path = path
        fill(path)
        self.bytes = {name: (path / name).read_bytes() for name in ["index", *slot_files(path)]}
        with readings.reader(path) as reader:
            self.truth = flat(reader)
        head = self.bytes["index"]
        self.index = SeriesIndex(layout.IndexHeader.unpack(head))
        self.index.feed(head[layout.INDEX_HEADER_SIZE :], len(head))

    def read_flipped(self, name: str, offset: int, flip: int) -> tuple[Flat | None, int, list[str]]:
        """What is served of the flipped directory (None if refused), slots reported damaged, log lines."""
        data = bytearray(self.bytes[name])
        data[offset] ^= flip
        overwrite(self.path / name, offset, bytes(data[offset : offset + 1]))
        logger, handler = logging.getLogger("jobmetrics"), _Lines()
        logger.addHandler(handler)
        try:
            with readings.reader(self.path) as reader:
                return flat(reader), reader.read().damaged, handler.lines
        except RegistryError as error:
            return None, 0, [str(error)]
        finally:
            logger.removeHandler(handler)
            overwrite(self.path / name, offset, self.bytes[name][offset : offset + 1])

    def families_of_cell(self, cell: int) -> list[tuple[str, int]]:
        """Name of the family that has the cell, and the cell's position in its series."""
        return [
            (self.index.families[number].name, cell - place.first)
            for (number, _), place in self.index.series.items()
            if place.first <= cell < place.first + place.width
        ]


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture(scope="module")
def specimen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Specimen]:
    path = tmp_path_factory.mktemp("specimen")
    path.chmod(0o700)
    yield Specimen(path)
    shutil.rmtree(path)


def explore(examples: int, test: Any) -> None:
    settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )(test)()


@sizes("examples", 300, 20_000)
def test_a_flip_in_the_index_is_detected(examples: int, specimen: Specimen) -> None:
    @given(st.integers(0, len(specimen.bytes["index"]) - 1), st.integers(1, 255))
    def flipped(offset: int, flip: int) -> None:
        served, _, lines = specimen.read_flipped("index", offset, flip)
        if served == specimen.truth:
            return  # bytes that are never read
        assert lines, "missing data is logged"
        assert served is None or served.items() < specimen.truth.items()

    explore(examples, flipped)


def test_every_flip_in_the_headers_is_detected(specimen: Specimen) -> None:
    for offset in range(layout.INDEX_HEADER_SIZE):
        for flip in (1, 0x80, 0xFF):
            served, _, _ = specimen.read_flipped("index", offset, flip)
            assert served is None or served == specimen.truth, f"offset {offset} of the index"
    for offset in range(layout.SLOT_HEADER_SIZE):
        for flip in (1, 0x80, 0xFF):
            served, damaged, lines = specimen.read_flipped("slot-00001", offset, flip)
            if served != specimen.truth:
                assert served is not None
                assert served["hits_total", ("all",)][0] == ALL - OWN[1], f"offset {offset} of the slot"
                assert damaged == 1
                assert len(lines) == 1


@sizes("examples", 300, 20_000)
def test_a_flip_in_a_slot_loses_at_most_one_cell(examples: int, specimen: Specimen) -> None:
    name = "slot-00001"
    data = specimen.bytes[name]
    cells_offset = layout.SlotHeader.unpack(data).cells_offset
    used = cells_offset + specimen.index.next_cell * layout.CELL

    # Most flips go where data is.
    offsets = st.one_of(st.integers(layout.SLOT_HEADER_SIZE, len(data) - 1), st.integers(cells_offset, used - 1))

    @given(offsets, st.integers(1, 255))
    def flipped(offset: int, flip: int) -> None:
        served, damaged, lines = specimen.read_flipped(name, offset, flip)
        assert served is not None
        assert served.keys() == specimen.truth.keys()
        different = {series for series, value in served.items() if value != specimen.truth[series]}
        for series in different:
            value, buckets, sum_ = served[series]
            assert all(math.isfinite(number) for number in (value, *buckets, sum_))
            if not series[0].startswith("level"):
                assert all(number >= 0.0 for number in (value, *buckets))
        if offset < cells_offset:
            assert not different, "a free slot: only its header and its cells are read"
            return
        if _impossible(specimen, data, (offset - cells_offset) // layout.CELL, offset, flip):
            assert damaged or lines, "impossible values are reported"

    explore(examples, flipped)


def _impossible(specimen: Specimen, data: bytes, cell: int, offset: int, flip: int) -> bool:
    """Whether the flipped cell has a value that no instrument can have written."""
    start = offset - (offset - layout.SlotHeader.unpack(data).cells_offset) % layout.CELL
    word = bytearray(data[start : start + layout.CELL])
    word[offset - start] ^= flip
    (value,) = struct.unpack("<d", word)
    for name, place in specimen.families_of_cell(cell):
        family = specimen.index.families[specimen.index.newest[name]]
        counts = family.type == COUNTER or (family.type == HISTOGRAM and place < family.width - 1)
        fraction = family.type == HISTOGRAM and counts and value != int(value) if math.isfinite(value) else True
        return not math.isfinite(value) or (counts and value < 0.0) or fraction
    return False


IMPOSSIBLE = [math.nan, math.inf, -math.inf, -1.0, -1e300]


@pytest.mark.parametrize("value", IMPOSSIBLE)
@pytest.mark.parametrize("family", ["hits_total", "sizes"])
def test_an_impossible_value_never_makes_a_count_fall(
    family: str, value: float, registry_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(registry_dir)
    specimen_index = _index_of(registry_dir)
    number = specimen_index.newest[family]
    first = specimen_index.series[number, ("all",)].first + (len(SIZES.buckets) if family == SIZES.name else 0)
    file = registry_dir / "slot-00001"
    offset = layout.SlotHeader.unpack(file.read_bytes()).cells_offset + first * layout.CELL
    with readings.reader(registry_dir) as reader:
        before = flat(reader)
        overwrite(file, offset, struct.pack("<d", value))
        after = flat(reader)
        assert after == before
        assert lines_about(caplog, "slot-00001")
    with readings.reader(registry_dir) as reader:
        fresh = flat(reader)
    assert all(number >= 0.0 for value, buckets, _ in fresh.values() for number in (value, *buckets))
    assert {series for series in before if fresh[series] != before[series]} <= {(family, ("all",))}


def _index_of(path: Path) -> SeriesIndex:
    data = (path / "index").read_bytes()
    index = SeriesIndex(layout.IndexHeader.unpack(data))
    index.feed(data[layout.INDEX_HEADER_SIZE :], len(data))
    return index


def test_flips_under_a_living_owner_never_show_false_values(registry_dir: Path) -> None:
    """Its owner record and its journal are read correctly, or left out."""
    with worker(registry_dir) as one, readings.reader(registry_dir) as reader:
        one.ask("level", 5.0)
        one.ask("start", "running")
        file = registry_dir / "slot-00000"
        data = file.read_bytes()
        start = readings.snapshot(registry_dir).active[0].oldest
        column = layout.MIN_JOURNAL * layout.CELL
        first_entry = [
            layout.JOURNAL_OFFSET + n * column + byte for n in range(layout.JOURNAL_WORDS) for byte in range(8)
        ]
        places = [*range(layout.JOURNAL_OFFSET), *first_entry]
        for offset in places:
            for flip in (0x01, 0x80, 0xFF):
                overwrite(file, offset, bytes([data[offset] ^ flip]))
                snapshot = reader.read()
                families = {family.name: samples for family, samples in snapshot.families}
                assert [sample.value for sample in families["level"]] in ([5.0], [0.0], []), f"offset {offset}"
                assert [entry.count for entry in snapshot.active] in ([1], [0]), f"offset {offset}"
                for entry in snapshot.active:
                    assert entry.oldest is None or entry.oldest >= 0.0, f"offset {offset}"
                    assert entry.oldest is None or math.isfinite(entry.oldest), f"offset {offset}"
                overwrite(file, offset, data[offset : offset + 1])
        snapshot = reader.read()
        assert [(entry.count, entry.oldest) for entry in snapshot.active] == [(1, start)]
        one.ask("hit", "all", 3.0)
        one.leave()
    assert total(registry_dir) == 3.0


def test_a_living_owner_without_a_header_affects_no_other_slot(registry_dir: Path) -> None:
    with workers(registry_dir, 2) as (one, two), readings.reader(registry_dir) as reader:
        one.ask("hit", "all", 1.0)
        two.ask("hit", "all", 10.0)
        assert total_of(reader) == 11.0
        damaging.zero_the_header(registry_dir / "slot-00000")
        one.ask("hit", "all", 1.0)
        two.ask("hit", "all", 10.0)
        assert total_of(reader) == 21.0, "the last row of the damaged slot, and all of the other"
        assert total(registry_dir) == 20.0
        one.leave()
        two.leave()
    count_later(registry_dir)
    assert total(registry_dir) == 20.0 + LATER


# ---------------------------------------------------------------- generations, under living writers

WRITERS = 8


def removed(index: Path) -> None:
    index.unlink()


def replaced(index: Path) -> None:
    """Replace it by the index of another directory."""
    other = index.parent.parent / "other"
    record(other, ("measure", 1.0, "other"), ("hit", "all"), ("hit", "other"))
    shutil.move(other / "index", index)


def emptied(index: Path) -> None:
    os.truncate(index, 0)


@pytest.mark.parametrize("damage", [removed, replaced, emptied, *damaging.WHOLE_FILE], ids=damaging.named)
def test_living_writers_move_to_a_new_index(damage: Damage, registry_dir: Path) -> None:
    with workers(registry_dir, WRITERS) as all_, readings.reader(registry_dir) as reader:
        together(all_, "hit", "all", 1.0, 10)
        together(all_, "hit", "mine", 1.0, 10)
        assert total_of(reader) == 10.0 * WRITERS
        damage(registry_dir / "index")
        together(all_, "later")
        together(all_, "hit", "all", 1.0, 7)
        together(all_, "hit", "new", 1.0, 7)
        values = readings.values(registry_dir, "hits_total")
        assert values[("all",)] == 7.0 * WRITERS
        assert values[("new",)] == 7.0 * WRITERS
        assert total_of(reader) == 7.0 * WRITERS
        assert readings.snapshot(registry_dir).live == WRITERS
        together(all_, "hit", "mine", 1.0, 7)
        together(all_, "job")
        for one in all_:
            one.leave()
    values = readings.values(registry_dir, "hits_total")
    assert values == {("all",): 7.0 * WRITERS, ("new",): 7.0 * WRITERS, ("mine",): 7.0 * WRITERS}
    assert sum(readings.values(registry_dir, "jobs_total").values()) == WRITERS
    assert len(slot_files(registry_dir)) <= 2 * WRITERS


def rolled_back(index: Path) -> None:
    """Overwrite it with an earlier version: the identity is the same, the newest series are missing."""
    data = (index.parent.parent / "earlier").read_bytes()
    index.write_bytes(data)


def rolled_back_file(index: Path) -> None:
    """Do the same with a new file."""
    index.unlink()
    rolled_back(index)
    index.chmod(0o600)


@pytest.mark.parametrize("damage", [damaging.cut_in_half, rolled_back, rolled_back_file], ids=damaging.named)
def test_an_index_that_lost_series_under_living_writers_never_mixes_them_up(damage: Damage, registry_dir: Path) -> None:
    """Two processes must not place two series in one column, and the counts of both must be shown."""
    with workers(registry_dir, 2) as (one, two):
        one.ask("hit", "a", 1.0)
        two.ask("hit", "a", 1.0)
        shutil.copyfile(registry_dir / "index", registry_dir.parent / "earlier")
        for name in "bcdefg":
            one.ask("hit", name, 1.0)
        damage(registry_dir / "index")
        with worker(registry_dir) as new:
            for name in "abxyz":
                new.ask("hit", name, 100.0)
            new.leave()
        for living in (one, two):
            living.ask("later")
            for name in "abcxq":
                living.ask("hit", name, 10_000.0)
        values = readings.values(registry_dir, "hits_total")
        # The living processes set the index aside: earlier records are lost, later ones are not.
        for name, lost in {"a": 102, "b": 101, "c": 1, "x": 100, "q": 0}.items():
            assert 20_000 <= values[name,] <= 20_000 + lost, name
        assert {values.get((name,), 0.0) for name in "yz"} <= {0.0, 100.0}
        one.leave()
        two.leave()


def test_a_restored_copy_of_a_slot_is_not_counted_twice(registry_dir: Path) -> None:
    fill(registry_dir)
    file = registry_dir / "slot-00001"
    with readings.reader(registry_dir) as reader:
        assert total_of(reader) == ALL
        shutil.copy(file, registry_dir.parent / "copy")
        (registry_dir.parent / "copy").replace(file)
        assert total_of(reader) == ALL


def together(all_: list[Child], name: str, *arguments: object) -> None:
    """Call a method of all children at one time."""
    for one in all_:
        one.send(name, *arguments)
    for one in all_:
        one.answer()


@pytest.mark.parametrize("number", [0, 7], ids=["before it", "behind it"])
def test_a_copy_of_a_slot_is_counted_once(number: int, registry_dir: Path) -> None:
    """For example, a backup restored under another number; a worker may lease it and record there."""
    with readings.reader(registry_dir) as reader, workers(registry_dir, 2) as (other, one):
        other.ask("hit", "b", 100.0)
        one.ask("hit", "a", 3.0)
        one.ask("measure", 1.5, "a")
        (original,) = set(slot_files(registry_dir)) - {"slot-00000"}
        if number == 0:  # a number below the original's
            other.leave()
            before = counted(reader)
            (registry_dir / "slot-00000").unlink()
            shutil.copy2(registry_dir / original, registry_dir / "slot-00000")
        else:
            before = counted(reader)
            shutil.copy2(registry_dir / original, registry_dir / "slot-00007")
        assert before == {"a": 3.0, "b": 100.0}
        for _ in range(2):
            assert counted(reader) == before
        one.ask("hit", "a", 2.0)
        assert counted(reader) == {"a": 5.0, "b": 100.0}
        record(registry_dir, ("hit", "c", 4.0))
        assert counted(reader) == {"a": 5.0, "b": 100.0, "c": 4.0}
        with readings.reader(registry_dir) as anew:
            assert counted(anew)["a"] == 5.0
            assert counted(anew)["c"] == 4.0


@pytest.mark.parametrize("put_back", [False, True], ids=["it counts on", "they are put back"])
def test_zeroed_cells_of_a_living_slot_go_on_counting(registry_dir: Path, put_back: bool) -> None:
    def shown() -> tuple[float, list[tuple[tuple[float, ...], float]]]:
        found = [
            (sample.buckets, sample.sum)
            for family, samples in reader.read().families
            if family.name == "sizes"
            for sample in samples
        ]
        return counted(reader)["a"], found

    with readings.reader(registry_dir) as reader, worker(registry_dir) as one:
        one.ask("hit", "a", 100.0)
        for size in (0.5, 1.5, 1.5, 1.5):
            one.ask("measure", size, "a")
        before = (100.0, [((1.0, 3.0, 0.0, 0.0), 5.0)])
        assert shown() == before
        (name,) = slot_files(registry_dir)
        cells = layout.SlotHeader(layout.MIN_JOURNAL, layout.NO_IDENTITY).cells_offset
        content = (registry_dir / name).read_bytes()[cells:]
        overwrite(registry_dir / name, cells, bytes(len(content)))
        assert shown() == before
        assert reader.read().damaged == 1
        if put_back:
            overwrite(registry_dir / name, cells, content)
            assert shown() == before
        one.ask("hit", "a", 5.0)
        one.ask("measure", 1.5, "a")
        for _ in range(2):
            assert shown() == (105.0, [((1.0, 4.0, 0.0, 0.0), 6.5)])
        one.ask("hit", "a", 200.0)
        assert shown()[0] == 305.0


def counted(reader: SnapshotReader) -> dict[str, float]:
    """The count of each label value."""
    return {
        sample.values[0]: sample.value
        for family, samples in reader.read().families
        if family.name == "hits_total"
        for sample in samples
    }
