"""The journal in a slot: the executions that its owner runs, and those that ended recently.

It ensures that an execution is counted once: a process that reports the death of another one first looks in all
journals for the end of the execution.
"""

# No `from __future__ import annotations`: NamedTuple would compile each string at import.
import os
import struct
import time
from collections import deque
from collections.abc import Iterator
from math import inf, nan
from typing import NamedTuple

from jobmetrics.errors import Damaged, RegistryError
from jobmetrics.registry import layout
from jobmetrics.registry.directory import Directory, slot_name
from jobmetrics.registry.files import closing, is_ready

# Seconds for which an earlier owner's entry is kept where there is room: a job system may report a dead process up to
# ten seconds later.
KEEP = 120.0


class Entry(NamedTuple):
    """One execution in a journal.

    start, end: epoch seconds (end 0.0 while it runs, start NaN when damaged); series: first cell of its jobs_active
    series; running: the slot's present owner runs it; lost: its owner died before its end.
    """

    execution: int
    start: float
    end: float
    series: int
    running: bool
    lost: bool


class Journal:
    """The journal of the slot's owner. The state word is written last, so that a kill leaves no false entry."""

    def __init__(self, words: "memoryview[int]", times: "memoryview[float]", entries: int, lease: int) -> None:
        self._words = words  # unsigned 64-bit
        self._times = times  # the same bytes as float64
        self._entries = entries
        self._running = layout.pack_state(lease, layout.RUNNING)
        self._ended = layout.pack_state(lease, layout.ENDED)
        self._sorted = False
        self._free: deque[int] = deque()  # first in, first out: the entry that ended last is overwritten last
        self._kept: deque[int] = deque()
        self._moved: dict[int, tuple[Journal, int]] = {}  # entries that continue in a new generation's journal

    def begin(self, execution: int, start: float, series: int) -> int | None:
        """Enter an execution that starts. Returns its entry; None when running executions use all entries."""
        try:
            entry = self._free.popleft()
        except IndexError:
            other = self._another()
            if other is None:
                return None
            entry = other
        n, words = self._entries, self._words
        words[entry] = layout.EMPTY
        words[n + entry] = execution
        self._times[2 * n + entry] = start
        self._times[3 * n + entry] = 0.0
        words[4 * n + entry] = series
        words[entry] = self._running
        return entry

    def end(self, entry: int, at: float) -> None:
        """Mark an execution as ended. Call it before its end is recorded in cells."""
        self._times[3 * self._entries + entry] = at
        self._words[entry] = self._ended
        self._free.append(entry)
        if self._moved and entry in self._moved:
            journal, moved = self._moved.pop(entry)
            journal.end(moved, at)

    def running(self) -> list[tuple[int, int, float, int]]:
        """Return entry, execution, start and series of each execution that this owner runs."""
        n, words, times = self._entries, self._words, self._times
        return [
            (entry, words[n + entry], times[2 * n + entry], words[4 * n + entry])
            for entry in range(n)
            if words[entry] == self._running
        ]

    def continue_in(self, journal: "Journal", entry: int, series: int) -> None:
        """Enter a running execution in a new generation's journal; `end` ends both. series: its first cell there."""
        n = self._entries
        moved = journal.begin(self._words[n + entry], self._times[2 * n + entry], series)
        if moved is not None:
            self._moved[entry] = (journal, moved)

    def _another(self) -> int | None:
        """Find an entry to use when none is known to be free; None when there is none."""
        if not self._sorted:
            self._sort_entries()
        for entries in (self._free, self._kept):
            try:
                return entries.popleft()
            except IndexError:  # empty, or another thread took the last one
                continue
        return None

    def _sort_entries(self) -> None:
        """Sort the entries: empty and long-ended ones are free; the others are reused last, the oldest first."""
        n = self._entries
        starts, ends = self._times[2 * n : 3 * n].tolist(), self._times[3 * n : 4 * n].tolist()
        oldest_kept = time.time() - KEEP
        free: list[int] = []
        kept: list[tuple[float, int]] = []
        for entry, word in enumerate(self._words[:n].tolist()):
            if layout.unpack_state(word)[1] == layout.RUNNING:  # an earlier owner died: its death will be reported
                kept.append((starts[entry], entry))
            elif ends[entry] > oldest_kept:
                kept.append((ends[entry], entry))
            else:
                free.append(entry)
        self._kept = deque(entry for _, entry in sorted(kept))
        self._free = deque(free)
        self._sorted = True


def entries(data: bytes | memoryview, header: layout.SlotHeader, lease: int | None) -> Iterator[Entry]:
    """Yield the entries in a slot's bytes. lease: of the slot's living owner, None for a free slot."""
    n = header.journal
    words = struct.unpack_from(f"<{n}Q", data, layout.JOURNAL_OFFSET)
    if not any(words):
        return
    column = n * layout.CELL
    hashes = struct.unpack_from(f"<{n}Q", data, layout.JOURNAL_OFFSET + column)
    starts = struct.unpack_from(f"<{n}d", data, layout.JOURNAL_OFFSET + 2 * column)
    ends = struct.unpack_from(f"<{n}d", data, layout.JOURNAL_OFFSET + 3 * column)
    series = struct.unpack_from(f"<{n}Q", data, layout.JOURNAL_OFFSET + 4 * column)
    for i, word in enumerate(words):
        writer, code = layout.unpack_state(word)
        if code not in (layout.RUNNING, layout.ENDED):
            continue
        running = code == layout.RUNNING and writer == lease
        start = starts[i] if 0.0 <= starts[i] < inf else nan  # not a possible start: damage
        yield Entry(hashes[i], start, ends[i], series[i], running, code == layout.RUNNING and not running)


def owner_and_running(
    data: bytes | memoryview, header: layout.SlotHeader
) -> tuple[layout.ProcessIdentity | None, tuple[Entry, ...]]:
    """Return the owner of a held slot and its running executions; None and () without a complete owner record."""
    try:
        lease, owner = layout.unpack_owner(bytes(data[layout.OWNER_OFFSET : layout.OWNER_OFFSET + layout.OWNER_SIZE]))
    except Damaged:
        return None, ()
    return owner, tuple(entry for entry in entries(data, header, lease) if entry.running)


def unended(found: list[Entry]) -> list[Entry]:
    """Return the entries without an end among the entries of one id.

    Each start is a separate execution, because a rerun has the same id.
    """
    ended = {entry.start for entry in found if not entry.running and not entry.lost}
    return [entry for entry in found if (entry.running or entry.lost) and entry.start not in ended]


def find(directory: Directory, execution: int) -> list[Entry]:
    """Return the entries of an execution in all slots, the latest start first.

    Slots that cannot be read are skipped.

    Raises:
        OSError: when the directory cannot be listed.
    """
    found: list[Entry] = []
    for number in directory.slots():
        try:
            with closing(directory.open(slot_name(number), os.O_RDONLY)) as fd:
                live = is_ready(fd)
                head = os.pread(fd, layout.PAGE, 0)
                header = layout.SlotHeader.unpack(head)
                if header.cells_offset > len(head):
                    head = os.pread(fd, header.cells_offset, 0)
                lease = layout.lease_of(head) if live else None
                found += [entry for entry in entries(head, header, lease) if entry.execution == execution]
        except (OSError, RegistryError, struct.error):
            continue
    return sorted(found, key=lambda entry: entry.start, reverse=True)
