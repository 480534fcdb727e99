"""Slots: one file a process, held by a kernel lock on an open() of its own, recorded into through a mapping."""

from __future__ import annotations

import errno
import functools
import mmap
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from jobmetrics.errors import Damaged, FormatRefused, RegistryError
from jobmetrics.registry import layout
from jobmetrics.registry.directory import Directory, closing, same_file, slot_name
from jobmetrics.registry.journal import Journal
from jobmetrics.registry.locks import try_lock
from jobmetrics.registry.memory import NO_CELLS

MIN_CELLS = 512  # one page, so that a few more series need no growth
_MAX_SLOTS = 100_000
_PASSES = 20


@dataclass(frozen=True, slots=True)
class Holder:
    """What a slot's owner record says of its process. capacity: jobs it can run at once."""

    system: str = ""
    role: str = ""
    capacity: int = 1


def process_start() -> int:
    """When this process started, in clock ticks since boot; 0 where the system does not tell.

    Source: field 22 of /proc/PID/stat, proc(5). The command name before it may hold spaces and brackets.
    """
    try:
        with open("/proc/self/stat", "rb", buffering=0) as file:
            return int(file.read(2048).rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


@functools.cache
def pid_namespace() -> int:
    """The inode of this process's pid namespace; 0 where there is none. Children mostly share it."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


class Slot:
    """A slot this process holds. cells: float64, as many as are mapped; journal: of its running executions.

    The lease ends with the process, or when the descriptor of the lock is closed.
    """

    def __init__(self, directory: Directory, number: int, lock_fd: int, header: layout.SlotHeader) -> None:
        self._directory = directory
        self.number = number
        self._lock_fd = lock_fd
        info = os.fstat(lock_fd)
        self._file = (info.st_dev, info.st_ino)
        self._header = header
        self.cells: memoryview[float] = NO_CELLS
        self.journal: Journal

    def is_held(self) -> bool:
        """Whether the lock's descriptor is still ours: a daemoniser may have closed it."""
        try:
            info = os.fstat(self._lock_fd)
        except OSError:
            return False
        return (info.st_dev, info.st_ino) == self._file

    def forget(self) -> None:
        """In a forked child: let go of the parent's lease without ending it, and of its journal."""
        if self.is_held():
            os.close(self._lock_fd)
        self.journal.detach()

    def release(self) -> None:
        """End a lease that came to nothing: no other process shares it yet."""
        os.close(self._lock_fd)

    def map(self, cells: int) -> memoryview[float]:
        """Reserve the space for so many cells and map it; the whole file is mapped, journal included.

        Raises:
            OSError: when there is no space, or the file is not ours any more.
        """
        wanted = max(MIN_CELLS, 1 << (cells - 1).bit_length())
        size = self._header.cells_offset + wanted * layout.CELL
        with closing(self._directory.open(slot_name(self.number), os.O_RDWR)) as fd:
            info = os.fstat(fd)
            if (info.st_dev, info.st_ino) != self._file:
                raise Damaged(f"{slot_name(self.number)} was replaced while it was held")
            if info.st_size < size:
                reserve(fd, info.st_size, size)
            else:
                size = info.st_size - (info.st_size - self._header.cells_offset) % layout.CELL
            mapping = mmap.mmap(fd, size)
        self._bytes = memoryview(mapping)
        self.cells = self._bytes[self._header.cells_offset :].cast("d")
        return self.cells

    def take_over(self, holder: Holder, live_cells: Iterable[tuple[int, int]]) -> None:
        """Become the owner: the last owner's live cells are zeroed before the owner record is complete."""
        head = bytes(self._bytes[: layout.JOURNAL_OFFSET])
        self._bytes[layout.OWNER_CRC_OFFSET : layout.OWNER_CRC_OFFSET + 4] = b"\0\0\0\0"
        cells, count = self.cells, len(self.cells)
        for first, width in live_cells:
            for i in range(first, min(first + width, count)):
                cells[i] = 0.0
        lease = layout.last_lease(head) + 1
        owner = layout.Owner(
            lease, os.getpid(), process_start(), pid_namespace(), holder.system, holder.role, holder.capacity
        )
        self._bytes[layout.OWNER_OFFSET : layout.OWNER_OFFSET + layout.OWNER_SIZE] = owner.pack()
        journal = self._bytes[layout.JOURNAL_OFFSET :][: self._header.journal * layout.JOURNAL_WORDS * layout.CELL]
        self.journal = Journal(journal.cast("Q"), journal.cast("d"), self._header.journal, lease)

    def describe(self, holder: Holder) -> None:
        """Change what the owner record says; its lease goes on."""
        head = bytes(self._bytes[: layout.JOURNAL_OFFSET])
        owner = layout.Owner(
            layout.last_lease(head), os.getpid(), process_start(), pid_namespace(),
            holder.system, holder.role, holder.capacity,
        )  # fmt: skip
        self._bytes[layout.OWNER_OFFSET : layout.OWNER_OFFSET + layout.OWNER_SIZE] = owner.pack()


def reserve(fd: int, start: int, end: int) -> None:
    """Reserve disk space before it is mapped: a full disk is an error here, never a SIGBUS later.

    Raises:
        OSError: when there is not enough space.
    """
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, start, end - start)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
        else:
            return
    zeros = bytes(min(end - start, 1 << 16))
    while start < end:
        start += os.pwrite(fd, zeros[: end - start], start)


def acquire(
    directory: Directory,
    identity: bytes,
    holder: Holder,
    *,
    cells: int,
    live_cells: Iterable[tuple[int, int]],
    hint: int = 0,
) -> Slot:
    """Lease a slot: the one at the hint if it is free, else the first free one, else a new file.

    Raises:
        RegistryError: when no slot could be leased.
        OSError: when the directory cannot be used, or there is no space.
    """
    entries = _journal_entries(holder)
    for number in _candidates(directory, hint):
        slot = _try_slot(directory, number, identity, entries)
        if slot is not None:
            try:
                slot.map(cells)
                slot.take_over(holder, live_cells)
            except BaseException:
                slot.release()
                raise
            return slot
    raise RegistryError(f"{directory.path} has no slot to lease")


def _journal_entries(holder: Holder) -> int:
    return max(layout.MIN_JOURNAL, 1 << (2 * holder.capacity - 1).bit_length())


def _candidates(directory: Directory, hint: int) -> Iterator[int]:
    """Slot numbers to try. New files come last, once two full passes in a row met the same living owners:
    then all slots were held at one moment, and the files never outnumber the processes of one time."""
    yield hint
    seen: dict[int, int] | None = None
    for _ in range(_PASSES):
        numbers = directory.slots()
        yield from sorted(numbers, key=lambda number: (number <= hint, number))
        owners = _owners(directory, numbers)
        if owners == seen:
            break
        seen = owners
    taken = set(directory.slots())
    yield from (-number - 1 for number in range(_MAX_SLOTS) if number not in taken)


def _owners(directory: Directory, numbers: list[int]) -> dict[int, int]:
    owners = {}
    for number in numbers:
        try:
            with closing(directory.open(slot_name(number), os.O_RDONLY)) as fd:
                owners[number] = layout.last_lease(os.pread(fd, layout.JOURNAL_OFFSET, 0).ljust(128, b"\0"))
        except (OSError, Damaged):
            owners[number] = -1
    return owners


def _try_slot(directory: Directory, number: int, identity: bytes, entries: int) -> Slot | None:
    """Lock one slot file and make it one of this generation; None when it cannot be had.

    A negative number -n-1 makes the file n, which must not exist.
    """
    new = number < 0
    number = -number - 1 if new else number
    name = slot_name(number)
    try:
        fd = directory.open(name, os.O_RDWR | (os.O_CREAT | os.O_EXCL if new else 0))
    except (FileNotFoundError, FileExistsError):
        return None
    except Damaged:
        directory.set_aside(name)
        return None
    except PermissionError:
        return None  # another member's file, made with other rights: theirs to use
    try:
        if try_lock(fd) and same_file(fd, directory.file(name)):
            header = _ready_header(directory, name, fd, identity, entries)
            if header is not None:
                return Slot(directory, number, fd, header)
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def _ready_header(directory: Directory, name: str, fd: int, identity: bytes, entries: int) -> layout.SlotHeader | None:
    """The header of a locked slot, of this generation; None when the file was set aside or is too small."""
    head = os.pread(fd, layout.SLOT_HEADER_SIZE, 0)
    size = os.fstat(fd).st_size
    if size == 0:
        header = layout.SlotHeader(entries, identity)
        reserve(fd, 0, header.cells_offset + MIN_CELLS * layout.CELL)
        os.pwrite(fd, header.pack(), 0)
        return header
    try:
        header = layout.SlotHeader.unpack(head)
        if size < header.cells_offset:
            raise Damaged(f"{name} is shorter than its journal")
    except (Damaged, FormatRefused):
        directory.set_aside(name)
        return None
    if header.journal < entries:
        return None
    if header.identity != identity:
        header = _reformat(fd, header, identity, size)
    return header


def _reformat(fd: int, header: layout.SlotHeader, identity: bytes, size: int) -> layout.SlotHeader:
    """Lay a free slot of another generation out anew: nobody reads it between the first write and the last."""
    os.pwrite(fd, layout.SlotHeader(header.journal, layout.NO_IDENTITY).pack(), 0)
    zeros = bytes(1 << 16)
    position = header.cells_offset
    while position < size:
        position += os.pwrite(fd, zeros[: size - position], position)
    header = layout.SlotHeader(header.journal, identity)
    os.pwrite(fd, header.pack(), 0)
    return header
