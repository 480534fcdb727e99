"""How a process comes by a slot: the one at the hint, else any free one, else a new file."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from jobmetrics.errors import Damaged, FormatRefused, RegistryError
from jobmetrics.registry import layout
from jobmetrics.registry.cells import PresentCell
from jobmetrics.registry.directory import SAFE_FLAGS, Directory, same_file, slot_name
from jobmetrics.registry.files import close, closing, lock_within, open_noted, try_lock
from jobmetrics.registry.layout import ProcessIdentity
from jobmetrics.registry.slots import NO_SPACE, Slot, SlotPlan, fallocate, is_alive, reserve

_MAX_SLOTS = 100_000
_PASSES = 20
_OPEN = os.O_RDWR | SAFE_FLAGS
_MAKING_WAIT = 0.05  # seconds a new file's maker waits for a process that has its lock

# What no other file would get either. ENODEV: the file system maps no files.
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

    owner: this process; present_cells: asked for first cell and mode of each such series once the slot is leased, since
    its last owner may have been the first to record one.

    On a full disk the slot may have fewer cells: as many as there is room for.

    Raises:
        RegistryError: when no slot could be leased.
        OSError: when the directory cannot be used, or there is no space.
    """
    size = plan.size(cells)
    slot = _lease(plan, hint, size) or _search(plan, hint, size)
    try:
        slot.take_over(owner, present_cells(slot))
    except BaseException:
        slot.release()
        raise
    return slot


def _lease(plan: SlotPlan, number: int, size: int) -> Slot | Literal[False] | None:
    """Lock and map one slot that is laid out as planned. False when it is held, None when it is not ready.

    Raises:
        OSError: when the process or the system has no descriptor or memory left for it.
    """
    slot = None
    try:
        lock_fd = open_noted(f"{plan.prefix}{number:05d}", _OPEN)
        try:
            if not try_lock(lock_fd) or _owner_lives(plan, lock_fd):
                return False
            slot = _map_locked(plan, number, size, lock_fd)
        finally:
            if slot is None:
                close(lock_fd)
    except OSError as error:
        if error.errno in _OUT_OF_RESOURCES:
            raise
    return slot


def _map_locked(plan: SlotPlan, number: int, size: int, lock_fd: int) -> Slot | None:
    """Map a slot whose lock this process has; None when it is not laid out as planned. Raises OSError."""
    path = f"{plan.prefix}{number:05d}"
    fd = os.open(path, _OPEN)  # the lock's own open is never mapped
    try:
        info, named = os.fstat(lock_fd), os.fstat(fd)
        if info.st_ino != named.st_ino or info.st_dev != named.st_dev or info.st_size < size:
            return None
        if info.st_blocks * 512 < info.st_size:
            fallocate(fd, 0, info.st_size)  # it has holes, such as a copy may have: a trap on a full disk
        return _mapped(plan, number, lock_fd, fd, info)
    finally:
        os.close(fd)


def _mapped(plan: SlotPlan, number: int, lock_fd: int, fd: int, info: os.stat_result) -> Slot | None:
    """The slot, if what is mapped is one of this generation with a journal that is long enough."""
    if not stat.S_ISREG(info.st_mode):
        return None
    try:
        header = layout.SlotHeader.unpack(os.pread(fd, layout.SLOT_HEADER_SIZE, 0))
    except RegistryError:
        return None
    if header.identity != plan.identity or header.journal < plan.entries:
        return None
    if not layout.is_slot_size(info.st_size, header.cells_offset):
        return None
    slot = Slot(plan, number, lock_fd, info, header)
    slot.map(fd, info.st_size)
    return slot


def _owner_lives(plan: SlotPlan, fd: int) -> bool:
    """Whether the last owner is another process that still runs, though it does not hold the slot any more.

    A daemoniser closed its descriptors: it may go on writing into the slot, through the mapping.
    """
    pid, start, namespace = layout.owner_process(os.pread(fd, layout.OWNER_SIZE, layout.OWNER_OFFSET))
    return pid not in (0, os.getpid()) and namespace == plan.namespace and is_alive(pid, start)


def _search(plan: SlotPlan, hint: int, size: int) -> Slot:
    for number, new in _candidates(plan.directory, hint):
        # A new file is not even tried before it is made: who locks an empty one for a moment keeps its maker from it,
        # and has to clear it away then.
        slot: Slot | Literal[False] | None
        if new:
            slot = _make(plan, number, size)
        else:
            slot = _lease(plan, number, size)
            if slot is None:
                slot = _lay_out(plan, number, size)
        if slot:
            return slot
    raise RegistryError(f"{plan.directory.path} has no slot to lease")


def _lay_out(plan: SlotPlan, number: int, size: int) -> Slot | Literal[False] | None:
    """Lease a slot after laying it out as planned; on a full disk as large as it is. Raises OSError."""
    try:
        if not _make_ready(plan, number, size):
            return None
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        size = plan.size(1)
    return _lease(plan, number, size)


def _make(plan: SlotPlan, number: int, size: int) -> Slot | None:
    """Make a slot file and lease it; None when another process has made one of that number, or clears this one away.

    A file that cannot be leased is removed, and ends the search: the next one would fare no better.

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
            return None  # a slow process looks at it, and removes it because it is empty
        if not same_file(lock_fd, directory.file(name)):
            return None
        try:
            size = _reserve_most(lock_fd, plan, size)
            os.pwrite(lock_fd, _header(plan.entries, plan.identity).pack(), 0)
            slot = _map_locked(plan, number, size, lock_fd)
            if slot is None:
                raise RegistryError(f"{name} was made and cannot be leased")
        finally:
            if slot is None:
                os.unlink(directory.file(name))  # while its lock is held: no other process uses it yet
    finally:
        if slot is None:
            close(lock_fd)
    return slot


def _reserve_most(fd: int, plan: SlotPlan, size: int) -> int:
    """Reserve space for a new file: as much as there is, up to a size. Returns its bytes. Raises OSError."""
    while True:
        try:
            reserve(fd, 0, size)
        except OSError as error:
            if error.errno not in NO_SPACE or size <= plan.size(1):
                raise
        else:
            return size
        size = plan.cells_offset + (size - plan.cells_offset) // 2


def _candidates(directory: Directory, hint: int) -> Iterator[tuple[int, bool]]:
    """Slot numbers to try, and whether the file must be made. New files come last, once two full passes in a row
    met the same owners: then all slots were held at one moment, and the files never outnumber the processes of
    one time."""
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
    """Lay a slot file that exists out as planned, under its lock; False when it cannot be had.

    A damaged file, or one of another format version, is set aside. Raises OSError when there is no space.
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
        return False  # another member's file, made with other rights: theirs to use
    with closing(fd):
        if not try_lock(fd) or not same_file(fd, directory.file(name)) or _owner_lives(plan, fd):
            return False
        now = os.fstat(fd).st_size
        if now == 0:  # its maker died, or it was cut: a reader that knew it must see another file
            os.unlink(directory.file(name))
            return False
        try:
            header = layout.SlotHeader.unpack(os.pread(fd, layout.SLOT_HEADER_SIZE, 0))
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
    """Lay a free slot of another generation out anew: nobody reads it between the first write and the last.

    Its journal stays: somebody may yet ask how its last owner's executions ended.
    """
    os.pwrite(fd, layout.SlotHeader(header.journal, layout.NO_IDENTITY).pack(), 0)
    zeros = bytes(1 << 16)
    position = header.cells_offset
    while position < size:
        position += os.pwrite(fd, zeros[: size - position], position)
    os.pwrite(fd, _header(header.journal, identity).pack(), 0)


def _header(entries: int, identity: bytes) -> layout.SlotHeader:
    return layout.SlotHeader(entries, identity, os.urandom(8))
