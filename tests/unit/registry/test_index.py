from __future__ import annotations

import contextlib
import itertools
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobmetrics.errors import DirectoryRefused, FormatRefused, RegistryError
from jobmetrics.events import STATUSES
from jobmetrics.families import JOBS, JOBS_DURATION, LIVE_SUM, OVERFLOW, Family, register_system
from jobmetrics.registry import layout
from jobmetrics.registry.directory import Directory
from jobmetrics.registry.files import try_lock
from jobmetrics.registry.index import Contended, IndexFile, Moved, Placement, Refused, SeriesIndex, family_from
from tests.unit.registry.test_layout import of_version

COUNTER = Family("c_total", "counter", "A counter.", ("user",))
PLAIN = Family("p_total", "counter", "Without labels.")
LIVE = Family("g", "gauge", "A live gauge.", ("user",), LIVE_SUM)


@pytest.fixture
def file(registry_dir: Path) -> IndexFile:
    return IndexFile(Directory(str(registry_dir)), 10_000)


def limited(registry_dir: Path, limit: int) -> IndexFile:
    return IndexFile(Directory(str(registry_dir)), limit)


def place(file: IndexFile, index: SeriesIndex, family: Family, *values: str) -> Placement:
    return file.place(index, family, values, 0.0)


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(data))


# ------------------------------------------------------------------ making and loading


def test_index_is_made_with_its_limit(registry_dir: Path, file: IndexFile) -> None:
    index = file.load()
    assert (index.limit, index.next_cell, index.families, index.series) == (10_000, 0, {}, {})
    assert (registry_dir / "index").stat().st_size == layout.INDEX_HEADER_SIZE


def test_index_is_made_once(file: IndexFile) -> None:
    assert file.load().identity == file.load().identity


def test_every_index_has_its_own_identity(registry_dir: Path, file: IndexFile) -> None:
    first = file.load().identity
    (registry_dir / "index").unlink()
    assert file.load().identity != first


def test_the_first_process_sets_the_limit_of_the_directory(registry_dir: Path, file: IndexFile) -> None:
    file.load()
    assert limited(registry_dir, 5).load().limit == 10_000


def test_directory_that_anyone_may_write_to_is_refused(registry_dir: Path, file: IndexFile) -> None:
    registry_dir.chmod(0o777)
    with pytest.raises(DirectoryRefused):
        file.load()


def test_empty_file_that_a_dead_process_left_is_filled_in(registry_dir: Path, file: IndexFile) -> None:
    (registry_dir / "index").write_bytes(b"")
    file.load()
    assert [path.name for path in registry_dir.iterdir()] == ["index"]


@pytest.mark.parametrize("content", [b"x", bytes(64), b"x" * 5000], ids=["short", "zeroed", "foreign"])
def test_damaged_index_is_set_aside(registry_dir: Path, file: IndexFile, content: bytes) -> None:
    (registry_dir / "index").write_bytes(content)
    file.load()
    assert (registry_dir / "index.set-aside").read_bytes() == content


def test_a_directory_at_the_path_of_the_index_is_set_aside(registry_dir: Path, file: IndexFile) -> None:
    (registry_dir / "index").mkdir()
    file.load()
    assert (registry_dir / "index").is_file()


def test_damaged_index_under_a_held_lock_is_left_alone(registry_dir: Path, file: IndexFile) -> None:
    (registry_dir / "index").write_bytes(bytes(64))
    with (registry_dir / "index").open("r+b") as held:
        assert try_lock(held.fileno())
        with pytest.raises(Contended):
            file.load(0.0)
    assert [path.name for path in registry_dir.iterdir()] == ["index"]


def test_an_index_of_another_version_is_refused_and_unchanged(registry_dir: Path, file: IndexFile) -> None:
    file.load()
    data = (registry_dir / "index").read_bytes()
    other = of_version(layout.FORMAT_VERSION + 1, layout.IndexHeader.unpack(data)) + data[layout.COMMITTED_OFFSET :]
    (registry_dir / "index").write_bytes(other)
    with pytest.raises(FormatRefused):
        file.load()
    assert (registry_dir / "index").read_bytes() == other


# ------------------------------------------------------------------ placing series


def test_series_are_placed_one_after_another(file: IndexFile) -> None:
    index = file.load()
    assert place(file, index, JOBS_DURATION, "rq", "f", "q") == Placement(0, 19)
    assert place(file, index, COUNTER, "a") == Placement(19, 1)
    assert place(file, index, COUNTER, "b") == Placement(20, 1)
    assert index.next_cell == 21


def test_series_has_one_place(file: IndexFile) -> None:
    index = file.load()
    assert place(file, index, COUNTER, "a") == place(file, index, COUNTER, "a")


def test_another_process_finds_the_same_place(registry_dir: Path, file: IndexFile) -> None:
    one, other = file.load(), file.load()
    placed = place(file, one, COUNTER, "a")
    assert place(limited(registry_dir, 10_000), other, COUNTER, "a") == placed


def test_two_processes_never_get_the_same_cells(file: IndexFile) -> None:
    one, other = file.load(), file.load()
    assert place(file, one, COUNTER, "a").first != place(file, other, COUNTER, "b").first


def test_placed_series_are_loaded(file: IndexFile) -> None:
    index = file.load()
    place(file, index, COUNTER, "größe\0\udcff")
    loaded = file.load()
    assert (loaded.families, loaded.series, loaded.next_cell, loaded.damaged) == (
        index.families, index.series, index.next_cell, 0,
    )  # fmt: skip


def test_present_cells_are_known_for_the_next_lease(file: IndexFile) -> None:
    index = file.load()
    place(file, index, COUNTER, "a")
    place(file, index, LIVE, "a")
    assert index.present_cells == [(1, LIVE_SUM)]


def test_refresh_reads_series_placed_by_others(file: IndexFile) -> None:
    one, other = file.load(), file.load()
    place(file, one, COUNTER, "a")
    file.refresh(other)
    assert other.find(COUNTER, ("a",)) == Placement(0, 1)


@pytest.mark.parametrize("family", [JOBS, JOBS_DURATION, COUNTER, PLAIN, LIVE], ids=lambda family: str(family.name))
def test_family_comes_back_from_its_record(file: IndexFile, family: Family) -> None:
    record = file.load().family_record(family)
    assert record is not None
    data = record.pack(bytes(16), 64)
    ((found, _),) = layout.records(data, bytes(16), 64)
    assert found is not None
    assert family_from(found.body) == family


@pytest.mark.parametrize("body", [None, [], {}, 5, "x", {"name": "c_total"}])
def test_a_body_without_a_family_gives_none(body: object) -> None:
    assert family_from(body) is None


def test_held_lock_is_not_waited_for_beyond_the_time_given(registry_dir: Path, file: IndexFile) -> None:
    index = file.load()
    with (registry_dir / "index").open("r+b") as held:
        assert try_lock(held.fileno())
        with pytest.raises(Contended):
            place(file, index, COUNTER, "a")
    assert index.next_cell == 0


def test_series_that_another_process_placed_is_found_while_the_lock_is_held(
    registry_dir: Path, file: IndexFile
) -> None:
    index, other = file.load(), file.load()
    placed = place(file, other, COUNTER, "a")
    with (registry_dir / "index").open("r+b") as held:
        assert try_lock(held.fileno())
        assert place(file, index, COUNTER, "a") == placed


def test_series_placed_by_others_are_read_while_the_lock_is_held(registry_dir: Path, file: IndexFile) -> None:
    """Less is left to read under the lock, for which many processes may wait."""
    index, other = file.load(), file.load()
    place(file, other, COUNTER, "a")
    with (registry_dir / "index").open("r+b") as held:
        assert try_lock(held.fileno())
        with pytest.raises(Contended):
            place(file, index, COUNTER, "b")
    assert index.fed_to == other.fed_to
    assert index.find(COUNTER, ("b",)) is None


def test_held_lock_of_a_damaged_index_is_left_to_its_holder(registry_dir: Path, file: IndexFile) -> None:
    index = file.load()
    place(file, index, COUNTER, "a")
    with (registry_dir / "index").open("r+b") as held:
        assert try_lock(held.fileno())
        held.truncate(layout.INDEX_HEADER_SIZE)
        with pytest.raises(Contended):
            place(file, index, COUNTER, "b")
    assert [path.name for path in registry_dir.iterdir()] == ["index"]


def test_full_disk_leaves_the_index_as_it_was(
    registry_dir: Path, file: IndexFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = file.load()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda fd, data, offset: len(data) // 2)
        with pytest.raises(OSError, match="no space left"):
            place(file, index, COUNTER, "a")
    assert place(file, index, COUNTER, "a") == Placement(0, 1)
    assert file.load().damaged == 0


# ------------------------------------------------------------------ the cap


def test_series_beyond_the_cap_goes_to_the_overflow_series(registry_dir: Path) -> None:
    file = limited(registry_dir, 20)
    index = file.load()
    placed = [place(file, index, COUNTER, str(number)) for number in range(30)]
    assert {entry.first for entry in placed if entry.dropped} == {index.series[0, (OVERFLOW,)].first}
    assert sum(not entry.dropped for entry in placed) == 10


def test_no_family_takes_more_than_half(registry_dir: Path) -> None:
    file = limited(registry_dir, 100)
    index = file.load()
    for number in range(200):
        place(file, index, COUNTER, str(number))
    assert place(file, index, LIVE, "a").dropped is False
    assert sum(number == 0 and values != (OVERFLOW,) for number, values in index.series) == 50


def test_the_series_of_each_metric_add_up_to_those_of_the_directory(registry_dir: Path) -> None:
    """Values that were removed count for their metric, and only the newest declaration counts."""
    file = limited(registry_dir, 100)
    index = file.load()
    for number in range(60):
        place(file, index, COUNTER, str(number))
    place(file, index, COUNTER.erased, "1")
    place(file, index, LIVE, "a")
    place(file, index, PLAIN._replace(labels=("old",)), "b")
    place(file, index, PLAIN)
    assert index.by_metric == {"c_total": 50 + 1 + 1, "g": 1, "p_total": 1}
    assert index.by_metric.total() == index.current


def test_status_and_system_are_kept_in_the_overflow_series(registry_dir: Path) -> None:
    register_system("rq")
    file = limited(registry_dir, 40)
    index = file.load()
    for number in range(40):
        for status in ("success", "failure"):
            place(file, index, JOBS, "rq", f"job{number}", "q", status)
    overflow = {values for _, values in index.series if OVERFLOW in values}
    assert overflow == {("rq", OVERFLOW, OVERFLOW, "success"), ("rq", OVERFLOW, OVERFLOW, "failure")}


def test_space_for_the_overflow_of_three_systems_is_reserved_from_the_start(registry_dir: Path) -> None:
    file = limited(registry_dir, 40)
    index = file.load()
    for system in ("python", "one", "two"):
        register_system(system)
        for number in range(40):
            place(file, index, JOBS, system, f"job{number}", "q", "success")
    assert len(index.series) <= 40 - 3 * (len(STATUSES) - 1)
    assert {values[0] for _, values in index.series if OVERFLOW in values} == {"python", "one", "two"}


def test_a_further_system_takes_space_with_its_first_series_and_keeps_its_name(registry_dir: Path) -> None:
    file = limited(registry_dir, 100)
    index = file.load()
    systems = [f"system{number}" for number in range(5)]
    free = []
    for system in systems:
        register_system(system)
        place(file, index, JOBS, system, "job", "q", "success")
        free.append(100 - index._used)
    taken = [before - after for before, after in itertools.pairwise(free)]
    assert taken == [1, 1, 1 + len(STATUSES), 1 + len(STATUSES)]
    for number in range(100):
        place(file, index, JOBS, systems[-1], f"job{number}", "q", "success")
    assert place(file, index, JOBS, "unregistered", "job", "q", "success").dropped
    overflow = {values for _, values in index.series if OVERFLOW in values}
    assert overflow == {(systems[-1], OVERFLOW, OVERFLOW, "success"), (OVERFLOW, OVERFLOW, OVERFLOW, "success")}
    assert len(index.series) <= 100
    again = file.load()
    assert (again._used, again._superseded) == (index._used, index._superseded), "the records are sufficient"


def test_series_placed_before_the_cap_was_reached_keeps_its_place(registry_dir: Path) -> None:
    file = limited(registry_dir, 4)
    index = file.load()
    first = place(file, index, COUNTER, "a")
    for number in range(10):
        place(file, index, COUNTER, str(number))
    assert place(file, index, COUNTER, "a") == first


def test_another_process_keeps_the_cap(registry_dir: Path) -> None:
    file = limited(registry_dir, 20)
    one, other = file.load(), file.load()
    for number in range(30):
        place(file, one, COUNTER, str(number))
    assert place(file, other, COUNTER, "new").dropped is True


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 30)), min_size=30, max_size=120))
def test_directory_never_holds_more_than_its_limit(registry_dir: Path, asked: list[tuple[int, int]]) -> None:
    (registry_dir / "index").unlink(missing_ok=True)
    file = limited(registry_dir, 30)
    index = file.load()
    for number, value in asked:
        with contextlib.suppress(Refused):  # refusing a family without space keeps the limit
            place(file, index, Family(f"c{number}_total", "counter", "", ("user",)), str(value))
    assert len(index.series) <= 30


def test_directory_with_more_families_than_its_limit_never_holds_more(registry_dir: Path) -> None:
    file = limited(registry_dir, 10)
    index = file.load()
    for number in range(40):
        try:
            place(file, index, Family(f"c{number}_total", "counter", "", ("user",)), "a")
        except RegistryError:
            continue  # refusing keeps the limit
    assert len(index.series) <= 10


# ------------------------------------------------------------------ one name declared twice


def test_other_definition_of_a_name_is_another_family(file: IndexFile) -> None:
    index = file.load()
    wider = Family("c_total", "counter", "", ("user", "region"))
    assert place(file, index, COUNTER, "a").first != place(file, index, wider, "a", "b").first
    assert index.newest == {"c_total": 1}


def test_other_help_is_the_same_family(file: IndexFile) -> None:
    index = file.load()
    same = Family("c_total", "counter", "Said otherwise.", ("user",))
    assert place(file, index, COUNTER, "a") == place(file, index, same, "a")


def test_older_definition_never_becomes_the_newest_again(file: IndexFile) -> None:
    index = file.load()
    first = place(file, index, COUNTER, "a")
    place(file, index, Family("c_total", "counter", "", ("user", "region")), "a", "b")
    length = index.fed_to
    assert place(file, index, COUNTER, "a") == first
    assert index.fed_to == length
    place(file, index, COUNTER, "new")
    assert index.newest == {"c_total": 1}
    assert file.load().newest == {"c_total": 1}


def with_bounds(number: int) -> Family:
    return Family("h_seconds", "histogram", "", ("user",), buckets=(1.0, 2.0 + number))


def test_earlier_declarations_leave_space_for_the_newest(registry_dir: Path) -> None:
    file = limited(registry_dir, 100)
    index = file.load()
    for number in range(9):
        for user in range(10):
            assert not place(file, index, with_bounds(number), str(user)).dropped
    for user in range(30):
        assert not place(file, index, COUNTER, str(user)).dropped
    assert index.current == file.load().current == 10 + 30


def test_no_number_of_declarations_exceeds_twice_the_limit(registry_dir: Path) -> None:
    file = limited(registry_dir, 40)
    index = file.load()
    for number in range(30):
        for user in range(8):
            with contextlib.suppress(Refused):
                place(file, index, with_bounds(number), str(user))
    assert len(index.series) <= 2 * 40
    assert place(file, index, with_bounds(0), "0").dropped is False, "a placed series keeps its place"
    assert place(file, index, with_bounds(0), "new").dropped is True


# ------------------------------------------------------------------ damage


@pytest.mark.parametrize("bit", range(0, 8 * 40, 7))
def test_a_damaged_series_record_loses_only_that_series(registry_dir: Path, file: IndexFile, bit: int) -> None:
    index = file.load()
    place(file, index, COUNTER, "a")
    start = index.fed_to
    place(file, index, COUNTER, "b")
    place(file, index, COUNTER, "c")
    flip(registry_dir / "index", start * 8 + bit)
    loaded = file.load()
    assert {values for _, values in loaded.series} == {("a",), ("c",)}
    assert loaded.damaged > 0


def test_series_after_damage_never_shares_cells_with_what_was_damaged(registry_dir: Path, file: IndexFile) -> None:
    index = file.load()
    place(file, index, COUNTER, "a")
    start = index.fed_to
    placed = place(file, index, JOBS_DURATION, "rq", "f", "q")
    flip(registry_dir / "index", (index.fed_to - 8) * 8)
    flip(registry_dir / "index", (start + 16) * 8)
    loaded = file.load()
    assert place(file, loaded, COUNTER, "new").first >= placed.first + placed.width


def test_a_damaged_family_record_loses_only_that_family(registry_dir: Path, file: IndexFile) -> None:
    index = file.load()
    place(file, index, COUNTER, "a")
    place(file, index, LIVE, "a")
    flip(registry_dir / "index", (layout.INDEX_HEADER_SIZE + 30) * 8)
    loaded = file.load()
    assert {loaded.families[number].name for number, _ in loaded.series} == {"g"}


def test_a_truncated_index_is_damaged_after_the_cut(registry_dir: Path, file: IndexFile) -> None:
    index = file.load()
    place(file, index, COUNTER, "a")
    end = index.fed_to
    place(file, index, COUNTER, "b")
    os.truncate(registry_dir / "index", end)
    loaded = file.load()
    assert ({values for _, values in loaded.series}, loaded.damaged) == ({("a",)}, index.fed_to - end)


def test_uncommitted_record_does_not_count(registry_dir: Path, file: IndexFile) -> None:
    index = file.load()
    place(file, index, COUNTER, "a")
    with (registry_dir / "index").open("ab") as appended:
        appended.write(index.series_record(COUNTER, 0, ("b",)).pack(index.identity, index.fed_to))
    loaded = file.load()
    assert ({values for _, values in loaded.series}, loaded.damaged) == ({("a",)}, 0)


# ------------------------------------------------------------------ generations


def test_the_present_index_is_current(file: IndexFile) -> None:
    assert file.is_current(file.load()) is True


def test_wiped_index_is_not_current(registry_dir: Path, file: IndexFile) -> None:
    index = file.load()
    (registry_dir / "index").unlink()
    assert file.is_current(index) is False


def test_replaced_index_is_not_current(registry_dir: Path, file: IndexFile) -> None:
    index = file.load()
    (registry_dir / "index").unlink()
    file.load()
    assert file.is_current(index) is False


def test_an_index_that_cannot_be_read_counts_as_current(file: IndexFile, monkeypatch: pytest.MonkeyPatch) -> None:
    index = file.load()

    def no_descriptors(*_: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "open", no_descriptors)
    assert file.is_current(index) is True


@pytest.mark.parametrize("again", [False, True], ids=["wiped", "made anew"])
def test_placing_in_a_removed_index_raises(registry_dir: Path, file: IndexFile, again: bool) -> None:
    index = file.load()
    (registry_dir / "index").unlink()
    if again:
        file.load()
    with pytest.raises(Moved):
        place(file, index, COUNTER, "a")


def test_refreshing_a_removed_index_raises(registry_dir: Path, file: IndexFile) -> None:
    index = file.load()
    (registry_dir / "index").unlink()
    with pytest.raises(Moved):
        file.refresh(index)
