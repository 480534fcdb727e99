from __future__ import annotations

import os
import struct
import time
from pathlib import Path

import pytest

from jobmetrics.registry import journal, layout
from jobmetrics.registry.directory import Directory
from jobmetrics.registry.journal import KEEP, Entry, Journal
from jobmetrics.registry.layout import ProcessIdentity, SlotHeader
from jobmetrics.registry.slots import Slot, SlotPlan
from jobmetrics.registry.write.lease import acquire

IDENTITY = bytes(range(16))
NOW = 1_700_000_000.0


class Bytes:
    """A slot's bytes with a journal of a few entries, opened by one lease after another."""

    def __init__(self, entries: int) -> None:
        self.header = SlotHeader(entries, IDENTITY)
        self.data = bytearray(self.header.cells_offset)
        self.data[: layout.SLOT_HEADER_SIZE] = self.header.pack()

    def owned(self, lease: int) -> Journal:
        size = self.header.journal * layout.JOURNAL_WORDS * layout.CELL
        words = memoryview(self.data)[layout.JOURNAL_OFFSET :][:size]
        return Journal(words.cast("Q"), words.cast("d"), self.header.journal, lease)

    def entries(self, lease: int | None) -> dict[int, Entry]:
        return {entry.execution: entry for entry in journal.entries(bytes(self.data), self.header, lease)}


@pytest.fixture(autouse=True)
def now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: NOW)


def begin_all(owned: Journal, *executions: int) -> list[int]:
    """Start executions one second apart, and return their entries."""
    begun = [owned.begin(execution, NOW - 60 + i, 0) for i, execution in enumerate(executions)]
    assert None not in begun
    return [entry for entry in begun if entry is not None]


def test_empty_journal_has_no_entries() -> None:
    assert Bytes(4).entries(1) == {}


def test_a_running_execution_is_in_the_journal() -> None:
    slot = Bytes(4)
    slot.owned(1).begin(2**64 - 1, NOW, 17)
    assert slot.entries(1) == {2**64 - 1: Entry(2**64 - 1, NOW, 0.0, 17, running=True, lost=False)}


def test_an_ended_execution_is_in_the_journal_with_its_end() -> None:
    slot = Bytes(4)
    owned = slot.owned(1)
    owned.end(begin_all(owned, 5)[0], NOW)
    assert slot.entries(1) == {5: Entry(5, NOW - 60, NOW, 0, running=False, lost=False)}


def test_executions_of_a_free_slot_are_lost() -> None:
    slot = Bytes(4)
    begin_all(slot.owned(1), 5)
    assert (slot.entries(None)[5].running, slot.entries(None)[5].lost) == (False, True)


def test_executions_of_an_earlier_owner_are_lost() -> None:
    slot = Bytes(4)
    begin_all(slot.owned(1), 5)
    begin_all(slot.owned(2), 6)
    assert {execution: entry.lost for execution, entry in slot.entries(2).items()} == {5: True, 6: False}


def test_executions_that_an_earlier_owner_ended_are_ended() -> None:
    slot = Bytes(4)
    owned = slot.owned(1)
    owned.end(begin_all(owned, 5)[0], NOW)
    entry = slot.entries(2)[5]
    assert (entry.running, entry.lost, entry.end) == (False, False, NOW)


def test_full_journal_takes_no_more() -> None:
    owned = Bytes(2).owned(1)
    begin_all(owned, 1, 2)
    assert owned.begin(3, NOW, 0) is None


def test_refused_execution_leaves_no_trace() -> None:
    slot = Bytes(2)
    owned = slot.owned(1)
    begin_all(owned, 1, 2)
    owned.begin(3, NOW, 0)
    assert set(slot.entries(1)) == {1, 2}


def test_ended_entry_is_used_again() -> None:
    slot = Bytes(2)
    owned = slot.owned(1)
    first, _ = begin_all(owned, 1, 2)
    owned.end(first, NOW)
    assert owned.begin(3, NOW, 0) == first
    assert set(slot.entries(1)) == {2, 3}


def test_the_last_end_is_overwritten_last() -> None:
    slot = Bytes(3)
    owned = slot.owned(1)
    one, two, three = begin_all(owned, 1, 2, 3)
    for entry in (two, three, one):
        owned.end(entry, NOW)
    overwritten = begin_all(owned, 4, 5, 6)
    assert overwritten == [two, three, one]


def test_the_journal_is_filled_before_ended_entries_are_overwritten() -> None:
    slot = Bytes(4)
    owned = slot.owned(1)
    owned.end(begin_all(owned, 1)[0], NOW)
    begin_all(owned, 2, 3, 4)
    assert set(slot.entries(1)) == {1, 2, 3, 4}


def test_running_entry_is_never_overwritten() -> None:
    slot = Bytes(2)
    owned = slot.owned(1)
    begin_all(owned, 1)
    for execution in range(10, 20):
        entry = owned.begin(execution, NOW, 0)
        assert entry is not None
        owned.end(entry, NOW)
    assert slot.entries(1)[1].running is True


def test_executions_of_a_dead_owner_are_kept_while_there_is_space() -> None:
    slot = Bytes(4)
    begin_all(slot.owned(1), 1)
    begin_all(slot.owned(2), 2, 3, 4)
    assert set(slot.entries(2)) == {1, 2, 3, 4}


def test_running_executions_replace_those_of_a_dead_owner() -> None:
    slot = Bytes(2)
    begin_all(slot.owned(1), 1, 2)
    begin_all(slot.owned(2), 3)
    assert set(slot.entries(2)) == {2, 3}


def test_old_ends_of_an_earlier_owner_are_replaced_before_new_ones() -> None:
    slot = Bytes(2)
    owned = slot.owned(1)
    fresh, old = begin_all(owned, 1, 2)
    owned.end(fresh, NOW - KEEP + 1)
    owned.end(old, NOW - KEEP - 1)
    begin_all(slot.owned(2), 3)
    assert set(slot.entries(2)) == {1, 3}


def test_entries_of_earlier_owners_are_replaced_oldest_first() -> None:
    slot = Bytes(3)
    owned = slot.owned(1)
    entries = begin_all(owned, 1, 2, 3)
    for entry, end in zip(entries, (NOW - 5, NOW - 20, NOW - 10), strict=True):
        owned.end(entry, end)
    begin_all(slot.owned(2), 4, 5)
    assert set(slot.entries(2)) == {1, 4, 5}


def test_an_invalid_state_is_not_an_entry() -> None:
    slot = Bytes(2)
    begin_all(slot.owned(1), 1)
    struct.pack_into("<Q", slot.data, layout.JOURNAL_OFFSET, layout.pack_state(1, 4))
    assert slot.entries(1) == {}


# ------------------------------------------------------------------ job ids


def job_id(slot: Bytes, execution: int = 5) -> str:
    return slot.entries(1)[execution].job_id


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("3f2b8c1e-6d0a-4b6e-9f57-1d2c3b4a5e6f", "3f2b8c1e-6d0a-4b6e-9f57-1d2c3b4a5e6f"),
        ("x" * 48, "x" * 48),
        ("x" * 49, "x" * 48),
        ("x" * 47 + "é", "x" * 47),
        ("日" * 17, "日" * 16),
        ("\ud800", "?"),
        ("", ""),
    ],
    ids=[
        "uuid",
        "48 bytes",
        "49 bytes",
        "cut inside a character",
        "cut between characters",
        "surrogate",
        "none",
    ],
)
def test_job_id_is_kept_and_cut_at_a_character(given: str, kept: str) -> None:
    slot = Bytes(2)
    slot.owned(1).begin(5, NOW, 0, given)
    assert job_id(slot) == kept


def test_an_execution_without_a_job_id_does_not_show_that_of_an_earlier_one() -> None:
    slot = Bytes(1)
    owned = slot.owned(1)
    first = owned.begin(4, NOW, 0, "an earlier job")
    assert first is not None
    owned.end(first, NOW)
    owned.begin(5, NOW, 0)
    assert job_id(slot) == ""


def test_job_id_follows_to_a_new_generation() -> None:
    old, new = Bytes(1), Bytes(1)
    owned = old.owned(1)
    entry = owned.begin(5, NOW, 0, "the job")
    assert entry is not None
    owned.continue_in(new.owned(1), entry, 3)
    assert job_id(new) == "the job"


def test_job_ids_end_where_the_cells_may_begin() -> None:
    header = SlotHeader(64, IDENTITY)
    assert layout.job_id_offset(64, 64) <= header.cells_offset


# ------------------------------------------------------------------ all journals of a directory


def lease(registry_dir: Path) -> Slot:
    plan = SlotPlan(Directory(str(registry_dir)), IDENTITY, 1)
    return acquire(plan, ProcessIdentity(os.getpid()), cells=1, present_cells=lambda _: [])


def test_find_reads_every_slot_with_the_latest_start_first(registry_dir: Path) -> None:
    one, two = lease(registry_dir), lease(registry_dir)
    one.journal.begin(5, NOW - 2, 0)
    two.journal.begin(5, NOW - 1, 0)
    two.journal.begin(6, NOW, 0)
    found = journal.find(Directory(str(registry_dir)), 5)
    one.release()
    two.release()
    assert [(entry.start, entry.running) for entry in found] == [(NOW - 1, True), (NOW - 2, True)]


def test_find_returns_executions_of_a_free_slot(registry_dir: Path) -> None:
    slot = lease(registry_dir)
    slot.journal.begin(5, NOW, 0)
    slot.release()
    assert [entry.lost for entry in journal.find(Directory(str(registry_dir)), 5)] == [True]


def test_find_skips_slots_that_cannot_be_read(registry_dir: Path) -> None:
    slot = lease(registry_dir)
    slot.journal.begin(5, NOW, 0)
    slot.release()
    (registry_dir / "slot-00001").write_bytes(b"")
    (registry_dir / "slot-00002").write_bytes(b"x" * 10_000)
    (registry_dir / "slot-00003").mkdir()
    (registry_dir / "slot-00004").write_bytes((registry_dir / "slot-00000").read_bytes()[:300])
    assert len(journal.find(Directory(str(registry_dir)), 5)) == 1


def test_find_reads_a_journal_longer_than_a_page(registry_dir: Path) -> None:
    plan = SlotPlan(Directory(str(registry_dir)), IDENTITY, 200)
    slot = acquire(plan, ProcessIdentity(os.getpid(), capacity=200), cells=1, present_cells=lambda _: [])
    for execution in range(200):
        slot.journal.begin(execution, NOW, 0)
    slot.release()
    assert len(journal.find(Directory(str(registry_dir)), 199)) == 1


def test_find_in_a_missing_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        journal.find(Directory(str(tmp_path / "none")), 5)


# ------------------------------------------------------------------ counted executions of dead processes


def test_a_counted_execution_is_lost_and_ended(registry_dir: Path) -> None:
    slot, directory = lease(registry_dir), Directory(str(registry_dir))
    slot.journal.begin(5, NOW, 0)
    slot.journal.begin(6, NOW, 0)
    slot.release()
    journal.mark_counted(directory, 5, NOW)
    (found,) = journal.find(directory, 5)
    assert (found.lost, found.counted, journal.unended([found])) == (True, True, [])
    (other,) = journal.find(directory, 6)
    assert (other.lost, other.counted, journal.unended([other])) == (True, False, [other])


def test_only_the_start_that_was_counted_is_marked(registry_dir: Path) -> None:
    slot, directory = lease(registry_dir), Directory(str(registry_dir))
    slot.journal.begin(5, NOW - 1, 0)
    slot.journal.begin(5, NOW, 0)
    slot.release()
    journal.mark_counted(directory, 5, NOW)
    assert [entry.start for entry in journal.unended(journal.find(directory, 5))] == [NOW - 1]


def test_a_running_execution_is_not_marked(registry_dir: Path) -> None:
    slot, directory = lease(registry_dir), Directory(str(registry_dir))
    slot.journal.begin(5, NOW, 0)
    journal.mark_counted(directory, 5, NOW)
    (found,) = journal.find(directory, 5)
    slot.release()
    assert (found.running, found.counted) == (True, False)


def test_an_entry_that_was_used_again_meanwhile_is_not_marked(
    registry_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot, directory = lease(registry_dir), Directory(str(registry_dir))
    slot.journal.begin(5, NOW, 0)
    slot.release()
    read = journal._head

    def used_again(fd: int) -> tuple[bytes, SlotHeader]:
        head = read(fd)
        slot.journal._words[0] = layout.pack_state(2, layout.RUNNING)
        return head

    monkeypatch.setattr(journal, "_head", used_again)
    journal.mark_counted(directory, 5, NOW)
    assert slot.journal._words[0] == layout.pack_state(2, layout.RUNNING)


def test_a_counted_entry_is_used_again_after_the_free_ones() -> None:
    slot = Bytes(2)
    begin_all(slot.owned(1), 5)
    struct.pack_into("<Q", slot.data, layout.JOURNAL_OFFSET, layout.pack_state(1, layout.COUNTED))
    assert begin_all(slot.owned(2), 6, 7) == [1, 0]
