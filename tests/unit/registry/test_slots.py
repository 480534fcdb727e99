from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobmetrics.errors import Damaged
from jobmetrics.families import LIVE_SUM, MAX
from jobmetrics.registry import layout
from jobmetrics.registry.directory import Directory
from jobmetrics.registry.layout import ProcessIdentity
from jobmetrics.registry.slots import Slot, SlotPlan, pid_namespace, process_start, reserve
from jobmetrics.registry.write.lease import acquire

MIN_CELLS = 512

IDENTITY = bytes(range(16))
OTHER = bytes(range(16, 32))
SELF = ProcessIdentity(os.getpid(), 77, pid_namespace())

Lease = Callable[..., Slot]


@pytest.fixture
def lease(registry_dir: Path) -> Iterator[Lease]:
    """Lease a slot of the directory as another process would, with separate opens."""
    held: list[Slot] = []

    def lease_one(
        identity: bytes = IDENTITY, *, owner: ProcessIdentity = SELF, cells: int = 1, live: Any = (), hint: int = 0
    ) -> Slot:
        plan = SlotPlan(Directory(str(registry_dir)), identity, owner.capacity)
        held.append(acquire(plan, owner, cells=cells, present_cells=lambda _: live, hint=hint))
        return held[-1]

    yield lease_one
    for slot in held:
        if slot.is_held():
            slot.release()


def files(registry_dir: Path) -> list[str]:
    return sorted(path.name for path in registry_dir.iterdir())


def owner(registry_dir: Path, number: int = 0) -> tuple[int, ProcessIdentity]:
    data = (registry_dir / f"slot-{number:05d}").read_bytes()
    return layout.unpack_owner(data[layout.OWNER_OFFSET : layout.OWNER_OFFSET + layout.OWNER_SIZE])


# ------------------------------------------------------------------ choice of a slot


def test_first_slot_is_made(registry_dir: Path, lease: Lease) -> None:
    assert lease().number == 0
    assert files(registry_dir) == ["slot-00000"]


def test_held_slot_is_left_to_its_owner(registry_dir: Path, lease: Lease) -> None:
    assert [lease().number, lease().number] == [0, 1]
    assert files(registry_dir) == ["slot-00000", "slot-00001"]


def test_free_slot_is_leased_again_before_a_new_file_is_made(registry_dir: Path, lease: Lease) -> None:
    first, _ = lease(), lease()
    first.release()
    assert lease(hint=1).number == 0
    assert files(registry_dir) == ["slot-00000", "slot-00001"]


def test_free_slot_at_the_hint_is_leased_first(lease: Lease) -> None:
    several = [lease() for _ in range(4)]
    for slot in several:
        slot.release()
    assert lease(hint=2).number == 2


def test_a_hint_of_a_missing_slot_makes_no_gap(registry_dir: Path, lease: Lease) -> None:
    assert lease(hint=7).number == 0


def test_gap_in_the_numbers_is_filled(registry_dir: Path, lease: Lease) -> None:
    lease()
    lease()
    (registry_dir / "slot-00000").unlink()
    assert lease().number == 0


def test_lease_number_counts_the_owners(registry_dir: Path, lease: Lease) -> None:
    for _ in range(3):
        lease().release()
    assert owner(registry_dir)[0] == 3


def test_the_owner_record_describes_this_process(registry_dir: Path, lease: Lease) -> None:
    lease(owner=SELF._replace(system="celery", role="child", capacity=3))
    namespace = Path("/proc/self/ns/pid").stat().st_ino
    assert owner(registry_dir) == (1, ProcessIdentity(os.getpid(), 77, namespace, "celery", "child", 3))


def test_the_process_start_is_that_of_the_kernel() -> None:
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    assert process_start() == int(fields[19])


# ------------------------------------------------------------------ cells


def test_cells_begin_at_zero(lease: Lease) -> None:
    assert lease().cells.tolist() == [0.0] * MIN_CELLS


def test_cells_are_aligned_float64_in_the_file(registry_dir: Path, lease: Lease) -> None:
    slot = lease()
    slot.cells[3] = 2.5
    data = (registry_dir / "slot-00000").read_bytes()
    offset = layout.SlotHeader.unpack(data).cells_offset
    assert offset % layout.PAGE == 0
    assert memoryview(data)[offset:].cast("d")[3] == 2.5


def test_the_next_owner_continues_the_counts(lease: Lease) -> None:
    first = lease()
    first.cells[3] = 2.5
    first.release()
    assert lease().cells[3] == 2.5


def test_live_cells_start_at_0_under_the_next_owner(lease: Lease) -> None:
    first = lease()
    for i in range(2, 5):
        first.cells[i] = 1.0
    first.release()
    assert lease(live=[(3, LIVE_SUM)]).cells[2:5].tolist() == [1.0, 0.0, 1.0]


def test_the_last_value_of_a_max_gauge_is_merged_with_those_of_earlier_owners(lease: Lease) -> None:
    for value in (5.0, 2.0):
        owner = lease(live=[(3, MAX)])
        owner.cells[3] = value
        owner.release()
    assert lease(live=[(3, MAX)]).cells[2:6].tolist() == [0.0, 0.0, 5.0, 0.0]


def test_live_cells_beyond_the_slot_are_skipped(lease: Lease) -> None:
    assert len(lease(live=[(MIN_CELLS - 1, MAX), (10**6, LIVE_SUM)]).cells) == MIN_CELLS


def test_slot_has_room_for_the_cells_asked_for(lease: Lease) -> None:
    assert len(lease(cells=MIN_CELLS + 1).cells) == 2 * MIN_CELLS


def test_smaller_slot_grows_for_its_next_owner_and_keeps_its_cells(lease: Lease) -> None:
    first = lease()
    first.cells[3] = 2.5
    first.release()
    second = lease(cells=1000)
    assert (second.number, second.cells[3], len(second.cells) >= 1000) == (0, 2.5, True)


def test_growth_keeps_the_cells(lease: Lease) -> None:
    slot = lease()
    slot.cells[3] = 2.5
    grown = slot.grow(1000)
    assert (grown[3], len(grown), slot.cells is grown) == (2.5, 1024, True)


def test_the_mapping_from_before_growth_writes_to_the_same_cells(lease: Lease) -> None:
    slot = lease()
    before = slot.cells
    slot.grow(1000)
    before[3] = 2.5
    assert slot.cells[3] == 2.5


def test_growth_does_not_end_the_lease(lease: Lease) -> None:
    lease().grow(1000)
    assert lease().number == 1


def test_growth_of_a_file_that_was_replaced_is_refused(registry_dir: Path, lease: Lease) -> None:
    slot = lease()
    (registry_dir / "new").write_bytes(b"")
    (registry_dir / "new").rename(registry_dir / "slot-00000")
    with pytest.raises(Damaged, match=r"^slot-00000 was replaced while it was held$"):
        slot.grow(1000)


# ------------------------------------------------------------------ journal


def test_journal_has_room_for_twice_the_capacity(registry_dir: Path, lease: Lease) -> None:
    lease(owner=SELF._replace(capacity=100))
    assert layout.SlotHeader.unpack((registry_dir / "slot-00000").read_bytes()).journal == 256


def test_slot_with_too_short_a_journal_is_left_to_others(lease: Lease) -> None:
    lease().release()
    assert lease(owner=SELF._replace(capacity=100)).number == 1
    assert lease().number == 0


def test_slot_with_a_longer_journal_is_leased(lease: Lease) -> None:
    first = lease(owner=SELF._replace(capacity=100))
    first.cells[3] = 2.5
    first.release()
    second = lease()
    assert (second.number, second.cells[3]) == (0, 2.5)


# ------------------------------------------------------------------ generations and damage


def test_a_free_slot_of_another_generation_is_laid_out_again(registry_dir: Path, lease: Lease) -> None:
    old = lease(OTHER)
    old.cells[3] = 2.5
    old.release()
    new = lease()
    assert (new.number, new.cells[3]) == (0, 0.0)
    assert layout.SlotHeader.unpack((registry_dir / "slot-00000").read_bytes()).identity == IDENTITY


def test_journal_of_another_generation_stays_until_it_is_overwritten(registry_dir: Path, lease: Lease) -> None:
    old = lease(OTHER)
    old.journal.begin(5, 1.0, 0)
    old.release()
    lease()
    data = (registry_dir / "slot-00000").read_bytes()
    assert data[layout.JOURNAL_OFFSET + 64 * 8] == 5


def test_held_slot_of_another_generation_is_left_alone(lease: Lease) -> None:
    old = lease(OTHER)
    old.cells[3] = 2.5
    assert lease().number == 1
    assert old.cells[3] == 2.5


@pytest.mark.parametrize(
    "content",
    [b"\0" * 8192, b"x" * 100, layout.SlotHeader(64, IDENTITY).pack(), layout.SlotHeader(64, IDENTITY).pack() * 10],
    ids=["zeroed", "short", "header only", "shorter than its journal"],
)
def test_damaged_slot_is_set_aside_and_work_goes_on(registry_dir: Path, lease: Lease, content: bytes) -> None:
    (registry_dir / "slot-00000").write_bytes(content)
    lease()
    assert (registry_dir / "slot-00000.set-aside").read_bytes() == content


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: Path(path).symlink_to("/dev/zero")])
def test_anything_but_a_file_is_set_aside(registry_dir: Path, lease: Lease, make: Callable[[str], None]) -> None:
    make(str(registry_dir / "slot-00000"))
    lease()
    assert "slot-00000.set-aside" in files(registry_dir)


def test_empty_file_that_a_dead_process_left_is_used(registry_dir: Path, lease: Lease) -> None:
    (registry_dir / "slot-00000").write_bytes(b"")
    assert lease().number == 0
    assert files(registry_dir) == ["slot-00000"]


# ------------------------------------------------------------------ the lease itself


def test_lease_is_held_while_its_descriptor_is_open(lease: Lease) -> None:
    assert lease().is_held() is True


def test_lease_is_gone_once_its_descriptor_was_closed(lease: Lease) -> None:
    slot = lease()
    os.close(slot.lock_fd)
    assert slot.is_held() is False


def test_lease_is_gone_when_its_descriptor_is_another_file_now(lease: Lease, tmp_path: Path) -> None:
    slot = lease()
    other = os.open(tmp_path, os.O_RDONLY)
    os.dup2(other, slot.lock_fd)
    held = slot.is_held()
    os.close(other)
    os.close(slot.lock_fd)
    assert held is False


def test_describing_again_keeps_the_lease(registry_dir: Path, lease: Lease) -> None:
    slot = lease(owner=SELF._replace(system="celery", role="child"))
    described = SELF._replace(start=88, system="rq", role="worker", capacity=2)
    slot.describe(described)
    assert owner(registry_dir) == (1, described)


# ------------------------------------------------------------------ space


def full(*_: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_full_disk_is_an_error_before_anything_is_mapped(lease: Lease, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left on device"):
        lease()


def test_full_disk_leaves_no_lock_behind(lease: Lease, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(OSError, match="No space"):
            lease()
    assert lease().number == 0


def test_growth_on_a_full_disk_leaves_the_slot_as_it_was(lease: Lease, monkeypatch: pytest.MonkeyPatch) -> None:
    slot = lease()
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        slot.grow(1000)
    slot.cells[MIN_CELLS - 1] = 1.0
    assert len(slot.cells) == MIN_CELLS


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL])
def test_space_is_written_where_it_cannot_be_reserved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def unsupported(*_: int) -> None:
        raise OSError(number, "not here")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    path = tmp_path / "f"
    path.write_bytes(b"x" * 10)
    fd = os.open(path, os.O_RDWR)
    reserve(fd, 10, 200_000)
    os.close(fd)
    assert path.read_bytes() == b"x" * 10 + bytes(199_990)
