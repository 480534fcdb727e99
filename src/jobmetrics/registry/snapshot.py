"""The read side: all slots of a directory, merged into one value a series.

Readers only read. Rows are copied with pread, never mapped. The last good row of a slot stands in for it while it
cannot be read.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from jobmetrics.errors import RegistryError
from jobmetrics.families import Family
from jobmetrics.registry import layout
from jobmetrics.registry.descriptors import close
from jobmetrics.registry.directory import INDEX_NAME, Directory, same_file, slot_name
from jobmetrics.registry.index import SeriesIndex, read_header
from jobmetrics.registry.samples import Active, Sample
from jobmetrics.registry.slot_reading import Columns, Reading, Scratch, SlotFile, without_copies
from jobmetrics.registry.staleness import Staleness
from jobmetrics.registry.totals import Totals

__all__ = ["Active", "Sample", "Snapshot", "SnapshotReader"]

logger = logging.getLogger("jobmetrics")

LOG_INTERVAL = 60.0  # seconds between two lines about the same file
KEPT_OPEN = 256  # descriptors of slots kept open at most; any further slot is opened for each reading


@dataclass(frozen=True)
class Snapshot:
    """One reading of a registry directory. series: of the newest declarations, a histogram as one; ahead: series that
    are left out since their timestamps lie in the future."""

    taken_at: float
    families: list[tuple[Family, list[Sample]]] = field(default_factory=list)
    active: list[Active] = field(default_factory=list)
    owners: list[layout.Owner] = field(default_factory=list)
    live: int = 0
    free: int = 0
    damaged: int = 0
    series: int = 0
    limit: int = 0
    superseded: int = 0
    hidden: int = 0
    ahead: int = 0


class SnapshotReader:
    """Reads one directory again and again. Not for several threads at once; `close` when done.

    directory: the registry directory, or its path. clock: epoch seconds. hide_after: seconds without a change
    after which a series is not shown until it changes again, None for never; no count is lost by it.
    """

    def __init__(
        self,
        directory: Directory | str,
        clock: Callable[[], float] = time.time,
        hide_after: float | None = None,
    ) -> None:
        self._directory = Directory(directory) if isinstance(directory, str) else directory
        self._clock = clock
        self._staleness = None if hide_after is None else Staleness(hide_after)
        self._index: SeriesIndex | None = None
        self._index_fd: int | None = None
        self._slots: dict[int, SlotFile] = {}
        self._columns: Columns | None = None
        self._scratch = Scratch()
        self._kept_open = _kept_open()
        self._logged_at: dict[str, float] = {}

    def close(self) -> None:
        """Close all descriptors; a later `read` opens them again."""
        self._forget_slots()
        if self._index_fd is not None:
            close(self._index_fd)
        self._index_fd = self._index = None

    def read(self) -> Snapshot:
        """The directory as it is now.

        Raises:
            RegistryError: when there is no directory, it is not safe to read, or its index is damaged.
            OSError: when it cannot be read.
        """
        self._directory.check()
        index = self._current_index()
        taken_at = self._clock()
        if index is None:
            return Snapshot(taken_at)
        return self._merge(index, taken_at)

    # ---------------------------------------------------------------- index

    def _current_index(self) -> SeriesIndex | None:
        """The index, caught up; None while no worker has made one."""
        path = self._directory.file(INDEX_NAME)
        if self._index_fd is not None and not same_file(self._index_fd, path):
            self.close()
        if self._index_fd is None:
            try:
                self._index_fd = self._directory.open(INDEX_NAME, os.O_RDONLY)
            except FileNotFoundError:
                return None
        if os.fstat(self._index_fd).st_size == 0:
            return None  # being made
        header, committed = read_header(self._index_fd)
        if self._index is None or self._index.identity != header.identity:
            self._forget_slots()
            self._index = SeriesIndex(header)
        index = self._index
        if committed > index.fed_to:
            end = min(committed, os.fstat(self._index_fd).st_size)  # no more memory than the file has bytes
            index.feed(os.pread(self._index_fd, max(0, end - index.fed_to), index.fed_to), committed)
        if index.damaged:
            self._log(INDEX_NAME, "jobmetrics: %d bytes of the index are damaged, the rest is served", index.damaged)
        return index

    def _forget_slots(self) -> None:
        for slot in self._slots.values():
            slot.close()
        self._slots.clear()
        self._columns = None
        if self._staleness is not None:
            self._staleness.forget()

    # ---------------------------------------------------------------- slots

    def _merge(self, index: SeriesIndex, taken_at: float) -> Snapshot:
        if self._columns is None or self._columns.count != index.next_cell:
            self._columns = Columns(index)
        totals = Totals(index, taken_at)
        inodes = self._directory.slot_inodes()
        numbers = sorted({*inodes, *self._slots})
        found = [self._read_slot(number, inodes.get(number), index, self._columns) for number in numbers]
        rows = without_copies(found, [self._slots[number].serial for number in numbers])
        for reading, row in zip(found, rows, strict=True):
            totals.add(reading, row)
        self._scratch.shrink()
        hidden = frozenset[int]() if self._staleness is None else self._staleness.look(index, totals.cells, taken_at)
        return Snapshot(
            taken_at,
            totals.families(hidden),
            totals.active(),
            totals.owners,
            **totals.slots,
            series=index.current,
            limit=index.limit,
            hidden=len(hidden),
            superseded=totals.superseded,
            ahead=totals.ahead,
        )

    def _read_slot(self, number: int, inode: int | None, index: SeriesIndex, columns: Columns) -> Reading:
        slot = self._slots.get(number)
        if slot is None:
            slot = self._slots[number] = SlotFile(
                self._directory, number, self._scratch, keep=len(self._slots) < self._kept_open
            )
        if inode is None:
            return slot.last()
        try:
            reading = slot.read(index, columns, inode)
        except FileNotFoundError:
            return slot.last()
        except (OSError, RegistryError) as error:
            reading = slot.last(f"is served as it was last: {error}")
        if reading.problem:
            self._log(slot_name(number), "jobmetrics: %s %s", slot_name(number), reading.problem)
        return reading

    def _log(self, name: str, message: str, *arguments: object) -> None:
        now = self._clock()
        if now - self._logged_at.get(name, -LOG_INTERVAL) >= LOG_INTERVAL:
            self._logged_at[name] = now
            logger.warning(message, *arguments)


def _kept_open() -> int:
    """Descriptors to keep: no more than a quarter of what the process may have."""
    try:
        import resource  # not on Windows
    except ImportError:
        return KEPT_OPEN // 4
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return KEPT_OPEN if soft == resource.RLIM_INFINITY else min(KEPT_OPEN, soft // 4)
