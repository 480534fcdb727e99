"""Leasing a slot: the one at the hint, else any free one, else a new file."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from jobmetrics.errors import Damaged, FormatRefused, RegistryError
from jobmetrics.registry import files, layout
from jobmetrics.registry.cells import PresentCell
from jobmetrics.registry.directory import SAFE_FLAGS, Directory, same_file, slot_name
from jobmetrics.registry.files import close, closing, lock_within, open_noted, try_lock
from jobmetrics.registry.layout import ProcessIdentity
from jobmetrics.registry.slots import NO_SPACE, Slot, SlotPlan, fallocate, is_alive, reserve

_MAX_SLOTS = 100_000
_PASSES = 20
_OPEN = os.O_RDWR | SAFE_FLAGS
_MAKING_WAIT = 0.05  # seconds that the maker of a file waits when another process has its lock

# Errors that every other file would meet too. ENODEV: the file system does not map files.
_OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENODEV})


def acquire(
    plan: SlotPlan,
    owner: ProcessIdentity,
    *,
    cells: int,
    present_cells: Callable[[Slot], Iterable[PresentCell]],
    hint: int = 0,
) -> Slot:
    """Lease a slot: the one at the hint if it is free, else the first free one, else a new file.

    Args:
        plan: The layout of a slot.
        owner: This process.
        cells: How many cells the slot should have; on a full disk it has as many as there is space for.
        present_cells: Returns the present cells of all series. Called once the slot is leased, since its last owner may
            have added some.
        hint: The slot number to try first.

    Raises:
        RegistryError: when no slot could be leased.
        OSError: when the directory cannot be used, or the disk is full.
    """
    slot = _lease(plan, hint, cells) or _search(plan, hint, cells)
    try:
        slot.take_over(owner, present_cells(slot))
    except BaseException:
        slot.release()
        raise
    return slot


def settle(plan: SlotPlan, number: int, present_cells: Callable[[Slot], Iterable[PresentCell]]) -> dict[int, float]:
    """Settle the values that a killed process left in a free slot, and leave the slot free.

    Returns:
        Its live gauges by cell; empty when the slot is held or has another layout.
    """
    slot = _lease(plan, number, 1)
    if not slot:
        return {}
    try:
        slot.settle(present_cells(slot))
    finally:
        slot.release()
    return slot.left_live


def has_values(plan: SlotPlan, number: int, cells: Iterable[int]) -> bool:
    """Whether one of these cells of a slot is not 0; False when the slot cannot be read."""
    try:
        with closing(plan.directory.open(slot_name(number), os.O_RDONLY)) as fd:
            header = layout.SlotHeader.unpack(os.pread(fd, layout.SLOT_HEADER_SIZE, 0))
            return header.identity == plan.identity and any(
                os.pread(fd, layout.CELL, header.cells_offset + cell * layout.CELL).strip(b"\0") for cell in cells
            )
    except (OSError, RegistryError):
        return False


def _lease(plan: SlotPlan, number: int, cells: int) -> Slot | Literal[False] | None:
    """Lock and map one slot with the planned layout. Returns False when it is held, None when its layout differs.

    Raises:
        OSError: when the process or the system has no descriptor or memory left.
    """
    slot = None
    try:
        lock_fd = open_noted(f"{plan.prefix}{number:05d}", _OPEN)
        try:
            if not try_lock(lock_fd):
                return False
            head = os.pread(lock_fd, layout.JOURNAL_OFFSET, 0)
            if _owner_lives(plan, head):
                return False
            slot = _map_locked(plan, number, cells, lock_fd, head)
        finally:
            if slot is None:
                close(lock_fd)
    except OSError as error:
        if error.errno in _OUT_OF_RESOURCES:
            raise
    return slot


def _map_locked(plan: SlotPlan, number: int, cells: int, lock_fd: int, head: bytes) -> Slot | None:
    """Map a slot that this process has locked. head: the slot's bytes before its journal.

    Returns:
        None when its layout is not the planned one, or it has fewer cells.

    Raises:
        OSError: when it cannot be mapped.
    """
    try:
        header = layout.SlotHeader.unpack(head)
    except RegistryError:
        return None
    if header.identity != plan.identity or header.journal < plan.entries:
        return None
    fd = os.open(f"{plan.prefix}{number:05d}", _OPEN)  # a second open: the lock's descriptor is never mapped
    try:
        info = os.fstat(fd)
        if files.noted.get(lock_fd) != (info.st_dev, info.st_ino):
            return None
        if info.st_size < header.cells_offset + cells * layout.CELL:
            return None
        if not stat.S_ISREG(info.st_mode) or not layout.is_slot_size(info.st_size, header.cells_offset):
            return None
        if info.st_blocks * 512 < info.st_size:
            fallocate(fd, 0, info.st_size)  # it has holes, as a copy may: writing there on a full disk is a SIGBUS
        slot = Slot(plan, number, lock_fd, info, header)
        slot.map(fd, info.st_size)
        return slot
    finally:
        os.close(fd)


def _owner_lives(plan: SlotPlan, head: bytes) -> bool:
    """Whether the last owner is another process that still runs without holding the slot.

    After a daemoniser has closed its descriptors, it may still write into the slot through the mapping.

    Args:
        plan: The layout of the slots, with this process's pid namespace.
        head: The slot's bytes before its journal.
    """
    pid, start, namespace = layout.owner_process(head)
    return pid not in (0, os.getpid()) and namespace == plan.namespace and is_alive(pid, start)


def _search(plan: SlotPlan, hint: int, cells: int) -> Slot:
    for number, new in _candidates(plan.directory, hint):
        # A new file is made without a try to lease it: locking another process's new, empty file would keep its maker
        # from leasing it.
        slot: Slot | Literal[False] | None
        if new:
            slot = _make(plan, number, cells)
        else:
            slot = _lease(plan, number, cells)
            if slot is None:
                slot = _lay_out(plan, number, cells)
        if slot:
            return slot
    raise RegistryError(f"{plan.directory.path} has no slot to lease")


def _lay_out(plan: SlotPlan, number: int, cells: int) -> Slot | Literal[False] | None:
    """Give a slot the planned layout and lease it; on a full disk in its present size. Raises OSError."""
    try:
        if not _make_ready(plan, number, plan.size(cells)):
            return None
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        cells = 1
    return _lease(plan, number, cells)


def _make(plan: SlotPlan, number: int, cells: int) -> Slot | None:
    """Make a slot file and lease it. Returns None when another process has made or removed the file of that number.

    A file that cannot be leased is removed, and ends the search: the next one could not be leased either.

    Raises:
        RegistryError: when the file cannot be leased.
        OSError: when it cannot be made or leased, such as on a full disk.
    """
    directory, name = plan.directory, slot_name(number)
    try:
        lock_fd = directory.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    except (FileExistsError, Damaged):
        return None
    slot = None
    try:
        if not lock_within(lock_fd, _MAKING_WAIT):
            return None  # another process has it locked and removes it, because it is empty
        if not same_file(lock_fd, directory.file(name)):
            return None
        try:
            _reserve_most(lock_fd, plan, plan.size(cells))
            head = _header(plan.entries, plan.identity).pack()
            os.pwrite(lock_fd, head, 0)
            slot = _map_locked(plan, number, 1, lock_fd, head)
            if slot is None:
                raise RegistryError(f"{name} was made and cannot be leased")
        finally:
            if slot is None:
                os.unlink(directory.file(name))  # under its lock, so that no other process uses it
    finally:
        if slot is None:
            close(lock_fd)
    return slot


def _reserve_most(fd: int, plan: SlotPlan, size: int) -> None:
    """Reserve space for a new file, halving its cells while the disk is full. Raises OSError."""
    while True:
        try:
            reserve(fd, 0, size)
        except OSError as error:
            if error.errno not in NO_SPACE or size <= plan.size(1):
                raise
        else:
            return
        size = plan.cells_offset + (size - plan.cells_offset) // 2


def _candidates(directory: Directory, hint: int) -> Iterator[tuple[int, bool]]:
    """Yield the slot numbers to try, and whether the file must be made.

    New files come last, after two passes in a row that met the same owners: then all slots were held at the same time.
    So there are never more files than processes that recorded at the same time.
    """
    seen: dict[int, int] | None = None
    for _ in range(_PASSES):
        numbers = directory.slots()
        for number in sorted(numbers, key=lambda number: (number <= hint, number)):
            yield number, False
        owners = _owners(directory, numbers)
        if owners == seen:
            break
        seen = owners
    taken = set(directory.slots())
    for number in range(_MAX_SLOTS):
        if number not in taken:
            yield number, True


def _owners(directory: Directory, numbers: list[int]) -> dict[int, int]:
    owners = {}
    for number in numbers:
        try:
            with closing(directory.open(slot_name(number), os.O_RDONLY)) as fd:
                owners[number] = layout.last_lease(os.pread(fd, layout.JOURNAL_OFFSET, 0).ljust(128, b"\0"))
        except (OSError, Damaged):
            owners[number] = -1
    return owners


def _make_ready(plan: SlotPlan, number: int, size: int) -> bool:
    """Give an existing slot file the planned layout, under its lock. Returns False when it cannot be used.

    A damaged file, or one of another format version, is set aside.

    Raises:
        OSError: when the disk is full.
    """
    directory, name = plan.directory, slot_name(number)
    try:
        fd = directory.open(name, os.O_RDWR)
    except FileNotFoundError:
        return False
    except Damaged:
        directory.set_aside_other(name, wait=0.0)
        return False
    except PermissionError:
        return False  # the file of another group member, made without the group's rights
    with closing(fd):
        if not try_lock(fd) or not same_file(fd, directory.file(name)):
            return False
        head = os.pread(fd, layout.JOURNAL_OFFSET, 0)
        if _owner_lives(plan, head):
            return False
        now = os.fstat(fd).st_size
        if now == 0:  # its maker died, or it was cut: readers need a new file to see that it begins anew
            os.unlink(directory.file(name))
            return False
        try:
            header = layout.SlotHeader.unpack(head)
            if not layout.is_slot_size(now, header.cells_offset):
                raise Damaged(f"{name} has {now} bytes, which no slot has")
        except (Damaged, FormatRefused):
            directory.set_aside(name)
            return False
        if header.journal < plan.entries:
            return False
        if header.identity != plan.identity:
            _reformat(fd, header, plan.identity, now)
        size += header.cells_offset - plan.cells_offset
        if now < size:
            reserve(fd, now, size)
        return True


def _reformat(fd: int, header: layout.SlotHeader, identity: bytes, size: int) -> None:
    """Format a free slot of another generation. Readers ignore it between the first and the last write.

    Its journal stays: a process may still look for the end of its last owner's executions. Only their series go, which
    are cells of another generation.
    """
    os.pwrite(fd, layout.SlotHeader(header.journal, layout.NO_IDENTITY).pack(), 0)
    series = layout.JOURNAL_OFFSET + (layout.JOURNAL_COLUMNS - 1) * header.journal * layout.CELL
    os.pwrite(fd, layout.NO_SERIES.to_bytes(layout.CELL, "little") * header.journal, series)
    zeros = bytes(1 << 16)
    position = header.cells_offset
    while position < size:
        position += os.pwrite(fd, zeros[: size - position], position)
    os.pwrite(fd, _header(header.journal, identity).pack(), 0)


def _header(entries: int, identity: bytes) -> layout.SlotHeader:
    return layout.SlotHeader(entries, identity, os.urandom(8))
