"""Slots: each process records into its own file through a mapping, and holds the file by a kernel lock.

The lock is on a separate open() of the file, which is never mapped.
"""

from __future__ import annotations

import errno
import mmap
import os
import time
from collections.abc import Iterable

from jobmetrics.errors import Damaged
from jobmetrics.families import LIVE_SUM
from jobmetrics.registry import layout
from jobmetrics.registry.cells import NO_CELLS, PresentCell, end_ownership
from jobmetrics.registry.directory import SLOT_PREFIX, Directory, slot_name
from jobmetrics.registry.files import close, closing, mark_ready
from jobmetrics.registry.journal import Journal
from jobmetrics.registry.layout import ProcessIdentity

_MARK = 1 << 40  # an offset that no job reads a file at and every file system allows

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})

# Module-level, not in the runtime: a mapping that was recorded into lives as long as the process. A thread may be about
# to write there, and unmapping closes a descriptor, which in a daemon may by then belong to another file.
_kept_mappings: dict[int, memoryview[int]] = {}


def keep_mapped(mapping: memoryview[int]) -> None:
    """Keep a mapping until the process ends."""
    _kept_mappings[id(mapping)] = mapping


def journal_entries(capacity: int) -> int:
    """Return the number of journal entries for a capacity: twice as many, so that ended jobs stay for a while."""
    return max(layout.MIN_JOURNAL, 1 << (2 * capacity - 1).bit_length())


class SlotPlan:
    """The layout of the slots of one generation, computed once for a process and its forked children."""

    __slots__ = ("cells_offset", "directory", "entries", "identity", "namespace", "prefix")

    def __init__(self, directory: Directory, identity: bytes, capacity: int) -> None:
        self.directory = directory
        self.identity = identity
        self.entries = journal_entries(capacity)
        self.cells_offset = layout.SlotHeader(self.entries, identity).cells_offset
        self.namespace = pid_namespace()
        self.prefix = directory.file(SLOT_PREFIX)

    def size(self, cells: int) -> int:
        """Return the size in bytes of a file for this number of cells, rounded up to a power of two."""
        return self.cells_offset + max(layout.MIN_CELLS, 1 << (cells - 1).bit_length()) * layout.CELL


class Slot:
    """A slot that this process holds. The lease ends with the process, or when `lock_fd` is closed.

    cells: the mapped cells, float64; lock_fd: the descriptor of the lock; left: by cell, the values of sum gauges that
    earlier owners left; left_live: by cell, the live gauges that the last owner had not cleared: it was killed.
    """

    __slots__ = (
        "_bytes",
        "_dev",
        "_entries",
        "_ino",
        "_journal",
        "_lease",
        "_mark",
        "_offset",
        "_plan",
        "cells",
        "left",
        "left_live",
        "lock_fd",
        "number",
    )

    def __init__(
        self, plan: SlotPlan, number: int, lock_fd: int, info: os.stat_result, header: layout.SlotHeader
    ) -> None:
        self._plan = plan
        self.number = number
        self.lock_fd = lock_fd
        self._dev = info.st_dev
        self._ino = info.st_ino
        self._mark = _MARK + (os.getpid() << 12) + (number & 0xFFF)
        os.lseek(lock_fd, self._mark, os.SEEK_SET)
        self._entries = header.journal
        self._offset = header.cells_offset
        self._lease = 0
        self._journal: Journal | None = None
        self._bytes = memoryview(b"")
        self.cells: memoryview[float] = NO_CELLS
        self.left: dict[int, float] = {}
        self.left_live: dict[int, float] = {}

    def is_held(self) -> bool:
        """Whether the lock's descriptor is still open on the slot.

        A program that becomes a daemon may have closed it, and a job may have opened another file under its number. The
        offset of the descriptor, which nothing reads through, is the mark: reading it costs a quarter of fstat.
        """
        try:
            return os.lseek(self.lock_fd, 0, os.SEEK_CUR) == self._mark
        except OSError:
            return False

    def is_roomy(self, capacity: int) -> bool:
        """Whether the journal has enough entries for this number of concurrent jobs."""
        return self._entries >= journal_entries(capacity)

    def release(self) -> None:
        """Close the lock's descriptor. The lease ends, unless a forked child has the descriptor too."""
        close(self.lock_fd)

    def clear(self, cells: Iterable[int]) -> None:
        """Clear live gauges after the lease was lost, unless another process has leased the slot since."""
        if layout.last_lease(self._bytes) == self._lease:
            for cell in cells:
                if cell < len(self.cells):
                    self.cells[cell] = 0.0

    @property
    def journal(self) -> Journal:
        """The journal of this process's executions."""
        if self._journal is None:
            size = self._entries * layout.JOURNAL_WORDS * layout.CELL
            words = self._bytes[layout.JOURNAL_OFFSET : layout.JOURNAL_OFFSET + size]
            self._journal = Journal(words.cast("Q"), words.cast("d"), self._entries, self._lease)
        return self._journal

    def grow(self, cells: int) -> memoryview[float]:
        """Reserve and map space for more cells. The old mapping stays valid and writes to the same file.

        Raises:
            OSError: when the disk is full.
            Damaged: when another file has taken the slot's name.
        """
        name = slot_name(self.number)
        with closing(self._plan.directory.open(name, os.O_RDWR)) as fd:
            info = os.fstat(fd)
            if info.st_ino != self._ino or info.st_dev != self._dev:
                raise Damaged(f"{name} was replaced while it was held")
            size = self._plan.size(cells) - self._plan.cells_offset + self._offset
            if info.st_size < size:
                reserve(fd, info.st_size, size)
            cells_now = self.map(fd, max(size, info.st_size))
        keep_mapped(self._bytes)
        return cells_now

    def map(self, fd: int, size: int) -> memoryview[float]:
        """Map the file through a descriptor that is not the lock's. Raises OSError."""
        self._bytes = memoryview(mmap.mmap(fd, size - size % layout.CELL))
        self.cells = self._bytes[self._offset :].cast("d")
        return self.cells

    def is_unused_from(self, cell: int) -> bool:
        """Whether no owner has recorded into this cell or any after it."""
        rest = self._bytes[self._offset + cell * layout.CELL :]
        return rest == bytes(len(rest))

    def settle(self, present_cells: Iterable[PresentCell]) -> None:
        """End the last owner's ownership: settle its present values. The owner record is incomplete from now on."""
        keep_mapped(self._bytes)
        layout.clear_owner(self._bytes)
        cells = self.cells
        for first, mode in present_cells:
            if first + (mode != LIVE_SUM) < len(cells):  # the last owner had no series beyond its cells
                if mode == LIVE_SUM and cells[first] != 0.0:
                    self.left_live[first] = cells[first]
                end_ownership(mode, cells, first)

    def take_over(self, owner: ProcessIdentity, present_cells: Iterable[PresentCell]) -> None:
        """Become the owner.

        The last owner's present values are settled before the owner record is complete.
        """
        self.settle(present_cells)
        self._lease = layout.last_lease(self._bytes) + 1
        self.describe(owner)
        mark_ready(self.lock_fd)  # until now readers see a free slot, not that of its dead owner

    def describe(self, owner: ProcessIdentity) -> None:
        """Write the owner record."""
        layout.write_owner(self._bytes, self._lease, owner)


def reserve(fd: int, start: int, end: int) -> None:
    """Reserve disk space before it is mapped: a full disk is an error here, not a SIGBUS later.

    Raises:
        OSError: when there is not enough space.
    """
    try:
        if not fallocate(fd, start, end):
            os.ftruncate(fd, end)  # the size first: readers see no size in between
            zeros = bytes(1 << 16)
            for position in range(start, end, len(zeros)):
                os.pwrite(fd, zeros[: end - position], position)
    except OSError:
        os.ftruncate(fd, start)
        raise


def fallocate(fd: int, start: int, end: int) -> bool:
    """Reserve space without changing the content. Returns False where that is not supported.

    Raises:
        OSError: when there is not enough space.
    """
    if not hasattr(os, "posix_fallocate"):
        return False
    try:
        os.posix_fallocate(fd, start, end - start)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
            return False
        raise
    return True


_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_DEAD = (b"", b"Z", b"X")  # /proc/PID/stat does not exist; a zombie; a process that is exiting


def process_start() -> int:
    """Return when this process started, in clock ticks since boot; 0 when unknown."""
    return _state_and_start("self")[1]


def is_alive(pid: int, start: int) -> bool:
    """Whether a process of this pid namespace still runs.

    Args:
        pid: Its pid.
        start: When it started, as `process_start` returns it.

    Returns:
        False also when unknown: another process may have the pid by now.
    """
    if not os.access(f"/proc/{pid}", os.F_OK):  # os.kill would raise, at many pages of a forked child
        return False
    state, started = _state_and_start(str(pid))
    return state not in _DEAD and start > 0 and abs(started - start) <= _TICKS


def _state_and_start(pid: str) -> tuple[bytes, int]:
    """Return the state's letter and the start of a process: fields 3 and 22 of /proc/PID/stat, proc(5).

    The command name before them may contain spaces and brackets.
    """
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            fields = os.read(fd, 2048).rpartition(b")")[2].split()
            return fields[0], int(fields[19])
        finally:
            os.close(fd)
    except (OSError, ValueError, IndexError):
        return b"", 0


def estimated_start() -> int:
    """Return when a process that is being forked starts, from the clock that the kernel uses: exact to one tick."""
    try:
        return int(time.clock_gettime(time.CLOCK_BOOTTIME) * _TICKS)
    except (AttributeError, OSError):
        return 0


def pid_namespace() -> int:
    """Return the inode of this process's pid namespace; 0 when unknown."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0
